"""Measuring and stressing the real programs; nothing in the product imports it."""

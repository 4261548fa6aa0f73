"""The tests of this folder run on both kernels: a difference is a fault of one, or of the contract."""

from __future__ import annotations

import importlib
from typing import Any

import pytest

MODULES = {"native": "migrate.kernel._native", "reference": "migrate.kernel.reference"}


@pytest.fixture(scope="session", params=MODULES)
def kernel(request: pytest.FixtureRequest) -> Any:
    """The module under test: the kernel in C, then its Python twin."""
    return importlib.import_module(MODULES[request.param])

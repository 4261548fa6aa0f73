"""The protocol as machines: no sockets, no clock, no threads."""

"""Live migration of guest RAM over TCP, in QEMU's RAM record framing."""

__version__ = "0.1.0"

"""Which inspector a stream needs, told from its first bytes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from migrate.errors import RefusedError, StreamError, UsageError
from migrate.protocol import batch, qemu_wire
from migrate.protocol.frames import PREFACE_CONTROL, PREFACE_LANE
from migrate.protocol.inspect_lane import LaneInspector
from migrate.protocol.inspect_qemu import QemuInspector
from migrate.protocol.record_listing import PageRecord


class Inspector(Protocol):
    """Reads a stream in pieces."""

    def feed(self, data: bytes | memoryview) -> None:
        """Take the next bytes. Raises StreamError."""

    def close(self) -> None:
        """The input ended. Raises StreamError."""

    def summary(self) -> dict[str, object]:
        """What was seen until now."""


def open_inspector(head: bytes, page_size: int, on_record: Callable[[PageRecord], None] | None) -> Inspector:
    """The inspector for a stream that begins so.

    Raises:
        StreamError: rule "magic": no stream at all.
        RefusedError: another channel of a migration, which means nothing alone.
        UsageError: a page size that cannot be.
    """
    if not (1024 <= page_size <= 65536 and page_size.bit_count() == 1):
        raise UsageError(f"--page-size {page_size}: a power of two from 1024 to 65536")
    if head.startswith(qemu_wire.MAGIC):
        return QemuInspector(on_record)
    if head.startswith((PREFACE_LANE, batch.MAGIC)):
        return LaneInspector(page_size, on_record)
    if head.startswith(qemu_wire.MULTIFD_MAGIC):
        raise RefusedError("this is a page channel of multifd; only main channels are read here")
    if head.startswith(PREFACE_CONTROL):
        raise RefusedError("this is a control connection; lanes and QEMU's main channels are read here")
    raise StreamError("magic", 0, "this is no migration stream that is known here")

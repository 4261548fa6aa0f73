"""Loops over bytes: one interface, two implementations, chosen once at import.

`MIGRATE_KERNEL` unset or `native`: the C kernel. `MIGRATE_KERNEL=reference`: its pure-Python twin, the
specification in code, hundreds of times slower. There is no silent fallback: a native kernel that cannot be
loaded is an error.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from migrate.errors import UsageError
from migrate.kernel.results import (
    STAGE_BULK,
    STAGE_LAST,
    STAGE_ROUND,
    ApplyResult,
    FillResult,
    RamBlock,
    WalkResult,
)

_CHOICE = os.environ.get("MIGRATE_KERNEL", "native")

if TYPE_CHECKING or _CHOICE == "native":
    try:
        import migrate.kernel._native as _kernel
    except ImportError as error:
        raise UsageError(
            f"the native kernel cannot be loaded: {error}",
            hint="build it with `python -m pip install -e .` (needs a C compiler and Python.h), "
            "or set MIGRATE_KERNEL=reference for the slow pure-Python kernel",
        ) from error
elif _CHOICE == "reference":
    import migrate.kernel.reference as _kernel
else:
    raise UsageError(
        f"MIGRATE_KERNEL={_CHOICE} names no kernel",
        hint="unset it, or set it to native or reference",
    )

IMPLEMENTATION = _kernel.IMPLEMENTATION
Keys = _kernel.Keys
PageCache = _kernel.PageCache
Ram = _kernel.Ram
apply = _kernel.apply
bitmap_bytes = _kernel.bitmap_bytes
bitmap_count = _kernel.bitmap_count
bitmap_next = _kernel.bitmap_next
bitmap_or = _kernel.bitmap_or
bitmap_remove = _kernel.bitmap_remove
bitmap_select = _kernel.bitmap_select
bitmap_set_pages = _kernel.bitmap_set_pages
bitmap_set_range = _kernel.bitmap_set_range
crc32c = _kernel.crc32c
data_pages = _kernel.data_pages
digest_range = _kernel.digest_range
fill = _kernel.fill
is_zero = _kernel.is_zero
land = _kernel.land
max_records = _kernel.max_records
present_pages = _kernel.present_pages
probe_write_tracking = _kernel.probe_write_tracking
root = _kernel.root
scan = _kernel.scan
scan_pages = _kernel.scan_pages
set_digests = _kernel.set_digests
take_log = _kernel.take_log
track_writes = _kernel.track_writes
written_pages = _kernel.written_pages
walk = _kernel.walk
xbzrle_decode = _kernel.xbzrle_decode
xbzrle_encode = _kernel.xbzrle_encode
zero_range = _kernel.zero_range

__all__ = [
    "IMPLEMENTATION",
    "STAGE_BULK",
    "STAGE_LAST",
    "STAGE_ROUND",
    "ApplyResult",
    "FillResult",
    "Keys",
    "PageCache",
    "Ram",
    "RamBlock",
    "WalkResult",
    "apply",
    "bitmap_bytes",
    "bitmap_count",
    "bitmap_next",
    "bitmap_or",
    "bitmap_remove",
    "bitmap_select",
    "bitmap_set_pages",
    "bitmap_set_range",
    "crc32c",
    "data_pages",
    "digest_range",
    "fill",
    "is_zero",
    "land",
    "max_records",
    "present_pages",
    "probe_write_tracking",
    "root",
    "scan",
    "scan_pages",
    "set_digests",
    "take_log",
    "track_writes",
    "walk",
    "written_pages",
    "xbzrle_decode",
    "xbzrle_encode",
    "zero_range",
]

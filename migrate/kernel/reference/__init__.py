"""The kernel in pure Python: specification and oracle of the C one, and its stand-in where asked for by name.

Same names, arguments, results and errors as `migrate.kernel._native`, whose `.pyi` is the contract of both.
Written to be read, one page at a time; a few hundred times slower.
"""

from migrate.kernel.reference.apply import apply
from migrate.kernel.reference.bitmap import (
    bitmap_bytes,
    bitmap_count,
    bitmap_next,
    bitmap_or,
    bitmap_remove,
    bitmap_select,
    bitmap_set_pages,
    bitmap_set_range,
)
from migrate.kernel.reference.cache import PageCache
from migrate.kernel.reference.digest import Keys, crc32c, is_zero
from migrate.kernel.reference.fill import fill
from migrate.kernel.reference.ram import Ram
from migrate.kernel.reference.scan import (
    data_pages,
    digest_range,
    root,
    scan,
    scan_pages,
    set_digests,
    zero_range,
)
from migrate.kernel.reference.tracking import (
    present_pages,
    probe_write_tracking,
    take_log,
    track_writes,
    written_pages,
)
from migrate.kernel.reference.walk import land, walk
from migrate.kernel.reference.wire import max_records
from migrate.kernel.reference.xbzrle import xbzrle_decode, xbzrle_encode
from migrate.kernel.results import RamBlock

IMPLEMENTATION = "reference"

__all__ = [
    "IMPLEMENTATION",
    "Keys",
    "PageCache",
    "Ram",
    "RamBlock",
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

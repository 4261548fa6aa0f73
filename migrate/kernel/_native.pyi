"""The contract of the kernel: what `_native` (C) and `reference` (pure Python) both provide.

Pages are named by their number in *page space*: one row of page numbers over all RAM blocks. Each block
starts at a multiple of `stripe_pages`, so stripe `k` is page // stripe_pages and belongs to lane k % lanes;
numbers between a block's last page and the next block's first are gaps and never used (bits set there are
ignored by `fill` and stay).

Bitmaps are `bytearray`s, bit `p & 7` of byte `p >> 3` (the layout of u64 little-endian words), at least
`bitmap_bytes(total_pages)` long, a multiple of 8 bytes. Digest arrays are `bytearray`s of 16 bytes a page:
two u64, little-endian, low half first. 128-bit numbers are Python ints; sums are modulo 2**128.

Arguments that cannot be right raise ValueError (sizes, ranges, stages, a cache or Ram of another page size
than the keys') or TypeError before anything is done: round is 0…2**32-1, stage 1…3, 0 <= lane < lanes, page
numbers below 2**48, bitmaps a multiple of 8 bytes, two bitmaps of one call equally long, ranges inside their
array or block, count may be 0.

Nothing here keeps a reference to a buffer beyond the call. All batch calls drop the GIL; the caller sees to
it that nobody changes the same bits, digests or cache meanwhile (a lane owns its stripes).
"""

from collections.abc import Sequence
from mmap import mmap

from migrate.kernel.results import ApplyResult, FillResult, RamBlock, WalkResult

IMPLEMENTATION: str  # "native" or "reference"

def bitmap_bytes(pages: int) -> int:
    """Length in bytes of a bitmap of that many pages (a multiple of 8)."""

def max_records(page_size: int) -> int:
    """Most page records a batch may hold: min(2048, 8 MiB // page_size). ValueError: no legal page size."""

class Keys:
    """Digest keys of one migration, expanded from its 32-byte seed.

    Page digest: NH without carries (CLNH, Lemire and Kaser, "Faster 64-bit universal hashing using carry-less
    multiplications", 2016) over 64-bit little-endian words: the exclusive or of the polynomial products
    `(m[2i] ^ k[2i]) * (m[2i+1] ^ k[2i+1])` over GF(2), 127 bits each; k is
    `shake_256(b"migrate page key" + seed)`, page_size bytes. Two different pages collide with probability at
    most 2**-64 for who does not know the key.
    Term of a page: `(lo + a) * (hi + b)` modulo 2**128 with a, b = SipHash-2-4 of 2*page and 2*page + 1
    (8 bytes little-endian) under `shake_256(b"migrate root key" + seed)`, 16 bytes; additions modulo 2**64.
    The sum of the terms of all pages is the root: NH (UMAC, VMAC) with 64-bit words, over the digests.
    """

    def __init__(self, seed: bytes, page_size: int) -> None:
        """Raises ValueError: seed not 32 bytes; page_size not a power of two in 1024…65536."""
    @property
    def page_size(self) -> int: ...
    @property
    def zero_digest(self) -> int:
        """Digest of a page of zeros."""
    def page_digest(self, page: bytes | bytearray | memoryview) -> int: ...
    def term(self, page: int, digest: int) -> int: ...

class Ram:
    """The blocks of a migration: names, open descriptors, places in page space."""

    def __init__(self, page_size: int, stripe_pages: int, blocks: Sequence[RamBlock]) -> None:
        """Raises ValueError: bad name (not 1…255 bytes, or twice), overlap, first_page off a stripe,
        stripe_pages not a positive multiple of 64, pages < 1, fd < 0, page_size not a power of two in
        1024…65536. Any order of blocks, and none at all, is legal."""
    @property
    def total_pages(self) -> int:
        """End of page space (gaps included), first_page + pages of the last block, 0 without blocks: the
        length that bitmaps and digest arrays need."""

class PageCache:
    """The page cache that both ends hold; only what is in the stream changes it.

    Index entry 32 bytes a slot (page, age, flags, 128-bit term) beside page_size bytes of data; all of it
    within `budget`. Rule "default": `slots = budget // (page_size + 32)`, 8 ways; the number of sets is
    the largest prime not above slots // 8, so that every stride uses all sets (8 to 15 slots: one set; fewer:
    one set of that many ways); set = page % sets; ways of a set are looked at in ascending order. Rule
    "qemu": direct-mapped, slots = largest power of two that fits, slot = page % slots. Zero slots is allowed:
    a cache that never holds anything.
    `slots` is what is really there (default: sets * ways), `bytes_allocated` is slots * (page_size + 32).

    `put`, rule "default": a held page gets the new content and age = round, in every stage. A page not held
    is stored: stage BULK: only in an empty way, with age 0; ROUND: in the first empty way, else in place of
    the entry with the smallest age (first of equals) if that age is 0 or age + lifetime <= round; LAST:
    never. With `zero=True` a page not held is never stored.
    The lifetime is 2 or 16 rounds, whichever loses fewer pages in this cache (set duelling, Qureshi and
    others, ISCA 2007): long pays when a guest goes round in more memory than fits, short when it moves on.
    Sets with set % 16 == 0 always use 2, those with set % 16 == 8 always 16. Each put that finds no empty way
    there (stage ROUND, page not held, not zero) changes `bias`, 0 at first and after `clear`: by -1 in the
    former, not below -1024, by +1 in the latter, not above 1024. All other sets use 16 while bias < 0, else
    2. With 8 sets or fewer it is always 2.
    Rule "qemu" (qemu-ram-stream.md 3.6-3.8): stage BULK and LAST: nothing changes; ROUND: as its insert,
    zero pages too: a held page is replaced with age = round; else refused if the slot has an entry of another
    page with age + 2 > round.
    """

    def __init__(self, keys: Keys, budget: int, rule: str) -> None:
        """Raises ValueError: rule not "default" or "qemu"; MemoryError."""
    @property
    def slots(self) -> int: ...
    @property
    def entries(self) -> int: ...
    @property
    def bytes_allocated(self) -> int: ...
    @property
    def rule(self) -> str: ...
    @property
    def digest(self) -> int:
        """sum(term * (2 * age + 1)) over the entries, modulo 2**128, kept incrementally."""
    def get(self, page: int) -> bytes | None:
        """Content held for the page; changes nothing."""
    def put(self, page: int, content: bytes, round: int, stage: int, *, zero: bool = False) -> bool:
        """Apply the rule to a page that is in the stream. True if the page is held afterwards *with this
        content* (so also True where the rule wrote nothing but the same content is held already)."""
    def touch(self, page: int, round: int) -> bool:
        """Set the age of a held page to round, under either rule (rule "qemu": the record of length 0, in
        stage LAST too: only contents are frozen there). False if not held."""
    def commit(self, most: int) -> None:
        """Have the system put memory behind the first `most` bytes of content now, not page by page while a
        batch waits. Raises MemoryError: it has none."""
    def clear(self) -> None: ...
    def take_over(self, other: PageCache) -> None:
        """Hold what `other` holds, in this cache's own slots: how a cache gets another size. `other` stays.

        Depends on nothing but the two caches, so both ends of a lane come to the same. What was held is
        forgotten, `bias` is taken along. The entries come in the order of their slots: into the first empty
        slot of their set (rule "qemu": their one slot), else in place of the entry with the smallest age
        (first of equals) if that is smaller than theirs, else they are dropped. The memory of both is in use
        until `other` is gone. Raises ValueError: other keys (the object, not its seed) or another rule.
        """
    def items(self) -> list[tuple[int, int, bytes]]:
        """(page, age, content) of every entry in slot order."""

def fill(
    ram: Ram,
    keys: Keys,
    digests: bytearray,
    cache: PageCache | None,
    pending: bytearray,
    owed: bytearray,
    start: int,
    out: bytearray | memoryview,
    limit: int,
    sent: bytearray,
    round: int,
    stage: int,
) -> FillResult:
    """Source: turn pages of `pending | owed`, ascending from page `start`, into RAM records in `out`.

    Each page is read once (preadv) into private memory; zero test, unchanged test, delta, digest and cache
    all use that copy, and it is what goes out. For each page, in order:

    * unchanged, i.e. not owed and its digest is the one in `digests`: nothing is emitted or touched (rule
      "qemu": only when the cache holds the page and stage is not BULK: an XBZRLE record of length 0 goes out
      and `touch` is done; a page it does not hold, or any page in stage BULK, is sent in the normal way);
    * zero: ZERO record with fill 0, `cache.put(zero=True)`;
    * held by the cache (rule "qemu": and stage not BULK): XBZRLE if `xbzrle_encode(held, page, page_size - 4,
      2)` is not None, else PAGE, counted as overflow; both `put` the page (which writes nothing under rule
      "qemu" in stage LAST). An empty delta (the page is owed, or was sent since without the cache) goes out
      as `00 01 b`, b the page's first byte: length 0 means "RAM is right already";
    * else PAGE; counted as miss when there is a cache and stage is not BULK; `cache.put`.

    Emitted or unchanged, the page's bit is cleared in pending and owed, and its digest written to `digests`.
    Stops when no page is left (`finished`; next_page is then total_pages); before the first record that would
    exceed `limit` bytes or `max_records` records (nothing of that page has happened yet: not its counters,
    not its `put`; it is next_page; unchanged pages before it are still taken); after 16 * max_records pages
    looked at, so that one call stays short where nearly everything is unchanged (then `length` may be 0
    though not finished; next_page is the next set page).
    The first record names its block, later ones say CONTINUE until the block changes.
    `sent` gets the page number of every record, u64 little-endian; it has at least 8 * max_records bytes.
    No XBZRLE for pages of 16384 bytes and more: the cache is ignored there, as if it were None.

    Counters: a record of length 0 counts as unchanged and cache_hit, not as xbzrle; records = zero + normal +
    xbzrle + those. Bytes of `out` behind `length` are undefined.

    Raises RamError: the file ended before the block did, or reading failed (message has block and offset);
    only once the unreadable page's turn has come.
    ValueError: a buffer is too small (`out` and `limit` must have room for one PAGE record naming the longest
    name of `ram`; limit <= len(out)).
    """

def apply(
    ram: Ram,
    keys: Keys,
    digests: bytearray,
    cache: PageCache | None,
    body: bytes | bytearray | memoryview,
    records: int,
    digest_sum: int,
    lane: int,
    lanes: int,
    round: int,
    stage: int,
    readback: bool,
) -> ApplyResult:
    """Destination: check and decode a batch body of RAM page records, then write it to RAM.

    Two passes. First: parse, decode into private memory, digest; the cache follows by the same rules as in
    `fill`.
    `sum(term(page, digest after apply))` over the records must equal `digest_sum` and their number `records`.
    Only then: pwritev of contiguous runs, zero pages skipped where the digest is that of zero already;
    with `readback`, each run is read back and its digests compared. Digests are recorded last.
    In a body only ZERO, PAGE and XBZRLE (each with or without CONTINUE) are legal. The base of a delta is
    the cache's copy, never RAM. An XBZRLE record of length 0 is `touch` (legal only for a held page under
    rule "qemu"): RAM keeps what it has, so its digest is that of the last record before it for this page,
    else the recorded one.

    A page may occur several times: the cache sees all in order, RAM gets the last content only, once
    (`written` counts pages; a page whose last content is zero is skipped if its digest was that of zero
    before the call).
    Counters: a record of length 0 counts in none of zero, normal, xbzrle.

    Raises RecordError; offset is that of the record's first byte. Checked in this order, record by record:
    "too-many-records" (it would be record max_records + 1), "truncated" (8 bytes), "hook" (type HOOK alone or
    with CONTINUE), "unknown-flags", "truncated" (name), "unknown-block" (empty names too) or "no-block"
    (CONTINUE at the start), "bad-offset" (beyond the block), "wrong-lane"; ZERO: "truncated", "zero-fill";
    PAGE: "truncated"; XBZRLE: "truncated" (id and length), "xbzrle-encoding" (id is not 1), "xbzrle-length"
    (above page_size), "truncated" (delta), "xbzrle-disabled" (no cache, page size of 16384 and more, or rule
    "qemu" in stage BULK), "xbzrle-length" (0 under rule "default"), "xbzrle-not-held", "xbzrle-delta"
    (undecodable). At the end, with offset len(body): "record-count", "digest".
    After it the cache may have changed: the caller clears it (lane reset).
    RamError: writing failed or was short (no space), or the file is shorter than its block (looked at before
    the first write to each block: a write would silently lengthen it); VerifyError: read back something else
    (or less).
    """

def scan(ram: Ram, keys: Keys, digests: bytearray, first: int, count: int, dirty: bytearray) -> int:
    """Read pages first…first+count-1 (of one block) and set the dirty bit where the digest differs.

    Returns how many differ (whether or not their bit was set before). Raises RamError as `fill`."""

def digest_range(ram: Ram, keys: Keys, first: int, count: int, out: bytearray | memoryview) -> None:
    """Digests of pages first…first+count-1 (of one block) as they are in RAM now, 16 bytes each. RamError as
    `fill`."""

def zero_range(keys: Keys, digests: bytearray, first: int, count: int, dirty: bytearray) -> int:
    """Set the dirty bit of each page whose digest is not that of zeros (the range is a hole now). Returns how
    many."""

def scan_pages(
    ram: Ram,
    keys: Keys,
    digests: bytearray,
    first: int,
    count: int,
    suspects: bytearray,
    dirty: bytearray,
) -> int:
    """`scan` of those pages of the range whose bit is set in `suspects`. Returns how many differ."""

def data_pages(ram: Ram, first: int, count: int, suspects: bytearray, bitmap: bytearray) -> None:
    """Of the pages of the range (of one block) that are set in `suspects`: set those that are no holes.

    Costs two searches for each stretch of suspects, and for each stretch of data in it. RamError: one
    failed."""

def written_pages(
    pagemap: int, start: int, length: int, window: int, origin: int, page_size: int, bitmap: bytearray
) -> None:
    """Fetch and clear, atomically a page, what was written through a mapping (PAGEMAP_SCAN, LMT 2.1).

    pagemap: open descriptor of /proc/PID/pagemap. start, length: the addresses, in bytes. origin: place of
    the first of them in page space, in bytes. window: 0, or scan in pieces of that many bytes: below 2 MiB
    it splits huge pages. Adds the bits of all pages touched. OSError: what was fetched so far is in
    `bitmap`, the rest is unknown; EPERM: the range is not registered for asynchronous write protection.
    ValueError: the range leaves the bitmap."""

def present_pages(
    pagemap: int, start: int, length: int, origin: int, page_size: int, bitmap: bytearray
) -> None:
    """Set the bits of the pages that a process has in its page tables, whole; arguments as `written_pages`.

    Such a page is no hole of its file; one that is not may be anything. OSError, ValueError as there."""

def probe_write_tracking() -> None:
    """Try it in this process: does a store show up? OSError: no, with the reason."""

def track_writes(userfaultfd: int, start: int, length: int) -> None:
    """Have a userfaultfd, of whatever process, watch writes to a range of its owner's addresses. OSError."""

def take_log(log: mmap | bytearray, length: int, page_size: int, first: int, bitmap: bytearray) -> int:
    """Fetch and clear, atomically by words, the log of `length` bytes of RAM that begin with page `first`.

    log: one bit for 4096 bytes, u64 little-endian words in memory that the emulator shares. Adds the bits of
    all pages touched; returns how many bits of the log were set, those beyond `length` not counted.
    ValueError: the log is too short or not aligned to 8 bytes, `first` is no multiple of 64, or `length` is
    not whole pages."""

def root(keys: Keys, digests: bytearray, first: int, count: int) -> int:
    """sum(term(p, digests[p])) over the pages of the range."""

def set_digests(digests: bytearray, first: int, count: int, digest: int) -> None:
    """Write one digest to a range of the array."""

def bitmap_count(bitmap: bytearray | memoryview) -> int: ...
def bitmap_set_range(bitmap: bytearray, first: int, count: int) -> None: ...
def bitmap_set_pages(bitmap: bytearray, pages: bytes | bytearray | memoryview, count: int) -> None:
    """Set the bits of `count` page numbers (u64 little-endian). ValueError: a number beyond the bitmap."""

def bitmap_next(bitmap: bytearray, start: int) -> int:
    """First set bit at or after `start`, or -1."""

def bitmap_or(target: bytearray, source: bytearray) -> None: ...
def bitmap_remove(target: bytearray, source: bytearray) -> None:
    """Clear in `target` every bit that is set in `source`. ValueError: different lengths."""

def bitmap_select(source: bytearray, target: bytearray, stripe_pages: int, lane: int, lanes: int) -> None:
    """OR into target the bits of source whose stripe belongs to the lane."""

def is_zero(data: bytes | bytearray | memoryview) -> bool: ...
def crc32c(data: bytes | bytearray | memoryview, value: int = 0) -> int:
    """CRC-32C (Castagnoli, reflected); `value` is the CRC of what came before. crc32c(b"123456789") ==
    0xE3069283."""

def xbzrle_encode(old: bytes, new: bytes, limit: int, gap: int) -> bytes | None:
    """Delta of two pages (equal length <= 16383). b"": unchanged. None: overflow by the rules A, B, C of
    qemu-ram-stream.md 3.3 with `limit` as the capacity (any integer >= 0, also above the page size).
    Unchanged stretches of up to `gap` bytes between two changes stay inside the run; gap 0 is QEMU's own
    form, byte for byte."""

def xbzrle_decode(delta: bytes, page: bytearray) -> int:
    """Apply a delta in place, return the end of the last change. ValueError: undecodable (section 3.4);
    the page is then unchanged."""

def walk(
    ram: Ram,
    body: bytes | bytearray | memoryview,
    block: int | None,
    content: bytearray,
    seen: bytearray,
    counts: bytearray | memoryview,
    apply: bool,
    listing: bytearray | None = None,
    after: int | None = None,
    compressed: bool = False,
) -> WalkResult:
    """Destination of a real QEMU: go through records of a RAM section, from a record's first byte on.

    Stops behind the last whole record of `body`, behind an EOS or MULTIFD_FLUSH (whatever their offset bits
    and CONTINUE say), or when `listing` is full. With `apply` records land in RAM as they come: PAGE and ZERO
    replace the page, XBZRLE changes what RAM holds (there is no cache). RAM begins zeroed, and nobody else
    writes it: `content` (a bitmap, at first empty) says which pages are not zero; a page that stays zero is
    not touched. Without `apply` no file is touched and a page that got a delta counts as not zero.

    `block`: the block that CONTINUE means, None before any was named; the number is its place in ascending
    first_page. `counts`: u64 (native order) for each block and each of WALK_COUNTERS, added to. `listing`:
    one row WALK_LISTED for each page record. `seen`: a bitmap where the page of every record is set. `after`:
    a page number; the walk stops before a record for a page below it, and before one that goes back later (a
    scan of RAM has begun anew); None: it does not.

    A call takes either records COMPRESS_PAGE (`compressed`) or all others, and stops before the first that it
    does not take. Those are listed, counted and seen, but what is in them is the caller's to unpack, and
    `land`'s to put into RAM.

    Raises RecordError; offset is that of the record's first byte, and the records before it have landed.
    Checked in this order: "hook", "unknown-flags", "no-block" or "unknown-block" (empty names too),
    "bad-offset"; ZERO: "zero-fill"; COMPRESS_PAGE: "compress-length" (0, or more than zlib makes of a page at
    the worst, or than a listing can say); XBZRLE: "xbzrle-encoding", "xbzrle-length" (above page_size),
    "xbzrle-delta" (undecodable; length 0 is legal and changes nothing). RamError: reading or writing failed,
    or the file is shorter than its block. ValueError: `content` is too small, `counts` of another size,
    `listing` smaller than a row, no such block.
    """

def land(
    ram: Ram,
    block: int,
    offsets: bytes | bytearray | memoryview,
    normal: int,
    data: bytes | bytearray | memoryview,
    content: bytearray,
    seen: bytearray,
    counts: bytearray | memoryview,
) -> int:
    """Destination of a real QEMU: put the pages of a multifd packet into RAM; returns how many were written.

    `offsets`: be64 of each page in the block, first the `normal` ones, whose content `data` has one after the
    other, then those that are zero now. `content`, `seen`, `counts` as in `walk` (counted are zero,
    zero_again and normal).

    Several threads may be in `walk` and `land` with the same `ram`, `content` and `seen` at once, each with
    `counts` of its own; which of two pages of one place lands last is open then.

    Raises RecordError "bad-offset" (beyond the block, or off the page; offset is its place in `offsets`):
    then nothing has landed; RamError. ValueError: sizes do not fit, no such block.
    """

# cython: language_level=3, cdivision=True
"""The native kernel: checks arguments, then calls the C part without the GIL. `_native.pyi` is the contract."""

import hashlib
import os

from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcmp, memcpy

from migrate.errors import RamError, RecordError, VerifyError
from migrate.kernel.results import ApplyResult, FillResult, RamBlock

IMPLEMENTATION = "native"

cdef extern from "<stdbool.h>" nogil:
    ctypedef int c_bool "bool"

cdef extern from "kernel.h" nogil:
    enum:
        MK_PAGE_SIZE_MIN
        MK_PAGE_SIZE_MAX
        MK_XBZRLE_PAGE_MAX
        MK_XBZRLE_SLACK
        MK_NAME_MAX
        MK_DIGEST_BYTES
    enum mk_stage:
        pass
    enum mk_status:
        MK_OK
        MK_RECORD
        MK_RAM
        MK_VERIFY
        MK_MEMORY
    struct mk_error:
        mk_status status
        const char *rule
        const char *what
        size_t block
        uint64_t at
        int sys
    struct mk_u128:
        uint64_t lo
        uint64_t hi
    struct mk_keys:
        uint32_t page_size
        mk_u128 zero_digest
    struct mk_block:
        uint64_t first_page
        uint64_t pages
        int fd
        uint8_t name_length
        uint8_t name[255]
    struct mk_ram:
        uint32_t page_size
        unsigned page_shift
        uint8_t longest_name
        uint64_t total_pages
        size_t block_count
        mk_block *blocks
    struct mk_entry:
        uint64_t page
        uint32_t age
        uint32_t used
    struct mk_cache:
        bint qemu_rule
        uint64_t slots
        uint64_t used
        mk_u128 digest
        mk_entry *entries
    enum:
        MK_NO_SLOT
    struct mk_fill:
        const mk_ram *ram
        const mk_keys *keys
        uint8_t *digests
        mk_cache *cache
        uint8_t *pending
        uint8_t *owed
        uint64_t start
        uint8_t *out
        size_t limit
        uint8_t *sent
        uint32_t round
        mk_stage stage
    struct mk_filled:
        uint64_t length, records, next_page
        bint finished
        uint32_t crc
        mk_u128 digest_sum, root_delta
        uint64_t zero, normal, xbzrle, unchanged, cache_hit, cache_miss, overflow, xbzrle_bytes
    struct mk_apply:
        const mk_ram *ram
        const mk_keys *keys
        uint8_t *digests
        mk_cache *cache
        const uint8_t *body
        size_t length
        uint64_t records
        mk_u128 digest_sum
        uint64_t lane
        uint64_t lanes
        uint32_t round
        mk_stage stage
        bint readback
    struct mk_applied:
        uint64_t records, zero, normal, xbzrle, written
        mk_u128 root_delta

    uint32_t mk_max_records(uint32_t page_size)
    bint mk_is_zero(const uint8_t *data, size_t length)
    uint32_t mk_crc32c(const uint8_t *data, size_t length, uint32_t value)
    int mk_xbzrle_encode(
        const uint8_t *old, const uint8_t *new, size_t length, uint8_t *out, size_t limit, size_t gap)
    int64_t mk_xbzrle_decode(const uint8_t *delta, size_t delta_length, uint8_t *page, size_t length)
    int mk_keys_init(mk_keys *keys, uint32_t page_size, const uint8_t *page_key, const uint8_t *root_key)
    void mk_keys_free(mk_keys *keys)
    mk_u128 mk_page_digest(const mk_keys *keys, const uint8_t *page)
    mk_u128 mk_term(const mk_keys *keys, uint64_t page, mk_u128 digest)
    mk_u128 mk_root(const mk_keys *keys, const uint8_t *digests, uint64_t first, uint64_t count)
    void mk_set_digests(uint8_t *digests, uint64_t first, uint64_t count, mk_u128 digest)
    uint64_t mk_bitmap_count(const uint8_t *bitmap, size_t bytes)
    void mk_bitmap_set_range(uint8_t *bitmap, uint64_t first, uint64_t count)
    bint mk_bitmap_set_pages(uint8_t *bitmap, size_t bytes, const uint8_t *pages, size_t count)
    uint64_t mk_bitmap_next(const uint8_t *a, const uint8_t *b, uint64_t start, uint64_t end)
    void mk_bitmap_or(uint8_t *target, const uint8_t *source, size_t bytes)
    void mk_bitmap_select(const uint8_t *source, uint8_t *target, size_t bytes, uint64_t stripe_pages,
                          uint64_t lane, uint64_t lanes)
    const char *mk_ram_init(mk_ram *ram, uint32_t page_size, uint64_t stripe_pages, const mk_block *blocks,
                            size_t block_count, c_bool *no_memory)
    void mk_ram_free(mk_ram *ram)
    size_t mk_ram_find(const mk_ram *ram, uint64_t first, uint64_t count)
    int mk_cache_init(mk_cache *cache, const mk_keys *keys, uint64_t budget, bint qemu_rule)
    void mk_cache_free(mk_cache *cache)
    void mk_cache_clear(mk_cache *cache)
    int64_t mk_cache_find(const mk_cache *cache, uint64_t page)
    uint8_t *mk_cache_data(const mk_cache *cache, int64_t slot)
    int64_t mk_cache_put(mk_cache *cache, int64_t slot, uint64_t page, const uint8_t *content, mk_u128 term,
                         uint32_t round, mk_stage stage, bint zero)
    void mk_cache_touch(mk_cache *cache, int64_t slot, uint32_t round)
    mk_status c_fill "mk_fill"(const mk_fill *request, mk_filled *result, mk_error *error)
    mk_status c_apply "mk_apply"(const mk_apply *request, mk_applied *result, mk_error *error)
    mk_status mk_scan(const mk_ram *ram, const mk_keys *keys, const uint8_t *digests, uint64_t first, uint64_t count,
                      uint8_t *dirty, uint64_t *differing, mk_error *error)
    mk_status mk_digest_range(const mk_ram *ram, const mk_keys *keys, uint64_t first, uint64_t count, uint8_t *out,
                              mk_error *error)
    uint64_t mk_zero_range(const mk_keys *keys, const uint8_t *digests, uint64_t first, uint64_t count, uint8_t *dirty)


# ---- arguments ---------------------------------------------------------------------------------------------


cdef uint64_t PAGE_NUMBER_END = 0x1000000000000  # byte offsets then stay below 2**63 in a file
cdef uint64_t LANES_END = 0x80000000
cdef uint64_t SIZE_END = 0x8000000000000000
cdef uint64_t U32_END = 0x100000000


cdef class _Bytes:
    """The memory of an argument, held still for one call."""

    cdef Py_buffer view
    cdef uint8_t *at
    cdef uint64_t length

    def __cinit__(self, source, bint writable=False):
        try:
            PyObject_GetBuffer(source, &self.view, PyBUF_WRITABLE if writable else PyBUF_SIMPLE)
        except BufferError as error:
            raise TypeError(f"{type(source).__name__} does not fit: {error}") from None
        self.at = <uint8_t *> self.view.buf
        self.length = <uint64_t> self.view.len

    def __dealloc__(self):
        PyBuffer_Release(&self.view)


cdef uint64_t _number(value, str what, uint64_t end) except? 0xffffffffffffffff:
    """An int in 0…end-1."""
    if not isinstance(value, int):
        raise TypeError(f"{what} is an int, not {type(value).__name__}")
    if not 0 <= value < end:
        raise ValueError(f"{what} {value} is not in 0…{end - 1}")
    return value


cdef uint32_t _page_size(value) except 0:
    cdef uint64_t size = _number(value, "page_size", MK_PAGE_SIZE_MAX + 1)
    if size < MK_PAGE_SIZE_MIN or size & (size - 1):
        raise ValueError(f"page_size {value} is not a power of two in 1024…65536")
    return <uint32_t> size


cdef mk_stage _stage(value) except *:
    cdef uint64_t stage = _number(value, "stage", 4)
    if stage == 0:
        raise ValueError("stage 0 is not in 1…3")
    return <mk_stage> stage


cdef uint64_t _page(value) except? 0xffffffffffffffff:
    return _number(value, "page", PAGE_NUMBER_END)


cdef uint32_t _round(value) except? 0xffffffff:
    return <uint32_t> _number(value, "round", U32_END)


cdef mk_u128 _u128(value, str what) except *:
    cdef mk_u128 number
    if not isinstance(value, int):
        raise TypeError(f"{what} is an int, not {type(value).__name__}")
    if value < 0 or value >> 128:
        raise ValueError(f"{what} is not a number of 128 bits")
    number.lo = value & 0xffffffffffffffff
    number.hi = value >> 64
    return number


cdef object _int128(mk_u128 number):
    return (<object> number.hi) << 64 | number.lo


cdef _Bytes _bitmap(source, bint writable):
    cdef _Bytes bitmap = _Bytes(source, writable)
    if bitmap.length % 8:
        raise ValueError(f"a bitmap of {bitmap.length} bytes: not a multiple of 8")
    return bitmap


cdef _Bytes _ram_bitmap(source, Ram ram, str what):
    cdef _Bytes bitmap = _bitmap(source, True)
    if bitmap.length * 8 < ram.c.total_pages:
        raise ValueError(f"{what} has {bitmap.length * 8} bits for {ram.c.total_pages} pages")
    return bitmap


cdef _Bytes _digests(source, bint writable, uint64_t pages):
    cdef _Bytes digests = _Bytes(source, writable)
    if digests.length // MK_DIGEST_BYTES < pages:
        raise ValueError(f"digests has {digests.length} bytes for {pages} pages of {MK_DIGEST_BYTES}")
    return digests


cdef int _same_page_size(Keys keys, Ram ram, PageCache cache) except -1:
    if ram is not None and ram.c.page_size != keys.c.page_size:
        raise ValueError(f"pages of {ram.c.page_size} bytes in the Ram, {keys.c.page_size} in the Keys")
    if cache is not None and cache.keys.c.page_size != keys.c.page_size:
        raise ValueError(f"pages of {cache.keys.c.page_size} bytes in the cache, {keys.c.page_size} in the Keys")
    return 0


cdef int _range(uint64_t first, uint64_t count, uint64_t length, str what) except -1:
    if first > length or count > length - first:
        raise ValueError(f"pages {first}+{count} are not all in {what} of {length}")
    return 0


cdef int _in_one_block(Ram ram, uint64_t first, uint64_t count) except -1:
    if mk_ram_find(&ram.c, first, count) == ram.c.block_count:
        raise ValueError(f"pages {first}+{count} are not in one block")
    return 0


# ---- errors --------------------------------------------------------------------------------------------------


_RULES = {
    "truncated": "the body ends inside a record",
    "unknown-flags": "a record with unknown flags",
    "hook": "RAM_SAVE_FLAG_HOOK is for RDMA, which is not spoken here",
    "no-block": "the first record says CONTINUE, but no block was named",
    "unknown-block": "a record for a RAM block that does not exist",
    "bad-offset": "a record for a page beyond the end of its block",
    "wrong-lane": "a record for a page of another lane",
    "zero-fill": "a ZERO record whose fill byte is not 0",
    "xbzrle-encoding": "an XBZRLE record of another encoding than 1",
    "xbzrle-length": "an XBZRLE record of an impossible length",
    "xbzrle-delta": "a delta that cannot be decoded",
    "xbzrle-disabled": "an XBZRLE record where XBZRLE is not in use",
    "xbzrle-not-held": "a delta for a page that the cache does not hold",
    "too-many-records": "more records than a batch may hold",
    "record-count": "another number of records than the header says",
    "digest": "the pages decoded are not those that were sent",
}


cdef object _error(const mk_error *error, Ram ram):
    """The exception for a status that is not MK_OK."""
    if error.status == MK_RECORD:
        rule = error.rule.decode()
        return RecordError(rule, error.at, _RULES[rule])
    if error.status == MK_MEMORY:
        return MemoryError("no memory for the kernel's buffers")
    cdef mk_block *block = &ram.c.blocks[error.block]
    name = (<bytes> block.name[:block.name_length]).decode("utf-8", "backslashreplace")
    where = f"RAM block {name}, offset {error.at:#x}"
    if error.status == MK_VERIFY:
        return VerifyError(f"{where}: read back {error.what.decode()}")
    reason = f": {os.strerror(error.sys)}" if error.sys else ""
    return RamError(f"{where}: {error.what.decode()}{reason}")


# ---- bytes -----------------------------------------------------------------------------------------------------


def is_zero(data):
    cdef _Bytes source = _Bytes(data)
    cdef bint zero
    with nogil:
        zero = mk_is_zero(source.at, source.length)
    return zero


def crc32c(data, value=0):
    cdef _Bytes source = _Bytes(data)
    cdef uint32_t before = <uint32_t> _number(value, "value", U32_END), after
    with nogil:
        after = mk_crc32c(source.at, source.length, before)
    return after


def xbzrle_encode(old, new, limit, gap):
    cdef _Bytes before = _Bytes(old), after = _Bytes(new)
    if before.length != after.length or before.length > MK_XBZRLE_PAGE_MAX:
        raise ValueError(f"pages of {before.length} and {after.length} bytes: equal and at most {MK_XBZRLE_PAGE_MAX}")
    # No delta is longer than this: every pair of runs costs at most 4 bytes beside its data and has 1 byte of it.
    cdef uint64_t enough = 5 * before.length + 8
    cdef uint64_t most = min(limit, enough) if limit >= 0 else _number(limit, "limit", enough)
    cdef uint64_t joined = min(gap, before.length) if gap >= 0 else _number(gap, "gap", enough)
    cdef uint8_t *delta = <uint8_t *> malloc(most + MK_XBZRLE_SLACK)
    if delta == NULL:
        raise MemoryError
    try:
        length = mk_xbzrle_encode(before.at, after.at, before.length, delta, most, joined)
        return None if length < 0 else PyBytes_FromStringAndSize(<char *> delta, length)
    finally:
        free(delta)


def xbzrle_decode(delta, page):
    cdef _Bytes source = _Bytes(delta), target = _Bytes(page, True)
    cdef uint8_t *copy = <uint8_t *> malloc(target.length or 1)
    cdef int64_t end
    if copy == NULL:
        raise MemoryError
    try:
        memcpy(copy, target.at, target.length)
        end = mk_xbzrle_decode(source.at, source.length, copy, target.length)
        if end < 0:
            raise ValueError("the delta cannot be decoded")
        memcpy(target.at, copy, target.length)
        return end
    finally:
        free(copy)


# ---- digests -----------------------------------------------------------------------------------------------------


cdef class Keys:
    cdef mk_keys c

    def __cinit__(self, seed, page_size):
        cdef uint32_t size = _page_size(page_size)
        if not isinstance(seed, bytes):
            raise TypeError(f"the seed is bytes, not {type(seed).__name__}")
        if len(seed) != 32:
            raise ValueError(f"the seed has 32 bytes, not {len(seed)}")
        cdef bytes page_key = hashlib.shake_256(b"migrate page key" + seed).digest(size)
        cdef bytes root_key = hashlib.shake_256(b"migrate root key" + seed).digest(16)
        if mk_keys_init(&self.c, size, page_key, root_key) < 0:
            raise MemoryError

    def __dealloc__(self):
        mk_keys_free(&self.c)

    @property
    def page_size(self):
        return self.c.page_size

    @property
    def zero_digest(self):
        return _int128(self.c.zero_digest)

    def page_digest(self, page):
        cdef _Bytes content = _Bytes(page)
        if content.length != self.c.page_size:
            raise ValueError(f"a page of {content.length} bytes, not {self.c.page_size}")
        return _int128(mk_page_digest(&self.c, content.at))

    def term(self, page, digest):
        return _int128(mk_term(&self.c, _page(page), _u128(digest, "digest")))


def root(Keys keys not None, digests, first, count):
    cdef uint64_t start = _page(first), pages = _page(count)
    cdef _Bytes array = _digests(digests, False, 0)
    cdef mk_u128 total
    _range(start, pages, array.length // MK_DIGEST_BYTES, "an array")
    with nogil:
        total = mk_root(&keys.c, array.at, start, pages)
    return _int128(total)


def set_digests(digests, first, count, digest):
    cdef uint64_t start = _page(first), pages = _page(count)
    cdef _Bytes array = _digests(digests, True, 0)
    cdef mk_u128 value = _u128(digest, "digest")
    _range(start, pages, array.length // MK_DIGEST_BYTES, "an array")
    with nogil:
        mk_set_digests(array.at, start, pages, value)


# ---- RAM blocks ----------------------------------------------------------------------------------------------------


cdef class Ram:
    cdef mk_ram c

    def __cinit__(self, page_size, stripe_pages, blocks):
        cdef uint32_t size = _page_size(page_size)
        cdef uint64_t stripe = _number(stripe_pages, "stripe_pages", PAGE_NUMBER_END)
        if stripe == 0 or stripe % 64:
            raise ValueError(f"stripe_pages {stripe_pages} is not a positive multiple of 64")
        rows = [RamBlock(*block) for block in blocks]
        cdef mk_block *array = <mk_block *> calloc(len(rows) or 1, sizeof(mk_block))
        cdef const char *wrong
        cdef c_bool no_memory = False
        cdef size_t i = 0
        if array == NULL:
            raise MemoryError
        try:
            for row in rows:
                if not isinstance(row.name, bytes):
                    raise TypeError(f"a block name is bytes, not {type(row.name).__name__}")
                if not 1 <= len(row.name) <= MK_NAME_MAX:
                    raise ValueError(f"a block name has 1…255 bytes, not {len(row.name)}")
                array[i].name_length = <uint8_t> len(row.name)
                memcpy(array[i].name, <const char *> row.name, len(row.name))
                array[i].fd = <int> _number(row.fd, "fd", 0x80000000)
                array[i].first_page = _page(row.first_page)
                array[i].pages = _page(row.pages)
                i += 1
            wrong = mk_ram_init(&self.c, size, stripe, array, i, &no_memory)
        finally:
            free(array)
        if no_memory:
            raise MemoryError
        if wrong != NULL:
            raise ValueError(wrong.decode())

    def __dealloc__(self):
        mk_ram_free(&self.c)

    @property
    def total_pages(self):
        return self.c.total_pages


# ---- the page cache ----------------------------------------------------------------------------------------------------


cdef class PageCache:
    cdef mk_cache c
    cdef Keys keys

    def __cinit__(self, Keys keys not None, budget, rule):
        if rule not in ("default", "qemu"):
            raise ValueError(f'the cache rule is "default" or "qemu", not {rule!r}')
        self.keys = keys
        if mk_cache_init(&self.c, &keys.c, _number(budget, "budget", SIZE_END), rule == "qemu") < 0:
            raise MemoryError(f"no memory for a page cache of {budget} bytes")

    def __dealloc__(self):
        mk_cache_free(&self.c)

    @property
    def slots(self):
        return self.c.slots

    @property
    def entries(self):
        return self.c.used

    @property
    def bytes_allocated(self):
        return self.c.slots * (self.keys.c.page_size + sizeof(mk_entry))

    @property
    def rule(self):
        return "qemu" if self.c.qemu_rule else "default"

    @property
    def digest(self):
        return _int128(self.c.digest)

    cdef bytes _content(self, int64_t slot):
        return PyBytes_FromStringAndSize(<char *> mk_cache_data(&self.c, slot), self.keys.c.page_size)

    def get(self, page):
        cdef int64_t slot = mk_cache_find(&self.c, _page(page))
        return None if slot == MK_NO_SLOT else self._content(slot)

    def put(self, page, content, round, stage, *, zero=False):
        cdef uint64_t number = _page(page)
        cdef _Bytes source = _Bytes(content)
        cdef uint32_t age = _round(round)
        cdef mk_stage when = _stage(stage)
        if source.length != self.keys.c.page_size:
            raise ValueError(f"a page of {source.length} bytes, not {self.keys.c.page_size}")
        cdef mk_u128 term = mk_term(&self.keys.c, number, mk_page_digest(&self.keys.c, source.at))
        cdef int64_t slot = mk_cache_find(&self.c, number)
        if mk_cache_put(&self.c, slot, number, source.at, term, age, when, bool(zero)) != MK_NO_SLOT:
            return True
        return slot != MK_NO_SLOT and memcmp(mk_cache_data(&self.c, slot), source.at, source.length) == 0

    def touch(self, page, round):
        cdef int64_t slot = mk_cache_find(&self.c, _page(page))
        cdef uint32_t age = _round(round)
        if slot == MK_NO_SLOT:
            return False
        mk_cache_touch(&self.c, slot, age)
        return True

    def clear(self):
        mk_cache_clear(&self.c)

    def items(self):
        cdef uint64_t slot
        held = []
        for slot in range(self.c.slots):
            if self.c.entries[slot].used:
                held.append((self.c.entries[slot].page, self.c.entries[slot].age, self._content(<int64_t> slot)))
        return held


# ---- batches -------------------------------------------------------------------------------------------------------------


def max_records(page_size):
    return mk_max_records(_page_size(page_size))


def fill(Ram ram not None, Keys keys not None, digests, PageCache cache, pending, owed, start, out, limit, sent,
         round, stage):
    cdef mk_fill request
    cdef mk_filled made
    cdef mk_error error
    cdef mk_status status
    _same_page_size(keys, ram, cache)
    cdef _Bytes array = _digests(digests, True, ram.c.total_pages)
    cdef _Bytes dirty = _ram_bitmap(pending, ram, "pending"), again = _ram_bitmap(owed, ram, "owed")
    cdef _Bytes target = _Bytes(out, True), numbers = _Bytes(sent, True)
    if dirty.length != again.length:
        raise ValueError(f"bitmaps of {dirty.length} and {again.length} bytes")
    request.limit = _number(limit, "limit", target.length + 1)
    if request.limit < 9 + <uint64_t> ram.c.longest_name + ram.c.page_size:
        raise ValueError(f"limit {limit} has no room for one named page record")
    if numbers.length < 8 * <uint64_t> mk_max_records(ram.c.page_size):
        raise ValueError(f"sent has {numbers.length} bytes, not 8 * max_records")
    request.ram = &ram.c
    request.keys = &keys.c
    request.digests = array.at
    request.cache = NULL if cache is None else &cache.c
    request.pending = dirty.at
    request.owed = again.at
    request.start = _page(start)
    request.out = target.at
    request.sent = numbers.at
    request.round = _round(round)
    request.stage = _stage(stage)
    with nogil:
        status = c_fill(&request, &made, &error)
    if status != MK_OK:
        raise _error(&error, ram)
    return FillResult(
        length=made.length,
        records=made.records,
        next_page=made.next_page,
        finished=made.finished,
        crc=made.crc,
        digest_sum=_int128(made.digest_sum),
        root_delta=_int128(made.root_delta),
        zero=made.zero,
        normal=made.normal,
        xbzrle=made.xbzrle,
        unchanged=made.unchanged,
        cache_hit=made.cache_hit,
        cache_miss=made.cache_miss,
        overflow=made.overflow,
        xbzrle_bytes=made.xbzrle_bytes,
    )


def apply(Ram ram not None, Keys keys not None, digests, PageCache cache, body, records, digest_sum, lane, lanes,
          round, stage, readback):
    cdef mk_apply request
    cdef mk_applied made
    cdef mk_error error
    cdef mk_status status
    _same_page_size(keys, ram, cache)
    cdef _Bytes array = _digests(digests, True, ram.c.total_pages)
    cdef _Bytes source = _Bytes(body)
    request.ram = &ram.c
    request.keys = &keys.c
    request.digests = array.at
    request.cache = NULL if cache is None else &cache.c
    request.body = source.at
    request.length = source.length
    request.records = _number(records, "records", SIZE_END)
    request.digest_sum = _u128(digest_sum, "digest_sum")
    request.lanes = _number(lanes, "lanes", LANES_END)
    request.lane = _number(lane, "lane", request.lanes)
    request.round = _round(round)
    request.stage = _stage(stage)
    request.readback = bool(readback)
    with nogil:
        status = c_apply(&request, &made, &error)
    if status != MK_OK:
        raise _error(&error, ram)
    return ApplyResult(
        records=made.records,
        root_delta=_int128(made.root_delta),
        zero=made.zero,
        normal=made.normal,
        xbzrle=made.xbzrle,
        written=made.written,
    )


def scan(Ram ram not None, Keys keys not None, digests, first, count, dirty):
    cdef uint64_t start = _page(first), pages = _page(count), differing = 0
    cdef mk_error error
    cdef mk_status status
    _same_page_size(keys, ram, None)
    cdef _Bytes array = _digests(digests, False, ram.c.total_pages)
    cdef _Bytes bitmap = _ram_bitmap(dirty, ram, "dirty")
    _in_one_block(ram, start, pages)
    with nogil:
        status = mk_scan(&ram.c, &keys.c, array.at, start, pages, bitmap.at, &differing, &error)
    if status != MK_OK:
        raise _error(&error, ram)
    return differing


def digest_range(Ram ram not None, Keys keys not None, first, count, out):
    cdef uint64_t start = _page(first), pages = _page(count)
    cdef mk_error error
    cdef mk_status status
    _same_page_size(keys, ram, None)
    cdef _Bytes array = _digests(out, True, pages)
    _in_one_block(ram, start, pages)
    with nogil:
        status = mk_digest_range(&ram.c, &keys.c, start, pages, array.at, &error)
    if status != MK_OK:
        raise _error(&error, ram)


def zero_range(Keys keys not None, digests, first, count, dirty):
    cdef uint64_t start = _page(first), pages = _page(count), differing = 0
    cdef _Bytes array = _digests(digests, False, 0)
    cdef _Bytes bitmap = _bitmap(dirty, True)
    _range(start, pages, array.length // MK_DIGEST_BYTES, "an array")
    _range(start, pages, bitmap.length * 8, "a bitmap")
    with nogil:
        differing = mk_zero_range(&keys.c, array.at, start, pages, bitmap.at)
    return differing


# ---- bitmaps -----------------------------------------------------------------------------------------------------------------


def bitmap_bytes(pages):
    return (_page(pages) + 63) // 64 * 8


def bitmap_count(bitmap):
    cdef _Bytes bits = _bitmap(bitmap, False)
    return mk_bitmap_count(bits.at, bits.length)


def bitmap_set_range(bitmap, first, count):
    cdef uint64_t start = _page(first), pages = _page(count)
    cdef _Bytes bits = _bitmap(bitmap, True)
    _range(start, pages, bits.length * 8, "a bitmap")
    mk_bitmap_set_range(bits.at, start, pages)


def bitmap_set_pages(bitmap, pages, count):
    cdef _Bytes bits = _bitmap(bitmap, True), numbers = _Bytes(pages)
    cdef uint64_t most = _number(count, "count", PAGE_NUMBER_END)
    if numbers.length // 8 < most:
        raise ValueError(f"{numbers.length} bytes do not hold {count} page numbers")
    if not mk_bitmap_set_pages(bits.at, bits.length, numbers.at, most):
        raise ValueError(f"a page number is beyond a bitmap of {bits.length * 8} bits")


def bitmap_next(bitmap, start):
    cdef uint64_t first = _page(start)
    cdef _Bytes bits = _bitmap(bitmap, False)
    cdef uint64_t end = bits.length * 8
    cdef uint64_t found
    with nogil:
        found = mk_bitmap_next(bits.at, NULL, first, end) if first < end else end
    return -1 if found == end else found


def bitmap_or(target, source):
    cdef _Bytes into = _bitmap(target, True), bits = _bitmap(source, False)
    if into.length != bits.length:
        raise ValueError(f"bitmaps of {into.length} and {bits.length} bytes")
    with nogil:
        mk_bitmap_or(into.at, bits.at, into.length)


def bitmap_select(source, target, stripe_pages, lane, lanes):
    cdef _Bytes bits = _bitmap(source, False), into = _bitmap(target, True)
    cdef uint64_t stripe = _number(stripe_pages, "stripe_pages", PAGE_NUMBER_END)
    cdef uint64_t all_lanes = _number(lanes, "lanes", LANES_END), mine = _number(lane, "lane", all_lanes)
    if stripe == 0 or stripe % 64:
        raise ValueError(f"stripe_pages {stripe_pages} is not a positive multiple of 64")
    if into.length != bits.length:
        raise ValueError(f"bitmaps of {into.length} and {bits.length} bytes")
    with nogil:
        mk_bitmap_select(bits.at, into.at, bits.length, stripe, mine, all_lanes)

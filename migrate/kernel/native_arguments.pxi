# Arguments become checked C values; C statuses become exceptions. Part of _native.pyx.



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


_RULES = {
    "truncated": "the body ends inside a record",
    "unknown-flags": "a record with unknown flags",
    "hook": "RAM_SAVE_FLAG_HOOK is for RDMA, which is not spoken here",
    "compress-length": "a compressed page of a length that cannot be",
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

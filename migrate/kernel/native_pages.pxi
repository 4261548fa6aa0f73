# Single pages, page digests, RAM blocks and the page cache. Part of _native.pyx.



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

    def commit(self, most):
        cdef uint64_t size = _number(most, "most", SIZE_END)
        cdef int failed
        with nogil:
            failed = mk_cache_commit(&self.c, size)
        if failed:
            raise MemoryError(f"no memory behind a page cache of {self.bytes_allocated} bytes")

    def clear(self):
        mk_cache_clear(&self.c)

    def take_over(self, PageCache other not None):
        if other is self or other.keys is not self.keys or other.c.qemu_rule != self.c.qemu_rule:
            raise ValueError("a cache takes over another one with the same keys and the same rule")
        with nogil:
            mk_cache_take_over(&self.c, &other.c)

    def items(self):
        cdef uint64_t slot
        held = []
        for slot in range(self.c.slots):
            if self.c.entries[slot].used:
                held.append((self.c.entries[slot].page, self.c.entries[slot].age, self._content(<int64_t> slot)))
        return held

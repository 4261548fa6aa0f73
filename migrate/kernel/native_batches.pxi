# fill, apply and the scans. Part of _native.pyx.



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

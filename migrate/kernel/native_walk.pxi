# RAM sections of a real QEMU. Part of _native.pyx.



def walk(
    Ram ram not None, body, block, content, seen, counts, apply, listing=None, after=None, compressed=False
):
    cdef mk_walk request
    cdef mk_walked made
    cdef mk_error error
    cdef mk_status status
    cdef size_t blocks = ram.c.block_count
    cdef _Bytes source = _Bytes(body), held = _ram_bitmap(content, ram, "content"), numbers = _Bytes(counts, True)
    cdef _Bytes named = _ram_bitmap(seen, ram, "seen")
    cdef _Bytes rows = None if listing is None else _Bytes(listing, True)
    if numbers.length != 8 * MK_WALK_COUNTERS * blocks:
        raise ValueError(f"counts has {numbers.length} bytes for {blocks} blocks of {8 * MK_WALK_COUNTERS}")
    if rows is not None and rows.length < sizeof(mk_listed):
        raise ValueError("listing has no room for a record")
    request.ram = &ram.c
    request.body = source.at
    request.length = source.length
    request.block = blocks if block is None else _number(block, "block", blocks)
    request.content = held.at
    request.seen = named.at
    request.rounds = after is not None
    request.after = 0 if after is None else _page(after)
    request.counts = <uint64_t *> numbers.at
    request.apply = bool(apply)
    request.compressed = bool(compressed)
    request.list = NULL if rows is None else <mk_listed *> rows.at
    request.list_room = 0 if rows is None else rows.length // sizeof(mk_listed)
    with nogil:
        status = c_walk(&request, &made, &error)
    if status != MK_OK:
        raise _error(&error, ram)
    return WalkResult(
        consumed=made.consumed,
        stop=made.stop,
        block=None if made.block == blocks else made.block,
        listed=made.listed,
        written=made.written,
        after=made.after,
    )


def land(Ram ram not None, block, offsets, normal, data, content, seen, counts):
    cdef mk_walk request
    cdef mk_walked made
    cdef mk_error error
    cdef mk_status status
    cdef _Bytes places = _Bytes(offsets), source = _Bytes(data)
    cdef _Bytes held = _ram_bitmap(content, ram, "content"), named = _ram_bitmap(seen, ram, "seen")
    cdef _Bytes numbers = _Bytes(counts, True)
    cdef size_t pages = places.length // 8
    cdef size_t filled = _number(normal, "normal", pages + 1)
    if numbers.length != 8 * MK_WALK_COUNTERS * ram.c.block_count:
        raise ValueError(f"counts has {numbers.length} bytes for {ram.c.block_count} blocks")
    if source.length != filled * ram.c.page_size or places.length % 8:
        raise ValueError(f"{source.length} bytes of data for {filled} pages, {places.length} of offsets")
    request.ram = &ram.c
    request.body = source.at
    request.length = source.length
    request.block = _number(block, "block", ram.c.block_count)
    request.content = held.at
    request.seen = named.at
    request.counts = <uint64_t *> numbers.at
    request.apply = True
    request.compressed = False
    request.rounds = False
    request.after = 0
    request.list = NULL
    request.list_room = 0
    with nogil:
        status = mk_land(&request, places.at, filled, pages - filled, &made, &error)
    if status != MK_OK:
        raise _error(&error, ram)
    return made.written

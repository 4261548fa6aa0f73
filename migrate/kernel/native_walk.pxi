# RAM sections of a real QEMU. Part of _native.pyx.



def walk(Ram ram not None, body, block, content, seen, counts, apply, listing=None, after=None):
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

# Bitmaps of pages. Part of _native.pyx.



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


def bitmap_remove(target, source):
    cdef _Bytes into = _bitmap(target, True), bits = _bitmap(source, False)
    if into.length != bits.length:
        raise ValueError(f"bitmaps of {into.length} and {bits.length} bytes")
    with nogil:
        mk_bitmap_remove(into.at, bits.at, into.length)


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

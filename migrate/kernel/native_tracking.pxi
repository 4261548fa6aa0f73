# What a guest wrote: its page tables, its log, its holes. Part of _native.pyx.



cdef extern from *:
    int __builtin_ctz(unsigned value) nogil

cdef uint64_t ADDRESS_END = 0x8000000000000000


def scan_pages(Ram ram not None, Keys keys not None, digests, first, count, suspects, dirty):
    cdef uint64_t start = _page(first), pages = _page(count), differing = 0
    cdef mk_error error
    cdef mk_status status
    _same_page_size(keys, ram, None)
    cdef _Bytes array = _digests(digests, False, ram.c.total_pages)
    cdef _Bytes asked = _ram_bitmap(suspects, ram, "suspects"), bitmap = _ram_bitmap(dirty, ram, "dirty")
    _in_one_block(ram, start, pages)
    with nogil:
        status = mk_scan_pages(&ram.c, &keys.c, array.at, start, pages, asked.at, bitmap.at, &differing, &error)
    if status != MK_OK:
        raise _error(&error, ram)
    return differing


def data_pages(Ram ram not None, first, count, suspects, bitmap):
    cdef uint64_t start = _page(first), pages = _page(count)
    cdef mk_error error
    cdef mk_status status
    cdef _Bytes asked = _ram_bitmap(suspects, ram, "suspects"), bits = _ram_bitmap(bitmap, ram, "bitmap")
    _in_one_block(ram, start, pages)
    with nogil:
        status = mk_data_pages(&ram.c, start, pages, asked.at, bits.at, &error)
    if status != MK_OK:
        raise _error(&error, ram)


def written_pages(pagemap, start, length, window, origin, page_size, bitmap):
    cdef _Addresses asked = _Addresses(pagemap, start, length, origin, page_size, bitmap)
    cdef uint64_t piece = _number(window, "window", ADDRESS_END)
    cdef int problem
    with nogil:
        problem = mk_written_pages(
            asked.pagemap, asked.start, asked.length, piece, asked.origin, asked.shift, asked.bits.at)
    if problem:
        raise OSError(problem, os.strerror(problem))


def present_pages(pagemap, start, length, origin, page_size, bitmap):
    cdef _Addresses asked = _Addresses(pagemap, start, length, origin, page_size, bitmap)
    cdef int problem
    with nogil:
        problem = mk_present_pages(
            asked.pagemap, asked.start, asked.length, asked.origin, asked.shift, asked.bits.at)
    if problem:
        raise OSError(problem, os.strerror(problem))


cdef class _Addresses:
    # A stretch of a process's addresses and where its pages stand in a bitmap, checked.
    cdef int pagemap
    cdef uint64_t start, length, origin
    cdef unsigned shift
    cdef _Bytes bits

    def __cinit__(self, pagemap, start, length, origin, page_size, bitmap):
        cdef uint32_t size = _page_size(page_size)
        self.bits = _bitmap(bitmap, True)
        self.pagemap = _number(pagemap, "pagemap", U32_END >> 1)
        self.start = _number(start, "start", ADDRESS_END)
        self.length = _number(length, "length", ADDRESS_END)
        self.origin = _number(origin, "origin", ADDRESS_END)
        self.shift = __builtin_ctz(size)
        if self.origin + self.length > self.bits.length * 8 * size:
            raise ValueError(f"bytes {origin}+{length} are not all in a bitmap of {self.bits.length * 8} pages")


def probe_write_tracking():
    cdef int problem = mk_probe_write_tracking()
    if problem:
        raise OSError(problem, os.strerror(problem))


def track_writes(userfaultfd, start, length):
    cdef int fd = _number(userfaultfd, "userfaultfd", U32_END >> 1)
    cdef int problem = mk_track_writes(
        fd, _number(start, "start", ADDRESS_END), _number(length, "length", ADDRESS_END))
    if problem:
        raise OSError(problem, os.strerror(problem))


def take_log(log, length, page_size, first, bitmap):
    cdef _Bytes words = _Bytes(log, True), bits = _bitmap(bitmap, True)
    cdef uint32_t size = _page_size(page_size)
    cdef uint64_t bytes_ = _number(length, "length", ADDRESS_END), page = _page(first), found
    if words.length % 8 or words.length * 8 * 4096 < bytes_:
        raise ValueError(f"a log of {words.length} bytes for {length} bytes of RAM")
    if <uint64_t> words.at % 8:
        raise ValueError("the log is not aligned to 8 bytes")
    if bytes_ % size or page % 64:
        raise ValueError(f"{length} bytes of RAM from page {first} on: not whole pages, or no begin of a block")
    _range(page, bytes_ // size, bits.length * 8, "a bitmap")
    with nogil:
        found = mk_take_log(words.at, bytes_, __builtin_ctz(size), page, bits.at)
    return found

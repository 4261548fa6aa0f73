# cython: language_level=3, boundscheck=True, wraparound=False
"""Thin shell over guest.h: checks what it is given, drops the GIL, calls one C function."""

from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, Py_buffer, PyBuffer_Release, PyObject_GetBuffer
from libc.errno cimport errno
from libc.stdint cimport int32_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

import os


cdef extern from "guest.h" nogil:
    enum:
        GUEST_PAGE
        GUEST_MAX_BLOCKS
        GUEST_MAX_FAULTS
        PAGE_GOOD
        PAGE_VERDICTS

    struct guest_state:
        uint64_t beat
        uint64_t done

    struct guest_block:
        uint8_t *ram
        uint64_t *log
        uint64_t pages
        uint64_t first_table
        uint64_t first_data
        uint64_t data_before
        uint64_t working_set_before
        uint64_t working_set

    struct guest_model:
        uint64_t tag
        uint64_t seed
        uint64_t fill_writes
        uint64_t data_pages
        uint64_t working_set
        uint32_t workload
        uint32_t blocks
        guest_block *block

    struct guest_slot:
        uint64_t number
        uint64_t place
        uint64_t operation
        uint64_t entry
        uint64_t sum

    struct guest_fault:
        uint32_t verdict
        uint64_t place
        uint64_t found
        uint64_t expected

    struct guest_check:
        uint64_t *counts
        uint64_t stale_table_pages
        uint64_t versions
        uint64_t described
        guest_fault *faults

    struct guest:
        guest_model model
        guest_state *state
        uint64_t rate
        int witness
        char *witness_prefix
        guest_fault fault
        int error

    void guest_make_weights()
    uint64_t guest_sum(const uint64_t *page)
    uint64_t guest_entry(uint64_t place, uint64_t version, unsigned kind)
    void guest_check_pages(const guest_model *m, uint32_t block, uint64_t first, uint64_t count,
                           const uint8_t *pages, const uint64_t *entries, const guest_slot *slot,
                           guest_check *out)
    int guest_recover(guest *g)
    int guest_run(guest *g, uint64_t until_ns)
    int guest_catch_sigbus()
    int guest_offer_tracking()


guest_make_weights()


def page_sum(const uint8_t[::1] page not None):
    if page.shape[0] != GUEST_PAGE:
        raise ValueError(f"a page has {GUEST_PAGE} bytes, not {page.shape[0]}")
    cdef uint64_t copy[512]
    memcpy(copy, &page[0], GUEST_PAGE)
    return guest_sum(copy)


def table_entry(uint32_t block, uint32_t page, uint64_t version, unsigned kind):
    return guest_entry(<uint64_t>block << 32 | page, version, kind)


cdef class Model:
    cdef guest_model model

    def __init__(self, *, uint64_t tag, uint64_t seed, uint32_t workload, uint64_t fill_writes, blocks):
        if not 1 <= len(blocks) <= GUEST_MAX_BLOCKS:
            raise ValueError(f"1 to {GUEST_MAX_BLOCKS} blocks, not {len(blocks)}")
        memset(&self.model, 0, sizeof(self.model))
        self.model.tag = tag
        self.model.seed = seed
        self.model.workload = workload
        self.model.fill_writes = fill_writes
        cdef guest_block *b
        for pages, first_table, first_data, working_set in blocks:
            if not 0 < first_table < first_data < pages or not 0 <= working_set <= pages - first_data:
                raise ValueError("a block's table, data pages and working set must lie inside it")
            b = &self.model.block[self.model.blocks]
            b.pages = pages
            b.first_table = first_table
            b.first_data = first_data
            b.data_before = self.model.data_pages
            b.working_set_before = self.model.working_set
            b.working_set = working_set
            self.model.data_pages += pages - first_data
            self.model.working_set += working_set
            self.model.blocks += 1
        if self.model.working_set < 2 or fill_writes > self.model.data_pages:
            raise ValueError("at least two pages in the working set, at most one fill write a page")


cdef class Check:
    cdef guest_check result
    cdef guest_slot slot
    cdef bint in_flight
    cdef Model model

    def __init__(self, Model model not None, slot):
        self.model = model
        memset(&self.result, 0, sizeof(self.result))
        self.in_flight = slot is not None
        if self.in_flight:
            (self.slot.number, self.slot.place, self.slot.operation, self.slot.entry, self.slot.sum) = slot

    def pages(self, uint32_t block, uint64_t first, const uint8_t[::1] pages not None,
              const uint8_t[::1] entries not None):
        if block >= self.model.model.blocks:
            raise ValueError("no such block")
        cdef uint64_t count = <uint64_t>pages.shape[0] // GUEST_PAGE
        cdef guest_block *b = &self.model.model.block[block]
        if count == 0 or <uint64_t>pages.shape[0] != count * GUEST_PAGE or <uint64_t>entries.shape[0] != count * 8:
            raise ValueError("whole pages and one 8-byte table entry for each")
        if first < b.first_data or first >= b.pages or count > b.pages - first:
            raise ValueError("these are not data pages of the block")
        if <size_t>&pages[0] % 8 or <size_t>&entries[0] % 8:
            raise ValueError("buffers must be aligned to 8 bytes")
        cdef const uint8_t *p = &pages[0]
        cdef const uint64_t *e = <const uint64_t *>&entries[0]
        with nogil:
            guest_check_pages(&self.model.model, block, first, count, p, e,
                              &self.slot if self.in_flight else NULL, &self.result)

    @property
    def counts(self):
        return tuple([self.result.counts[i] for i in range(PAGE_VERDICTS)])

    @property
    def stale_table_pages(self):
        return self.result.stale_table_pages

    @property
    def versions(self):
        return self.result.versions

    @property
    def faults(self):
        return [_fault(&self.result.faults[i]) for i in range(self.result.described)]


cdef _fault(const guest_fault *f):
    return f.verdict, f.place >> 32, f.place & 0xffffffff, f.found, f.expected


cdef class Guest:
    cdef guest guest
    cdef Py_buffer views[128]
    cdef int held

    def __init__(
        self, Model model not None, rams, *, uint64_t rate, int witness, bytes witness_prefix not None, logs=()
    ):
        self.held = 0
        memset(&self.guest, 0, sizeof(self.guest))
        if len(rams) != model.model.blocks:
            raise ValueError("one buffer for each block")
        if len(logs) not in (0, len(rams)):
            raise ValueError("one log for each block, or none")
        if rate > 1000000000:
            raise ValueError("rate: at most 10^9 pages a second")
        if len(witness_prefix) > 511:
            raise ValueError("the witness prefix is too long")
        memcpy(&self.guest.model, &model.model, sizeof(guest_model))
        memcpy(self.guest.witness_prefix, <const char *>witness_prefix, len(witness_prefix))
        self.guest.rate = rate
        self.guest.witness = witness
        for ram in rams:
            PyObject_GetBuffer(ram, &self.views[self.held], PyBUF_SIMPLE | PyBUF_WRITABLE)
            self.held += 1
            if <uint64_t>self.views[self.held - 1].len != self.guest.model.block[self.held - 1].pages * GUEST_PAGE:
                raise ValueError(f"block {self.held - 1}: the buffer is not as long as the block")
            if <size_t>self.views[self.held - 1].buf % 8:
                raise ValueError("buffers must be aligned to 8 bytes")
            self.guest.model.block[self.held - 1].ram = <uint8_t *>self.views[self.held - 1].buf
        for block, log in enumerate(logs):
            PyObject_GetBuffer(log, &self.views[self.held], PyBUF_SIMPLE | PyBUF_WRITABLE)
            self.held += 1
            if <uint64_t>self.views[self.held - 1].len < (self.guest.model.block[block].pages + 63) // 64 * 8:
                raise ValueError(f"block {block}: the log is too short")
            if <size_t>self.views[self.held - 1].buf % 8:
                raise ValueError("logs must be aligned to 8 bytes")
            self.guest.model.block[block].log = <uint64_t *>self.views[self.held - 1].buf
        self.guest.state = <guest_state *>(self.guest.model.block[0].ram + GUEST_PAGE)

    def __dealloc__(self):
        self.close()

    cpdef close(self):
        while self.held:
            self.held -= 1
            PyBuffer_Release(&self.views[self.held])

    def _require_open(self):
        if not self.held:
            raise ValueError("the guest is closed")

    def recover(self):
        self._require_open()
        return guest_recover(&self.guest)

    def run(self, uint64_t until_ns):
        self._require_open()
        cdef int result
        with nogil:
            result = guest_run(&self.guest, until_ns)
        if result != 0 and self.guest.error:
            raise OSError(self.guest.error, os.strerror(self.guest.error))
        return result == 0

    @property
    def fault(self):
        return _fault(&self.guest.fault) if self.guest.fault.verdict != PAGE_GOOD else None

    @property
    def beat(self):
        self._require_open()
        return self.guest.state.beat

    @property
    def writes(self):
        self._require_open()
        return self.guest.state.done


def catch_sigbus():
    if guest_catch_sigbus() != 0:
        raise OSError("SIGBUS cannot be caught")


def offer_tracking():
    cdef int fd = guest_offer_tracking()
    if fd < 0:
        raise OSError(errno, os.strerror(errno))
    return fd

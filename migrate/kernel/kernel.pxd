# kernel.h, as far as the shell needs it.


from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

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
    enum:
        MK_WALK_COUNTERS
    enum mk_walk_stop:
        pass
    struct mk_listed:
        pass
    struct mk_walk:
        const mk_ram *ram
        const uint8_t *body
        size_t length
        size_t block
        uint8_t *content
        uint8_t *seen
        bint rounds
        uint64_t after
        uint64_t *counts
        bint apply
        bint compressed
        mk_listed *list
        size_t list_room
    struct mk_walked:
        uint64_t consumed, listed, written, after
        size_t block
        mk_walk_stop stop

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
    void mk_bitmap_remove(uint8_t *target, const uint8_t *source, size_t bytes)
    void mk_bitmap_select(const uint8_t *source, uint8_t *target, size_t bytes, uint64_t stripe_pages,
                          uint64_t lane, uint64_t lanes)
    const char *mk_ram_init(mk_ram *ram, uint32_t page_size, uint64_t stripe_pages, const mk_block *blocks,
                            size_t block_count, c_bool *no_memory)
    void mk_ram_free(mk_ram *ram)
    size_t mk_ram_find(const mk_ram *ram, uint64_t first, uint64_t count)
    int mk_cache_init(mk_cache *cache, const mk_keys *keys, uint64_t budget, bint qemu_rule)
    void mk_cache_free(mk_cache *cache)
    int mk_cache_commit(mk_cache *cache, uint64_t most) nogil
    void mk_cache_clear(mk_cache *cache)
    int64_t mk_cache_find(const mk_cache *cache, uint64_t page)
    uint8_t *mk_cache_data(const mk_cache *cache, int64_t slot)
    int64_t mk_cache_put(mk_cache *cache, int64_t slot, uint64_t page, const uint8_t *content, mk_u128 term,
                         uint32_t round, mk_stage stage, bint zero)
    void mk_cache_touch(mk_cache *cache, int64_t slot, uint32_t round)
    void mk_cache_take_over(mk_cache *cache, const mk_cache *source) nogil
    mk_status c_fill "mk_fill"(const mk_fill *request, mk_filled *result, mk_error *error)
    mk_status c_apply "mk_apply"(const mk_apply *request, mk_applied *result, mk_error *error)
    mk_status c_walk "mk_walk"(const mk_walk *request, mk_walked *result, mk_error *error)
    mk_status mk_land(const mk_walk *request, const uint8_t *offsets, size_t normal, size_t zero, mk_walked *result,
                      mk_error *error)
    mk_status mk_scan(const mk_ram *ram, const mk_keys *keys, const uint8_t *digests, uint64_t first, uint64_t count,
                      uint8_t *dirty, uint64_t *differing, mk_error *error)
    mk_status mk_digest_range(const mk_ram *ram, const mk_keys *keys, uint64_t first, uint64_t count, uint8_t *out,
                              mk_error *error)
    uint64_t mk_zero_range(const mk_keys *keys, const uint8_t *digests, uint64_t first, uint64_t count, uint8_t *dirty)
    mk_status mk_scan_pages(const mk_ram *ram, const mk_keys *keys, const uint8_t *digests, uint64_t first,
                            uint64_t count, const uint8_t *suspects, uint8_t *dirty, uint64_t *differing,
                            mk_error *error)
    mk_status mk_data_pages(const mk_ram *ram, uint64_t first, uint64_t count, const uint8_t *suspects, uint8_t *bitmap,
                            mk_error *error)
    int mk_written_pages(int pagemap, uint64_t start, uint64_t length, uint64_t window, uint64_t origin,
                         unsigned shift, uint8_t *bitmap)
    int mk_present_pages(int pagemap, uint64_t start, uint64_t length, uint64_t origin, unsigned shift,
                         uint8_t *bitmap)
    int mk_probe_write_tracking()
    int mk_track_writes(int uffd, uint64_t start, uint64_t length)
    uint64_t mk_take_log(uint8_t *log, uint64_t length, unsigned page_shift, uint64_t first, uint8_t *bitmap)

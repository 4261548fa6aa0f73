/* The C part of the kernel: loops over pages, records and bitmaps. No Python here.
 *
 * `_native.pyi` says what each operation means, to the bit; this header says how C is to call it. The shell
 * (`_native.pyx`) has checked every argument before it calls: sizes, ranges and null pointers are the
 * caller's business. What comes from a peer (the body in mk_apply, the delta in mk_xbzrle_decode) and what
 * comes from the file system is checked here, always.
 *
 * Nothing here allocates beyond its call, except mk_keys, mk_ram and mk_cache, which their *_free releases.
 * There is no global state but the table of CPU variants, which is set when the library is loaded. Two
 * threads may run any two functions at once as long as they share no cache, bitmap or digest that one of them
 * writes.
 */
#ifndef MIGRATE_KERNEL_H
#define MIGRATE_KERNEL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* ---- numbers of the contract --------------------------------------------------------------------------- */

enum {
    MK_PAGE_SIZE_MIN = 1024,
    MK_PAGE_SIZE_MAX = 65536,
    MK_XBZRLE_PAGE_MAX = 16383, /* a run length has 14 bits */
    MK_NAME_MAX = 255,
    MK_DIGEST_BYTES = 16,
    MK_RECORDS_MAX = 2048,
    MK_ARENA_BYTES = 8 << 20,
};

enum mk_stage { MK_BULK = 1, MK_ROUND = 2, MK_LAST = 3 };

static inline uint32_t mk_max_records(uint32_t page_size)
{
    uint32_t fit = MK_ARENA_BYTES / page_size;
    return fit < MK_RECORDS_MAX ? fit : MK_RECORDS_MAX;
}

/* ---- errors -------------------------------------------------------------------------------------------- */

enum mk_status {
    MK_OK = 0,
    MK_RECORD, /* an illegal body: rule, at = byte offset in the body */
    MK_RAM, /* a RAM file failed: what, block, at = byte offset in the block, sys = errno or 0 */
    MK_VERIFY, /* read back something else: block, at = byte offset in the block */
    MK_MEMORY, /* no memory for the call's own buffers */
};

struct mk_error {
    enum mk_status status;
    const char *rule; /* name of the rule as in _native.pyi */
    const char *what; /* "the file ended before the block", "reading failed" … */
    size_t block; /* index into mk_ram.blocks */
    uint64_t at;
    int sys;
};

/* ---- 128-bit numbers ----------------------------------------------------------------------------------- */

struct mk_u128 {
    uint64_t lo, hi;
};

/* ---- variants by CPU ----------------------------------------------------------------------------------- */

enum mk_feature {
    MK_SSE2 = 1 << 0,
    MK_SSE42 = 1 << 1, /* with PCLMULQDQ */
    MK_AVX2 = 1 << 2, /* with BMI1, BMI2, POPCNT */
    MK_AVX512 = 1 << 3, /* F, BW, VL, VBMI2, VPOPCNTDQ; with MK_AVX2 */
    MK_VPCLMUL = 1 << 4, /* VPCLMULQDQ on 512 bits */
    MK_ALL_FEATURES = (1 << 5) - 1,
};

/* What this CPU has. */
unsigned mk_cpu_features(void);
/* Use only what is both in `allowed` and in the CPU; returns that. All variants give identical results: this
 * is for tests and benchmarks. Not to be called while another thread is in the kernel. */
unsigned mk_select(unsigned allowed);

/* ---- bytes --------------------------------------------------------------------------------------------- */

bool mk_is_zero(const uint8_t *data, size_t length);
uint32_t mk_crc32c(const uint8_t *data, size_t length, uint32_t value);

enum { MK_XBZRLE_SLACK = 128 };

/* Returns the length of the delta, 0 if the pages are equal, -1 on overflow. length <= MK_XBZRLE_PAGE_MAX;
 * `out` has room for limit + MK_XBZRLE_SLACK bytes. */
int mk_xbzrle_encode(
    const uint8_t *old, const uint8_t *new, size_t length, uint8_t *out, size_t limit, size_t gap);
/* Returns the end of the last change, -1 if undecodable: then the page may have been changed in part. */
int64_t mk_xbzrle_decode(const uint8_t *delta, size_t delta_length, uint8_t *page, size_t length);
/* Returns how many runs of changes a delta has, -1 if mk_xbzrle_decode would refuse it. */
int64_t mk_xbzrle_runs(const uint8_t *delta, size_t delta_length, size_t length);

/* ---- digests ------------------------------------------------------------------------------------------- */

struct mk_keys {
    uint32_t page_size;
    unsigned page_shift;
    uint64_t root_key[2];
    struct mk_u128 zero_digest;
    uint64_t *page_key; /* page_size / 8 words */
};

/* `page_key` has page_size bytes, `root_key` 16. Returns 0, or -1 without memory. */
int mk_keys_init(struct mk_keys *keys, uint32_t page_size, const uint8_t *page_key, const uint8_t *root_key);
void mk_keys_free(struct mk_keys *keys);
struct mk_u128 mk_page_digest(const struct mk_keys *keys, const uint8_t *page);
struct mk_u128 mk_term(const struct mk_keys *keys, uint64_t page, struct mk_u128 digest);
/* Sum of the terms of a range of a digest array. */
struct mk_u128 mk_root(const struct mk_keys *keys, const uint8_t *digests, uint64_t first, uint64_t count);
void mk_set_digests(uint8_t *digests, uint64_t first, uint64_t count, struct mk_u128 digest);

/* ---- bitmaps: u64 words, little-endian, `bytes` a multiple of 8 ---------------------------------------- */

enum { MK_NO_PAGE = -1 };

uint64_t mk_bitmap_count(const uint8_t *bitmap, size_t bytes);
void mk_bitmap_set_range(uint8_t *bitmap, uint64_t first, uint64_t count);
/* Returns false, with nothing set, if a number is beyond the bitmap. */
bool mk_bitmap_set_pages(uint8_t *bitmap, size_t bytes, const uint8_t *pages, size_t count);
/* First bit in start…end-1 set in `a`, or in `b` unless that is NULL; `end` if there is none. */
uint64_t mk_bitmap_next(const uint8_t *a, const uint8_t *b, uint64_t start, uint64_t end);
/* First bit in start…end-1 that is not set; `end` if there is none. */
uint64_t mk_bitmap_end(const uint8_t *bitmap, uint64_t start, uint64_t end);
void mk_bitmap_or(uint8_t *target, const uint8_t *source, size_t bytes);
void mk_bitmap_remove(uint8_t *target, const uint8_t *source, size_t bytes);
/* stripe_pages is a multiple of 64 below 2**48, lanes below 2**31. */
void mk_bitmap_select(
    const uint8_t *source, uint8_t *target, size_t bytes, uint64_t stripe_pages, uint64_t lane,
    uint64_t lanes);

/* ---- RAM blocks ---------------------------------------------------------------------------------------- */

struct mk_block {
    uint64_t first_page, pages;
    int fd;
    uint8_t name_length;
    uint8_t name[MK_NAME_MAX];
};

struct mk_ram {
    uint32_t page_size;
    unsigned page_shift;
    uint8_t longest_name;
    uint64_t stripe_pages, total_pages;
    size_t block_count;
    struct mk_block *blocks; /* ascending by first_page */
};

/* Copies and sorts the blocks. Returns NULL, or what is wrong with the arguments; sets *no_memory instead if
 * that was it. */
const char *mk_ram_init(
    struct mk_ram *ram, uint32_t page_size, uint64_t stripe_pages, const struct mk_block *blocks,
    size_t block_count, bool *no_memory);
void mk_ram_free(struct mk_ram *ram);
/* Index of the block that holds all of first…first+count-1, or block_count. */
size_t mk_ram_find(const struct mk_ram *ram, uint64_t first, uint64_t count);

/* ---- the page cache ------------------------------------------------------------------------------------ */

struct mk_entry {
    uint64_t page;
    uint32_t age;
    uint32_t used; /* 0 or 1 */
    struct mk_u128 term;
};

struct mk_cache {
    const struct mk_keys *keys; /* outlives the cache */
    bool qemu_rule;
    uint32_t ways;
    int32_t bias; /* below 0: sets that keep entries for long lose fewer pages */
    uint64_t sets, slots, used;
    struct mk_u128 digest;
    struct mk_entry *entries;
    uint8_t *data;
};

enum { MK_NO_SLOT = -1 };

/* Returns 0, or -1 without memory. */
int mk_cache_init(struct mk_cache *cache, const struct mk_keys *keys, uint64_t budget, bool qemu_rule);
void mk_cache_free(struct mk_cache *cache);
/* Have memory behind the first `most` bytes of content. Returns 0, or -1 if there is none. */
int mk_cache_commit(struct mk_cache *cache, uint64_t most);
void mk_cache_clear(struct mk_cache *cache);
/* Slot that holds the page, or MK_NO_SLOT. */
int64_t mk_cache_find(const struct mk_cache *cache, uint64_t page);
uint8_t *mk_cache_data(const struct mk_cache *cache, int64_t slot);
/* Apply the rule; `slot` is what mk_cache_find said. `content` may be the slot's own data, changed in place.
 * `term` is mk_term of page and content. Returns the slot that has the content now, or MK_NO_SLOT if nothing
 * was written. */
int64_t mk_cache_put(
    struct mk_cache *cache, int64_t slot, uint64_t page, const uint8_t *content, struct mk_u128 term,
    uint32_t round, enum mk_stage stage, bool zero);
void mk_cache_touch(struct mk_cache *cache, int64_t slot, uint32_t round);
/* Replace what `cache` holds by what `from` holds, both with the same keys and rule: the score of the duel, and
 * the entries in the order of their slots. Where there is no room the youngest stay, of equals the first. */
void mk_cache_take_over(struct mk_cache *cache, const struct mk_cache *from);

/* ---- batches ------------------------------------------------------------------------------------------- */

struct mk_fill {
    const struct mk_ram *ram;
    const struct mk_keys *keys;
    uint8_t *digests;
    struct mk_cache *cache; /* or NULL */
    uint8_t *pending, *owed;
    uint64_t start;
    uint8_t *out;
    size_t limit;
    uint8_t *sent; /* 8 * mk_max_records bytes */
    uint32_t round;
    enum mk_stage stage;
};

struct mk_filled {
    uint64_t length, records, next_page;
    bool finished;
    uint32_t crc;
    struct mk_u128 digest_sum, root_delta;
    uint64_t zero, normal, xbzrle, unchanged, cache_hit, cache_miss, overflow, xbzrle_bytes;
};

enum mk_status mk_fill(const struct mk_fill *request, struct mk_filled *result, struct mk_error *error);

struct mk_apply {
    const struct mk_ram *ram;
    const struct mk_keys *keys;
    uint8_t *digests;
    struct mk_cache *cache; /* or NULL */
    const uint8_t *body;
    size_t length;
    uint64_t records;
    struct mk_u128 digest_sum;
    uint64_t lane, lanes;
    uint32_t round;
    enum mk_stage stage;
    bool readback;
};

struct mk_applied {
    uint64_t records, zero, normal, xbzrle, written;
    struct mk_u128 root_delta;
};

enum mk_status mk_apply(const struct mk_apply *request, struct mk_applied *result, struct mk_error *error);

/* ---- RAM sections of a real QEMU ----------------------------------------------------------------------- */

/* Counters of one block, in this order. */
enum mk_walk_counter {
    MK_WALK_ZERO,
    MK_WALK_ZERO_AGAIN,
    MK_WALK_NORMAL,
    MK_WALK_XBZRLE,
    MK_WALK_XBZRLE_RUNS,
    MK_WALK_XBZRLE_BYTES,
    MK_WALK_NAMED,
    MK_WALK_CONTINUED,
    MK_WALK_COMPRESSED,
    MK_WALK_COMPRESSED_BYTES,
    MK_WALK_COUNTERS,
};

enum mk_walk_stop { MK_WALK_MORE, MK_WALK_EOS, MK_WALK_FLUSH, MK_WALK_ROUND, MK_WALK_KIND };

struct mk_listed {
    uint64_t at, offset;
    uint32_t block;
    uint16_t type, length;
};

struct mk_walk {
    const struct mk_ram *ram;
    const uint8_t *body;
    size_t length;
    size_t block; /* the block named last, block_count before that */
    uint8_t *content; /* bitmap: pages that are not zero */
    uint8_t *seen; /* bitmap: pages that had a record */
    bool rounds; /* stop before a record for a page below `after` */
    uint64_t after;
    uint64_t *counts; /* MK_WALK_COUNTERS a block, added to */
    bool apply;
    bool compressed; /* take records COMPRESS_PAGE and stop before any other; else stop before such a one */
    struct mk_listed *list; /* or NULL */
    size_t list_room;
};

struct mk_walked {
    uint64_t consumed, listed, written, after;
    size_t block;
    enum mk_walk_stop stop;
};

/* The records before an illegal one have landed. */
enum mk_status mk_walk(const struct mk_walk *request, struct mk_walked *result, struct mk_error *error);
/* Several threads may walk and land at once with the same ram, content and seen, but counts of their own.
 *
 * Pages of a multifd packet: `body` has the normal ones, `offsets` be64 of these, then of the zero ones, all in
 * `block`. Nothing lands if an offset is wrong; *error then has its place in `offsets`. */
enum mk_status mk_land(
    const struct mk_walk *request, const uint8_t *offsets, size_t normal, size_t zero,
    struct mk_walked *result, struct mk_error *error);

/* first…first+count-1 lie in one block in both. */
enum mk_status mk_scan(
    const struct mk_ram *ram, const struct mk_keys *keys, const uint8_t *digests, uint64_t first,
    uint64_t count, uint8_t *dirty, uint64_t *differing, struct mk_error *error);
enum mk_status mk_digest_range(
    const struct mk_ram *ram, const struct mk_keys *keys, uint64_t first, uint64_t count, uint8_t *out,
    struct mk_error *error);
uint64_t mk_zero_range(
    const struct mk_keys *keys, const uint8_t *digests, uint64_t first, uint64_t count, uint8_t *dirty);
/* mk_scan of those pages of the range whose bit is set in `suspects`. */
enum mk_status mk_scan_pages(
    const struct mk_ram *ram, const struct mk_keys *keys, const uint8_t *digests, uint64_t first,
    uint64_t count, const uint8_t *suspects, uint8_t *dirty, uint64_t *differing, struct mk_error *error);
/* Of those pages of the range whose bit is set in `suspects`: set the bits of the ones that are no holes. */
enum mk_status mk_data_pages(
    const struct mk_ram *ram, uint64_t first, uint64_t count, const uint8_t *suspects, uint8_t *bitmap,
    struct mk_error *error);

/* ---- what a guest wrote: all return 0 or an errno ------------------------------------------------------- */

/* Fetch and clear, atomically, what was written in `length` bytes of addresses from `start` on; `origin` is
 * the place of the first of them in page space, in bytes. `window`: 0, or scan in pieces of so many bytes. */
int mk_written_pages(
    int pagemap, uint64_t start, uint64_t length, uint64_t window, uint64_t origin, unsigned shift,
    uint8_t *bitmap);
/* Set the bits of the pages that page tables have, whole: these are no holes of their file. */
int mk_present_pages(
    int pagemap, uint64_t start, uint64_t length, uint64_t origin, unsigned shift, uint8_t *bitmap);
/* Does a store show up? Tried on two pages of our own. */
int mk_probe_write_tracking(void);
/* Have a userfaultfd watch writes to a range of its owner's addresses. */
int mk_track_writes(int uffd, uint64_t start, uint64_t length);

/* Fetch and clear the bits of a log, one for 4096 bytes, that belongs to `length` bytes of RAM beginning with
 * page `first`, a multiple of 64; `log` is aligned to 8 bytes. Returns how many were set. */
uint64_t mk_take_log(uint8_t *log, uint64_t length, unsigned page_shift, uint64_t first, uint8_t *bitmap);

#endif

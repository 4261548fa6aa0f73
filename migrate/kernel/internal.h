/* What the .c files of the kernel share among themselves. */
#ifndef MIGRATE_KERNEL_INTERNAL_H
#define MIGRATE_KERNEL_INTERNAL_H

#include <string.h>
#include <sys/uio.h>

#include "kernel.h"

/* ---- flags of a RAM record (qemu-ram-stream.md 2.1) ---------------------------------------------------- */

enum {
    RECORD_ZERO = 0x002,
    RECORD_PAGE = 0x008,
    RECORD_EOS = 0x010,
    RECORD_CONTINUE = 0x020,
    RECORD_XBZRLE = 0x040,
    RECORD_HOOK = 0x080,
    RECORD_COMPRESSED = 0x100,
    RECORD_FLUSH = 0x200,
    RECORD_HEADER = 8,
    XBZRLE_ENCODING = 1,
    XBZRLE_HEADER = 3, /* u8 encoding, be16 length */
    COMPRESSED_HEADER = 4, /* be32 length */
};

/* ---- numbers in memory, unaligned ---------------------------------------------------------------------- */

static inline uint64_t load_native64(const void *from)
{
    uint64_t value;
    memcpy(&value, from, sizeof value);
    return value;
}

static inline void store_native64(void *to, uint64_t value)
{
    memcpy(to, &value, sizeof value);
}

#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
static inline uint64_t little64(uint64_t value)
{
    return value;
}
static inline uint64_t big64(uint64_t value)
{
    return __builtin_bswap64(value);
}
#else
static inline uint64_t little64(uint64_t value)
{
    return __builtin_bswap64(value);
}
static inline uint64_t big64(uint64_t value)
{
    return value;
}
#endif

static inline uint64_t load_le64(const void *from)
{
    return little64(load_native64(from));
}

static inline void store_le64(void *to, uint64_t value)
{
    store_native64(to, little64(value));
}

static inline uint64_t load_be64(const void *from)
{
    return big64(load_native64(from));
}

static inline void store_be64(void *to, uint64_t value)
{
    store_native64(to, big64(value));
}

/* ---- 128-bit arithmetic, modulo 2**128 ----------------------------------------------------------------- */

__extension__ typedef unsigned __int128 wide;

static inline wide widen(struct mk_u128 value)
{
    return (wide)value.hi << 64 | value.lo;
}

static inline struct mk_u128 narrow(wide value)
{
    return (struct mk_u128){(uint64_t)value, (uint64_t)(value >> 64)};
}

static inline bool same(struct mk_u128 a, struct mk_u128 b)
{
    return a.lo == b.lo && a.hi == b.hi;
}

static inline struct mk_u128 digest_at(const uint8_t *digests, uint64_t page)
{
    const uint8_t *at = digests + page * MK_DIGEST_BYTES;
    return (struct mk_u128){load_le64(at), load_le64(at + 8)};
}

static inline void set_digest(uint8_t *digests, uint64_t page, struct mk_u128 digest)
{
    uint8_t *at = digests + page * MK_DIGEST_BYTES;
    store_le64(at, digest.lo);
    store_le64(at + 8, digest.hi);
}

/* ---- the place of a page in the root ------------------------------------------------------------------- */

struct place {
    uint64_t a, b;
};

struct place place_of(const struct mk_keys *keys, uint64_t page);

/* mk_term, for who needs several terms of one page. */
static inline struct mk_u128 term_at(struct place place, struct mk_u128 digest)
{
    return narrow((wide)(digest.lo + place.a) * (digest.hi + place.b));
}

/* ---- bits ---------------------------------------------------------------------------------------------- */

static inline bool bit_is_set(const uint8_t *bitmap, uint64_t page)
{
    return bitmap[page >> 3] >> (page & 7) & 1;
}

static inline void set_bit(uint8_t *bitmap, uint64_t page)
{
    bitmap[page >> 3] |= (uint8_t)(1u << (page & 7));
}

static inline void clear_bit(uint8_t *bitmap, uint64_t page)
{
    bitmap[page >> 3] &= (uint8_t) ~(1u << (page & 7));
}

/* ---- variants by CPU ----------------------------------------------------------------------------------- */

struct variants {
    struct mk_u128 (*page_digest)(const struct mk_keys *keys, const uint8_t *page);
    bool (*is_zero)(const uint8_t *data, size_t length);
    uint32_t (*crc32c)(const uint8_t *data, size_t length, uint32_t value);
    /* masks[i] bit j: byte 64*i+j differs; `chunks` whole chunks of 64 bytes. */
    void (*differs)(const uint8_t *a, const uint8_t *b, size_t chunks, uint64_t *masks);
    /* turns[i] bit j: byte 64*i+j differs and the byte before it does not, or the other way round; busy:
     * which of those words are not 0, one bit a word. masks[1 + i] belongs to chunk i of `chunks`; masks[0]
     * and TURNS_PADDING words behind the last are 0, and `turns` has room for as many. */
    void (*turns)(const uint64_t *masks, size_t chunks, uint64_t *turns, uint64_t *busy);
    /* The delta of a page whose masks these are; see mk_xbzrle_encode. */
    int (*encode)(
        const uint64_t *masks, const uint8_t *new, size_t length, uint8_t *out, size_t limit, size_t gap);
};

enum { TURNS_PADDING = 8 };

extern struct variants variants;

/* Each chooses its member of `variants` among what `features` allows. */
void zero_select(unsigned features);
void crc32c_select(unsigned features);
void differs_select(unsigned features);
void digest_select(unsigned features);
void xbzrle_select(unsigned features);

/* The delta of these runs of changes: start and end of each in turn, in a page of that length; gaps of up to
 * `gap` bytes between them are sent along. */
int xbzrle_write_runs(
    const uint16_t *edges, size_t count, const uint8_t *new, size_t length, uint8_t *out, size_t limit,
    size_t gap);

#if defined(__x86_64__)
int xbzrle_encode_bmi(
    const uint64_t *masks, const uint8_t *new, size_t length, uint8_t *out, size_t limit, size_t gap);
int xbzrle_encode_avx512(
    const uint64_t *masks, const uint8_t *new, size_t length, uint8_t *out, size_t limit, size_t gap);
#endif

/* ---- files --------------------------------------------------------------------------------------------- */

extern const uint8_t zero_page[MK_PAGE_SIZE_MAX];

/* Read whole pages first… of a block: iovec i takes page first + i. Returns how many whole pages were read
 * (at least one), or 0 with *error set. Fewer than asked for is legal: ask again. */
size_t read_pages(
    const struct mk_ram *ram, size_t block, uint64_t first, uint8_t *const *into, size_t pages,
    struct mk_error *error);
/* A write behind the end of a truncated file would lengthen it without a word: look before the first one. */
enum mk_status check_length(const struct mk_ram *ram, size_t block, struct mk_error *error);
/* All of the parts, from that byte of the block on; they are used up. */
enum mk_status write_parts(
    const struct mk_ram *ram, size_t block, uint64_t offset, struct iovec *part, size_t count,
    struct mk_error *error);

#endif

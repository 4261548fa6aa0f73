/* XBZRLE deltas (qemu-ram-stream.md section 3). */
#include "internal.h"

enum { CHUNK = 64, CHUNKS_MAX = MK_XBZRLE_PAGE_MAX / CHUNK + 1, AT_ONCE = 4, SHORT = 8 };

/* Where the page turns from equal to different and back: start and end of each run of changes, in turn.
 * Returns how many. AT_ONCE positions are written at once: what is written behind the last means nothing. */
static inline __attribute__((always_inline)) size_t
find_edges(uint16_t *edges, const uint64_t *masks, size_t chunks)
{
    const uint64_t top = (uint64_t)1 << 63; /* so that there always is a lowest set bit */
    uint64_t turns[CHUNKS_MAX + 1 + TURNS_PADDING], busy[CHUNKS_MAX / 64 + 1];
    uint16_t *to = edges;
    variants.turns(masks, chunks, turns, busy);
    for (size_t group = 0; group <= chunks; group += 64) {
        for (uint64_t words = busy[group / 64]; words; words &= words - 1) {
            size_t word = group + (size_t)__builtin_ctzll(words);
            uint64_t bits = turns[word];
            uint16_t *next = to + __builtin_popcountll(bits);
            do { /* mostly once: how many there are in a word cannot be foretold, that they are few can */
                for (int i = 0; i < AT_ONCE; i++) {
                    *to++ = (uint16_t)(word * CHUNK + (unsigned)__builtin_ctzll(bits | top));
                    bits &= bits - 1;
                }
            } while (__builtin_expect(bits != 0, 0));
            to = next;
        }
    }
    return (size_t)(to - edges);
}

static inline uint8_t *put_length(uint8_t *out, size_t length)
{
    size_t high = length >> 7, two = high != 0;
    out[0] = (uint8_t)((length & 0x7f) | two << 7);
    out[1] = (uint8_t)high;
    return out + 1 + two;
}

int xbzrle_write_runs(
    const uint16_t *edges, size_t count, const uint8_t *new, size_t length, uint8_t *out, size_t limit,
    size_t gap)
{
    uint8_t *to = out;
    size_t done = 0;
    for (size_t i = 0; i < count; i += 2) {
        size_t start = edges[i];
        while (__builtin_expect(i + 2 < count && (size_t)edges[i + 2] - edges[i + 1] <= gap, 0))
            i += 2; /* across a short gap */
        size_t run = edges[i + 1] - start;
        to = put_length(to, start - done);
        if (__builtin_expect(run < 128, 1))
            *to++ = (uint8_t)run;
        else
            to = put_length(to, run);
        if ((size_t)(to - out) + run > limit)
            return -1;
        if (run <= SHORT && start + SHORT <= length)
            memcpy(to, new + start, SHORT);
        else
            memcpy(to, new + start, run);
        to += run;
        done = start + run;
    }
    /* The rules B and C hold for every run if C holds for the last: the delta only grows. Rule A adds that
     * two bytes must be left wherever the page goes on. */
    if (done < length && (size_t)(to - out) + 2 > limit)
        return -1;
    return (int)(to - out);
}

static inline __attribute__((always_inline)) int
encode(const uint64_t *masks, const uint8_t *new, size_t length, uint8_t *out, size_t limit, size_t gap)
{
    uint16_t edges[MK_XBZRLE_PAGE_MAX + 1 + AT_ONCE];
    size_t count = find_edges(edges, masks, (length + CHUNK - 1) / CHUNK);
    return xbzrle_write_runs(edges, count, new, length, out, limit, gap);
}

static int
encode_plain(const uint64_t *masks, const uint8_t *new, size_t length, uint8_t *out, size_t limit, size_t gap)
{
    return encode(masks, new, length, out, limit, gap);
}

#if defined(__x86_64__)
/* The same with one instruction for each of: lowest set bit, that bit cleared, bits counted. */
__attribute__((target("bmi,bmi2,popcnt"))) int xbzrle_encode_bmi(
    const uint64_t *masks, const uint8_t *new, size_t length, uint8_t *out, size_t limit, size_t gap)
{
    return encode(masks, new, length, out, limit, gap);
}
#endif

void xbzrle_select(unsigned features)
{
    variants.encode = encode_plain;
#if defined(__x86_64__)
    if (features & MK_AVX2)
        variants.encode = xbzrle_encode_bmi;
    if (features & MK_AVX512)
        variants.encode = xbzrle_encode_avx512;
#endif
    (void)features;
}

int mk_xbzrle_encode(
    const uint8_t *old, const uint8_t *new, size_t length, uint8_t *out, size_t limit, size_t gap)
{
    uint64_t masks[1 + CHUNKS_MAX + 1 + TURNS_PADDING];
    size_t chunks = length / CHUNK, rest = length % CHUNK;
    masks[0] = 0;
    variants.differs(old, new, chunks, masks + 1);
    if (rest) {
        uint8_t a[CHUNK] = {0}, b[CHUNK] = {0};
        memcpy(a, old + chunks * CHUNK, rest);
        memcpy(b, new + chunks *CHUNK, rest);
        variants.differs(a, b, 1, masks + 1 + chunks);
        chunks++;
    }
    memset(masks + 1 + chunks, 0, (1 + TURNS_PADDING) * sizeof *masks);
    return variants.encode(masks, new, length, out, limit, gap);
}

/* A length of 14 bits at most; at least one byte must follow it. Returns false if it is no such thing. */
static bool take_length(const uint8_t **at, const uint8_t *end, size_t *length)
{
    const uint8_t *from = *at;
    if (end - from < 2)
        return false;
    *length = from[0] & 0x7f;
    *at = from + 1;
    if (from[0] & 0x80) {
        if (from[1] & 0x80)
            return false;
        *length |= (size_t)from[1] << 7;
        *at = from + 2;
    }
    return true;
}

/* memcpy of a length that is mostly small and never foreseeable, without a call. */
static inline void copy_run(uint8_t *to, const uint8_t *from, size_t length)
{
    if (length > 16) {
        memcpy(to, from, length);
    } else if (length >= 8) { /* both ends; in the middle they overlap */
        uint64_t head = load_native64(from), tail = load_native64(from + length - 8);
        store_native64(to, head);
        store_native64(to + length - 8, tail);
    } else if (length >= 4) {
        uint32_t head, tail;
        memcpy(&head, from, 4);
        memcpy(&tail, from + length - 4, 4);
        memcpy(to, &head, 4);
        memcpy(to + length - 4, &tail, 4);
    } else {
        to[0] = from[0];
        to[length - 1] = from[length - 1];
        to[length / 2] = from[length / 2];
    }
}

int64_t mk_xbzrle_decode(const uint8_t *delta, size_t delta_length, uint8_t *page, size_t length)
{
    const uint8_t *at = delta, *end = delta + delta_length;
    size_t done = 0;
    while (at < end) {
        size_t skip, run;
        bool first = at == delta;
        if (end - at >= 3 && !((at[0] | at[1]) & 0x80)) { /* both lengths in one byte: nearly always */
            skip = at[0];
            run = at[1];
            at += 2;
        } else if (!take_length(&at, end, &skip) || !take_length(&at, end, &run)) {
            return -1;
        }
        if ((skip == 0 && !first) || run == 0)
            return -1;
        if (skip > length - done || run > length - done - skip || run > (size_t)(end - at))
            return -1;
        done += skip;
        copy_run(page + done, at, run);
        done += run;
        at += run;
    }
    return (int64_t)done;
}

int64_t mk_xbzrle_runs(const uint8_t *delta, size_t delta_length, size_t length)
{
    const uint8_t *at = delta, *end = delta + delta_length;
    size_t done = 0;
    int64_t runs = 0;
    for (; at < end; runs++) {
        size_t skip, run;
        bool first = at == delta;
        if (!take_length(&at, end, &skip) || !take_length(&at, end, &run))
            return -1;
        if ((skip == 0 && !first) || run == 0)
            return -1;
        if (skip > length - done || run > length - done - skip || run > (size_t)(end - at))
            return -1;
        done += skip + run;
        at += run;
    }
    return runs;
}

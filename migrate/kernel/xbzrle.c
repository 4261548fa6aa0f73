/* XBZRLE deltas (qemu-ram-stream.md section 3). */
#include "internal.h"

enum { CHUNK = 64, CHUNKS_MAX = MK_XBZRLE_PAGE_MAX / CHUNK + 1 };

/* Bit i: does byte i differ? One word more than the page has, always zero, so that runs end. */
struct difference {
    uint64_t masks[CHUNKS_MAX + 1];
    size_t length;
};

static void compare(struct difference *difference, const uint8_t *old, const uint8_t *new, size_t length)
{
    size_t chunks = length / CHUNK, rest = length % CHUNK;
    variants.differs(old, new, chunks, difference->masks);
    if (rest) {
        uint8_t a[CHUNK] = {0}, b[CHUNK] = {0};
        memcpy(a, old + chunks * CHUNK, rest);
        memcpy(b, new + chunks * CHUNK, rest);
        variants.differs(a, b, 1, &difference->masks[chunks]);
        chunks++;
    }
    difference->masks[chunks] = 0;
    difference->length = length;
}

/* First byte at or after `from` that differs, or the length. */
static size_t next_change(const struct difference *difference, size_t from)
{
    size_t word = from / CHUNK, words = (difference->length + CHUNK - 1) / CHUNK;
    uint64_t mask = difference->masks[word] >> (from % CHUNK) << (from % CHUNK);
    while (!mask) {
        if (++word >= words)
            return difference->length;
        mask = difference->masks[word];
    }
    return word * CHUNK + (size_t)__builtin_ctzll(mask);
}

/* First byte at or after `from` that is equal, or the length. */
static size_t next_equal(const struct difference *difference, size_t from)
{
    size_t word = from / CHUNK, words = (difference->length + CHUNK - 1) / CHUNK;
    uint64_t mask = ~difference->masks[word] >> (from % CHUNK) << (from % CHUNK);
    while (!mask) {
        if (++word >= words)
            return difference->length;
        mask = ~difference->masks[word];
    }
    size_t at = word * CHUNK + (size_t)__builtin_ctzll(mask);
    return at < difference->length ? at : difference->length;
}

static inline uint8_t *put_length(uint8_t *out, size_t length)
{
    if (length < 128) {
        *out = (uint8_t)length;
        return out + 1;
    }
    out[0] = (uint8_t)(length | 0x80);
    out[1] = (uint8_t)(length >> 7);
    return out + 2;
}

int mk_xbzrle_encode(
    const uint8_t *old, const uint8_t *new, size_t length, uint8_t *out, size_t limit, size_t gap)
{
    struct difference difference;
    uint8_t *to = out;
    size_t at = 0;
    compare(&difference, old, new, length);
    while (at < length) {
        if ((size_t)(to - out) + 2 > limit)
            return -1; /* rule A */
        size_t start = next_change(&difference, at);
        if (start == length)
            break; /* nothing more, or nothing at all */
        to = put_length(to, start - at);
        if ((size_t)(to - out) + 2 > limit)
            return -1; /* rule B */
        size_t end = next_equal(&difference, start);
        for (;;) { /* across short gaps */
            size_t again = end < length ? next_change(&difference, end) : length;
            if (again == length || again - end > gap)
                break;
            end = next_equal(&difference, again);
        }
        to = put_length(to, end - start);
        if ((size_t)(to - out) + (end - start) > limit)
            return -1; /* rule C */
        memcpy(to, new + start, end - start);
        to += end - start;
        at = end;
    }
    return (int)(to - out);
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

int64_t mk_xbzrle_decode(const uint8_t *delta, size_t delta_length, uint8_t *page, size_t length)
{
    const uint8_t *at = delta, *end = delta + delta_length;
    size_t done = 0, run;
    while (at < end) {
        bool first = at == delta;
        if (!take_length(&at, end, &run) || (run == 0 && !first) || run > length - done)
            return -1;
        done += run;
        if (!take_length(&at, end, &run) || run == 0 || run > length - done || run > (size_t)(end - at))
            return -1;
        memcpy(page + done, at, run);
        done += run;
        at += run;
    }
    return (int64_t)done;
}

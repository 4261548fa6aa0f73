/* Zero test, checksum, digest, XBZRLE: every CPU variant against the oracle, in memory of exactly the right
 * size. */
#include "common.h"
#include "oracle.h"

static const unsigned variants[] = {
    0,
    MK_SSE2,
    MK_SSE2 | MK_SSE42,
    MK_SSE2 | MK_SSE42 | MK_AVX2,
    MK_SSE2 | MK_SSE42 | MK_AVX2 | MK_AVX512,
    MK_ALL_FEATURES,
};
enum { VARIANTS = sizeof variants / sizeof *variants, PAGE_MAX = MK_XBZRLE_PAGE_MAX };

void mutate(struct random *random, uint8_t *data, size_t length, unsigned changes)
{
    static const uint8_t special[] = {0, 1, 2, 0x20, 0x40, 0x7f, 0x80, 0xff};
    for (unsigned i = 0; i < changes && length; i++) {
        size_t at = below(random, length), run = 1;
        if (one_in(random, 4))
            at = one_in(random, 2) ? 0 : length - 1;
        if (one_in(random, 3))
            run = 1 + below(random, one_in(random, 8) ? length : 40);
        if (one_in(random, 4)) /* close to the last one: gaps of 1 to 3 */
            at = at > 3 ? at - 1 - below(random, 3) : at;
        for (; run && at < length; run--, at++)
            data[at] =
                one_in(random, 3) ? special[below(random, sizeof special)] : (uint8_t)next_random(random);
    }
}

static size_t some_length(struct random *random, size_t most)
{
    static const size_t usual[] = {0, 1, 16, 63, 64, 65, 128, 1024, 4096};
    if (one_in(random, 2))
        return usual[below(random, sizeof usual / sizeof *usual)];
    return below(random, one_in(random, 3) ? most + 1 : 700);
}

static void fuzz_sums(struct random *random)
{
    size_t length = some_length(random, 40000), skew = below(random, 64);
    uint8_t *memory = exactly(length + skew), *data = memory + skew;
    memset(memory, 0, length + skew);
    if (one_in(random, 2))
        mutate(random, data, length, 1 + (unsigned)below(random, 3));
    bool zero = true;
    for (size_t i = 0; i < length; i++)
        zero = zero && data[i] == 0;
    uint32_t before = (uint32_t)next_random(random), crc = oracle_crc32c(data, length, before);
    for (size_t i = 0; i < VARIANTS; i++) {
        mk_select(variants[i]);
        CHECK(mk_is_zero(data, length) == zero);
        CHECK(mk_crc32c(data, length, before) == crc);
    }
    free(memory);
}

static void fuzz_digest(struct random *random)
{
    uint32_t page_size = (uint32_t)MK_PAGE_SIZE_MIN << below(random, 7);
    uint8_t *page_key = exactly(page_size), root_key[16], *page = exactly(page_size);
    struct mk_keys keys;
    random_bytes(random, page_key, page_size);
    random_bytes(random, root_key, sizeof root_key);
    memset(page, one_in(random, 2) ? 0 : 0xff, page_size);
    mutate(random, page, page_size, (unsigned)below(random, 5));
    CHECK(mk_keys_init(&keys, page_size, page_key, root_key) == 0);
    struct mk_u128 expected = oracle_page_digest(&keys, page);
    for (size_t i = 0; i < VARIANTS; i++) {
        mk_select(variants[i]);
        struct mk_u128 digest = mk_page_digest(&keys, page);
        CHECK(digest.lo == expected.lo && digest.hi == expected.hi);
    }
    mk_keys_free(&keys);
    free(page_key);
    free(page);
}

static void fuzz_encode(struct random *random)
{
    size_t length = some_length(random, PAGE_MAX);
    uint8_t *old = exactly(length), *new = exactly(length), *back = exactly(length);
    uint8_t *expected = exactly(5 * length + 8);
    memset(old, (int)below(random, 3), length);
    if (one_in(random, 2))
        random_bytes(random, old, length);
    if (length)
        memcpy(new, old, length);
    unsigned changes = (unsigned)below(random, 1u << below(random, 12));
    mutate(random, new, length, changes);
    size_t gap = one_in(random, 2) ? 2 * below(random, 2) : below(random, 300);
    size_t limit = one_in(random, 2) ? 5 * length + 8 : below(random, length + 8);
    int size = oracle_encode(old, new, length, expected, limit, gap);
    if (size >= 0 && one_in(random, 2)) { /* at and around the limit */
        size_t close = (size_t)size + below(random, 5);
        limit = close > 2 ? close - 2 : 0;
        size = oracle_encode(old, new, length, expected, limit, gap);
    }
    for (size_t i = 0; i < VARIANTS; i++) {
        mk_select(variants[i]);
        uint8_t *delta = exactly(limit + MK_XBZRLE_SLACK);
        CHECK(mk_xbzrle_encode(old, new, length, delta, limit, gap) == size);
        if (size >= 0) {
            CHECK(memcmp(delta, expected, (size_t)size) == 0);
            uint8_t *tight = copy_of(delta, (size_t)size);
            if (length)
                memcpy(back, old, length);
            CHECK(mk_xbzrle_decode(tight, (size_t)size, back, length) >= 0);
            CHECK(length == 0 || memcmp(back, new, length) == 0);
            free(tight);
        }
        free(delta);
    }
    free(old);
    free(new);
    free(back);
    free(expected);
}

/* A delta that is nearly right, or not at all. */
static size_t some_delta(struct random *random, uint8_t *delta, size_t most)
{
    size_t size = 0;
    while (size + 8 < most && !one_in(random, 12)) {
        size_t skip = below(random, one_in(random, 5) ? 400 : 12),
               run = 1 + below(random, one_in(random, 8) ? 300 : 5);
        if (skip == 0 && size && !one_in(random, 20))
            skip = 1;
        if (skip > 127 || one_in(random, 20)) {
            delta[size++] = (uint8_t)(skip | 0x80);
            delta[size++] = (uint8_t)(skip >> 7);
        } else {
            delta[size++] = (uint8_t)skip;
        }
        if (run > 127 || one_in(random, 20)) {
            delta[size++] = (uint8_t)(run | 0x80);
            delta[size++] = (uint8_t)(run >> 7);
        } else {
            delta[size++] = (uint8_t)run;
        }
        for (; run && size < most; run--)
            delta[size++] = (uint8_t)next_random(random);
    }
    if (one_in(random, 4))
        mutate(random, delta, size, 1);
    if (one_in(random, 4))
        size -= below(random, size < 4 ? size : 4);
    return size;
}

static void fuzz_decode(struct random *random)
{
    enum { MOST = 5000 };
    size_t length = one_in(random, 2) ? 4096 : some_length(random, PAGE_MAX);
    uint8_t *page = exactly(length), *expected = exactly(length), *from = exactly(length), room[MOST];
    random_bytes(random, from, length);
    size_t size = some_delta(random, room, one_in(random, 4) ? below(random, MOST) : 300);
    uint8_t *delta = copy_of(room, size);
    if (length)
        memcpy(expected, from, length);
    int64_t end = oracle_decode(delta, size, expected, length);
    for (size_t i = 0; i < VARIANTS; i++) {
        mk_select(variants[i]);
        if (length)
            memcpy(page, from, length);
        CHECK(mk_xbzrle_decode(delta, size, page, length) == end);
        CHECK((mk_xbzrle_runs(delta, size, length) < 0) == (end < 0));
        CHECK(end < 0 || length == 0 || memcmp(page, expected, length) == 0);
    }
    free(page);
    free(expected);
    free(from);
    free(delta);
}

void fuzz_bytes(struct random *random)
{
    fuzz_sums(random);
    fuzz_digest(random);
    for (int i = 0; i < 4; i++) {
        fuzz_encode(random);
        fuzz_decode(random);
    }
    mk_select(variants[below(random, VARIANTS)]); /* what follows runs on any */
}

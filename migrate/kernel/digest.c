/* Page digests (NH), their places in the root (SipHash-2-4 keyed NH), digest arrays. */
#include <stdlib.h>

#include "internal.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

int mk_keys_init(struct mk_keys *keys, uint32_t page_size, const uint8_t *page_key, const uint8_t *root_key)
{
    keys->page_size = page_size;
    keys->page_shift = (unsigned)__builtin_ctz(page_size);
    keys->root_key[0] = load_le64(root_key);
    keys->root_key[1] = load_le64(root_key + 8);
    keys->page_key = aligned_alloc(64, page_size);
    if (!keys->page_key)
        return -1;
    for (size_t i = 0; i < page_size / 8; i++)
        keys->page_key[i] = load_le64(page_key + 8 * i);
    keys->zero_digest = mk_page_digest(keys, zero_page);
    return 0;
}

void mk_keys_free(struct mk_keys *keys)
{
    free(keys->page_key);
    keys->page_key = NULL;
}

static struct mk_u128 page_digest_plain(const struct mk_keys *keys, const uint8_t *page)
{
    const uint64_t *key = keys->page_key;
    size_t words = keys->page_size / 8;
    wide even = 0, odd = 0; /* two sums: the additions of one wait for each other */
    for (size_t i = 0; i < words; i += 4) {
        const uint8_t *at = page + 8 * i;
        even += (wide)(load_le64(at) + key[i]) * (load_le64(at + 8) + key[i + 1]);
        odd += (wide)(load_le64(at + 16) + key[i + 2]) * (load_le64(at + 24) + key[i + 3]);
    }
    return narrow(even + odd);
}

#if defined(__x86_64__)

__attribute__((target("avx512f"))) static inline wide sum_of_lanes(__m512i lanes)
{
    uint64_t words[8];
    wide sum = 0;
    memcpy(words, &lanes, sizeof words);
    for (int i = 0; i < 8; i++)
        sum += words[i];
    return sum;
}

/* Eight products at once, each made of four products of 32-bit halves. The sums of their bits 0-31, 32-63 and
 * 64-127 are kept apart; none of the first two can overflow within a page, the third may: it is modulo 2**64.
 */
__attribute__((target("avx512f"))) static struct mk_u128
page_digest_avx512(const struct mk_keys *keys, const uint8_t *page)
{
    const uint8_t *key = (const uint8_t *)keys->page_key;
    const __m512i low32 = _mm512_set1_epi64(0xffffffff);
    __m512i sum0 = _mm512_setzero_si512(), sum32 = sum0, sum64 = sum0;
    for (size_t i = 0; i < keys->page_size; i += 128) {
        __m512i x = _mm512_add_epi64(_mm512_loadu_si512(page + i), _mm512_loadu_si512(key + i));
        __m512i y = _mm512_add_epi64(_mm512_loadu_si512(page + i + 64), _mm512_loadu_si512(key + i + 64));
        /* Which product stands in which lane does not matter, only that both factors do in the same. */
        __m512i a = _mm512_unpacklo_epi64(x, y), b = _mm512_unpackhi_epi64(x, y);
        __m512i a_high = _mm512_srli_epi64(a, 32), b_high = _mm512_srli_epi64(b, 32);
        __m512i low = _mm512_mul_epu32(a, b);
        __m512i middle = _mm512_add_epi64(_mm512_mul_epu32(a, b_high), _mm512_srli_epi64(low, 32));
        __m512i other = _mm512_add_epi64(_mm512_mul_epu32(a_high, b), _mm512_and_si512(middle, low32));
        __m512i high = _mm512_add_epi64(_mm512_mul_epu32(a_high, b_high), _mm512_srli_epi64(middle, 32));
        sum0 = _mm512_add_epi64(sum0, _mm512_and_si512(low, low32));
        sum32 = _mm512_add_epi64(sum32, _mm512_and_si512(other, low32));
        sum64 = _mm512_add_epi64(sum64, _mm512_add_epi64(high, _mm512_srli_epi64(other, 32)));
    }
    return narrow(sum_of_lanes(sum0) + (sum_of_lanes(sum32) << 32) + (sum_of_lanes(sum64) << 64));
}

#endif

void digest_select(unsigned features)
{
    variants.page_digest = page_digest_plain;
#if defined(__x86_64__)
    if (features & MK_AVX512)
        variants.page_digest = page_digest_avx512;
#endif
    (void)features;
}

struct mk_u128 mk_page_digest(const struct mk_keys *keys, const uint8_t *page)
{
    return variants.page_digest(keys, page);
}

static inline uint64_t rotate(uint64_t value, int bits)
{
    return value << bits | value >> (64 - bits);
}

static inline void sip_round(uint64_t v[4])
{
    v[0] += v[1];
    v[2] += v[3];
    v[1] = rotate(v[1], 13) ^ v[0];
    v[3] = rotate(v[3], 16) ^ v[2];
    v[0] = rotate(v[0], 32);
    v[2] += v[1];
    v[0] += v[3];
    v[1] = rotate(v[1], 17) ^ v[2];
    v[3] = rotate(v[3], 21) ^ v[0];
    v[2] = rotate(v[2], 32);
}

/* SipHash-2-4 of one 64-bit number, 8 bytes little-endian. */
static inline uint64_t siphash(const uint64_t key[2], uint64_t number)
{
    uint64_t v[4] = {
        key[0] ^ 0x736f6d6570736575,
        key[1] ^ 0x646f72616e646f6d,
        key[0] ^ 0x6c7967656e657261,
        key[1] ^ 0x7465646279746573,
    };
    uint64_t length = (uint64_t)8 << 56;
    v[3] ^= number;
    sip_round(v);
    sip_round(v);
    v[0] ^= number;
    v[3] ^= length;
    sip_round(v);
    sip_round(v);
    v[0] ^= length;
    v[2] ^= 0xff;
    for (int i = 0; i < 4; i++)
        sip_round(v);
    return v[0] ^ v[1] ^ v[2] ^ v[3];
}

struct place place_of(const struct mk_keys *keys, uint64_t page)
{
    return (struct place){siphash(keys->root_key, 2 * page), siphash(keys->root_key, 2 * page + 1)};
}

struct mk_u128 mk_term(const struct mk_keys *keys, uint64_t page, struct mk_u128 digest)
{
    return term_at(place_of(keys, page), digest);
}

struct mk_u128 mk_root(const struct mk_keys *keys, const uint8_t *digests, uint64_t first, uint64_t count)
{
    wide sum = 0;
    for (uint64_t page = first; page < first + count; page++)
        sum += widen(mk_term(keys, page, digest_at(digests, page)));
    return narrow(sum);
}

void mk_set_digests(uint8_t *digests, uint64_t first, uint64_t count, struct mk_u128 digest)
{
    for (uint64_t page = first; page < first + count; page++)
        set_digest(digests, page, digest);
}

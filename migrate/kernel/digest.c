/* Page digests (carry-less NH), their places in the root (SipHash-2-4 keyed NH), digest arrays. */
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

/* Without carries: bit i of the product is the parity of the pairs of bits whose places add up to i. */
static wide multiply_carryless(uint64_t a, uint64_t b)
{
    wide multiples[16], product = 0; /* of a, by four bits of b */
    multiples[0] = 0;
    for (int i = 1; i < 16; i++)
        multiples[i] = i % 2 ? multiples[i - 1] ^ a : multiples[i / 2] << 1;
    for (int shift = 60; shift >= 0; shift -= 4)
        product = product << 4 ^ multiples[b >> shift & 15];
    return product;
}

static struct mk_u128 page_digest_plain(const struct mk_keys *keys, const uint8_t *page)
{
    const uint64_t *key = keys->page_key;
    wide sum = 0;
    for (size_t i = 0; i < keys->page_size / 8; i += 2)
        sum ^= multiply_carryless(
            load_le64(page + 8 * i) ^ key[i], load_le64(page + 8 * i + 8) ^ key[i + 1]);
    return narrow(sum);
}

#if defined(__x86_64__)

enum { LOW_TIMES_HIGH = 0x10 };

static struct mk_u128 both_halves(__m128i sum)
{
    struct mk_u128 digest;
    memcpy(&digest, &sum, sizeof digest);
    return digest;
}

__attribute__((target("pclmul"))) static struct mk_u128
page_digest_pclmul(const struct mk_keys *keys, const uint8_t *page)
{
    const uint8_t *key = (const uint8_t *)keys->page_key;
    __m128i sums[4] = {0}; /* one would wait for itself */
    for (size_t i = 0; i < keys->page_size; i += 64)
        for (size_t j = 0; j < 4; j++) {
            __m128i x = _mm_xor_si128(
                _mm_loadu_si128((const __m128i *)(page + i) + j),
                _mm_load_si128((const __m128i *)(key + i) + j));
            sums[j] = _mm_xor_si128(sums[j], _mm_clmulepi64_si128(x, x, LOW_TIMES_HIGH));
        }
    return both_halves(_mm_xor_si128(_mm_xor_si128(sums[0], sums[1]), _mm_xor_si128(sums[2], sums[3])));
}

__attribute__((target("avx512f,vpclmulqdq"))) static struct mk_u128
page_digest_vpclmul(const struct mk_keys *keys, const uint8_t *page)
{
    const uint8_t *key = (const uint8_t *)keys->page_key;
    __m512i sums[4] = {_mm512_setzero_si512(), _mm512_setzero_si512(), _mm512_setzero_si512(),
                       _mm512_setzero_si512()};
    for (size_t i = 0; i < keys->page_size; i += 256)
        for (size_t j = 0; j < 4; j++) {
            size_t at = i + 64 * j;
            __m512i x = _mm512_xor_si512(_mm512_loadu_si512(page + at), _mm512_load_si512(key + at));
            sums[j] = _mm512_xor_si512(sums[j], _mm512_clmulepi64_epi128(x, x, LOW_TIMES_HIGH));
        }
    __m128i parts[4];
    _mm512_storeu_si512(
        parts,
        _mm512_xor_si512(_mm512_xor_si512(sums[0], sums[1]), _mm512_xor_si512(sums[2], sums[3])));
    return both_halves(_mm_xor_si128(_mm_xor_si128(parts[0], parts[1]), _mm_xor_si128(parts[2], parts[3])));
}

#endif

void digest_select(unsigned features)
{
    variants.page_digest = page_digest_plain;
#if defined(__x86_64__)
    if (features & MK_SSE42)
        variants.page_digest = page_digest_pclmul;
    if (features & MK_VPCLMUL)
        variants.page_digest = page_digest_vpclmul;
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

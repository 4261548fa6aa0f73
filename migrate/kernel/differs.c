/* Which bytes of two pages differ: one bit a byte, 64 bytes a word; and where that turns. */
#include "internal.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

static void differs_plain(const uint8_t *a, const uint8_t *b, size_t chunks, uint64_t *masks)
{
    for (size_t chunk = 0; chunk < chunks; chunk++) {
        uint64_t mask = 0;
        for (unsigned word = 0; word < 8; word++) {
            size_t at = chunk * 64 + word * 8;
            uint64_t x = little64(load_native64(a + at) ^ load_native64(b + at));
            if (!x)
                continue;
            /* The top bit of each byte that is not zero, then the eight top bits gathered into one byte. */
            const uint64_t low7 = 0x7f7f7f7f7f7f7f7f;
            uint64_t top = (((x & low7) + low7) | x) & ~low7;
            mask |= ((top >> 7) * 0x0102040810204080) >> 56 << (8 * word);
        }
        masks[chunk] = mask;
    }
}

static void turns_plain(const uint64_t *masks, size_t chunks, uint64_t *turns, uint64_t *busy)
{
    for (size_t i = 0; i <= chunks; i++) {
        turns[i] = masks[1 + i] ^ (masks[1 + i] << 1 | masks[i] >> 63);
        if (i % 64 == 0)
            busy[i / 64] = 0;
        busy[i / 64] |= (uint64_t)(turns[i] != 0) << (i % 64);
    }
}

#if defined(__x86_64__)

static inline uint64_t equal16(const uint8_t *a, const uint8_t *b)
{
    __m128i equal = _mm_cmpeq_epi8(_mm_loadu_si128((const __m128i *)a), _mm_loadu_si128((const __m128i *)b));
    return (uint32_t)_mm_movemask_epi8(equal);
}

static void differs_sse2(const uint8_t *a, const uint8_t *b, size_t chunks, uint64_t *masks)
{
    for (size_t chunk = 0; chunk < chunks; chunk++, a += 64, b += 64)
        masks[chunk] =
            ~(equal16(a, b) | equal16(a + 16, b + 16) << 16 | equal16(a + 32, b + 32) << 32
              | equal16(a + 48, b + 48) << 48);
}

__attribute__((target("avx2"))) static void
differs_avx2(const uint8_t *a, const uint8_t *b, size_t chunks, uint64_t *masks)
{
    for (size_t chunk = 0; chunk < chunks; chunk++, a += 64, b += 64) {
        const __m256i *x = (const __m256i *)a, *y = (const __m256i *)b;
        __m256i low = _mm256_cmpeq_epi8(_mm256_loadu_si256(x), _mm256_loadu_si256(y));
        __m256i high = _mm256_cmpeq_epi8(_mm256_loadu_si256(x + 1), _mm256_loadu_si256(y + 1));
        masks[chunk] =
            ~((uint32_t)_mm256_movemask_epi8(low) | (uint64_t)(uint32_t)_mm256_movemask_epi8(high) << 32);
    }
}

__attribute__((target("avx512f,avx512bw"))) static void
differs_avx512(const uint8_t *a, const uint8_t *b, size_t chunks, uint64_t *masks)
{
    for (size_t chunk = 0; chunk < chunks; chunk++, a += 64, b += 64)
        masks[chunk] = _mm512_cmpneq_epi8_mask(_mm512_loadu_si512(a), _mm512_loadu_si512(b));
}

__attribute__((target("avx512f,avx512vbmi2"))) static void
turns_avx512(const uint64_t *masks, size_t chunks, uint64_t *turns, uint64_t *busy)
{
    for (size_t i = 0; i <= chunks; i += 8) {
        __m512i here = _mm512_loadu_si512(masks + 1 + i), before = _mm512_loadu_si512(masks + i);
        __m512i turn = _mm512_xor_si512(here, _mm512_shldi_epi64(here, before, 1));
        _mm512_storeu_si512(turns + i, turn);
        if (i % 64 == 0)
            busy[i / 64] = 0;
        busy[i / 64] |= (uint64_t)_mm512_test_epi64_mask(turn, turn) << (i % 64);
    }
}

#endif

void differs_select(unsigned features)
{
    variants.differs = differs_plain;
    variants.turns = turns_plain;
#if defined(__x86_64__)
    if (features & MK_SSE2)
        variants.differs = differs_sse2;
    if (features & MK_AVX2)
        variants.differs = differs_avx2;
    if (features & MK_AVX512) {
        variants.differs = differs_avx512;
        variants.turns = turns_avx512;
    }
#endif
    (void)features;
}

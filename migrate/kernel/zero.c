/* Is a page all zeros? */
#include "internal.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

const uint8_t zero_page[MK_PAGE_SIZE_MAX] __attribute__((aligned(64)));

static bool tail_is_zero(const uint8_t *data, size_t length)
{
    uint8_t any = 0;
    for (size_t i = 0; i < length; i++)
        any |= data[i];
    return any == 0;
}

static bool is_zero_plain(const uint8_t *data, size_t length)
{
    size_t i = 0;
    for (; i + 32 <= length; i += 32) {
        const uint8_t *at = data + i;
        if (load_native64(at) | load_native64(at + 8) | load_native64(at + 16) | load_native64(at + 24))
            return false;
    }
    return tail_is_zero(data + i, length - i);
}

#if defined(__x86_64__)

__attribute__((target("avx2"))) static bool is_zero_avx2(const uint8_t *data, size_t length)
{
    size_t i = 0;
    for (; i + 128 <= length; i += 128) {
        const __m256i *at = (const __m256i *)(data + i);
        __m256i low = _mm256_or_si256(_mm256_loadu_si256(at), _mm256_loadu_si256(at + 1));
        __m256i high = _mm256_or_si256(_mm256_loadu_si256(at + 2), _mm256_loadu_si256(at + 3));
        __m256i any = _mm256_or_si256(low, high);
        if (!_mm256_testz_si256(any, any))
            return false;
    }
    return tail_is_zero(data + i, length - i);
}

__attribute__((target("avx512f,avx512bw"))) static bool is_zero_avx512(const uint8_t *data, size_t length)
{
    size_t i = 0;
    for (; i + 256 <= length; i += 256) {
        const uint8_t *at = data + i;
        __m512i low = _mm512_or_si512(_mm512_loadu_si512(at), _mm512_loadu_si512(at + 64));
        __m512i high = _mm512_or_si512(_mm512_loadu_si512(at + 128), _mm512_loadu_si512(at + 192));
        __m512i any = _mm512_or_si512(low, high);
        if (_mm512_test_epi64_mask(any, any))
            return false;
    }
    return tail_is_zero(data + i, length - i);
}

#endif

void zero_select(unsigned features)
{
    variants.is_zero = is_zero_plain;
#if defined(__x86_64__)
    if (features & MK_AVX2)
        variants.is_zero = is_zero_avx2;
    if (features & MK_AVX512)
        variants.is_zero = is_zero_avx512;
#endif
    (void)features;
}

bool mk_is_zero(const uint8_t *data, size_t length)
{
    return variants.is_zero(data, length);
}

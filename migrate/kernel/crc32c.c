/* CRC-32C (Castagnoli), reflected. */
#include "internal.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

static const uint32_t polynomial = 0x82f63b78; /* 0x1edc6f41 with its bits reversed */

/* table[k][b]: what byte b, followed by k zero bytes, does to the register. */
static uint32_t table[8][256];

static void make_table(void)
{
    for (uint32_t byte = 0; byte < 256; byte++) {
        uint32_t value = byte;
        for (int bit = 0; bit < 8; bit++)
            value = value & 1 ? value >> 1 ^ polynomial : value >> 1;
        table[0][byte] = value;
    }
    for (uint32_t byte = 0; byte < 256; byte++)
        for (int k = 1; k < 8; k++)
            table[k][byte] = table[k - 1][byte] >> 8 ^ table[0][table[k - 1][byte] & 0xff];
}

static uint32_t crc32c_plain(const uint8_t *data, size_t length, uint32_t value)
{
    uint32_t crc = ~value;
    size_t i = 0;
    for (; i + 8 <= length; i += 8) {
        uint64_t word = load_le64(data + i) ^ crc;
        crc = table[7][word & 0xff] ^ table[6][word >> 8 & 0xff] ^ table[5][word >> 16 & 0xff]
            ^ table[4][word >> 24 & 0xff] ^ table[3][word >> 32 & 0xff] ^ table[2][word >> 40 & 0xff]
            ^ table[1][word >> 48 & 0xff] ^ table[0][word >> 56];
    }
    for (; i < length; i++)
        crc = crc >> 8 ^ table[0][(crc ^ data[i]) & 0xff];
    return ~crc;
}

#if defined(__x86_64__)

/* Folding (Gopal and others, "Fast CRC Computation Using PCLMULQDQ", 2009). Bit i of a 128-bit block, as it
 * lies in memory, is the coefficient of x**(127 - i): the low quadword L weighs x**64. To move a block
 * forward by d bits is to multiply it by x**d, and modulo the polynomial that is L * x**(d + 64) + H * x**d
 * with 32-bit remainders for the powers. A carry-less product of two quadwords comes out one bit low, which
 * is one factor x: hence the - 1. */
struct fold {
    uint64_t low, high;
};

static struct fold fold_16, fold_64, fold_256; /* by that many bytes */

/* x**power modulo the polynomial, as the quadword whose bit i is the coefficient of x**(63 - i). */
static uint64_t power_of_x(unsigned power)
{
    uint32_t value = (uint32_t)1 << 31;
    while (power--)
        value = value & 1 ? value >> 1 ^ polynomial : value >> 1;
    return (uint64_t)value << 32;
}

static struct fold make_fold(unsigned bytes)
{
    return (struct fold){power_of_x(8 * bytes + 64 - 1), power_of_x(8 * bytes - 1)};
}

__attribute__((target("sse4.2"))) static uint32_t
crc32c_tail(const uint8_t *data, size_t length, uint32_t crc)
{
    uint64_t wide_crc = crc;
    size_t i = 0;
    for (; i + 8 <= length; i += 8)
        wide_crc = _mm_crc32_u64(wide_crc, load_native64(data + i));
    for (; i < length; i++)
        wide_crc = _mm_crc32_u8((uint32_t)wide_crc, data[i]);
    return ~(uint32_t)wide_crc;
}

__attribute__((target("sse4.2,pclmul"))) static inline __m128i
fold128(__m128i block, __m128i next, __m128i by)
{
    __m128i low = _mm_clmulepi64_si128(block, by, 0x00), high = _mm_clmulepi64_si128(block, by, 0x11);
    return _mm_xor_si128(next, _mm_xor_si128(low, high));
}

/* Four blocks that follow each other become one remainder, which the CRC instruction finishes. */
__attribute__((target("sse4.2,pclmul"))) static uint32_t
crc32c_finish(const __m128i blocks[4], const uint8_t *data, size_t length)
{
    const __m128i by = _mm_set_epi64x((long long)fold_16.high, (long long)fold_16.low);
    __m128i block = blocks[0];
    for (int i = 1; i < 4; i++)
        block = fold128(block, blocks[i], by);
    uint64_t crc = _mm_crc32_u64(0, (uint64_t)_mm_cvtsi128_si64(block));
    crc = _mm_crc32_u64(crc, (uint64_t)_mm_extract_epi64(block, 1));
    return crc32c_tail(data, length, (uint32_t)crc);
}

__attribute__((target("sse4.2,pclmul"))) static uint32_t
crc32c_sse42(const uint8_t *data, size_t length, uint32_t value)
{
    if (length < 128)
        return crc32c_tail(data, length, ~value);
    const __m128i by = _mm_set_epi64x((long long)fold_64.high, (long long)fold_64.low);
    __m128i blocks[4];
    for (int j = 0; j < 4; j++)
        blocks[j] = _mm_loadu_si128((const __m128i *)data + j);
    blocks[0] = _mm_xor_si128(blocks[0], _mm_cvtsi32_si128((int)~value));
    size_t i = 64;
    for (; i + 64 <= length; i += 64)
        for (int j = 0; j < 4; j++)
            blocks[j] = fold128(blocks[j], _mm_loadu_si128((const __m128i *)(data + i) + j), by);
    return crc32c_finish(blocks, data + i, length - i);
}

__attribute__((target("avx512f,vpclmulqdq"))) static inline __m512i
fold512(__m512i block, __m512i next, __m512i by)
{
    __m512i low = _mm512_clmulepi64_epi128(block, by, 0x00), high = _mm512_clmulepi64_epi128(block, by, 0x11);
    return _mm512_ternarylogic_epi64(next, low, high, 0x96); /* exclusive or of three */
}

__attribute__((target("avx512f,vpclmulqdq,sse4.2,pclmul"))) static uint32_t
crc32c_vpclmul(const uint8_t *data, size_t length, uint32_t value)
{
    if (length < 512)
        return crc32c_sse42(data, length, value);
    const __m512i by =
        _mm512_broadcast_i32x4(_mm_set_epi64x((long long)fold_256.high, (long long)fold_256.low));
    const __m512i by_64 =
        _mm512_broadcast_i32x4(_mm_set_epi64x((long long)fold_64.high, (long long)fold_64.low));
    __m512i rows[4];
    for (int j = 0; j < 4; j++)
        rows[j] = _mm512_loadu_si512(data + 64 * j);
    rows[0] = _mm512_xor_si512(rows[0], _mm512_zextsi128_si512(_mm_cvtsi32_si128((int)~value)));
    size_t i = 256;
    for (; i + 256 <= length; i += 256)
        for (int j = 0; j < 4; j++)
            rows[j] = fold512(rows[j], _mm512_loadu_si512(data + i + 64 * (size_t)j), by);
    __m512i row = rows[0];
    for (int j = 1; j < 4; j++)
        row = fold512(row, rows[j], by_64);
    for (; i + 64 <= length; i += 64)
        row = fold512(row, _mm512_loadu_si512(data + i), by_64);
    __m128i blocks[4];
    _mm512_storeu_si512(blocks, row);
    return crc32c_finish(blocks, data + i, length - i);
}

#endif

void crc32c_select(unsigned features)
{
    if (!table[0][1])
        make_table();
    variants.crc32c = crc32c_plain;
#if defined(__x86_64__)
    fold_16 = make_fold(16);
    fold_64 = make_fold(64);
    fold_256 = make_fold(256);
    if (features & MK_SSE42)
        variants.crc32c = crc32c_sse42;
    if (features & MK_VPCLMUL)
        variants.crc32c = crc32c_vpclmul;
#endif
    (void)features;
}

uint32_t mk_crc32c(const uint8_t *data, size_t length, uint32_t value)
{
    return variants.crc32c(data, length, value);
}

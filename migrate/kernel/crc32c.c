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

__attribute__((target("sse4.2"))) static uint32_t crc32c_sse42(
    const uint8_t *data, size_t length, uint32_t value)
{
    uint64_t crc = ~value;
    size_t i = 0;
    for (; i + 8 <= length; i += 8)
        crc = _mm_crc32_u64(crc, load_native64(data + i));
    for (; i < length; i++)
        crc = _mm_crc32_u8((uint32_t)crc, data[i]);
    return ~(uint32_t)crc;
}

#endif

void crc32c_select(unsigned features)
{
    if (!table[0][1])
        make_table();
    variants.crc32c = crc32c_plain;
#if defined(__x86_64__)
    if (features & MK_SSE42)
        variants.crc32c = crc32c_sse42;
#endif
    (void)features;
}

uint32_t mk_crc32c(const uint8_t *data, size_t length, uint32_t value)
{
    return variants.crc32c(data, length, value);
}

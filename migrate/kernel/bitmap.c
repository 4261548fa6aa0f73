/* Bitmaps of pages: u64 words, little-endian. */
#include "internal.h"

uint64_t mk_bitmap_count(const uint8_t *bitmap, size_t bytes)
{
    uint64_t count = 0;
    for (size_t i = 0; i < bytes; i += 8)
        count += (uint64_t)__builtin_popcountll(load_native64(bitmap + i));
    return count;
}

void mk_bitmap_set_range(uint8_t *bitmap, uint64_t first, uint64_t count)
{
    uint64_t page = first, end = first + count;
    while (page < end && (page & 7))
        set_bit(bitmap, page++);
    if (end - page >= 8) {
        uint64_t whole = (end - page) >> 3;
        memset(bitmap + (page >> 3), 0xff, whole);
        page += whole << 3;
    }
    while (page < end)
        set_bit(bitmap, page++);
}

bool mk_bitmap_set_pages(uint8_t *bitmap, size_t bytes, const uint8_t *pages, size_t count)
{
    for (size_t i = 0; i < count; i++)
        if (load_le64(pages + 8 * i) >> 3 >= bytes)
            return false;
    for (size_t i = 0; i < count; i++)
        set_bit(bitmap, load_le64(pages + 8 * i));
    return true;
}

uint64_t mk_bitmap_next(const uint8_t *a, const uint8_t *b, uint64_t start, uint64_t end)
{
    uint64_t page = start;
    while (page < end) {
        uint64_t at = page >> 6 << 3; /* byte offset of the word */
        uint64_t word = load_le64(a + at) | (b ? load_le64(b + at) : 0);
        word &= ~(uint64_t)0 << (page & 63);
        if (word) {
            page = (page & ~(uint64_t)63) + (uint64_t)__builtin_ctzll(word);
            return page < end ? page : end;
        }
        page = (page & ~(uint64_t)63) + 64;
    }
    return end;
}

uint64_t mk_bitmap_end(const uint8_t *bitmap, uint64_t start, uint64_t end)
{
    uint64_t page = start;
    while (page < end) {
        uint64_t word = ~load_le64(bitmap + (page >> 6 << 3)) & ~(uint64_t)0 << (page & 63);
        if (word) {
            page = (page & ~(uint64_t)63) + (uint64_t)__builtin_ctzll(word);
            return page < end ? page : end;
        }
        page = (page & ~(uint64_t)63) + 64;
    }
    return end;
}

void mk_bitmap_or(uint8_t *target, const uint8_t *source, size_t bytes)
{
    for (size_t i = 0; i < bytes; i += 8)
        store_native64(target + i, load_native64(target + i) | load_native64(source + i));
}

void mk_bitmap_remove(uint8_t *target, const uint8_t *source, size_t bytes)
{
    for (size_t i = 0; i < bytes; i += 8)
        store_native64(target + i, load_native64(target + i) & ~load_native64(source + i));
}

void mk_bitmap_select(
    const uint8_t *source, uint8_t *target, size_t bytes, uint64_t stripe_pages, uint64_t lane,
    uint64_t lanes)
{
    uint64_t stripe_bytes = stripe_pages / 8;
    for (uint64_t stripe = lane; stripe <= bytes / stripe_bytes; stripe += lanes) {
        uint64_t first = stripe * stripe_bytes;
        uint64_t left = bytes - first;
        mk_bitmap_or(target + first, source + first, left < stripe_bytes ? left : stripe_bytes);
    }
}

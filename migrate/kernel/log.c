/* The log of an emulator: a bitmap that it sets and we fetch, in vhost's layout (LMT section 4). */
#include "internal.h"

enum { LOG_PAGE_SHIFT = 12 };

uint64_t mk_take_log(
    uint8_t *log, uint64_t length, unsigned page_shift, uint64_t first, uint8_t *bitmap)
{
    uint64_t *words = (uint64_t *)log, found = 0;
    uint64_t bits = (length + 4095) >> LOG_PAGE_SHIFT;
    for (uint64_t i = 0; i < (bits + 63) / 64; i++) {
        if (__atomic_load_n(words + i, __ATOMIC_RELAXED) == 0)
            continue;
        /* The marks of a store that is copied afterwards: fetched and cleared in one step. */
        uint64_t word = little64(__atomic_exchange_n(words + i, 0, __ATOMIC_ACQ_REL));
        if (bits - i * 64 < 64)
            word &= ((uint64_t)1 << (bits - i * 64)) - 1;
        found += (uint64_t)__builtin_popcountll(word);
        if (page_shift == LOG_PAGE_SHIFT) {
            uint8_t *into = bitmap + (first >> 3) + 8 * i; /* blocks begin at whole words */
            store_le64(into, load_le64(into) | word);
            continue;
        }
        for (; word; word &= word - 1) {
            uint64_t byte = (i * 64 + (uint64_t)__builtin_ctzll(word)) << LOG_PAGE_SHIFT;
            uint64_t end = byte + 4096 < length ? byte + 4096 : length;
            uint64_t page = byte >> page_shift, last = (end - 1) >> page_shift;
            mk_bitmap_set_range(bitmap, first + page, last - page + 1);
        }
    }
    return found;
}

/* The page cache that both ends hold: only what is in the stream changes it. */
#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "internal.h"

#ifndef MADV_POPULATE_WRITE /* younger than some C libraries */
#define MADV_POPULATE_WRITE 23
#endif

enum {
    WAYS = 8,
    LIFETIME_ROUNDS = 2,
    LONG_LIFETIME_ROUNDS = 16,
    /* Every sixteenth set always uses the short lifetime, every sixteenth the long one; the others what loses
       less. */
    DUEL_SETS = 16,
    DUEL_SHORT = 0,
    DUEL_LONG = 8,
    BIAS_LIMIT = 1024,
};

static wide weight(const struct mk_entry *entry)
{
    return widen(entry->term) * (2 * (wide)entry->age + 1);
}

/* A prime number of sets: only strides of a multiple of it use fewer. */
static uint64_t largest_prime(uint64_t limit)
{
    for (uint64_t number = limit; number > 3; number--) {
        uint64_t divisor = 2;
        while (divisor <= number / divisor && number % divisor != 0)
            divisor++;
        if (divisor > number / divisor)
            return number;
    }
    return limit < 3 ? limit : 3;
}

int mk_cache_init(struct mk_cache *cache, const struct mk_keys *keys, uint64_t budget, bool qemu_rule)
{
    uint64_t fit = budget / (keys->page_size + sizeof(struct mk_entry));
    memset(cache, 0, sizeof *cache);
    cache->keys = keys;
    cache->qemu_rule = qemu_rule;
    if (fit == 0)
        return 0;
    if (qemu_rule) {
        cache->ways = 1;
        cache->sets = (uint64_t)1 << (63 - __builtin_clzll(fit));
    } else if (fit < WAYS) {
        cache->ways = (uint32_t)fit;
        cache->sets = 1;
    } else {
        cache->ways = WAYS;
        cache->sets = largest_prime(fit / WAYS);
    }
    cache->slots = cache->sets * cache->ways;
    if (cache->slots > SIZE_MAX / 2 / keys->page_size)
        return -1;
    /* calloc and mmap both give pages that cost nothing before they are used. */
    cache->entries = calloc(cache->slots, sizeof *cache->entries);
    if (!cache->entries)
        return -1;
    void *data = mmap(
        NULL, cache->slots * keys->page_size, PROT_READ | PROT_WRITE,
        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (data == MAP_FAILED) {
        free(cache->entries);
        cache->entries = NULL;
        return -1;
    }
    cache->data = data;
    return 0;
}

void mk_cache_free(struct mk_cache *cache)
{
    free(cache->entries);
    if (cache->data)
        munmap(cache->data, cache->slots * cache->keys->page_size);
    cache->entries = NULL;
    cache->data = NULL;
    cache->slots = cache->used = 0;
}

int mk_cache_commit(struct mk_cache *cache, uint64_t most)
{
    uint64_t bytes = cache->slots * cache->keys->page_size;
    if (bytes > most)
        bytes = most;
    /* EINVAL: a kernel before 5.14 cannot do it. */
    return bytes == 0 || madvise(cache->data, bytes, MADV_POPULATE_WRITE) == 0 || errno == EINVAL ? 0 : -1;
}

void mk_cache_clear(struct mk_cache *cache)
{
    if (cache->slots)
        memset(cache->entries, 0, cache->slots * sizeof *cache->entries);
    cache->used = 0;
    cache->bias = 0;
    cache->digest = (struct mk_u128){0, 0};
}

uint8_t *mk_cache_data(const struct mk_cache *cache, int64_t slot)
{
    return cache->data + (uint64_t)slot * cache->keys->page_size;
}

int64_t mk_cache_find(const struct mk_cache *cache, uint64_t page)
{
    if (cache->slots == 0)
        return MK_NO_SLOT;
    uint64_t first = page % cache->sets * cache->ways;
    for (uint32_t way = 0; way < cache->ways; way++) {
        const struct mk_entry *entry = &cache->entries[first + way];
        if (entry->used && entry->page == page)
            return (int64_t)(first + way);
    }
    return MK_NO_SLOT;
}

/* How long an entry of a full set is safe from a page that is not held; the two kinds of duelling sets keep
 * score. */
static uint64_t lifetime_rounds(struct mk_cache *cache, uint64_t set)
{
    if (cache->sets <= DUEL_LONG)
        return LIFETIME_ROUNDS;
    if (set % DUEL_SETS == DUEL_SHORT) {
        cache->bias -= cache->bias > -BIAS_LIMIT;
        return LIFETIME_ROUNDS;
    }
    if (set % DUEL_SETS == DUEL_LONG) {
        cache->bias += cache->bias < BIAS_LIMIT;
        return LONG_LIFETIME_ROUNDS;
    }
    return cache->bias < 0 ? LONG_LIFETIME_ROUNDS : LIFETIME_ROUNDS;
}

/* Slot for a page that is not held, or MK_NO_SLOT if the rule refuses it. */
static int64_t default_victim(struct mk_cache *cache, uint64_t page, uint32_t round, enum mk_stage stage)
{
    uint64_t set = page % cache->sets;
    uint64_t first = set * cache->ways;
    uint64_t oldest = first;
    for (uint32_t way = 0; way < cache->ways; way++) {
        const struct mk_entry *entry = &cache->entries[first + way];
        if (!entry->used)
            return (int64_t)(first + way);
        if (entry->age < cache->entries[oldest].age)
            oldest = first + way;
    }
    if (stage == MK_BULK)
        return MK_NO_SLOT;
    uint64_t age = cache->entries[oldest].age;
    uint64_t lifetime = lifetime_rounds(cache, set);
    return age == 0 || age + lifetime <= round ? (int64_t)oldest : MK_NO_SLOT;
}

static int64_t qemu_victim(const struct mk_cache *cache, uint64_t page, uint32_t round)
{
    uint64_t slot = page % cache->slots;
    const struct mk_entry *entry = &cache->entries[slot];
    if (entry->used && (uint64_t)entry->age + LIFETIME_ROUNDS > round)
        return MK_NO_SLOT;
    return (int64_t)slot;
}

int64_t mk_cache_put(
    struct mk_cache *cache, int64_t slot, uint64_t page, const uint8_t *content, struct mk_u128 term,
    uint32_t round, enum mk_stage stage, bool zero)
{
    if (cache->slots == 0 || (cache->qemu_rule && stage != MK_ROUND))
        return MK_NO_SLOT;
    uint32_t age = round;
    if (slot == MK_NO_SLOT) {
        if (cache->qemu_rule) {
            slot = qemu_victim(cache, page, round);
        } else {
            if (zero || stage == MK_LAST)
                return MK_NO_SLOT;
            slot = default_victim(cache, page, round, stage);
            if (stage == MK_BULK)
                age = 0;
        }
        if (slot == MK_NO_SLOT)
            return MK_NO_SLOT;
    }
    struct mk_entry *entry = &cache->entries[slot];
    wide digest = widen(cache->digest);
    if (entry->used)
        digest -= weight(entry);
    else
        cache->used++;
    *entry = (struct mk_entry){.page = page, .age = age, .used = 1, .term = term};
    cache->digest = narrow(digest + weight(entry));
    uint8_t *data = mk_cache_data(cache, slot);
    if (data != content)
        memcpy(data, content, cache->keys->page_size);
    return slot;
}

void mk_cache_touch(struct mk_cache *cache, int64_t slot, uint32_t round)
{
    struct mk_entry *entry = &cache->entries[slot];
    wide digest = widen(cache->digest) - weight(entry);
    entry->age = round;
    cache->digest = narrow(digest + weight(entry));
}

/* Slot for an entry of another cache: an empty one, else that of the oldest if it is older; or MK_NO_SLOT. */
static int64_t room_for(const struct mk_cache *cache, const struct mk_entry *moved)
{
    uint64_t first = moved->page % cache->sets * cache->ways;
    uint64_t oldest = first;
    for (uint64_t slot = first; slot < first + cache->ways; slot++) {
        if (!cache->entries[slot].used)
            return (int64_t)slot;
        if (cache->entries[slot].age < cache->entries[oldest].age)
            oldest = slot;
    }
    return cache->entries[oldest].age < moved->age ? (int64_t)oldest : MK_NO_SLOT;
}

void mk_cache_take_over(struct mk_cache *cache, const struct mk_cache *from)
{
    mk_cache_clear(cache);
    cache->bias = from->bias;
    if (cache->slots == 0)
        return;
    wide digest = 0;
    for (uint64_t old = 0; old < from->slots; old++) {
        const struct mk_entry *moved = &from->entries[old];
        int64_t slot = moved->used ? room_for(cache, moved) : MK_NO_SLOT;
        if (slot == MK_NO_SLOT)
            continue;
        struct mk_entry *entry = &cache->entries[slot];
        if (entry->used)
            digest -= weight(entry);
        else
            cache->used++;
        *entry = *moved;
        digest += weight(entry);
        memcpy(mk_cache_data(cache, slot), mk_cache_data(from, (int64_t)old), cache->keys->page_size);
    }
    cache->digest = narrow(digest);
}

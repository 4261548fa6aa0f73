/* The page cache: after every operation its digest, its count and its contents must agree with a plain model.
 */
#include "common.h"
#include "oracle.h"

enum { PAGE = MK_PAGE_SIZE_MIN, PAGES = 300 };

static void check_cache(const struct mk_cache *cache, const struct mk_keys *keys)
{
    struct mk_u128 sum = {0, 0};
    uint64_t used = 0;
    for (uint64_t slot = 0; slot < cache->slots; slot++) {
        const struct mk_entry *entry = &cache->entries[slot];
        if (!entry->used)
            continue;
        used++;
        const uint8_t *data = mk_cache_data(cache, (int64_t)slot);
        struct mk_u128 term = mk_term(keys, entry->page, oracle_page_digest(keys, data));
        CHECK(term.lo == entry->term.lo && term.hi == entry->term.hi);
        CHECK(mk_cache_find(cache, entry->page) == (int64_t)slot);
        for (uint64_t i = 0; i < 2 * (uint64_t)entry->age + 1; i++)
            sum = oracle_add(sum, term);
    }
    CHECK(used == cache->used);
    CHECK(sum.lo == cache->digest.lo && sum.hi == cache->digest.hi);
}

/* Another size: what is held afterwards was held before, as it is. */
static void resize(struct random *random, struct mk_cache *cache, const struct mk_keys *keys)
{
    struct mk_cache other;
    CHECK(mk_cache_init(&other, keys, below(random, 40) * (PAGE + 32), cache->qemu_rule) == 0);
    mk_cache_take_over(&other, cache);
    check_cache(&other, keys);
    for (uint64_t slot = 0; slot < cache->slots; slot++) {
        const struct mk_entry *entry = &cache->entries[slot];
        int64_t found = entry->used ? mk_cache_find(&other, entry->page) : MK_NO_SLOT;
        if (found != MK_NO_SLOT)
            CHECK(memcmp(mk_cache_data(&other, found), mk_cache_data(cache, (int64_t)slot), PAGE) == 0);
    }
    CHECK(other.used <= cache->used && (other.used > 0) == (other.slots > 0 && cache->used > 0));
    mk_cache_free(cache);
    *cache = other;
}

void fuzz_cache(struct random *random)
{
    uint8_t page_key[PAGE], root_key[16], content[PAGE];
    struct mk_keys keys;
    struct mk_cache cache;
    random_bytes(random, page_key, sizeof page_key);
    random_bytes(random, root_key, sizeof root_key);
    CHECK(mk_keys_init(&keys, PAGE, page_key, root_key) == 0);
    bool qemu_rule = one_in(random, 2);
    CHECK(
        mk_cache_init(&cache, &keys, below(random, 40) * (PAGE + 32) + below(random, PAGE), qemu_rule) == 0);
    uint32_t round = (uint32_t)below(random, 3);
    for (unsigned operation = 0; operation < 200; operation++) {
        uint64_t page = below(random, PAGES);
        int64_t slot = mk_cache_find(&cache, page);
        round += one_in(random, 10);
        if (one_in(random, 100)) {
            mk_cache_clear(&cache);
        } else if (one_in(random, 50)) {
            resize(random, &cache, &keys);
        } else if (one_in(random, 4)) {
            if (slot != MK_NO_SLOT)
                mk_cache_touch(&cache, slot, round);
        } else {
            memset(content, (int)below(random, 4), PAGE);
            enum mk_stage stage = (enum mk_stage)(1 + below(random, 3));
            struct mk_u128 term = mk_term(&keys, page, mk_page_digest(&keys, content));
            bool zero = one_in(random, 5);
            int64_t put = mk_cache_put(&cache, slot, page, content, term, round, stage, zero);
            CHECK(slot == MK_NO_SLOT || qemu_rule || put == slot);
            if (put != MK_NO_SLOT) {
                CHECK(mk_cache_find(&cache, page) == put);
                CHECK(memcmp(mk_cache_data(&cache, put), content, PAGE) == 0);
            } else {
                CHECK(mk_cache_find(&cache, page) == slot);
            }
        }
        if (one_in(random, 20))
            check_cache(&cache, &keys);
    }
    check_cache(&cache, &keys);
    mk_cache_free(&cache);
    mk_keys_free(&keys);
}

/* What write number n does: a function of the seed and n, so that it can be planned again after a resume. */
#include "guest.h"

#include <string.h>

static uint64_t next(uint64_t *random)
{
    *random += UINT64_C(0x9e3779b97f4a7c15);
    return guest_mix(*random);
}

/* Uniform in 0 .. range - 1, without a division. */
static uint64_t below(uint64_t *random, uint64_t range)
{
    return (uint64_t)(((unsigned __int128)next(random) * range) >> 64);
}

static uint64_t place_in_data(const struct guest_model *m, uint64_t i)
{
    uint32_t b = m->blocks - 1;
    while (b > 0 && i < m->block[b].data_before)
        b--;
    return (uint64_t)b << 32 | (m->block[b].first_data + i - m->block[b].data_before);
}

static uint64_t place_in_working_set(const struct guest_model *m, uint64_t i)
{
    uint32_t b = m->blocks - 1;
    while (b > 0 && i < m->block[b].working_set_before)
        b--;
    return (uint64_t)b << 32 | (m->block[b].first_data + i - m->block[b].working_set_before);
}

static void store_run(struct guest_change *c, uint64_t *random, unsigned first, unsigned count)
{
    c->operation = OPERATION_WORDS;
    c->count = count;
    for (unsigned i = 0; i < count; i++) {
        c->index[i] = (uint16_t)(WORD_CONTENT + first + i);
        c->value[i] = next(random);
    }
}

/* One to three words, each in a third of its own so that none is met twice. */
static void plan_sparse(const struct guest_model *m, uint64_t random, struct guest_change *c)
{
    c->place = place_in_working_set(m, below(&random, m->working_set));
    c->operation = OPERATION_WORDS;
    c->count = 1 + (unsigned)below(&random, 3);
    for (unsigned i = 0; i < c->count; i++) {
        unsigned third = GUEST_CONTENT_WORDS / 3;
        c->index[i] = (uint16_t)(WORD_CONTENT + i * third + below(&random, third));
        c->value[i] = next(&random);
    }
}

/* Seven of eight writes: a value of 64 to 512 bytes in place, at a key of a skewed choice (half of them from all
 * keys, a quarter from the first half, an eighth from the first quarter ...). The eighth: a record of 64 bytes
 * appended to a log in the last 1/32 of the working set. Pages have 63 places of 64 bytes. */
static void plan_kv(const struct guest_model *m, uint64_t n, uint64_t random, struct guest_change *c)
{
    const unsigned places = GUEST_CONTENT_WORDS / 8;
    uint64_t log_pages = m->working_set / 32 + 1, value_pages = m->working_set - log_pages;
    if (n % 8 == 0) {
        uint64_t record = n / 8;
        c->place = place_in_working_set(m, value_pages + record / places % log_pages);
        store_run(c, &random, (unsigned)(record % places) * 8, 8);
        return;
    }
    unsigned halvings = (unsigned)__builtin_ctzll(next(&random) | UINT64_C(1) << 20);
    uint64_t keys = value_pages * places;
    uint64_t key = below(&random, keys >> halvings ? keys >> halvings : 1);
    uint64_t where = guest_mix(m->seed ^ key); /* hot keys lie everywhere, as hashed ones do */
    unsigned first = (unsigned)(where >> 32) % places * 8, length = 8 + (unsigned)below(&random, 57);
    if (length > GUEST_CONTENT_WORDS - first)
        length = GUEST_CONTENT_WORDS - first;
    c->place = place_in_working_set(m, where % value_pages);
    store_run(c, &random, first, length);
}

static void plan_page(const struct guest_model *m, uint64_t i, unsigned operation, struct guest_change *c)
{
    c->place = place_in_working_set(m, i);
    c->operation = operation;
}

void guest_plan(const struct guest_model *m, uint64_t n, struct guest_change *c)
{
    uint64_t random = guest_mix(m->seed ^ guest_mix(n)), choice = random ^ UINT64_C(0x5851f42d4c957f2d);
    uint32_t workload = m->workload;

    c->operation = OPERATION_NONE;
    c->count = 0;
    c->random = random;
    if (n <= m->fill_writes) {
        c->place = m->fill_writes == m->working_set ? place_in_working_set(m, n - 1) : place_in_data(m, n - 1);
        c->operation = OPERATION_WHOLE;
        return;
    }
    if (workload == WORKLOAD_MIXED) {
        static const uint8_t turn[16] = {
            WORKLOAD_LOG, WORKLOAD_ZERO,   WORKLOAD_KV,     WORKLOAD_THRASH, WORKLOAD_SPARSE, WORKLOAD_KV,
            WORKLOAD_SPARSE, WORKLOAD_SPARSE, WORKLOAD_LOG, WORKLOAD_KV,     WORKLOAD_SPARSE, WORKLOAD_SPARSE,
            WORKLOAD_KV,  WORKLOAD_SPARSE, WORKLOAD_SPARSE, WORKLOAD_SPARSE};
        workload = turn[n % 16];
        if (workload == WORKLOAD_LOG) {
            plan_page(m, n / 8 % m->working_set, OPERATION_WHOLE, c);
            return;
        }
    }
    switch (workload) {
    case WORKLOAD_SPARSE:
        plan_sparse(m, choice, c);
        break;
    case WORKLOAD_KV:
        plan_kv(m, n, choice, c);
        break;
    case WORKLOAD_LOG:
        plan_page(m, n % m->working_set, OPERATION_WHOLE, c);
        break;
    case WORKLOAD_THRASH:
        plan_page(m, below(&choice, m->working_set), OPERATION_WHOLE, c);
        break;
    case WORKLOAD_ZERO:
        plan_page(m, below(&choice, m->working_set), OPERATION_ZERO, c);
        break;
    default: /* idle: only the beat */
        break;
    }
}

void guest_image(const struct guest_model *m, const struct guest_change *c, unsigned operation, uint64_t version,
                 uint64_t *page)
{
    page[WORD_TAG] = m->tag;
    page[WORD_PLACE] = c->place;
    page[WORD_VERSION] = page[WORD_TRAILER] = version;
    if (operation == OPERATION_WHOLE) {
        uint64_t random = c->random;
        for (unsigned i = WORD_CONTENT; i < WORD_TRAILER; i++)
            page[i] = next(&random);
    } else {
        memset(page + WORD_CONTENT, 0, GUEST_CONTENT_WORDS * 8);
        for (uint32_t i = 0; i < c->count; i++)
            page[c->index[i]] = c->value[i];
    }
    page[WORD_SUM] = guest_sum(page);
}

int guest_finish(const struct guest_model *m, const struct guest_slot *slot, uint64_t *page)
{
    struct guest_change change;
    uint64_t version = guest_entry_version(slot->entry);
    unsigned kind = slot->operation == OPERATION_ZERO ? KIND_ZERO : KIND_FILLED;

    guest_plan(m, slot->number, &change);
    if (change.operation == OPERATION_NONE || change.place != slot->place
        || slot->entry != guest_entry(slot->place, version, kind))
        return -1;
    switch (slot->operation) {
    case OPERATION_WHOLE:
    case OPERATION_FRESH:
        guest_image(m, &change, (unsigned)slot->operation, version, page);
        break;
    case OPERATION_WORDS:
        page[WORD_VERSION] = page[WORD_TRAILER] = version;
        for (uint32_t i = 0; i < change.count; i++)
            page[change.index[i]] = change.value[i];
        page[WORD_SUM] = guest_sum(page);
        if (page[WORD_TAG] != m->tag || page[WORD_PLACE] != slot->place)
            return -1;
        break;
    case OPERATION_ZERO:
        memset(page, 0, GUEST_PAGE);
        break;
    default:
        return -1;
    }
    return page[WORD_SUM] == slot->sum ? 0 : -1;
}

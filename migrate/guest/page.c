/* One page: its sum, its table entry, and the verdict on it. */
#include "guest.h"

#include <string.h>

static uint64_t weights[GUEST_WORDS];

/* splitmix64's finalizer: a bijection that spreads every input bit over the word. */
uint64_t guest_mix(uint64_t x)
{
    x += UINT64_C(0x9e3779b97f4a7c15);
    x = (x ^ (x >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    x = (x ^ (x >> 27)) * UINT64_C(0x94d049bb133111eb);
    return x ^ (x >> 31);
}

/* Odd, so that no change of a single word can leave the sum as it was; the sum's own word weighs nothing. */
void guest_make_weights(void)
{
    for (unsigned i = 0; i < GUEST_WORDS; i++)
        weights[i] = i == WORD_SUM ? 0 : guest_mix(i) | 1;
}

uint64_t guest_weight(unsigned word) { return weights[word]; }

uint64_t guest_sum(const uint64_t *page)
{
    uint64_t sum = 0;
    for (unsigned i = 0; i < GUEST_WORDS; i++)
        sum += page[i] * weights[i];
    return sum;
}

uint64_t guest_entry(uint64_t place, uint64_t version, unsigned kind)
{
    uint64_t body = version << 24 | (uint64_t)kind << 16;
    return body | (guest_mix(guest_mix(place) ^ body) & 0xffff);
}

static int is_zero(const uint64_t *page)
{
    uint64_t any = 0;
    for (unsigned i = 0; i < GUEST_WORDS; i += 8) {
        for (unsigned j = 0; j < 8; j++)
            any |= page[i + j];
        if (any)
            return 0;
    }
    return 1;
}

static int is_whole(const struct guest_model *m, uint64_t place, const uint64_t *page)
{
    return page[WORD_TAG] == m->tag && page[WORD_PLACE] == place && page[WORD_VERSION] != 0
           && page[WORD_VERSION] == page[WORD_TRAILER] && page[WORD_SUM] == guest_sum(page);
}

static int is_entry(uint64_t place, uint64_t entry)
{
    uint64_t version = guest_entry_version(entry);
    unsigned kind = guest_entry_kind(entry);
    return entry == 0
           || ((kind == KIND_FILLED || kind == KIND_ZERO) && version != 0
               && entry == guest_entry(place, version, kind));
}

unsigned guest_judge(const struct guest_model *m, uint64_t place, const uint64_t *page, uint64_t entry,
                     uint64_t *found)
{
    uint64_t version = guest_entry_version(entry), front = page[WORD_VERSION], back = page[WORD_TRAILER];
    unsigned kind = guest_entry_kind(entry);
    int zero = is_zero(page), whole = !zero && is_whole(m, place, page);

    *found = whole ? front : 0;
    if (!is_entry(place, entry))
        return PAGE_TABLE_DAMAGED;
    if (zero)
        return kind == KIND_FILLED ? PAGE_LOST : PAGE_GOOD;
    if (whole) {
        if (front > version)
            return PAGE_TABLE_STALE;
        if (front < version)
            return PAGE_STALE;
        return kind == KIND_FILLED ? PAGE_GOOD : PAGE_DAMAGED;
    }
    /* A version that the table has not reached was never written: flipped bits, not two halves. */
    *found = front < back ? front : back;
    return front != back && front <= version && back <= version ? PAGE_TORN : PAGE_DAMAGED;
}

static void note(struct guest_check *out, unsigned verdict, uint64_t place, uint64_t found, uint64_t expected)
{
    out->counts[verdict]++;
    if (verdict != PAGE_GOOD && out->described < GUEST_MAX_FAULTS)
        out->faults[out->described++] = (struct guest_fault){verdict, place, found, expected};
}

/* The page of the write in flight: old, new or any mixture of just these two. */
static unsigned judge_in_flight(const struct guest_model *m, const uint64_t *page, uint64_t entry,
                                const struct guest_slot *slot, uint64_t *found)
{
    uint64_t copy[GUEST_WORDS];

    if (entry == slot->entry) /* the page was complete before its entry was stored */
        return guest_judge(m, slot->place, page, entry, found);
    *found = guest_entry_version(entry);
    if (*found + 1 != guest_entry_version(slot->entry))
        return PAGE_TABLE_STALE;
    memcpy(copy, page, sizeof copy);
    if (guest_finish(m, slot, copy) == 0)
        return PAGE_GOOD;
    unsigned verdict = guest_judge(m, slot->place, page, entry, found);
    /* Torn is what it may be, and good is what it may have been: it is neither. */
    return verdict == PAGE_STALE || verdict == PAGE_LOST ? verdict : PAGE_DAMAGED;
}

void guest_check_pages(const struct guest_model *m, uint32_t block, uint64_t first, uint64_t count,
                       const uint8_t *pages, const uint64_t *entries, const struct guest_slot *slot,
                       struct guest_check *out)
{
    for (uint64_t i = 0; i < count; i++) {
        const uint64_t *page = (const uint64_t *)(pages + i * GUEST_PAGE);
        uint64_t place = (uint64_t)block << 32 | (first + i), found;
        unsigned verdict;
        uint64_t version = guest_entry_version(entries[i]);
        /* An entry beyond the slot's version shows that the slot is old, not that this page is in flight. */
        if (slot && slot->place == place && is_entry(place, entries[i])
            && version <= guest_entry_version(slot->entry)) {
            verdict = judge_in_flight(m, page, entries[i], slot, &found);
            version = guest_entry_version(slot->entry);
            out->versions += version - 1; /* done does not count it yet */
        } else {
            verdict = guest_judge(m, place, page, entries[i], &found);
            /* Where the table is at fault the page tells how often it was written. */
            int by_page = verdict == PAGE_TABLE_STALE || verdict == PAGE_TABLE_DAMAGED;
            out->versions += by_page ? found : version;
        }
        if (verdict == PAGE_TABLE_STALE) {
            uint64_t table_page = place / GUEST_WORDS + 1; /* 0: none yet */
            out->stale_table_pages += table_page != out->last_stale_table_page;
            out->last_stale_table_page = table_page;
        }
        note(out, verdict, place, found, version);
    }
}

/* The running guest: page writes framed by the slot and two counters, beats, pacing, the witness. */
#define _GNU_SOURCE
#include "guest.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define CLOCK_EVERY 16                  /* writes between two looks at the clock */
#define LONGEST_DEBT_NS (10 * 1000000)  /* what a paced guest may catch up after it was held */

static uint64_t now_ns(clockid_t clock)
{
    struct timespec t;
    clock_gettime(clock, &t);
    return (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
}

static uint64_t *page_at(const struct guest *g, uint64_t place)
{
    return (uint64_t *)(g->model.block[place >> 32].ram + (place & UINT32_MAX) * GUEST_PAGE);
}

static volatile uint64_t *entry_at(const struct guest *g, uint64_t place)
{
    const struct guest_block *b = &g->model.block[place >> 32];
    return (volatile uint64_t *)(b->ram + b->first_table * GUEST_PAGE) + (place & UINT32_MAX);
}

/* A look at the few words that a write touches anyway: is the page the one that this guest left there? */
static int looks_right(const struct guest_model *m, uint64_t place, const uint64_t *page, uint64_t entry)
{
    uint64_t version = guest_entry_version(entry);
    if (guest_entry_kind(entry) == KIND_FILLED)
        return page[WORD_TAG] == m->tag && page[WORD_PLACE] == place && page[WORD_VERSION] == version
               && page[WORD_TRAILER] == version;
    return (page[WORD_TAG] | page[WORD_VERSION] | page[WORD_SUM] | page[WORD_TRAILER]) == 0;
}

/* A page write is whole: the page itself, its table entry, the counters. */
static void mark_write(const struct guest *g, uint64_t place)
{
    uint32_t block = (uint32_t)(place >> 32);
    uint64_t page = place & UINT32_MAX;
    guest_mark(g, block, page);
    guest_mark(g, block, g->model.block[block].first_table + page * sizeof(uint64_t) / GUEST_PAGE);
    guest_mark(g, 0, 1);
}

static int write_page(struct guest *g, uint64_t n)
{
    struct guest_state *state = g->state;
    struct guest_change change;
    uint64_t image[GUEST_WORDS], sum;

    guest_plan(&g->model, n, &change);
    uint64_t *page = page_at(g, change.place);
    volatile uint64_t *entry = entry_at(g, change.place);
    uint64_t old = *entry, version = guest_entry_version(old) + 1;
    int filled = guest_entry_kind(old) == KIND_FILLED;

    if (!looks_right(&g->model, change.place, page, old)) {
        g->fault.verdict = guest_judge(&g->model, change.place, page, old, &g->fault.found);
        if (g->fault.verdict == PAGE_GOOD) /* another writer is at it just now */
            g->fault.verdict = PAGE_DAMAGED;
        g->fault.place = change.place;
        g->fault.expected = version - 1;
        return -1;
    }
    unsigned operation = change.operation;
    if (operation == OPERATION_ZERO && !filled)
        operation = OPERATION_WHOLE;
    else if (operation == OPERATION_WORDS && !filled)
        operation = OPERATION_FRESH;

    /* The sum is known before the first store: that is what a half-done write is judged by. */
    if (operation == OPERATION_ZERO) {
        sum = 0;
    } else if (operation == OPERATION_WORDS) {
        sum = page[WORD_SUM] + guest_weight(WORD_VERSION) + guest_weight(WORD_TRAILER);
        for (uint32_t i = 0; i < change.count; i++)
            sum += (change.value[i] - page[change.index[i]]) * guest_weight(change.index[i]);
    } else {
        guest_image(&g->model, &change, operation, version, image);
        sum = image[WORD_SUM];
    }
    state->slot_place = change.place;
    state->slot_operation = operation;
    state->slot_entry = guest_entry(change.place, version, operation == OPERATION_ZERO ? KIND_ZERO : KIND_FILLED);
    state->slot_sum = sum;
    GUEST_STEP();
    state->started = n;
    GUEST_STEP();
    if (operation == OPERATION_ZERO) {
        memset(page, 0, GUEST_PAGE);
    } else if (operation == OPERATION_WORDS) {
        page[WORD_VERSION] = version;
        for (uint32_t i = 0; i < change.count; i++)
            page[change.index[i]] = change.value[i];
        page[WORD_SUM] = sum;
        page[WORD_TRAILER] = version;
    } else {
        memcpy(page, image, GUEST_PAGE);
    }
    GUEST_STEP();
    *entry = state->slot_entry;
    GUEST_STEP();
    state->done = n;
    mark_write(g, change.place);
    return 0;
}

int guest_recover(struct guest *g)
{
    struct guest_state *state = g->state;
    struct guest_slot slot = {state->started, state->slot_place, state->slot_operation, state->slot_entry,
                              state->slot_sum};
    uint64_t copy[GUEST_WORDS];
    struct guest_change change;

    if (state->started == state->done)
        return 0;
    /* The plan names the page, not the slot: nothing outside RAM is touched whatever the slot says. */
    guest_plan(&g->model, slot.number, &change);
    g->fault = (struct guest_fault){PAGE_DAMAGED, slot.place, 0, guest_entry_version(slot.entry)};
    if (change.operation == OPERATION_NONE || change.place != slot.place)
        return -1;
    uint64_t *page = page_at(g, change.place);
    volatile uint64_t *entry = entry_at(g, change.place);
    if (*entry != slot.entry) { /* else the page is complete and only the count is missing */
        memcpy(copy, page, sizeof copy);
        if (guest_entry_version(*entry) + 1 != guest_entry_version(slot.entry)
            || guest_finish(&g->model, &slot, copy) != 0)
            return -1;
        /* Stopped again half-way through these stores, the next resume finds the same slot and does the same. */
        memcpy(page, copy, sizeof copy);
        GUEST_STEP();
        *entry = slot.entry;
        GUEST_STEP();
    }
    g->fault.verdict = PAGE_GOOD;
    state->done = slot.number;
    mark_write(g, change.place);
    return 1;
}

static int witness_line(struct guest *g, uint64_t beat, uint64_t now)
{
    char line[sizeof g->witness_prefix + 80];
    int length = snprintf(line, sizeof line, "%s %llu %llu %llu\n", g->witness_prefix, (unsigned long long)beat,
                          (unsigned long long)now, (unsigned long long)now_ns(CLOCK_REALTIME));
    for (;;) {
        ssize_t written = write(g->witness, line, (size_t)length);
        if (written == length)
            return 0;
        if (written < 0 && errno == EINTR)
            continue;
        g->error = written < 0 ? errno : ENOSPC;
        return -1;
    }
}

/* The beat is in RAM before its line is in the log: never a line without its beat. */
static int beat(struct guest *g, uint64_t now)
{
    uint64_t number = g->state->beat + 1;
    g->state->beat = number;
    GUEST_STEP();
    g->state->beat_check = ~number;
    GUEST_STEP();
    for (uint32_t b = 0; b < g->model.blocks; b++)
        ((volatile uint64_t *)g->model.block[b].ram)[GUEST_MIRROR_WORD] = number;
    GUEST_STEP();
    guest_mark(g, 0, 1);
    for (uint32_t b = 0; b < g->model.blocks; b++)
        guest_mark(g, b, 0);
    return g->witness < 0 ? 0 : witness_line(g, number, now);
}

int guest_run(struct guest *g, uint64_t until_ns)
{
    uint64_t now = now_ns(CLOCK_MONOTONIC);
    while (now < until_ns) {
        if (beat(g, now) != 0)
            return -1;
        uint64_t passed = g->last_beat_ns ? now - g->last_beat_ns : GUEST_BEAT_NS;
        if (passed > LONGEST_DEBT_NS)
            passed = LONGEST_DEBT_NS;
        g->last_beat_ns = now;
        uint64_t end = now + GUEST_BEAT_NS, n = g->state->done, allowed = UINT64_MAX;
        int filling = n < g->model.fill_writes; /* as fast as it can, whatever the rate */
        if (!filling && g->rate) {
            g->credit += passed * g->rate;
            allowed = g->credit / 1000000000;
        }
        if (!filling && g->model.workload == WORKLOAD_IDLE)
            allowed = 0;
        uint64_t written = 0;
        while (written < allowed && now < end) {
            for (unsigned i = 0; i < CLOCK_EVERY && written < allowed; i++, written++) {
                if (filling && n + written == g->model.fill_writes) {
                    allowed = written;
                    break;
                }
                if (write_page(g, n + written + 1) != 0)
                    return -1;
            }
            now = now_ns(CLOCK_MONOTONIC);
        }
        if (!filling && g->rate) {
            g->credit -= written * 1000000000;
            if (written < allowed) /* slower than its rate: no debt piles up */
                g->credit = 0;
        }
        if (now < end) {
            struct timespec wake = {(time_t)(end / 1000000000), (long)(end % 1000000000)};
            if (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &wake, NULL) == EINTR)
                return 0;
            now = now_ns(CLOCK_MONOTONIC);
        }
    }
    return 0;
}

static void on_sigbus(int number)
{
    static const char text[] =
        "migrate-guest: error: a RAM file was truncated, or its file system is full (SIGBUS)\n";
    (void)number;
    ssize_t ignored = write(STDERR_FILENO, text, sizeof text - 1);
    (void)ignored;
    _exit(9);
}

int guest_catch_sigbus(void)
{
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_handler = on_sigbus;
    return sigaction(SIGBUS, &action, NULL);
}

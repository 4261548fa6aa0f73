/* The practice guest's loops: what a page looks like, what write number n does, and the run itself.
 *
 * No Python here. The layout of RAM stands as octet tables in layout.py; this header is its twin in C.
 *
 * The whole future of a guest is a function of its RAM: write number n (n = 1, 2, ...) is planned from the seed
 * and n alone, so there is no generator state that could be lost or torn. Two counters frame a write:
 *
 *     slot = {page, operation, table entry, sum of the page after it}   the intent
 *     started = n
 *         the page, then its table entry
 *     done = n
 *
 * A guest stopped at any instruction has either done == started (nothing in flight) or done + 1 == started,
 * and then the slot is complete and says which page may be torn. Every operation stores given words at given
 * places and reads nothing it changes, so it can be redone from any half-way point; the sum in the slot, made
 * before the first store, tells whether what results is right. Only one thread writes, so program order kept
 * by the compiler (GUEST_STEP) is all the order that a snapshot of a stopped guest needs.
 */
#ifndef MIGRATE_GUEST_H
#define MIGRATE_GUEST_H

#include <stddef.h>
#include <stdint.h>

#define GUEST_PAGE 4096
#define GUEST_WORDS (GUEST_PAGE / 8)
#define GUEST_MAX_BLOCKS 64
#define GUEST_MAX_FAULTS 32   /* described one by one; beyond that only counted */
#define GUEST_MAX_CHANGED 64  /* words of one in-place operation */
#define GUEST_BEAT_NS 1000000 /* a beat, and a witness line, every millisecond */
#define GUEST_MIRROR_WORD 256 /* of a block's page 0 */

/* No store may be moved across this line by the compiler. */
#define GUEST_STEP() __asm__ volatile("" ::: "memory")

/* Words of a data page. */
enum { WORD_TAG = 0, WORD_PLACE = 1, WORD_VERSION = 2, WORD_SUM = 3, WORD_CONTENT = 4, WORD_TRAILER = 511 };
#define GUEST_CONTENT_WORDS (WORD_TRAILER - WORD_CONTENT)

/* Table entry: version << 24 | kind << 16 | check of both and of the place; 0 = the page was never written. */
enum guest_kind { KIND_NEVER = 0, KIND_FILLED = 1, KIND_ZERO = 2 };

enum guest_workload {
    WORKLOAD_IDLE = 0,
    WORKLOAD_SPARSE = 1,
    WORKLOAD_KV = 2,
    WORKLOAD_LOG = 3,
    WORKLOAD_THRASH = 4,
    WORKLOAD_ZERO = 5,
    WORKLOAD_MIXED = 6
};

/* What is done to a page; stands in the slot. */
enum guest_operation {
    OPERATION_NONE = 0,
    OPERATION_WHOLE = 1, /* all content words anew */
    OPERATION_WORDS = 2, /* some words of a filled page */
    OPERATION_FRESH = 3, /* the same words on a page of zeros, which becomes a filled one */
    OPERATION_ZERO = 4   /* the page becomes zeros */
};

/* What a page, or its table entry, turned out to be. */
enum guest_verdict {
    PAGE_GOOD = 0,
    PAGE_TORN = 1,          /* front and back carry different versions, none newer than the table's */
    PAGE_LOST = 2,          /* zeros, but the table says it was filled */
    PAGE_STALE = 3,         /* whole, but older than the table says */
    PAGE_DAMAGED = 4,       /* none of these: its bytes fit no version, or it belongs elsewhere */
    PAGE_TABLE_STALE = 5,   /* whole and newer than the table says: the table page is an old one */
    PAGE_TABLE_DAMAGED = 6, /* the table entry itself is no entry of this page */
    PAGE_VERDICTS = 7
};

/* Page 1 of block 0. volatile: each store is one 8-byte store and keeps its place. */
struct guest_state {
    volatile uint64_t magic, beat, beat_check, started, done;
    volatile uint64_t slot_place, slot_operation, slot_entry, slot_sum;
};

struct guest_block {
    uint8_t *ram; /* NULL when only checking */
    uint64_t *log; /* a bit for each page that was written, vhost's layout (LMT section 4); NULL: none is kept */
    uint64_t pages, first_table, first_data;
    uint64_t data_before;        /* data pages of the blocks before this one */
    uint64_t working_set_before; /* working-set pages of the blocks before this one */
    uint64_t working_set;        /* the first so many data pages of this block */
};

struct guest_model {
    uint64_t tag, seed, fill_writes;
    uint64_t data_pages, working_set;
    uint32_t workload, blocks;
    struct guest_block block[GUEST_MAX_BLOCKS];
};

/* Write number n, planned. */
struct guest_change {
    uint64_t place;     /* block << 32 | page; also word WORD_PLACE of the page */
    uint64_t random;    /* source of a whole page's words */
    uint32_t operation; /* NONE, WHOLE, WORDS, or ZERO = "zeros if filled, else whole" */
    uint32_t count;
    uint16_t index[GUEST_MAX_CHANGED];
    uint64_t value[GUEST_MAX_CHANGED];
};

struct guest_slot {
    uint64_t number, place, operation, entry, sum;
};

struct guest_fault {
    uint32_t verdict;
    uint64_t place, found, expected; /* versions */
};

struct guest_check {
    uint64_t counts[PAGE_VERDICTS];
    uint64_t stale_table_pages, last_stale_table_page; /* pages come in ascending order */
    uint64_t versions; /* sum over the pages: every write raised one version by one */
    uint64_t described;
    struct guest_fault faults[GUEST_MAX_FAULTS];
};

struct guest {
    struct guest_model model;
    struct guest_state *state;
    uint64_t rate;         /* page writes a second; 0 = as fast as it can */
    uint64_t credit;       /* pages not yet written of what rate allows, in 1/10^9 */
    uint64_t last_beat_ns; /* CLOCK_MONOTONIC; 0 before the first */
    int witness;           /* open for appending, or -1 */
    char witness_prefix[512];
    struct guest_fault fault; /* verdict 0: none */
    int error;                /* errno of a failed witness write */
};

/* ---- page.c: one page ---- */

uint64_t guest_mix(uint64_t x);
void guest_make_weights(void); /* once, before anything else */
uint64_t guest_sum(const uint64_t *page);
uint64_t guest_weight(unsigned word);
uint64_t guest_entry(uint64_t place, uint64_t version, unsigned kind);
static inline uint64_t guest_entry_version(uint64_t entry) { return entry >> 24; }
static inline unsigned guest_entry_kind(uint64_t entry) { return (entry >> 16) & 0xff; }

/* Verdict on a page with its table entry; *found gets the version that the page itself carries. */
unsigned guest_judge(const struct guest_model *m, uint64_t place, const uint64_t *page, uint64_t entry,
                     uint64_t *found);

/* Check `count` pages of a block from page `first` (data pages), with their table entries. `slot` is the write in
 * flight or NULL; its page may be in any half-way state that finishing it makes right. Adds to *out. */
void guest_check_pages(const struct guest_model *m, uint32_t block, uint64_t first, uint64_t count,
                       const uint8_t *pages, const uint64_t *entries, const struct guest_slot *slot,
                       struct guest_check *out);

/* ---- plan.c: which page write number n goes to and what it stores ---- */

void guest_plan(const struct guest_model *m, uint64_t n, struct guest_change *change);

/* The whole page that WHOLE or FRESH leaves, its sum included. */
void guest_image(const struct guest_model *m, const struct guest_change *change, unsigned operation,
                 uint64_t version, uint64_t *page);

/* Finish the write in flight on a copy of its page. Returns 0 if the result is what the slot promised. */
int guest_finish(const struct guest_model *m, const struct guest_slot *slot, uint64_t *page);

/* ---- run.c: the running guest ---- */

/* After a resume: finish the write in flight, in RAM. 0 nothing to do, 1 finished, -1 see g->fault. */
int guest_recover(struct guest *g);

/* After the stores, never before: who fetches the bit copies the page then. */
static inline void guest_mark(const struct guest *g, uint32_t block, uint64_t page)
{
    uint64_t *log = g->model.block[block].log;
    if (log)
        __atomic_fetch_or(log + (page >> 6), (uint64_t)1 << (page & 63), __ATOMIC_RELEASE);
}

/* Write and beat until CLOCK_MONOTONIC reaches until_ns or a signal interrupts a sleep. Always ends between
 * two page writes. 0, or -1 with g->fault or g->error set. */
int guest_run(struct guest *g, uint64_t until_ns);

/* A truncated RAM file or a full file system shows as SIGBUS: say so and end with exit code 9. */
int guest_catch_sigbus(void);
/* An open userfaultfd of this process, or -1 with errno: who gets hold of it can track what is written here. */
int guest_offer_tracking(void);

#endif

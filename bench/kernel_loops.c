/* Inner loops of the kernel, timed without Python: XBZRLE against memcmp of equal pages, digests and
 * checksums.
 *
 *     cc -O3 -I migrate/kernel bench/kernel_loops.c migrate/kernel/[a-z]*.c -o kernel_loops
 *     kernel_loops PAIRS ROUNDS [FEATURES]
 *
 * One line per measurement: name, changed bytes, then nanoseconds a page of each round. All measurements of a
 * round follow each other, so that a slow moment of the machine hits their neighbours too; the reader takes
 * ratios first and then medians.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "kernel.h"

enum { PAGE = 4096, ROOM = 2 * PAGE + MK_XBZRLE_SLACK, CASES = 8, GAP = 2 };

static const struct {
    const char *name;
    int changes;
    bool contiguous;
} cases[CASES] = {
    {"0", 0, false},
    {"1", 1, false},
    {"8", 8, false},
    {"64", 64, false},
    {"64 contiguous", 64, true},
    {"256", 256, false},
    {"1000", 1000, false},
    {"4096", PAGE, true},
};

static uint64_t random_state = 1;

static uint64_t next_random(void)
{
    uint64_t z = random_state += 0x9e3779b97f4a7c15; /* splitmix64 */
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return z ^ z >> 31;
}

static double now_ns(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec * 1e9 + (double)time.tv_nsec;
}

static void *make(size_t bytes)
{
    void *memory = aligned_alloc(4096, (bytes + 4095) / 4096 * 4096);
    if (!memory) {
        perror("memory");
        exit(1);
    }
    memset(memory, 0, bytes);
    return memory;
}

/* Change exactly `changes` different bytes. */
static void change(uint8_t *page, int changes, bool contiguous)
{
    static uint8_t done[PAGE];
    memset(done, 0, PAGE);
    size_t at = changes < PAGE ? next_random() % (size_t)(PAGE - changes) : 0;
    for (int i = 0; i < changes; i++, at++) {
        if (!contiguous)
            do
                at = next_random() % PAGE;
            while (done[at]);
        done[at] = 1;
        page[at] = (uint8_t)(page[at] + 1 + next_random() % 255);
    }
}

struct set {
    uint8_t *new;    /* pairs pages */
    uint8_t *target; /* pairs pages that deltas are applied to */
    uint8_t *deltas; /* pairs of ROOM bytes */
    int *lengths;
    double *encode_ns, *decode_ns;
};

static volatile uint64_t sink;

int main(int argc, char **argv)
{
    if (argc < 3) {
        fprintf(stderr, "usage: %s PAIRS ROUNDS [FEATURES]\n", argv[0]);
        return 2;
    }
    size_t pairs = strtoul(argv[1], NULL, 10);
    int rounds = atoi(argv[2]);
    if (argc > 3)
        mk_select((unsigned)strtoul(argv[3], NULL, 0));
    uint8_t *old = make(pairs * PAGE), *equal = make(pairs * PAGE);
    for (size_t i = 0; i < pairs * PAGE / 8; i++) {
        uint64_t word = next_random();
        memcpy(old + 8 * i, &word, 8);
    }
    memcpy(equal, old, pairs * PAGE);
    struct set sets[CASES];
    for (int c = 0; c < CASES; c++) {
        struct set *set = &sets[c];
        set->new = make(pairs * PAGE);
        set->target = make(pairs * PAGE);
        set->deltas = make(pairs * ROOM);
        set->lengths = make(pairs * sizeof(int));
        set->encode_ns = make((size_t)rounds * sizeof(double));
        set->decode_ns = make((size_t)rounds * sizeof(double));
        memcpy(set->new, old, pairs * PAGE);
        memcpy(set->target, old, pairs * PAGE);
        for (size_t i = 0; i < pairs; i++) {
            change(set->new + i *PAGE, cases[c].changes, cases[c].contiguous);
            set->lengths[i] = mk_xbzrle_encode(
                old + i * PAGE, set->new + i *PAGE, PAGE, set->deltas + i * ROOM, 2 * PAGE, GAP);
        }
    }
    uint8_t page_key[PAGE], root_key[16] = {0};
    for (int i = 0; i < PAGE; i++)
        page_key[i] = (uint8_t)next_random();
    struct mk_keys keys;
    if (mk_keys_init(&keys, PAGE, page_key, root_key) < 0)
        return 1;
    enum { MEMCMP, DIGEST, CRC32C, IS_ZERO, MEMCPY, OTHERS };
    static const char *const names[OTHERS] = {"memcmp", "digest", "crc32c", "is_zero", "memcpy"};
    uint8_t *zeros = make(pairs * PAGE);
    double *other_ns[OTHERS];
    for (int i = 0; i < OTHERS; i++)
        other_ns[i] = make((size_t)rounds * sizeof(double));

    for (int round = 0; round < rounds; round++) {
        for (int c = 0; c < CASES; c++) {
            struct set *set = &sets[c];
            for (int warm = 1; warm >= 0; warm--) {
                double start = now_ns();
                for (size_t i = 0; i < pairs; i++)
                    sink += (uint64_t)mk_xbzrle_encode(
                        old + i * PAGE, set->new + i *PAGE, PAGE, set->deltas + i * ROOM, 2 * PAGE, GAP);
                set->encode_ns[round] = (now_ns() - start) / (double)pairs;
            }
            for (int warm = 1; warm >= 0; warm--) {
                double start = now_ns();
                for (size_t i = 0; i < pairs; i++)
                    sink += (uint64_t)mk_xbzrle_decode(
                        set->deltas + i * ROOM, (size_t)set->lengths[i], set->target + i * PAGE, PAGE);
                set->decode_ns[round] = (now_ns() - start) / (double)pairs;
            }
        }
        for (int other = 0; other < OTHERS; other++) {
            for (int warm = 1; warm >= 0; warm--) {
                double start = now_ns();
                for (size_t i = 0; i < pairs; i++) {
                    const uint8_t *page = old + i * PAGE;
                    if (other == MEMCMP)
                        sink += (uint64_t)memcmp(page, equal + i * PAGE, PAGE);
                    else if (other == DIGEST)
                        sink += mk_page_digest(&keys, page).lo;
                    else if (other == CRC32C)
                        sink += mk_crc32c(page, PAGE, 0);
                    else if (other == IS_ZERO)
                        sink += mk_is_zero(zeros + i * PAGE, PAGE);
                    else
                        memcpy(equal + i * PAGE, page, PAGE);
                }
                other_ns[other][round] = (now_ns() - start) / (double)pairs;
            }
        }
    }
    for (int c = 0; c < CASES; c++) {
        if (memcmp(sets[c].target, sets[c].new, pairs * PAGE) != 0) {
            fprintf(stderr, "decoded pages differ: %s\n", cases[c].name);
            return 1;
        }
        printf("encode\t%s", cases[c].name);
        for (int round = 0; round < rounds; round++)
            printf("\t%.1f", sets[c].encode_ns[round]);
        printf("\ndecode\t%s", cases[c].name);
        for (int round = 0; round < rounds; round++)
            printf("\t%.1f", sets[c].decode_ns[round]);
        printf("\n");
    }
    for (int other = 0; other < OTHERS; other++) {
        printf("other\t%s", names[other]);
        for (int round = 0; round < rounds; round++)
            printf("\t%.1f", other_ns[other][round]);
        printf("\n");
    }
    return 0;
}

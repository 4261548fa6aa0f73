/* What the fuzz drivers share: reproducible randomness, and a check that says what failed and with which
 * seed. */
#ifndef FUZZ_COMMON_H
#define FUZZ_COMMON_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernel.h"

struct random {
    uint64_t state;
};

static inline uint64_t next_random(struct random *random)
{
    uint64_t z = random->state += 0x9e3779b97f4a7c15; /* splitmix64 */
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return z ^ z >> 31;
}

/* 0…end-1; 0 if end is 0. */
static inline uint64_t below(struct random *random, uint64_t end)
{
    return end ? next_random(random) % end : 0;
}

static inline bool one_in(struct random *random, uint64_t chance)
{
    return below(random, chance) == 0;
}

static inline void random_bytes(struct random *random, uint8_t *to, size_t length)
{
    for (size_t i = 0; i < length; i++)
        to[i] = (uint8_t)next_random(random);
}

extern uint64_t fuzz_seed; /* of the current iteration: give it as SEED with one iteration to repeat it */

#define CHECK(condition)                                                          \
    do {                                                                          \
        if (!(condition)) {                                                       \
            fprintf(                                                              \
                stderr, "%s:%d: %s\nseed %llu\n", __FILE__, __LINE__, #condition, \
                (unsigned long long)fuzz_seed);                                   \
            abort();                                                              \
        }                                                                         \
    } while (0)

/* Memory of exactly this size, so that the address sanitizer sees one byte too many. */
static inline void *exactly(size_t bytes)
{
    void *memory = malloc(bytes ? bytes : 1);
    CHECK(memory);
    return memory;
}

static inline void *copy_of(const void *from, size_t bytes)
{
    void *memory = exactly(bytes);
    if (bytes)
        memcpy(memory, from, bytes);
    return memory;
}

/* Change some bytes the way programs and attackers do: scattered, in runs, at the edges, to special values.
 */
void mutate(struct random *random, uint8_t *data, size_t length, unsigned changes);

void fuzz_bytes(struct random *random);
void fuzz_cache(struct random *random);
void fuzz_walk(struct random *random);
void fuzz_land(struct random *random);
void fuzz_batches(struct random *random);

#endif

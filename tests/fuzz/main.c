/* Fuzz driver of the kernel, built with the sanitizers and without Python.
 *
 *     bin/fuzz-kernel SECONDS [SEED]        e.g. bin/fuzz-kernel 600
 *
 * Every iteration has a seed of its own; a failure prints it, and
 *
 *     fuzz-kernel SEED 1x
 *
 * repeats that iteration alone. The second argument is a number of seconds, or of iterations with an x behind
 * it.
 */
#include <time.h>

#include "common.h"

uint64_t fuzz_seed;

static void usage(const char *name)
{
    fprintf(stderr, "usage: %s SEED SECONDS | SEED ITERATIONSx\n", name);
    exit(2);
}

static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + (double)time.tv_nsec * 1e-9;
}

int main(int argc, char **argv)
{
    if (argc != 3)
        usage(argv[0]);
    char *end;
    uint64_t seed = strtoull(argv[1], &end, 0), iterations = 0;
    if (*end)
        usage(argv[0]);
    double most = strtod(argv[2], &end), start = now();
    bool counted = strcmp(end, "x") == 0;
    if (!counted && *end)
        usage(argv[0]);
    printf("seed %llu, features of this CPU %#x\n", (unsigned long long)seed, mk_cpu_features());
    fflush(stdout);
    do {
        fuzz_seed = seed + iterations++;
        struct random random = {fuzz_seed};
        fuzz_bytes(&random);
        fuzz_cache(&random);
        fuzz_batches(&random);
        fuzz_walk(&random);
        fuzz_land(&random);
    } while (counted ? (double)iterations < most : now() - start < most);
    printf("%llu iterations, no fault\n", (unsigned long long)iterations);
    return 0;
}

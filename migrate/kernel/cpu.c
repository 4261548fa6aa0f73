/* Which variant of each inner loop this CPU gets. */
#include "internal.h"

struct variants variants;

unsigned mk_cpu_features(void)
{
    unsigned features = 0;
#if defined(__x86_64__)
    __builtin_cpu_init();
    features |= MK_SSE2; /* part of x86-64 */
    if (__builtin_cpu_supports("sse4.2") && __builtin_cpu_supports("pclmul"))
        features |= MK_SSE42;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2")
        && __builtin_cpu_supports("popcnt"))
        features |= MK_AVX2;
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw")
        && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vbmi2")
        && __builtin_cpu_supports("avx512vpopcntdq") && (features & MK_AVX2))
        features |= MK_AVX512;
    if ((features & MK_AVX512) && (features & MK_SSE42) && __builtin_cpu_supports("vpclmulqdq"))
        features |= MK_VPCLMUL;
#endif
    return features;
}

unsigned mk_select(unsigned allowed)
{
    unsigned features = allowed & mk_cpu_features();
    zero_select(features);
    crc32c_select(features);
    differs_select(features);
    digest_select(features);
    xbzrle_select(features);
    return features;
}

/* Before anybody can call in: no lock and no "first use" test in the loops. */
__attribute__((constructor)) static void select_best(void)
{
    mk_select(MK_ALL_FEATURES);
}

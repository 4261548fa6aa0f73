/* XBZRLE deltas of pages with few changes, with AVX-512: the same bytes as the plain encoder, in steps
 * without a branch that cannot be foretold. With changes scattered at random the plain one spends most of its
 * time on those. */
#include "internal.h"

#if defined(__x86_64__)

#include <immintrin.h>

#define AVX512 \
    __attribute__((target("avx512f,avx512bw,avx512vl,avx512vbmi2,avx512vpopcntdq,bmi,bmi2,popcnt")))

enum {
    CHUNK = 64,
    CHUNKS_MAX = MK_XBZRLE_PAGE_MAX / CHUNK + 1,
    WORDS = 8,        /* in a vector */
    LANES = 16,       /* runs in a vector */
    RUNS_MAX = 128,   /* pages with more go to the plain encoder, which needs no tables */
    EDGES_MAX = 2 * RUNS_MAX,
    EDGES_FEW = 4, /* not worth a plan */
    EDGES_ROOM =
        EDGES_MAX + WORDS * CHUNK + 32, /* one vector more, and what a store writes behind the last */
    COPY = 16,        /* bytes copied for a short run */
};

/* Eight mask words, with gaps of one bit between set bits filled; `before` and `after` are the words beside
 * each. */
AVX512 static inline __m512i fill_gaps(__m512i here, __m512i before, __m512i after)
{
    __m512i left = _mm512_shldi_epi64(here, before, 1), right = _mm512_shrdi_epi64(here, after, 1);
    return _mm512_or_si512(here, _mm512_and_si512(left, right));
}

/* Take the lowest set bit from each word: its position, 64 if there was none. */
AVX512 static inline __m512i take_lowest(__m512i *words)
{
    __m512i less_one = _mm512_add_epi64(*words, _mm512_set1_epi64(-1));
    __m512i position = _mm512_popcnt_epi64(_mm512_andnot_si512(*words, less_one));
    *words = _mm512_and_si512(*words, less_one);
    return position;
}

/* The same four times: four 16-bit positions a word. */
AVX512 static inline __m512i take_four_lowest(__m512i *words)
{
    __m512i first = take_lowest(words), second = take_lowest(words);
    __m512i third = take_lowest(words), fourth = take_lowest(words);
    __m512i low = _mm512_or_si512(first, _mm512_slli_epi64(second, 16));
    return _mm512_or_si512(low, _mm512_or_si512(_mm512_slli_epi64(third, 32), _mm512_slli_epi64(fourth, 48)));
}

/* Positions of the set bits of words first…first+7, in order. Returns the end of what was written. */
AVX512 static inline uint16_t *list_bits(uint16_t *to, __m512i words, size_t first)
{
    const __m512i none = _mm512_set1_epi16(CHUNK);
    const int64_t step = 0x0040004000400040; /* CHUNK, in each 16 bits of a word's lane */
    const __m512i base = _mm512_add_epi16(
        _mm512_set1_epi16((short)(first * CHUNK)),
        _mm512_set_epi64(7 * step, 6 * step, 5 * step, 4 * step, 3 * step, 2 * step, step, 0));
    __m512i rest = words, low = take_four_lowest(&rest);
    __mmask32 has_low = _mm512_cmplt_epu16_mask(low, none);
    low = _mm512_add_epi16(low, base);
    if (!_mm512_test_epi64_mask(rest, rest)) {
        _mm512_storeu_si512(to, _mm512_maskz_compress_epi16(has_low, low));
        return to + _mm_popcnt_u32(has_low);
    }
    __m512i high = take_four_lowest(&rest);
    if (!_mm512_test_epi64_mask(rest, rest)) { /* four of word 0, four more of word 0, four of word 1 … */
        const __m512i left = _mm512_set_epi64(11, 3, 10, 2, 9, 1, 8, 0);
        const __m512i right = _mm512_set_epi64(15, 7, 14, 6, 13, 5, 12, 4);
        uint32_t has_high = _mm512_cmplt_epu16_mask(high, none);
        uint64_t has = _pdep_u64(has_low, 0x0f0f0f0f0f0f0f0f) | _pdep_u64(has_high, 0xf0f0f0f0f0f0f0f0);
        high = _mm512_add_epi16(high, base);
        __m512i front = _mm512_permutex2var_epi64(low, left, high);
        __m512i back = _mm512_permutex2var_epi64(low, right, high);
        _mm512_storeu_si512(to, _mm512_maskz_compress_epi16((__mmask32)has, front));
        to += _mm_popcnt_u32((uint32_t)has);
        _mm512_storeu_si512(to, _mm512_maskz_compress_epi16((__mmask32)(has >> 32), back));
        return to + _mm_popcnt_u32((uint32_t)(has >> 32));
    }
    uint64_t bits[WORDS];
    _mm512_storeu_si512(bits, words);
    for (size_t word = 0; word < WORDS; word++)
        for (; bits[word]; bits[word] &= bits[word] - 1)
            *to++ = (uint16_t)((first + word) * CHUNK + (size_t)__builtin_ctzll(bits[word]));
    return to;
}

/* Start and end of each run of changes, in turn. Returns how many; beyond EDGES_MAX they may not be all. */
AVX512 static size_t list_edges(uint16_t *edges, const uint64_t *masks, size_t chunks, size_t gap)
{
    uint16_t *to = edges;
    const __m512i nothing = _mm512_setzero_si512();
    __m512i raw = nothing, filled = nothing, next = _mm512_loadu_si512(masks + 1);
    for (size_t word = 0; word < chunks; word += WORDS) {
        __m512i before = raw, filled_before = filled;
        raw = filled = next;
        next = word + WORDS <= chunks ? _mm512_loadu_si512(masks + 1 + word + WORDS) : nothing;
        /* Nothing changed here; the last bit of the word before ends a run only if it is set, filled or not:
         * a gap is filled only up to a change. */
        if (!_mm512_test_epi64_mask(raw, raw) && !(masks[word] >> 63))
            continue;
        if (gap)
            filled = fill_gaps(raw, _mm512_alignr_epi64(raw, before, 7), _mm512_alignr_epi64(next, raw, 1));
        __m512i shifted = _mm512_shldi_epi64(filled, _mm512_alignr_epi64(filled, filled_before, 7), 1);
        __m512i turns = _mm512_xor_si512(filled, shifted);
        to = list_bits(to, turns, word);
        if (to - edges > EDGES_MAX)
            break;
    }
    if ((to - edges) % 2) /* the last run goes on to the end of the last chunk */
        *to++ = (uint16_t)(chunks * CHUNK);
    return (size_t)(to - edges);
}

/* One or two bytes of a run length, as they lie in memory: the low seven bits, then the rest. */
AVX512 static inline __m512i length_bytes(__m512i length, __mmask16 two)
{
    __m512i high = _mm512_andnot_si512(_mm512_set1_epi32(0x7f), length);
    return _mm512_mask_or_epi32(length, two, _mm512_add_epi32(length, high), _mm512_set1_epi32(0x80));
}

/* Where everything goes, of all runs. */
struct plan {
    uint32_t head[RUNS_MAX]; /* bytes of both lengths */
    uint32_t head_at[RUNS_MAX]; /* offset in the delta */
    uint32_t data_at[RUNS_MAX];
    uint32_t end; /* length of the delta */
    uint32_t longest; /* run */
};

AVX512 static void make_plan(struct plan *plan, const uint16_t *edges, size_t runs)
{
    const __m512i none = _mm512_setzero_si512(), one = _mm512_set1_epi32(1),
                  seven_bits = _mm512_set1_epi32(0x7f);
    __m512i end_before = none, offset = none, longest = none;
    for (size_t i = 0; i < runs; i += LANES) {
        __mmask16 live = (__mmask16)_bzhi_u32(0xffff, runs - i < LANES ? (unsigned)(runs - i) : LANES);
        __m512i pairs = _mm512_maskz_loadu_epi32(live, edges + 2 * i);
        __m512i start = _mm512_and_si512(pairs, _mm512_set1_epi32(0xffff)),
                end = _mm512_srli_epi32(pairs, 16);
        __m512i skip = _mm512_sub_epi32(start, _mm512_alignr_epi32(end, end_before, LANES - 1));
        __m512i run = _mm512_sub_epi32(end, start);
        __mmask16 long_skip = _mm512_cmpgt_epi32_mask(skip, seven_bits);
        __mmask16 long_run = _mm512_cmpgt_epi32_mask(run, seven_bits);
        __m512i skip_bytes = _mm512_mask_add_epi32(one, long_skip, one, one);
        __m512i head_bytes = _mm512_add_epi32(skip_bytes, _mm512_mask_add_epi32(one, long_run, one, one));
        __m512i run_shifted =
            _mm512_sllv_epi32(length_bytes(run, long_run), _mm512_slli_epi32(skip_bytes, 3));
        _mm512_storeu_si512(plan->head + i, _mm512_or_si512(length_bytes(skip, long_skip), run_shifted));
        /* Offsets: sums of all lengths before, by adding neighbours 1, 2, 4 and 8 lanes away. */
        __m512i length = _mm512_maskz_add_epi32(live, head_bytes, run), sum = length;
        sum = _mm512_add_epi32(sum, _mm512_alignr_epi32(sum, none, LANES - 1));
        sum = _mm512_add_epi32(sum, _mm512_alignr_epi32(sum, none, LANES - 2));
        sum = _mm512_add_epi32(sum, _mm512_alignr_epi32(sum, none, LANES - 4));
        sum = _mm512_add_epi32(sum, _mm512_alignr_epi32(sum, none, LANES - 8));
        __m512i head_at = _mm512_add_epi32(offset, _mm512_sub_epi32(sum, length));
        _mm512_storeu_si512(plan->head_at + i, head_at);
        _mm512_storeu_si512(plan->data_at + i, _mm512_add_epi32(head_at, head_bytes));
        offset = _mm512_add_epi32(offset, _mm512_permutexvar_epi32(_mm512_set1_epi32(LANES - 1), sum));
        longest = _mm512_mask_max_epu32(longest, live, longest, run);
        end_before = end;
    }
    plan->end = (uint32_t)_mm_cvtsi128_si32(_mm512_castsi512_si128(offset));
    plan->longest = _mm512_reduce_max_epu32(longest);
}

AVX512 static void write_plan(
    const struct plan *plan, const uint16_t *edges, size_t runs, const uint8_t *new, size_t length,
    uint8_t *out)
{
    size_t short_runs = plan->longest <= COPY ? runs : 0, i = 0;
    while (short_runs && edges[2 * short_runs - 2] + (size_t)COPY > length)
        short_runs--; /* too close to the end of the page to read more than there is */
#pragma GCC unroll 4
    for (; i < short_runs; i++) { /* what is too much is written over by the next, or stays behind the end */
        memcpy(out + plan->head_at[i], &plan->head[i], sizeof plan->head[i]);
        memcpy(out + plan->data_at[i], new + edges[2 * i], COPY);
    }
    for (; i < runs; i++) {
        memcpy(out + plan->head_at[i], &plan->head[i], sizeof plan->head[i]);
        memcpy(out + plan->data_at[i], new + edges[2 * i], (size_t)(edges[2 * i + 1] - edges[2 * i]));
    }
}

int xbzrle_encode_avx512(
    const uint64_t *masks, const uint8_t *new, size_t length, uint8_t *out, size_t limit, size_t gap)
{
    uint16_t edges[EDGES_ROOM];
    struct plan plan;
    size_t chunks = (length + CHUNK - 1) / CHUNK;
    if (gap > 1)
        return xbzrle_encode_bmi(masks, new, length, out, limit, gap);
    size_t count = list_edges(edges, masks, chunks, gap);
    if (count > EDGES_MAX)
        return xbzrle_encode_bmi(masks, new, length, out, limit, gap);
    if (count <= EDGES_FEW)
        return xbzrle_write_runs(edges, count, new, length, out, limit, gap);
    make_plan(&plan, edges, count / 2);
    if (plan.end > limit || (edges[count - 1] < length && plan.end + 2 > limit))
        return -1;
    write_plan(&plan, edges, count / 2, new, length, out);
    return (int)plan.end;
}

#endif

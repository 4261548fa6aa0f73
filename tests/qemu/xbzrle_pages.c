/* Generated pages there and back through the encoder and the decoder, as fast as C goes.
 *
 *     xbzrle_pages SEED PAGES STEP      standard output: every STEP-th as old page, new page, be16 length, delta
 */
#include "common.h"

enum { PAGE = 4096, POOL = 64 };

uint64_t fuzz_seed;

/* Scattered bytes, runs, edges, and now and then everything. */
static void change(struct random *random, uint8_t *page)
{
    unsigned changes = 1 + (unsigned)below(random, one_in(random, 20) ? 700 : 12);
    if (one_in(random, 200))
        random_bytes(random, page, PAGE);
    for (unsigned i = 0; i < changes; i++) {
        size_t at = below(random, PAGE), run = 1;
        if (one_in(random, 8))
            at = one_in(random, 2) ? 0 : PAGE - 1;
        if (one_in(random, 4))
            run = 1 + below(random, one_in(random, 30) ? PAGE : 200);
        for (; run && at < PAGE; run--, at++)
            page[at] = (uint8_t)next_random(random);
    }
}

int main(int argc, char **argv)
{
    CHECK(argc == 4);
    struct random random = {fuzz_seed = strtoull(argv[1], NULL, 0)};
    uint64_t pages = strtoull(argv[2], NULL, 0), step = strtoull(argv[3], NULL, 0), encoded = 0;
    static uint8_t pool[POOL][PAGE], new[PAGE], back[PAGE], delta[PAGE + MK_XBZRLE_SLACK];
    for (size_t i = 1; i < POOL; i++) /* the first one is zero */
        random_bytes(&random, pool[i], PAGE);
    for (uint64_t i = 0; i < pages; i++) {
        const uint8_t *old = pool[below(&random, POOL)];
        memcpy(new, old, PAGE);
        if (!one_in(&random, 50))
            change(&random, new);
        int size = mk_xbzrle_encode(old, new, PAGE, delta, PAGE, i % 3);
        CHECK(size >= -1 && size <= PAGE);
        CHECK((size == 0) == (memcmp(old, new, PAGE) == 0));
        if (size < 0)
            continue;
        memcpy(back, old, PAGE);
        CHECK(mk_xbzrle_decode(delta, (size_t)size, back, PAGE) >= 0);
        CHECK(memcmp(back, new, PAGE) == 0);
        if (encoded++ % step == 0) {
            uint8_t length[2] = {(uint8_t)(size >> 8), (uint8_t)size};
            fwrite(old, 1, PAGE, stdout);
            fwrite(new, 1, PAGE, stdout);
            fwrite(length, 1, 2, stdout);
            fwrite(delta, 1, (size_t)size, stdout);
        }
    }
    CHECK(encoded > pages / 2);
    return fflush(stdout) ? 1 : 0;
}

/* Destination, second pass: a checked batch is written to RAM, read back, and its digests recorded. */
#include <errno.h>
#include <stdlib.h>
#include <sys/uio.h>
#include <unistd.h>

#include "batch.h"

enum { RUN_BYTES = 128 << 10, RUN_MAX = 128 };

struct writer {
    const struct mk_apply *q;
    struct batch *batch;
    const struct landing **order; /* by page, each page once */
    size_t order_count;
    uint8_t *back; /* what was read back: RUN_BYTES */
    uint64_t written;
    wide root_delta;
    struct mk_error *error;
};

static uint64_t offset_of(const struct writer *w, const struct landing *landing)
{
    return (landing->page - w->q->ram->blocks[landing->block].first_page) << w->q->ram->page_shift;
}

static enum mk_status
fail(struct writer *w, enum mk_status status, size_t block, uint64_t at, const char *what, int sys)
{
    *w->error = (struct mk_error){.status = status, .what = what, .block = block, .at = at, .sys = sys};
    return status;
}

static int by_page_then_order(const void *left, const void *right)
{
    const struct landing *a = *(const struct landing *const *)left,
                         *b = *(const struct landing *const *)right;
    if (a->page != b->page)
        return a->page > b->page ? 1 : -1;
    return (a > b) - (a < b);
}

/* The last landing that has a content for each page, and the last digest of each. */
static void sort_out(struct writer *w)
{
    struct batch *batch = w->batch;
    for (size_t i = 0; i < batch->count; i++)
        w->order[i] = &batch->landings[i];
    w->order_count = batch->count;
    if (batch->ascending)
        return;
    qsort(w->order, batch->count, sizeof *w->order, by_page_then_order);
    size_t kept = 0;
    for (size_t i = 0; i < batch->count; i++) {
        const struct landing *landing = w->order[i];
        if (kept && w->order[kept - 1]->page == landing->page) {
            if (landing->content) /* one without leaves RAM, and the digest, as the one before it */
                w->order[kept - 1] = landing;
            continue;
        }
        w->order[kept++] = landing;
    }
    w->order_count = kept;
}

static enum mk_status write_run(struct writer *w, const struct landing *const *run, size_t count)
{
    size_t block = run[0]->block;
    uint32_t page_size = w->q->ram->page_size;
    uint64_t offset = offset_of(w, run[0]);
    struct iovec parts[RUN_MAX];
    for (size_t i = 0; i < count; i++)
        parts[i] = (struct iovec){(void *)(uintptr_t)run[i]->content, page_size};
    return write_parts(w->q->ram, block, offset, parts, count, w->error);
}

static enum mk_status verify_run(struct writer *w, const struct landing *const *run, size_t count)
{
    size_t block = run[0]->block;
    uint32_t page_size = w->q->ram->page_size;
    uint64_t offset = offset_of(w, run[0]);
    size_t want = count * page_size, have = 0;
    while (have < want) {
        ssize_t got = pread(w->q->ram->blocks[block].fd, w->back + have, want - have, (off_t)(offset + have));
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return fail(w, MK_RAM, block, offset + have, "reading back failed", errno);
        if (got == 0)
            return fail(w, MK_VERIFY, block, offset + have, "less than what was written", 0);
        have += (size_t)got;
    }
    for (size_t i = 0; i < count; i++)
        if (!same(mk_page_digest(w->q->keys, w->back + i * page_size), run[i]->digest))
            return fail(
                w, MK_VERIFY, block, offset + i * page_size, "something else than what was written", 0);
    return MK_OK;
}

/* Nothing to write: no content came, or RAM is zero there already. */
static bool needs_no_write(const struct writer *w, const struct landing *landing)
{
    struct mk_u128 zero = w->q->keys->zero_digest;
    return !landing->content
        || (same(landing->digest, zero) && same(digest_at(w->q->digests, landing->page), zero));
}

static enum mk_status write_all(struct writer *w)
{
    size_t run_max = RUN_BYTES / w->q->ram->page_size;
    size_t checked_block = w->q->ram->block_count;
    if (run_max > RUN_MAX)
        run_max = RUN_MAX;
    for (size_t i = 0; i < w->order_count;) {
        const struct landing *first = w->order[i];
        if (needs_no_write(w, first)) {
            i++;
            continue;
        }
        size_t run = 1;
        while (run < run_max && i + run < w->order_count && w->order[i + run]->page == first->page + run
               && w->order[i + run]->block == first->block && !needs_no_write(w, w->order[i + run]))
            run++;
        enum mk_status status = MK_OK;
        if (checked_block != first->block)
            status = check_length(w->q->ram, first->block, w->error);
        checked_block = first->block;
        if (status == MK_OK)
            status = write_run(w, &w->order[i], run);
        if (status == MK_OK && w->q->readback)
            status = verify_run(w, &w->order[i], run);
        if (status != MK_OK)
            return status;
        w->written += run;
        i += run;
    }
    return MK_OK;
}

static void record_digests(struct writer *w)
{
    for (size_t i = 0; i < w->order_count; i++) {
        uint64_t page = w->order[i]->page;
        struct mk_u128 digest = w->order[i]->digest;
        struct place place = w->order[i]->place;
        w->root_delta +=
            widen(term_at(place, digest)) - widen(term_at(place, digest_at(w->q->digests, page)));
        set_digest(w->q->digests, page, digest);
    }
}

enum mk_status mk_apply(const struct mk_apply *q, struct mk_applied *r, struct mk_error *error)
{
    struct batch batch;
    struct writer w = {.q = q, .batch = &batch, .error = error};
    memset(r, 0, sizeof *r);
    enum mk_status status = batch_decode(q, &batch, error);
    if (status == MK_OK && batch.count) {
        w.order = malloc(batch.count * sizeof *w.order);
        w.back = q->readback ? malloc(RUN_BYTES) : NULL;
        if (!w.order || (q->readback && !w.back)) {
            status = MK_MEMORY;
            *error = (struct mk_error){.status = MK_MEMORY};
        } else {
            sort_out(&w);
            status = write_all(&w);
        }
        if (status == MK_OK)
            record_digests(&w);
        free(w.order);
        free(w.back);
    }
    r->records = batch.count;
    r->zero = batch.zero;
    r->normal = batch.normal;
    r->xbzrle = batch.xbzrle;
    r->written = w.written;
    r->root_delta = narrow(w.root_delta);
    batch_free(&batch);
    return status;
}

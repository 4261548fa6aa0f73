/* Destination, first pass: a body of RAM records (qemu-ram-stream.md 2.1, 3.1) is checked and decoded.
 * Hostile bytes. */
#include <stdlib.h>

#include "batch.h"

struct reader {
    const struct mk_apply *q;
    struct batch *batch;
    struct mk_cache *cache; /* NULL where XBZRLE is not possible */
    const uint8_t *at, *end;
    const uint8_t *record; /* start of the current one */
    size_t block;          /* the block named last, block_count before that */
    wide digest_sum;
    struct mk_error *error;
};

static enum mk_status refuse_at(struct reader *in, const char *rule, const uint8_t *at)
{
    *in->error = (struct mk_error){.status = MK_RECORD, .rule = rule, .at = (uint64_t)(at - in->q->body)};
    return MK_RECORD;
}

static enum mk_status refuse(struct reader *in, const char *rule)
{
    return refuse_at(in, rule, in->record);
}

static size_t left(const struct reader *in)
{
    return (size_t)(in->end - in->at);
}

static enum mk_status read_block_name(struct reader *in)
{
    const struct mk_ram *ram = in->q->ram;
    if (left(in) < 1 || left(in) < 1u + in->at[0])
        return refuse(in, "truncated");
    size_t length = in->at[0];
    const uint8_t *name = in->at + 1;
    in->at += 1 + length;
    for (size_t i = 0; i < ram->block_count; i++) {
        if (ram->blocks[i].name_length == length && memcmp(ram->blocks[i].name, name, length) == 0) {
            in->block = i;
            return MK_OK;
        }
    }
    return refuse(in, "unknown-block");
}

/* Digest of the page as the records before this one leave it. */
static struct mk_u128 digest_so_far(const struct reader *in, uint64_t page)
{
    const struct batch *batch = in->batch;
    if (!batch->ascending || (batch->count && batch->landings[batch->count - 1].page >= page))
        for (size_t i = batch->count; i-- > 0;)
            if (batch->landings[i].page == page)
                return batch->landings[i].digest;
    return digest_at(in->q->digests, page);
}

/* Returns the term of the page with that digest. */
static struct mk_u128
land(struct reader *in, uint64_t page, const uint8_t *content, struct mk_u128 digest)
{
    struct batch *batch = in->batch;
    struct place place = place_of(in->q->keys, page);
    struct mk_u128 term = term_at(place, digest);
    if (batch->count && batch->landings[batch->count - 1].page >= page)
        batch->ascending = false;
    batch->landings[batch->count++] = (struct landing){
        .page = page, .content = content, .digest = digest, .place = place, .block = in->block};
    in->digest_sum += widen(term);
    return term;
}

static void put(struct reader *in, uint64_t page, const uint8_t *content, struct mk_u128 term, bool zero)
{
    if (!in->cache)
        return;
    int64_t slot = mk_cache_find(in->cache, page);
    mk_cache_put(in->cache, slot, page, content, term, in->q->round, in->q->stage, zero);
}

static enum mk_status read_zero(struct reader *in, uint64_t page)
{
    if (left(in) < 1)
        return refuse(in, "truncated");
    if (*in->at++ != 0)
        return refuse(in, "zero-fill");
    put(in, page, zero_page, land(in, page, zero_page, in->q->keys->zero_digest), true);
    in->batch->zero++;
    return MK_OK;
}

static enum mk_status read_page(struct reader *in, uint64_t page)
{
    const uint8_t *content = in->at;
    if (left(in) < in->q->keys->page_size)
        return refuse(in, "truncated");
    in->at += in->q->keys->page_size;
    put(in, page, content, land(in, page, content, mk_page_digest(in->q->keys, content)), false);
    in->batch->normal++;
    return MK_OK;
}

/* A page of private memory, or NULL. */
static uint8_t *arena_page(struct reader *in)
{
    struct batch *batch = in->batch;
    uint32_t page_size = in->q->keys->page_size;
    if (!batch->arena)
        batch->arena = malloc((size_t)mk_max_records(page_size) * page_size);
    return batch->arena ? batch->arena + batch->arena_used++ * page_size : NULL;
}

/* May a delta be decoded in the cache, and RAM be written from there? Only if the slot takes the new content,
 * and no other page can get the slot before the batch ends: under both rules an entry of this round is safe,
 * unless its age is 0, which the default rule gives away. */
static bool stays_until_written(const struct reader *in)
{
    return in->q->round > 0 && (!in->cache->qemu_rule || in->q->stage == MK_ROUND);
}

static enum mk_status read_delta(struct reader *in, uint64_t page)
{
    const struct mk_apply *q = in->q;
    uint32_t page_size = q->keys->page_size;
    if (left(in) < XBZRLE_HEADER)
        return refuse(in, "truncated");
    unsigned encoding = in->at[0];
    size_t length = (size_t)in->at[1] << 8 | in->at[2];
    const uint8_t *delta = in->at + XBZRLE_HEADER;
    in->at = delta;
    if (encoding != XBZRLE_ENCODING)
        return refuse(in, "xbzrle-encoding");
    if (length > page_size)
        return refuse(in, "xbzrle-length");
    if (left(in) < length)
        return refuse(in, "truncated");
    in->at += length;
    if (!in->cache || (in->cache->qemu_rule && q->stage == MK_BULK))
        return refuse(in, "xbzrle-disabled");
    if (length == 0 && !in->cache->qemu_rule)
        return refuse(in, "xbzrle-length");
    int64_t slot = mk_cache_find(in->cache, page);
    if (slot == MK_NO_SLOT)
        return refuse(in, "xbzrle-not-held");
    if (length == 0) {
        struct mk_u128 digest = digest_so_far(in, page);
        mk_cache_touch(in->cache, slot, q->round);
        land(in, page, NULL, digest);
        return MK_OK;
    }
    uint8_t *content = mk_cache_data(in->cache, slot);
    if (!stays_until_written(in)) {
        uint8_t *copy = arena_page(in);
        if (!copy) {
            *in->error = (struct mk_error){.status = MK_MEMORY};
            return MK_MEMORY;
        }
        content = memcpy(copy, content, page_size);
    }
    if (mk_xbzrle_decode(delta, length, content, page_size) < 0)
        return refuse(in, "xbzrle-delta");
    struct mk_u128 term = land(in, page, content, mk_page_digest(q->keys, content));
    mk_cache_put(in->cache, slot, page, content, term, q->round, q->stage, false);
    in->batch->xbzrle++;
    return MK_OK;
}

static enum mk_status read_record(struct reader *in)
{
    const struct mk_apply *q = in->q;
    const struct mk_ram *ram = q->ram;
    in->record = in->at;
    if (in->batch->count == mk_max_records(ram->page_size))
        return refuse(in, "too-many-records");
    if (left(in) < RECORD_HEADER)
        return refuse(in, "truncated");
    uint64_t word = load_be64(in->at);
    in->at += RECORD_HEADER;
    unsigned flags = (unsigned)(word & (ram->page_size - 1)), type = flags & ~(unsigned)RECORD_CONTINUE;
    if (type == RECORD_HOOK)
        return refuse(in, "hook");
    if (type != RECORD_ZERO && type != RECORD_PAGE && type != RECORD_XBZRLE)
        return refuse(in, "unknown-flags");
    if (!(flags & RECORD_CONTINUE)) {
        enum mk_status status = read_block_name(in);
        if (status != MK_OK)
            return status;
    } else if (in->block == ram->block_count) {
        return refuse(in, "no-block");
    }
    uint64_t in_block = word >> ram->page_shift;
    if (in_block >= ram->blocks[in->block].pages)
        return refuse(in, "bad-offset");
    uint64_t page = ram->blocks[in->block].first_page + in_block;
    if (page / ram->stripe_pages % q->lanes != q->lane)
        return refuse(in, "wrong-lane");
    if (type == RECORD_ZERO)
        return read_zero(in, page);
    if (type == RECORD_PAGE)
        return read_page(in, page);
    return read_delta(in, page);
}

enum mk_status batch_decode(const struct mk_apply *q, struct batch *batch, struct mk_error *error)
{
    struct reader in = {
        .q = q,
        .batch = batch,
        .cache = q->keys->page_size <= MK_XBZRLE_PAGE_MAX ? q->cache : NULL,
        .at = q->body,
        .end = q->body + q->length,
        .block = q->ram->block_count,
        .error = error,
    };
    *batch = (struct batch){.ascending = true};
    batch->landings = malloc(mk_max_records(q->keys->page_size) * sizeof *batch->landings);
    if (!batch->landings) {
        *error = (struct mk_error){.status = MK_MEMORY};
        return MK_MEMORY;
    }
    while (in.at < in.end) {
        enum mk_status status = read_record(&in);
        if (status != MK_OK)
            return status;
    }
    if (batch->count != q->records)
        return refuse_at(&in, "record-count", in.end);
    if (!same(narrow(in.digest_sum), q->digest_sum))
        return refuse_at(&in, "digest", in.end);
    return MK_OK;
}

void batch_free(struct batch *batch)
{
    free(batch->landings);
    free(batch->arena);
    batch->landings = NULL;
    batch->arena = NULL;
}

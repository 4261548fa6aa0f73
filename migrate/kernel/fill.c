/* Source: dirty pages become RAM records. */
#include <stdlib.h>

#include "internal.h"

enum { GROUP_BYTES = 64 << 10, GROUP_MAX = 64, DELTA_GAP = 1, DELTA_SAVING = 4, LOOKED_AT_FACTOR = 16 };

struct filler {
    const struct mk_fill *q;
    struct mk_filled *r;
    uint32_t page_size;
    uint64_t max_records;
    struct mk_cache *cache; /* NULL where XBZRLE is not possible */
    bool lookups;           /* the stage and the rule let the cache be read */
    bool writes;            /* … and a held page be replaced */
    size_t named_block;     /* block that CONTINUE means */
    size_t checksummed;     /* bytes of out that are in the CRC */
    wide digest_sum, root_delta;
    uint8_t *spare; /* one page, where `out` has no room to read into */
    uint8_t *delta; /* page_size + MK_XBZRLE_SLACK */
};

static size_t header_bytes(const struct filler *f, size_t block)
{
    return block == f->named_block ? RECORD_HEADER
                                   : RECORD_HEADER + 1u + f->q->ram->blocks[block].name_length;
}

static bool fits(const struct filler *f, size_t block, size_t payload)
{
    return f->r->records < f->max_records && f->r->length + header_bytes(f, block) + payload <= f->q->limit;
}

/* Write the header of a record that fits; returns where its payload goes. */
static uint8_t *begin_record(struct filler *f, size_t block, uint64_t page, unsigned type)
{
    const struct mk_block *of = &f->q->ram->blocks[block];
    uint8_t *at = f->q->out + f->r->length;
    uint64_t word = (page - of->first_page) << f->q->ram->page_shift | type;
    f->r->length += header_bytes(f, block);
    if (block == f->named_block) {
        store_be64(at, word | RECORD_CONTINUE);
        at += RECORD_HEADER;
    } else {
        store_be64(at, word);
        at += RECORD_HEADER;
        *at++ = of->name_length;
        memcpy(at, of->name, of->name_length);
        at += of->name_length;
        f->named_block = block;
    }
    store_le64(f->q->sent + 8 * f->r->records++, page);
    return at;
}

static void
put(struct filler *f, int64_t slot, uint64_t page, const uint8_t *content, struct mk_u128 term, bool zero)
{
    if (f->cache)
        mk_cache_put(f->cache, slot, page, content, term, f->q->round, f->q->stage, zero);
}

/* The page is in the batch: its place in the sums. */
static void account(struct filler *f, struct mk_u128 term, struct mk_u128 term_before)
{
    f->digest_sum += widen(term);
    f->root_delta += widen(term) - widen(term_before);
}

static bool add_zero(struct filler *f, size_t block, uint64_t page, struct mk_u128 term)
{
    if (!fits(f, block, 1))
        return false;
    *begin_record(f, block, page, RECORD_ZERO) = 0;
    f->r->length++;
    f->r->zero++;
    int64_t slot = f->cache ? mk_cache_find(f->cache, page) : MK_NO_SLOT;
    put(f, slot, page, zero_page, term, true);
    return true;
}

static void add_delta(struct filler *f, size_t block, uint64_t page, const uint8_t *delta, size_t length)
{
    size_t record = header_bytes(f, block) + XBZRLE_HEADER + length;
    uint8_t *at = begin_record(f, block, page, RECORD_XBZRLE);
    at[0] = XBZRLE_ENCODING;
    at[1] = (uint8_t)(length >> 8);
    at[2] = (uint8_t)length;
    f->r->length += XBZRLE_HEADER + length;
    if (length == 0)
        return;
    memcpy(at + XBZRLE_HEADER, delta, length);
    f->r->xbzrle++;
    f->r->xbzrle_bytes += record - RECORD_HEADER;
}

static void add_page(struct filler *f, size_t block, uint64_t page, const uint8_t *content)
{
    uint8_t *at = begin_record(f, block, page, RECORD_PAGE);
    if (at != content)
        memmove(at, content, f->page_size); /* further down in the same buffer, perhaps overlapping */
    f->r->length += f->page_size;
    f->r->normal++;
}

static bool
add_changed(struct filler *f, size_t block, uint64_t page, const uint8_t *content, struct mk_u128 term)
{
    int64_t slot = f->cache ? mk_cache_find(f->cache, page) : MK_NO_SLOT;
    if (slot == MK_NO_SLOT || !f->lookups) {
        if (!fits(f, block, f->page_size))
            return false;
        put(f, slot, page, content, term, false);
        add_page(f, block, page, content);
        f->r->cache_miss += f->cache && f->q->stage != MK_BULK;
        return true;
    }
    int length = mk_xbzrle_encode(
        mk_cache_data(f->cache, slot), content, f->page_size, f->delta, f->page_size - DELTA_SAVING,
        DELTA_GAP);
    if (length == 0) {
        /* Equal to the cache's copy, but not known to be in RAM there: a change that changes nothing. */
        f->delta[0] = 0;
        f->delta[1] = 1;
        f->delta[2] = content[0];
        length = 3;
    }
    if (!fits(f, block, length < 0 ? f->page_size : XBZRLE_HEADER + (size_t)length))
        return false;
    f->r->cache_hit++;
    if (length < 0) {
        put(f, slot, page, content, term, false);
        add_page(f, block, page, content);
        f->r->overflow++;
        f->r->xbzrle_bytes += f->page_size;
        return true;
    }
    if (f->writes) { /* as the peer does it: touches only the memory that changes */
        uint8_t *held = mk_cache_data(f->cache, slot);
        mk_xbzrle_decode(f->delta, (size_t)length, held, f->page_size);
        put(f, slot, page, held, term, false);
    }
    add_delta(f, block, page, f->delta, (size_t)length);
    return true;
}

/* What an unchanged page needs. Returns 1: nothing more to do; 0: to be sent like any other; -1: its record
 * does not fit. QEMU sends every page of the bulk round, since its peer's RAM is zero then; a peer that began
 * with an old copy holds others already. */
static int add_unchanged(struct filler *f, size_t block, uint64_t page, bool zero)
{
    if (f->cache && f->cache->qemu_rule && (f->lookups || zero)) {
        int64_t slot = f->lookups ? mk_cache_find(f->cache, page) : MK_NO_SLOT;
        if (slot == MK_NO_SLOT)
            return 0;
        if (!fits(f, block, XBZRLE_HEADER))
            return -1;
        add_delta(f, block, page, NULL, 0);
        mk_cache_touch(f->cache, slot, f->q->round);
        struct mk_u128 term = mk_term(f->q->keys, page, digest_at(f->q->digests, page));
        account(f, term, term);
        f->r->cache_hit++;
    }
    f->r->unchanged++;
    return 1;
}

/* Deal with one page that was read. Returns false, with nothing done, if its record does not fit. */
static bool take(struct filler *f, size_t block, uint64_t page, const uint8_t *content)
{
    const struct mk_fill *q = f->q;
    bool zero = variants.is_zero(content, f->page_size);
    struct mk_u128 digest = zero ? q->keys->zero_digest : mk_page_digest(q->keys, content);
    struct mk_u128 before = digest_at(q->digests, page);
    int done = 0;
    if (same(digest, before) && !bit_is_set(q->owed, page)) {
        done = add_unchanged(f, block, page, zero);
        if (done < 0)
            return false;
    }
    if (!done) {
        struct place place = place_of(q->keys, page);
        struct mk_u128 term = term_at(place, digest);
        if (!(zero ? add_zero(f, block, page, term) : add_changed(f, block, page, content, term)))
            return false;
        account(f, term, term_at(place, before));
        set_digest(q->digests, page, digest);
    }
    clear_bit(q->pending, page);
    clear_bit(q->owed, page);
    return true;
}

static void checksum(struct filler *f)
{
    f->r->crc = mk_crc32c(f->q->out + f->checksummed, f->r->length - f->checksummed, f->r->crc);
    f->checksummed = f->r->length;
}

/* How many set bits follow each other from `page` on, at most `most`. */
static size_t run_length(const struct mk_fill *q, uint64_t page, uint64_t end, size_t most)
{
    size_t run = 1;
    while (run < most && page + run < end
           && (bit_is_set(q->pending, page + run) || bit_is_set(q->owed, page + run)))
        run++;
    return run;
}

/* Where to read pages to: into `out`, each at the place it has if all before it go out whole, so that most
 * are not moved again; into the spare page where there is no room for a whole one. */
static size_t place_pages(const struct filler *f, size_t block, size_t most, uint8_t **into)
{
    size_t stride = RECORD_HEADER + f->page_size;
    size_t at = f->r->length + header_bytes(f, block);
    size_t count = 0;
    for (; count < most && at + f->page_size <= f->q->limit; at += stride)
        into[count++] = f->q->out + at;
    if (count == 0)
        into[count++] = f->spare;
    return count;
}

enum walk { WALK_ON, WALK_FULL, WALK_FAILED };

static enum walk
fill_block(struct filler *f, size_t block, uint64_t *page, uint64_t *looks_left, struct mk_error *error)
{
    const struct mk_fill *q = f->q;
    const struct mk_block *of = &q->ram->blocks[block];
    uint64_t end = of->first_page + of->pages;
    size_t group = GROUP_BYTES / f->page_size ? GROUP_BYTES / f->page_size : 1;
    if (group > GROUP_MAX)
        group = GROUP_MAX;
    for (;;) {
        *page = mk_bitmap_next(q->pending, q->owed, *page, end);
        if (*page == end)
            return WALK_ON;
        size_t most = group < *looks_left ? group : *looks_left;
        if (most == 0)
            return WALK_FULL;
        uint8_t *into[GROUP_MAX];
        size_t count = place_pages(f, block, run_length(q, *page, end, most), into);
        count = read_pages(q->ram, block, *page, into, count, error);
        if (count == 0)
            return WALK_FAILED;
        for (size_t i = 0; i < count; i++, ++*page)
            if (!take(f, block, *page, into[i]))
                return WALK_FULL;
        *looks_left -= count;
        checksum(f);
    }
}

enum mk_status mk_fill(const struct mk_fill *q, struct mk_filled *r, struct mk_error *error)
{
    const struct mk_ram *ram = q->ram;
    struct filler f = {.q = q, .r = r, .page_size = ram->page_size, .named_block = ram->block_count};
    memset(r, 0, sizeof *r);
    f.max_records = mk_max_records(ram->page_size);
    f.cache = ram->page_size <= MK_XBZRLE_PAGE_MAX ? q->cache : NULL;
    f.lookups = f.cache && !(f.cache->qemu_rule && q->stage == MK_BULK);
    f.writes = f.cache && !(f.cache->qemu_rule && q->stage != MK_ROUND);
    f.spare = malloc(2 * (size_t)ram->page_size + MK_XBZRLE_SLACK);
    if (!f.spare) {
        *error = (struct mk_error){.status = MK_MEMORY};
        return MK_MEMORY;
    }
    f.delta = f.spare + ram->page_size;
    uint64_t page = q->start, looks_left = LOOKED_AT_FACTOR * f.max_records;
    enum walk walk = WALK_ON;
    for (size_t block = 0; block < ram->block_count && walk == WALK_ON; block++) {
        if (page < ram->blocks[block].first_page)
            page = ram->blocks[block].first_page;
        if (page < ram->blocks[block].first_page + ram->blocks[block].pages)
            walk = fill_block(&f, block, &page, &looks_left, error);
    }
    free(f.spare);
    if (walk == WALK_FAILED)
        return error->status;
    checksum(&f);
    r->finished = walk == WALK_ON;
    r->next_page = r->finished ? ram->total_pages : page;
    r->digest_sum = narrow(f.digest_sum);
    r->root_delta = narrow(f.root_delta);
    return MK_OK;
}

/* fill and apply: honest batches must arrive, changed ones must do exactly what the oracle says or be refused
 * with its rule, and nothing outside the blocks may change: each destination file goes on behind its block.
 */
#define _GNU_SOURCE
#include <sys/mman.h>
#include <unistd.h>

#include "common.h"
#include "oracle.h"

enum { BLOCKS_MAX = 3, STRIPE = 64, GUARD_BYTES = 5000, GUARD = 0xa5, INVENTED = 12 };

/* One end of the migration. */
struct side {
    struct mk_ram ram;
    struct mk_cache cache;
    uint8_t *digests;
    uint8_t *image; /* what RAM must hold: total_pages pages */
};

struct world {
    struct random *random;
    struct mk_keys keys;
    uint32_t page_size;
    struct side source, target;
    bool with_cache;
    uint64_t lanes;
    uint8_t *pending, *owed, *sent, *out;
    size_t bitmap_bytes, room;
    uint32_t round;
    enum mk_stage stage;
};

static uint64_t byte_length(const struct mk_ram *ram, const struct mk_block *block)
{
    return block->pages * ram->page_size;
}

static int make_file(uint64_t length, bool guarded)
{
    uint8_t guard[GUARD_BYTES];
    int fd = memfd_create("fuzz", MFD_CLOEXEC);
    CHECK(fd >= 0 && ftruncate(fd, (off_t)length) == 0);
    memset(guard, GUARD, sizeof guard);
    if (guarded)
        CHECK(pwrite(fd, guard, sizeof guard, (off_t)length) == GUARD_BYTES);
    return fd;
}

static void
make_side(struct world *w, struct side *side, const struct mk_block *plan, size_t blocks, bool guarded)
{
    struct mk_block own[BLOCKS_MAX];
    bool no_memory;
    for (size_t i = 0; i < blocks; i++) {
        own[i] = plan[i];
        own[i].fd = make_file(plan[i].pages * w->page_size, guarded);
    }
    CHECK(mk_ram_init(&side->ram, w->page_size, STRIPE, own, blocks, &no_memory) == NULL);
    side->digests = exactly(side->ram.total_pages * MK_DIGEST_BYTES);
    side->image = exactly(side->ram.total_pages * w->page_size);
    memset(side->image, 0, side->ram.total_pages * w->page_size);
    mk_set_digests(side->digests, 0, side->ram.total_pages, w->keys.zero_digest);
}

static void free_side(struct side *side)
{
    for (size_t i = 0; i < side->ram.block_count; i++)
        close(side->ram.blocks[i].fd);
    mk_ram_free(&side->ram);
    mk_cache_free(&side->cache);
    free(side->digests);
    free(side->image);
}

static void make_world(struct world *w, struct random *random)
{
    static const char *const names[BLOCKS_MAX] = {"pc.ram", "vga.vram", "b"};
    struct mk_block plan[BLOCKS_MAX] = {0};
    size_t blocks = 1 + below(random, BLOCKS_MAX);
    uint64_t page = STRIPE * below(random, 2);
    memset(w, 0, sizeof *w);
    w->random = random;
    w->page_size = one_in(random, 20) ? 1024u << below(random, 7) : one_in(random, 4) ? 4096 : 1024;
    for (size_t i = 0; i < blocks; i++) {
        plan[i].first_page = page;
        plan[i].pages = 1 + below(random, one_in(random, 8) ? 90 : 20);
        plan[i].name_length = (uint8_t)strlen(names[i]);
        memcpy(plan[i].name, names[i], plan[i].name_length);
        page += (plan[i].pages + STRIPE - 1) / STRIPE * STRIPE + STRIPE * one_in(random, 8);
    }
    uint8_t *page_key = exactly(w->page_size), root_key[16];
    random_bytes(random, page_key, w->page_size);
    random_bytes(random, root_key, sizeof root_key);
    CHECK(mk_keys_init(&w->keys, w->page_size, page_key, root_key) == 0);
    free(page_key);
    make_side(w, &w->source, plan, blocks, false);
    make_side(w, &w->target, plan, blocks, true);
    w->with_cache = !one_in(random, 6);
    bool qemu_rule = one_in(random, 2);
    uint64_t budget = below(random, 60) * (w->page_size + 32);
    CHECK(mk_cache_init(&w->source.cache, &w->keys, budget, qemu_rule) == 0);
    CHECK(mk_cache_init(&w->target.cache, &w->keys, budget, qemu_rule) == 0);
    w->lanes = 1 + below(random, 2);
    w->bitmap_bytes = (w->source.ram.total_pages + 63) / 64 * 8;
    w->pending = exactly(w->bitmap_bytes);
    w->owed = exactly(w->bitmap_bytes);
    memset(w->pending, 0, w->bitmap_bytes);
    memset(w->owed, 0, w->bitmap_bytes);
    w->sent = exactly(8 * mk_max_records(w->page_size));
    w->room = 9 + 8 + w->page_size + below(random, 12 * w->page_size);
    w->out = exactly(w->room);
}

static void free_world(struct world *w)
{
    free_side(&w->source);
    free_side(&w->target);
    mk_keys_free(&w->keys);
    free(w->pending);
    free(w->owed);
    free(w->sent);
    free(w->out);
}

/* Compare a side's files with its image, and their ends with the guard. */
static void check_files(const struct world *w, const struct side *side, bool guarded)
{
    for (size_t i = 0; i < side->ram.block_count; i++) {
        const struct mk_block *block = &side->ram.blocks[i];
        uint64_t length = byte_length(&side->ram, block), all = length + (guarded ? GUARD_BYTES : 0);
        uint8_t *content = exactly(all);
        CHECK(pread(block->fd, content, all, 0) == (ssize_t)all);
        CHECK(lseek(block->fd, 0, SEEK_END) == (off_t)all);
        CHECK(memcmp(content, side->image + block->first_page * w->page_size, length) == 0);
        for (uint64_t at = length; at < all; at++)
            CHECK(content[at] == GUARD);
        free(content);
    }
}

static void write_image(const struct world *w, const struct side *side)
{
    for (size_t i = 0; i < side->ram.block_count; i++) {
        const struct mk_block *block = &side->ram.blocks[i];
        uint64_t length = byte_length(&side->ram, block);
        CHECK(
            pwrite(block->fd, side->image + block->first_page * w->page_size, length, 0) == (ssize_t)length);
    }
}

static void copy_cache(struct mk_cache *to, const struct mk_cache *from)
{
    if (from->slots) {
        memcpy(to->entries, from->entries, from->slots * sizeof *from->entries);
        memcpy(to->data, from->data, from->slots * from->keys->page_size);
    }
    struct mk_cache own = *to;
    *to = *from;
    to->entries = own.entries;
    to->data = own.data;
}

/* The guest writes, and somebody says where (and where not). */
static void dirty_pages(struct world *w, uint64_t lane)
{
    struct random *random = w->random;
    const struct mk_ram *ram = &w->source.ram;
    uint8_t *dirty = exactly(w->bitmap_bytes);
    memset(dirty, 0, w->bitmap_bytes);
    for (size_t i = 0; i < ram->block_count; i++) {
        for (uint64_t page = ram->blocks[i].first_page;
             page < ram->blocks[i].first_page + ram->blocks[i].pages; page++) {
            uint8_t *content = w->source.image + page * w->page_size;
            bool mine = page / STRIPE % w->lanes == lane;
            if (one_in(random, 12))
                mk_bitmap_set_range(w->owed, page, mine);
            if (one_in(random, 2))
                continue;
            if (one_in(random, 8))
                memset(content, 0, w->page_size);
            else if (one_in(random, 6))
                random_bytes(random, content, w->page_size);
            else if (!one_in(random, 6))
                mutate(random, content, w->page_size, 1 + (unsigned)below(random, 30));
            if (mine)
                mk_bitmap_set_range(dirty, page, 1);
        }
    }
    write_image(w, &w->source);
    mk_bitmap_or(w->pending, dirty, w->bitmap_bytes);
    free(dirty);
}

static struct mk_apply request_for(const struct world *w, const uint8_t *body, size_t length, uint64_t lane)
{
    return (struct mk_apply){
        .ram = &w->target.ram,
        .keys = &w->keys,
        .digests = w->target.digests,
        .cache = w->with_cache ? (struct mk_cache *)&w->target.cache : NULL,
        .body = body,
        .length = length,
        .lane = lane,
        .lanes = w->lanes,
        .round = w->round,
        .stage = w->stage,
        .readback = next_random(w->random) & 1,
    };
}

/* Well-formed headers in an order that no source makes; few pages, so that they meet each other and the
 * cache. */
static size_t invent_records(struct random *random, const struct world *w, uint8_t *to)
{
    static const unsigned types[] = {0x02, 0x22, 0x08, 0x28, 0x40, 0x60, 0x60, 0x60, 0x10, 0xa0};
    static const uint8_t deltas[][8] = {{1, 0, 0}, {1, 0, 3, 0, 1, 9}, {1, 0, 4, 1, 2, 7, 8}, {1, 0, 1, 0}};
    size_t at = 0;
    for (unsigned i = 0; i < INVENTED; i++) {
        uint64_t word = below(random, 6) * w->page_size | types[below(random, one_in(random, 9) ? 10 : 8)];
        for (int byte = 7; byte >= 0; byte--)
            to[at++] = (uint8_t)(word >> (8 * byte));
        if (!(word & 0x20)) {
            const struct mk_block *block = &w->target.ram.blocks[below(random, w->target.ram.block_count)];
            to[at++] = block->name_length;
            memcpy(to + at, block->name, block->name_length);
            at += block->name_length;
        }
        if (word & 2) {
            to[at++] = 0;
        } else if (word & 8) {
            memset(to + at, (int)below(random, 3), w->page_size);
            at += w->page_size;
        } else if (word & 0x40) {
            const uint8_t *delta = deltas[below(random, one_in(random, 9) ? 4 : 3)];
            memcpy(to + at, delta, 3u + delta[2]);
            at += 3u + delta[2];
        }
    }
    return at;
}

/* Records that hostile peers, and honest ones in another order, could send. */
static uint8_t *attack(struct random *random, const struct world *w, const uint8_t *body, size_t *length)
{
    uint8_t *changed = exactly(2 * *length + INVENTED * (w->page_size + 300));
    memcpy(changed, body, *length);
    switch (below(random, 6)) {
    case 0: /* cut, often just before the end of a record */
        *length = one_in(random, 2) ? below(random, *length + 1)
                                    : *length - below(random, *length < 3 ? *length : 3);
        break;
    case 1: /* twice: every page occurs again, deltas against what the first pass left */
        memcpy(changed + *length, body, *length);
        *length *= 2;
        break;
    case 2: /* the headers of the first records */
        mutate(random, changed, *length < 40 ? *length : 40, 1);
        break;
    case 3: /* one bit */
        if (*length)
            changed[below(random, *length)] ^= (uint8_t)(1u << below(random, 8));
        break;
    case 4:
        *length = invent_records(random, w, changed);
        break;
    default:
        mutate(random, changed, *length, 1 + (unsigned)below(random, 3));
    }
    uint8_t *tight = copy_of(changed, *length);
    free(changed);
    return tight;
}

/* Apply a body as the oracle expects it; leaves the target as it was. */
static void apply_changed(struct world *w, const uint8_t *honest, size_t honest_length, uint64_t lane)
{
    struct side *target = &w->target;
    size_t length = honest_length, image_bytes = target->ram.total_pages * w->page_size;
    uint8_t *body = attack(w->random, w, honest, &length);
    struct mk_apply q = request_for(w, body, length, lane);
    uint8_t *image_before = copy_of(target->image, image_bytes);
    uint8_t *digests_before = copy_of(target->digests, target->ram.total_pages * MK_DIGEST_BYTES);
    uint8_t *digests_after = copy_of(target->digests, target->ram.total_pages * MK_DIGEST_BYTES);
    struct mk_cache model, before;
    uint64_t budget = target->cache.slots * (w->page_size + 32);
    CHECK(
        mk_cache_init(&model, &w->keys, budget, target->cache.qemu_rule) == 0
        && model.slots == target->cache.slots);
    CHECK(mk_cache_init(&before, &w->keys, budget, target->cache.qemu_rule) == 0);
    copy_cache(&model, &target->cache);
    copy_cache(&before, &target->cache);
    struct verdict verdict = oracle_apply(&q, target->image, digests_after, q.cache ? &model : NULL);
    q.records = verdict.records;
    q.digest_sum = verdict.digest_sum;
    if (!verdict.rule && one_in(w->random, 4)) {
        verdict.rule = "digest";
        q.digest_sum.lo ^= 1u << below(w->random, 32);
    } else if (!verdict.rule && one_in(w->random, 4)) {
        verdict.rule = "record-count";
        q.records++;
    }
    struct mk_applied applied;
    struct mk_error error = {0};
    enum mk_status status = mk_apply(&q, &applied, &error);
    size_t digest_bytes = target->ram.total_pages * MK_DIGEST_BYTES;
    if (verdict.rule) {
        CHECK(status == MK_RECORD);
        CHECK(strcmp(error.rule, verdict.rule) == 0);
        CHECK(error.at == verdict.at);
        memcpy(target->image, image_before, image_bytes);
        CHECK(memcmp(target->digests, digests_before, digest_bytes) == 0);
        check_files(w, target, true);
    } else {
        CHECK(status == MK_OK);
        CHECK(applied.records == verdict.records && applied.zero == verdict.zero);
        CHECK(applied.normal == verdict.normal && applied.xbzrle == verdict.xbzrle);
        CHECK(memcmp(target->digests, digests_after, digest_bytes) == 0);
        CHECK(target->cache.digest.lo == model.digest.lo && target->cache.digest.hi == model.digest.hi);
        check_files(w, target, true);
        struct mk_u128 was = mk_root(&w->keys, digests_before, 0, target->ram.total_pages);
        struct mk_u128 is = mk_root(&w->keys, digests_after, 0, target->ram.total_pages);
        struct mk_u128 moved = oracle_add(was, applied.root_delta);
        CHECK(moved.lo == is.lo && moved.hi == is.hi);
        memcpy(target->image, image_before, image_bytes);
        write_image(w, target);
    }
    memcpy(target->digests, digests_before, digest_bytes);
    copy_cache(&target->cache, &before);
    mk_cache_free(&model);
    mk_cache_free(&before);
    free(image_before);
    free(digests_before);
    free(digests_after);
    free(body);
}

static void apply_honest(struct world *w, const struct mk_filled *filled, const uint8_t *body, uint64_t lane)
{
    struct side *target = &w->target;
    struct mk_apply q = request_for(w, body, filled->length, lane);
    struct mk_applied applied;
    struct mk_error error = {0};
    q.records = filled->records;
    q.digest_sum = filled->digest_sum;
    CHECK(mk_apply(&q, &applied, &error) == MK_OK);
    CHECK(
        applied.zero == filled->zero && applied.normal == filled->normal && applied.xbzrle == filled->xbzrle);
    CHECK(applied.root_delta.lo == filled->root_delta.lo && applied.root_delta.hi == filled->root_delta.hi);
    for (uint64_t i = 0; i < filled->records; i++) {
        uint64_t page;
        memcpy(&page, w->sent + 8 * i, 8);
        memcpy(target->image + page * w->page_size, w->source.image + page * w->page_size, w->page_size);
    }
    CHECK(
        w->source.cache.digest.lo == target->cache.digest.lo
        && w->source.cache.digest.hi == target->cache.digest.hi);
}

static void run_round(struct world *w, uint64_t lane)
{
    uint64_t start = 0;
    struct mk_filled filled;
    struct mk_error error = {0};
    dirty_pages(w, lane);
    do {
        struct mk_fill q = {
            .ram = &w->source.ram,
            .keys = &w->keys,
            .digests = w->source.digests,
            .cache = w->with_cache ? &w->source.cache : NULL,
            .pending = w->pending,
            .owed = w->owed,
            .start = start,
            .out = w->out,
            .limit = w->room,
            .sent = w->sent,
            .round = w->round,
            .stage = w->stage,
        };
        CHECK(mk_fill(&q, &filled, &error) == MK_OK);
        CHECK(filled.length <= w->room && filled.next_page >= start);
        CHECK(filled.crc == oracle_crc32c(w->out, filled.length, 0));
        uint8_t *body = copy_of(w->out, filled.length);
        for (unsigned i = one_in(w->random, 3) ? 6 : 0; i > 0; i--)
            apply_changed(w, body, filled.length, lane);
        apply_honest(w, &filled, body, lane);
        free(body);
        start = filled.next_page;
    } while (!filled.finished);
    check_files(w, &w->target, true);
    CHECK(
        mk_bitmap_count(w->pending, w->bitmap_bytes) == 0 && mk_bitmap_count(w->owed, w->bitmap_bytes) == 0);
}

/* Files that end early: an error, never a longer file. */
static void truncate_and_try(struct world *w)
{
    const struct mk_block *from = &w->source.ram.blocks[0], *to = &w->target.ram.blocks[0];
    struct mk_error error = {0};
    uint64_t differing, short_bytes = below(w->random, byte_length(&w->source.ram, from));
    CHECK(ftruncate(from->fd, (off_t)short_bytes) == 0);
    enum mk_status status = mk_scan(
        &w->source.ram, &w->keys, w->source.digests, from->first_page, from->pages, w->pending, &differing,
        &error);
    CHECK(status == MK_RAM && error.sys == 0 && error.at == short_bytes);
    short_bytes = below(w->random, byte_length(&w->target.ram, to));
    CHECK(ftruncate(to->fd, (off_t)short_bytes) == 0);
    uint8_t *body = exactly(8 + 1 + to->name_length + w->page_size);
    memset(body, 0, 8);
    body[7] = 8;
    body[8] = to->name_length;
    memcpy(body + 9, to->name, to->name_length);
    memset(body + 9 + to->name_length, 7, w->page_size);
    uint64_t lane = to->first_page / STRIPE % w->lanes;
    struct mk_apply q = request_for(w, body, 9u + to->name_length + w->page_size, lane);
    struct mk_u128 digest = mk_page_digest(&w->keys, body + 9 + to->name_length);
    struct mk_applied applied;
    q.records = 1;
    q.digest_sum = mk_term(&w->keys, to->first_page, digest);
    CHECK(mk_apply(&q, &applied, &error) == MK_RAM && error.at == short_bytes);
    CHECK(lseek(to->fd, 0, SEEK_END) == (off_t)short_bytes);
    free(body);
}

void fuzz_batches(struct random *random)
{
    struct world w;
    make_world(&w, random);
    unsigned rounds = 1 + (unsigned)below(random, 5);
    for (w.round = 1; w.round <= rounds; w.round++) {
        w.stage = w.round == 1 ? MK_BULK : w.round == rounds ? MK_LAST : MK_ROUND;
        for (uint64_t lane = 0; lane < w.lanes; lane++)
            run_round(&w, lane);
    }
    if (one_in(random, 4))
        truncate_and_try(&w);
    free_world(&w);
}

/* Destination of a real QEMU: the records of a RAM section as they come (qemu-ram-stream.md 2.1, 2.4, 3).
 * Nothing vouches for them but themselves: each is checked, then lands. Hostile bytes. */
#include <sys/uio.h>

#include "internal.h"

enum { RUN_MAX = 128 };

enum found { WHOLE, SHORT, BAD };

struct record {
    const uint8_t *start, *payload;
    size_t length; /* of the payload: the page, or the delta */
    uint64_t in_block; /* page number inside the block */
    size_t block;
    unsigned type;
    bool named;
};

struct walker {
    const struct mk_walk *q;
    struct mk_walked *r;
    const uint8_t *at, *end;
    size_t checked_block; /* whose file was looked at in this call */
    struct iovec run[RUN_MAX]; /* pages that follow each other and wait to be written */
    size_t run_length, run_block;
    uint64_t run_first, run_pages; /* several of them are one part where they follow each other here, too */
    struct mk_error *error;
};

static enum found refuse(struct walker *w, const struct record *record, const char *rule)
{
    *w->error = (struct mk_error){
        .status = MK_RECORD, .rule = rule, .at = (uint64_t)(record->start - w->q->body)};
    return BAD;
}

static size_t left(const struct walker *w)
{
    return (size_t)(w->end - w->at);
}

/* ---- bits that several threads may change at once: channels share RAM, though never a page at a time ------ */

static bool is_marked(const uint8_t *bitmap, uint64_t page)
{
    return __atomic_load_n(&bitmap[page >> 3], __ATOMIC_RELAXED) >> (page & 7) & 1;
}

static void mark(uint8_t *bitmap, uint64_t page)
{
    if (!is_marked(bitmap, page))
        __atomic_fetch_or(&bitmap[page >> 3], (uint8_t)(1u << (page & 7)), __ATOMIC_RELAXED);
}

static void unmark(uint8_t *bitmap, uint64_t page)
{
    __atomic_fetch_and(&bitmap[page >> 3], (uint8_t) ~(1u << (page & 7)), __ATOMIC_RELAXED);
}

/* ---- writing ------------------------------------------------------------------------------------------- */

static enum mk_status check_once(struct walker *w, size_t block)
{
    enum mk_status status = w->checked_block == block ? MK_OK : check_length(w->q->ram, block, w->error);
    if (status == MK_OK)
        w->checked_block = block;
    return status;
}

static enum mk_status write_pages(
    struct walker *w, size_t block, uint64_t first, uint64_t pages, struct iovec *part, size_t count)
{
    enum mk_status status = check_once(w, block);
    if (status != MK_OK)
        return status;
    w->r->written += pages;
    return write_parts(w->q->ram, block, first << w->q->ram->page_shift, part, count, w->error);
}

static enum mk_status write_run(struct walker *w)
{
    size_t count = w->run_length;
    w->run_length = 0;
    return count ? write_pages(w, w->run_block, w->run_first, w->run_pages, w->run, count) : MK_OK;
}

static enum mk_status write_page(struct walker *w, const struct record *record, const uint8_t *content)
{
    struct iovec part = {(void *)(uintptr_t)content, w->q->ram->page_size};
    return write_pages(w, record->block, record->in_block, 1, &part, 1);
}

static uint64_t page_number(const struct walker *w, const struct record *record)
{
    return w->q->ram->blocks[record->block].first_page + record->in_block;
}

static enum mk_status land_zero(struct walker *w, const struct record *record)
{
    uint64_t page = page_number(w, record);
    if (!is_marked(w->q->content, page))
        return MK_OK; /* RAM began zeroed: nothing to touch */
    unmark(w->q->content, page);
    if (!w->q->apply)
        return MK_OK;
    enum mk_status status = write_run(w);
    return status == MK_OK ? write_page(w, record, zero_page) : status;
}

static enum mk_status land_page(struct walker *w, const struct record *record)
{
    if (mk_is_zero(record->payload, record->length))
        return land_zero(w, record);
    mark(w->q->content, page_number(w, record));
    if (!w->q->apply)
        return MK_OK;
    bool follows = w->run_length && w->run_block == record->block
        && w->run_first + w->run_pages == record->in_block;
    struct iovec *last = &w->run[w->run_length ? w->run_length - 1 : 0];
    if (follows && (uint8_t *)last->iov_base + last->iov_len == record->payload) {
        last->iov_len += record->length;
        w->run_pages++;
        return MK_OK;
    }
    if (!follows || w->run_length == RUN_MAX) {
        enum mk_status status = write_run(w);
        if (status != MK_OK)
            return status;
        w->run_block = record->block;
        w->run_first = record->in_block;
        w->run_pages = 0;
    }
    w->run_pages++;
    w->run[w->run_length++] = (struct iovec){(void *)(uintptr_t)record->payload, record->length};
    return MK_OK;
}

/* The base of a delta is what RAM holds: QEMU's destination has no page cache. */
static enum mk_status land_delta(struct walker *w, const struct record *record)
{
    const struct mk_ram *ram = w->q->ram;
    uint64_t page = page_number(w, record);
    uint8_t content[MK_PAGE_SIZE_MAX], *into = content;
    if (record->length == 0)
        return MK_OK;
    if (!w->q->apply) {
        mark(w->q->content, page);
        return MK_OK;
    }
    enum mk_status status = write_run(w);
    if (status == MK_OK)
        status = check_once(w, record->block);
    if (status != MK_OK)
        return status;
    if (!is_marked(w->q->content, page))
        memset(content, 0, ram->page_size);
    else if (!read_pages(ram, record->block, page, &into, 1, w->error))
        return MK_RAM;
    mk_xbzrle_decode(record->payload, record->length, content, ram->page_size); /* was checked */
    if (mk_is_zero(content, ram->page_size))
        unmark(w->q->content, page);
    else
        mark(w->q->content, page);
    return write_page(w, record, content);
}

/* ---- reading ------------------------------------------------------------------------------------------- */

static enum found read_block(struct walker *w, struct record *record)
{
    const struct mk_ram *ram = w->q->ram;
    if (!record->named) {
        record->block = w->r->block;
        return record->block < ram->block_count ? WHOLE : refuse(w, record, "no-block");
    }
    if (left(w) < 1 || left(w) < 1u + w->at[0])
        return SHORT;
    size_t length = w->at[0];
    const uint8_t *name = w->at + 1;
    w->at += 1 + length;
    for (size_t i = 0; i < ram->block_count; i++) {
        if (ram->blocks[i].name_length == length && memcmp(ram->blocks[i].name, name, length) == 0) {
            record->block = i;
            return WHOLE;
        }
    }
    return refuse(w, record, "unknown-block");
}

static enum found take_payload(struct walker *w, struct record *record, size_t length)
{
    if (left(w) < length)
        return SHORT;
    record->payload = w->at;
    record->length = length;
    w->at += length;
    return WHOLE;
}

static enum found read_delta(struct walker *w, struct record *record)
{
    if (left(w) < XBZRLE_HEADER)
        return SHORT;
    unsigned encoding = w->at[0];
    size_t length = (size_t)w->at[1] << 8 | w->at[2];
    if (encoding != XBZRLE_ENCODING)
        return refuse(w, record, "xbzrle-encoding");
    if (length > w->q->ram->page_size)
        return refuse(w, record, "xbzrle-length");
    w->at += XBZRLE_HEADER;
    return take_payload(w, record, length);
}

/* What is inside is not looked at here. */
static enum found read_compressed(struct walker *w, struct record *record)
{
    size_t page = w->q->ram->page_size, most = page + (page >> 12) + (page >> 14) + 13; /* zlib's own bound */
    if (left(w) < COMPRESSED_HEADER)
        return SHORT;
    size_t length = (size_t)w->at[0] << 24 | (size_t)w->at[1] << 16 | (size_t)w->at[2] << 8 | w->at[3];
    if (length == 0 || length > most || length > UINT16_MAX)
        return refuse(w, record, "compress-length");
    w->at += COMPRESSED_HEADER;
    return take_payload(w, record, length);
}

static enum found read_record(struct walker *w, struct record *record)
{
    const struct mk_ram *ram = w->q->ram;
    *record = (struct record){.start = w->at};
    if (left(w) < RECORD_HEADER)
        return SHORT;
    uint64_t word = load_be64(w->at);
    w->at += RECORD_HEADER;
    unsigned flags = (unsigned)(word & (ram->page_size - 1));
    record->type = flags & ~(unsigned)RECORD_CONTINUE;
    record->named = !(flags & RECORD_CONTINUE);
    if (record->type == RECORD_EOS || record->type == RECORD_FLUSH)
        return WHOLE;
    if (record->type == RECORD_HOOK)
        return refuse(w, record, "hook");
    if (record->type != RECORD_ZERO && record->type != RECORD_PAGE && record->type != RECORD_XBZRLE
        && record->type != RECORD_COMPRESSED)
        return refuse(w, record, "unknown-flags");
    enum found found = read_block(w, record);
    if (found != WHOLE)
        return found;
    record->in_block = word >> ram->page_shift;
    if (record->in_block >= ram->blocks[record->block].pages)
        return refuse(w, record, "bad-offset");
    if (record->type == RECORD_XBZRLE)
        return read_delta(w, record);
    if (record->type == RECORD_COMPRESSED)
        return read_compressed(w, record);
    found = take_payload(w, record, record->type == RECORD_PAGE ? ram->page_size : 1);
    if (found == WHOLE && record->type == RECORD_ZERO && record->payload[0] != 0)
        return refuse(w, record, "zero-fill");
    return found;
}

/* ---- both ---------------------------------------------------------------------------------------------- */

static enum mk_status land(struct walker *w, const struct record *record)
{
    uint64_t *counts = w->q->counts + record->block * MK_WALK_COUNTERS;
    if (record->type == RECORD_ZERO) {
        bool again = is_marked(w->q->content, page_number(w, record));
        counts[again ? MK_WALK_ZERO_AGAIN : MK_WALK_ZERO]++;
        return land_zero(w, record);
    }
    if (record->type == RECORD_PAGE) {
        counts[MK_WALK_NORMAL]++;
        return land_page(w, record);
    }
    if (record->type == RECORD_COMPRESSED) {
        counts[MK_WALK_COMPRESSED]++;
        counts[MK_WALK_COMPRESSED_BYTES] += record->length;
        if (!w->q->apply)
            mark(w->q->content, page_number(w, record)); /* a zero page has a record of its own */
        return MK_OK;
    }
    int64_t runs = mk_xbzrle_runs(record->payload, record->length, w->q->ram->page_size);
    if (runs < 0) {
        refuse(w, record, "xbzrle-delta");
        return MK_RECORD;
    }
    counts[MK_WALK_XBZRLE]++;
    counts[MK_WALK_XBZRLE_RUNS] += (uint64_t)runs;
    counts[MK_WALK_XBZRLE_BYTES] += record->length;
    return land_delta(w, record);
}

static void list(struct walker *w, const struct record *record)
{
    w->q->list[w->r->listed++] = (struct mk_listed){
        .at = (uint64_t)(record->start - w->q->body),
        .offset = record->in_block << w->q->ram->page_shift,
        .block = (uint32_t)record->block,
        .type = (uint16_t)(record->type | (record->named ? 0 : RECORD_CONTINUE)),
        .length = record->type == RECORD_XBZRLE || record->type == RECORD_COMPRESSED ? (uint16_t)record->length : 0,
    };
}

/* Everything up to the record that stopped the walk; returns how it went. */
static enum mk_status walk(struct walker *w)
{
    for (;;) {
        struct record record;
        w->r->consumed = (uint64_t)(w->at - w->q->body);
        if (w->q->list && w->r->listed == w->q->list_room)
            return MK_OK;
        enum found found = read_record(w, &record);
        if (found == BAD)
            return MK_RECORD;
        if (found == SHORT)
            return MK_OK;
        if ((record.type == RECORD_COMPRESSED) != w->q->compressed) {
            w->r->stop = MK_WALK_KIND;
            return MK_OK;
        }
        if (record.type == RECORD_EOS || record.type == RECORD_FLUSH) {
            w->r->consumed += RECORD_HEADER;
            w->r->stop = record.type == RECORD_EOS ? MK_WALK_EOS : MK_WALK_FLUSH;
            return MK_OK;
        }
        uint64_t page = page_number(w, &record);
        if (w->q->rounds && page < w->r->after) {
            w->r->stop = MK_WALK_ROUND;
            return MK_OK;
        }
        w->r->after = page + 1;
        w->r->block = record.block;
        mark(w->q->seen, page);
        w->q->counts[record.block * MK_WALK_COUNTERS + (record.named ? MK_WALK_NAMED : MK_WALK_CONTINUED)]++;
        if (w->q->list)
            list(w, &record);
        enum mk_status status = land(w, &record);
        if (status != MK_OK)
            return status;
    }
}

enum mk_status mk_walk(const struct mk_walk *q, struct mk_walked *r, struct mk_error *error)
{
    struct walker w = {
        .q = q,
        .r = r,
        .at = q->body,
        .end = q->body + q->length,
        .checked_block = q->ram->block_count,
        .error = error,
    };
    struct mk_error late;
    *r = (struct mk_walked){.stop = MK_WALK_MORE, .block = q->block, .after = q->after};
    enum mk_status status = walk(&w);
    /* What came before an illegal record lands; its own error is the one to tell. */
    if (status == MK_RECORD)
        w.error = &late;
    enum mk_status last = status == MK_RAM ? MK_OK : write_run(&w);
    return status == MK_OK ? last : status;
}

/* ---- pages of a multifd packet ------------------------------------------------------------------------- */

enum mk_status mk_land(
    const struct mk_walk *q, const uint8_t *offsets, size_t normal, size_t zero, struct mk_walked *r,
    struct mk_error *error)
{
    const struct mk_ram *ram = q->ram;
    struct walker w = {.q = q, .r = r, .checked_block = ram->block_count, .error = error};
    uint64_t length = ram->blocks[q->block].pages << ram->page_shift;
    *r = (struct mk_walked){.block = q->block};
    for (size_t i = 0; i < normal + zero; i++) {
        uint64_t offset = load_be64(offsets + i * 8);
        if (offset >= length || offset & (ram->page_size - 1)) {
            *error = (struct mk_error){.status = MK_RECORD, .rule = "bad-offset", .at = i * 8};
            return MK_RECORD;
        }
    }
    for (size_t i = 0; i < normal + zero; i++) {
        struct record record = {
            .block = q->block,
            .in_block = load_be64(offsets + i * 8) >> ram->page_shift,
            .type = i < normal ? RECORD_PAGE : RECORD_ZERO,
            .payload = i < normal ? q->body + i * ram->page_size : NULL,
            .length = ram->page_size,
        };
        mark(q->seen, page_number(&w, &record));
        enum mk_status status = land(&w, &record);
        if (status != MK_OK)
            return status;
    }
    return write_run(&w);
}

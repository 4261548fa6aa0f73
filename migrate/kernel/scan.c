/* Reading RAM to compare or to learn its digests. */
#define _GNU_SOURCE
#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

#include "internal.h"

enum { CHUNK_BYTES = 64 << 10 }; /* stays in the second-level cache between reading and digesting */

/* What to do with the digest of one page. */
struct visitor {
    void (*page)(struct visitor *self, uint64_t page, struct mk_u128 digest);
    const uint8_t *digests;
    uint8_t *target;
    uint64_t first;
    uint64_t differing;
};

static enum mk_status visit(
    const struct mk_ram *ram, const struct mk_keys *keys, uint64_t first, uint64_t count,
    struct visitor *visitor, struct mk_error *error)
{
    size_t block = mk_ram_find(ram, first, count);
    size_t chunk_pages = CHUNK_BYTES / ram->page_size;
    if (count == 0)
        return MK_OK;
    uint8_t *chunk = aligned_alloc(64, CHUNK_BYTES);
    if (!chunk) {
        *error = (struct mk_error){.status = MK_MEMORY};
        return MK_MEMORY;
    }
    uint8_t *into[CHUNK_BYTES / MK_PAGE_SIZE_MIN];
    for (size_t i = 0; i < chunk_pages; i++)
        into[i] = chunk + i * ram->page_size;
    uint64_t page = first, end = first + count;
    while (page < end) {
        size_t got =
            read_pages(ram, block, page, into, end - page < chunk_pages ? end - page : chunk_pages, error);
        if (got == 0)
            break;
        for (size_t i = 0; i < got; i++, page++)
            visitor->page(visitor, page, mk_page_digest(keys, into[i]));
    }
    free(chunk);
    return page < end ? error->status : MK_OK;
}

static void mark_if_differing(struct visitor *self, uint64_t page, struct mk_u128 digest)
{
    if (same(digest, digest_at(self->digests, page)))
        return;
    set_bit(self->target, page);
    self->differing++;
}

static void store(struct visitor *self, uint64_t page, struct mk_u128 digest)
{
    set_digest(self->target, page - self->first, digest);
}

enum mk_status mk_scan(
    const struct mk_ram *ram, const struct mk_keys *keys, const uint8_t *digests, uint64_t first,
    uint64_t count, uint8_t *dirty, uint64_t *differing, struct mk_error *error)
{
    struct visitor visitor = {.page = mark_if_differing, .digests = digests, .target = dirty};
    enum mk_status status = visit(ram, keys, first, count, &visitor, error);
    *differing = visitor.differing;
    return status;
}

enum mk_status mk_digest_range(
    const struct mk_ram *ram, const struct mk_keys *keys, uint64_t first, uint64_t count, uint8_t *out,
    struct mk_error *error)
{
    struct visitor visitor = {.page = store, .target = out, .first = first};
    return visit(ram, keys, first, count, &visitor, error);
}

uint64_t mk_zero_range(
    const struct mk_keys *keys, const uint8_t *digests, uint64_t first, uint64_t count, uint8_t *dirty)
{
    uint64_t differing = 0;
    for (uint64_t page = first; page < first + count; page++) {
        if (same(digest_at(digests, page), keys->zero_digest))
            continue;
        set_bit(dirty, page);
        differing++;
    }
    return differing;
}

enum mk_status mk_scan_pages(
    const struct mk_ram *ram, const struct mk_keys *keys, const uint8_t *digests, uint64_t first,
    uint64_t count, const uint8_t *suspects, uint8_t *dirty, uint64_t *differing, struct mk_error *error)
{
    struct visitor visitor = {.page = mark_if_differing, .digests = digests, .target = dirty};
    enum mk_status status = MK_OK;
    uint64_t end = first + count;
    uint64_t page = mk_bitmap_next(suspects, NULL, first, end);
    while (page < end && status == MK_OK) {
        uint64_t stop = mk_bitmap_end(suspects, page, end);
        status = visit(ram, keys, page, stop - page, &visitor, error);
        page = mk_bitmap_next(suspects, NULL, stop, end);
    }
    *differing = visitor.differing;
    return status;
}

/* The data in pages `first` up to `end`, given by their numbers in page space. */
static enum mk_status find_data(
    const struct mk_ram *ram, size_t block, uint64_t first, uint64_t end, uint8_t *bitmap,
    struct mk_error *error)
{
    int fd = ram->blocks[block].fd;
    uint64_t base = ram->blocks[block].first_page;
    for (uint64_t page = first; page < end;) {
        uint64_t at = (page - base) << ram->page_shift;
        off_t data = lseek(fd, (off_t)at, SEEK_DATA);
        if (data < 0 && errno == ENXIO)
            break; /* nothing but a hole up to the end */
        uint64_t from = base + ((uint64_t)data >> ram->page_shift);
        if (data >= 0 && from >= end)
            break;
        off_t hole = data < 0 ? data : lseek(fd, data, SEEK_HOLE);
        if (hole < 0) {
            *error = (struct mk_error){
                .status = MK_RAM,
                .what = "searching for holes failed",
                .block = block,
                .at = at,
                .sys = errno,
            };
            return MK_RAM;
        }
        uint64_t to = base + (((uint64_t)hole + ram->page_size - 1) >> ram->page_shift);
        to = to <= from ? from + 1 : to; /* punched between the two looks: get further all the same */
        to = to > end ? end : to;
        mk_bitmap_set_range(bitmap, from, to - from);
        page = to;
    }
    return MK_OK;
}

enum mk_status mk_data_pages(
    const struct mk_ram *ram, uint64_t first, uint64_t count, const uint8_t *suspects, uint8_t *bitmap,
    struct mk_error *error)
{
    size_t block = mk_ram_find(ram, first, count);
    enum mk_status status = MK_OK;
    uint64_t end = first + count;
    uint64_t page = mk_bitmap_next(suspects, NULL, first, end);
    while (page < end && status == MK_OK) {
        uint64_t stop = mk_bitmap_end(suspects, page, end);
        status = find_data(ram, block, page, stop, bitmap, error);
        page = mk_bitmap_next(suspects, NULL, stop, end);
    }
    return status;
}

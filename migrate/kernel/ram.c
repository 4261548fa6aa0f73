/* The blocks of a migration, and reading their pages. */
#include <errno.h>
#include <stdlib.h>
#include <sys/uio.h>

#include <sys/stat.h>
#include <unistd.h>
#include "internal.h"

/* Page numbers stay below 2**48, so that byte offsets (65536 bytes a page) stay below 2**63 with room to
 * spare. */
static const uint64_t page_limit = (uint64_t)1 << 47;

static int by_first_page(const void *left, const void *right)
{
    const struct mk_block *a = left, *b = right;
    return (a->first_page > b->first_page) - (a->first_page < b->first_page);
}

static bool same_name(const struct mk_block *a, const struct mk_block *b)
{
    return a->name_length == b->name_length && memcmp(a->name, b->name, a->name_length) == 0;
}

static const char *wrong_with(const struct mk_block *block, uint64_t stripe_pages)
{
    if (block->name_length == 0)
        return "a block name has 1 to 255 bytes";
    if (block->fd < 0)
        return "a block has no open file";
    if (block->pages == 0)
        return "a block has no pages";
    if (block->first_page >= page_limit || block->pages >= page_limit)
        return "a block ends beyond page 2**47";
    if (block->first_page % stripe_pages != 0)
        return "a block does not start on a stripe";
    return NULL;
}

const char *mk_ram_init(
    struct mk_ram *ram, uint32_t page_size, uint64_t stripe_pages, const struct mk_block *blocks,
    size_t block_count, bool *no_memory)
{
    *no_memory = false;
    memset(ram, 0, sizeof *ram);
    for (size_t i = 0; i < block_count; i++) {
        const char *wrong = wrong_with(&blocks[i], stripe_pages);
        if (wrong)
            return wrong;
        for (size_t j = 0; j < i; j++)
            if (same_name(&blocks[i], &blocks[j]))
                return "two blocks have the same name";
    }
    struct mk_block *sorted = calloc(block_count ? block_count : 1, sizeof *sorted);
    if (!sorted) {
        *no_memory = true;
        return NULL;
    }
    if (block_count)
        memcpy(sorted, blocks, block_count * sizeof *sorted);
    qsort(sorted, block_count, sizeof *sorted, by_first_page);
    for (size_t i = 0; i < block_count; i++) {
        if (i && sorted[i - 1].first_page + sorted[i - 1].pages > sorted[i].first_page) {
            free(sorted);
            return "two blocks overlap";
        }
        if (sorted[i].name_length > ram->longest_name)
            ram->longest_name = sorted[i].name_length;
        ram->total_pages = sorted[i].first_page + sorted[i].pages;
    }
    ram->page_size = page_size;
    ram->page_shift = (unsigned)__builtin_ctz(page_size);
    ram->stripe_pages = stripe_pages;
    ram->block_count = block_count;
    ram->blocks = sorted;
    return NULL;
}

void mk_ram_free(struct mk_ram *ram)
{
    free(ram->blocks);
    ram->blocks = NULL;
    ram->block_count = 0;
}

size_t mk_ram_find(const struct mk_ram *ram, uint64_t first, uint64_t count)
{
    size_t low = 0, high = ram->block_count; /* first block that ends behind `first` */
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        const struct mk_block *block = &ram->blocks[middle];
        if (block->first_page + block->pages <= first)
            low = middle + 1;
        else
            high = middle;
    }
    if (low == ram->block_count)
        return low;
    const struct mk_block *block = &ram->blocks[low];
    bool inside = first >= block->first_page && count <= block->first_page + block->pages - first;
    return inside ? low : ram->block_count;
}

enum { READ_PAGES_MAX = 64 };

size_t read_pages(
    const struct mk_ram *ram, size_t block, uint64_t first, uint8_t *const *into, size_t pages,
    struct mk_error *error)
{
    const struct mk_block *from = &ram->blocks[block];
    uint64_t offset = (first - from->first_page) << ram->page_shift;
    size_t have = 0; /* bytes of the first page read so far */
    if (pages > READ_PAGES_MAX)
        pages = READ_PAGES_MAX;
    for (;;) {
        struct iovec parts[READ_PAGES_MAX];
        parts[0] = (struct iovec){into[0] + have, ram->page_size - have};
        for (size_t i = 1; i < pages; i++)
            parts[i] = (struct iovec){into[i], ram->page_size};
        ssize_t got = preadv(from->fd, parts, (int)pages, (off_t)(offset + have));
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0) {
            *error = (struct mk_error){
                .status = MK_RAM,
                .what = got < 0 ? "reading failed" : "the file ended before the block did",
                .block = block,
                .at = offset + have,
                .sys = got < 0 ? errno : 0,
            };
            return 0;
        }
        have += (size_t)got;
        if (have >= ram->page_size)
            return have >> ram->page_shift; /* a part of a further page is read again by the next call */
    }
}

static enum mk_status fail(struct mk_error *error, size_t block, uint64_t at, const char *what, int sys)
{
    *error = (struct mk_error){.status = MK_RAM, .what = what, .block = block, .at = at, .sys = sys};
    return MK_RAM;
}

enum mk_status check_length(const struct mk_ram *ram, size_t block, struct mk_error *error)
{
    const struct mk_block *to = &ram->blocks[block];
    struct stat status;
    if (fstat(to->fd, &status) != 0)
        return fail(error, block, 0, "looking at the file failed", errno);
    if (S_ISREG(status.st_mode) && (uint64_t)status.st_size < to->pages << ram->page_shift)
        return fail(error, block, (uint64_t)status.st_size, "the file ended before the block did", 0);
    return MK_OK;
}

enum mk_status write_parts(
    const struct mk_ram *ram, size_t block, uint64_t offset, struct iovec *part, size_t count,
    struct mk_error *error)
{
    while (count > 0) {
        ssize_t put = pwritev(ram->blocks[block].fd, part, (int)count, (off_t)offset);
        if (put < 0 && errno == EINTR)
            continue;
        if (put <= 0)
            return fail(error, block, offset, "writing failed", put < 0 ? errno : 0);
        offset += (uint64_t)put;
        for (; count > 0 && (size_t)put >= part->iov_len; part++, count--)
            put -= (ssize_t)part->iov_len;
        if (count > 0 && put > 0) {
            part->iov_base = (uint8_t *)part->iov_base + put;
            part->iov_len -= (size_t)put;
        }
    }
    return MK_OK;
}

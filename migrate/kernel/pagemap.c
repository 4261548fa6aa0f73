/* Which pages of a process were written, and which it has at all, by PAGEMAP_SCAN (Linux 6.7); numbers from LMT 2.8. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "internal.h"

enum {
    REGIONS = 512, /* a call's answer: 12 KiB of stack */
    WRITTEN = 1 << 1,
    PRESENT = 1 << 3,
    PROTECT = 1 << 0,
    CHECK_ASYNC = 1 << 1, /* never without: an unregistered range would answer "nothing written" */
};

struct region {
    uint64_t start, end, categories;
};

struct scan_argument {
    uint64_t size, flags, start, end, walk_end, regions, region_count, most_pages;
    uint64_t inverted, all_of, any_of, wanted;
};

struct uffd_api {
    uint64_t api, features, ioctls;
};

struct uffd_register {
    uint64_t start, length, mode, ioctls;
};

#define PAGEMAP_SCAN_CALL _IOWR('f', 16, struct scan_argument)
#define UFFD_API_CALL _IOWR(0xaa, 0x3f, struct uffd_api)
#define UFFD_REGISTER_CALL _IOWR(0xaa, 0x00, struct uffd_register)

/* What is asked of page tables, and where the answer goes. */
struct question {
    uint64_t flags, category; /* the pages that have it are reported */
    int pagemap;
    uint64_t base, origin; /* this address is that byte of page space */
    unsigned shift;
    bool whole; /* a page of page space counts if all of it is reported; otherwise if any of it is */
    uint8_t *bitmap;
};

static void take_region(const struct question *question, uint64_t from, uint64_t to)
{
    uint64_t first = from - question->base + question->origin, end = to - question->base + question->origin;
    uint64_t rest = ((uint64_t)1 << question->shift) - 1;
    first = (question->whole ? first + rest : first) >> question->shift;
    end = (question->whole ? end : end + rest) >> question->shift;
    if (first < end)
        mk_bitmap_set_range(question->bitmap, first, end - first);
}

static int ask(const struct question *question, uint64_t start, uint64_t end)
{
    struct region regions[REGIONS];
    struct scan_argument argument = {
        .size = sizeof argument,
        .flags = question->flags,
        .end = end,
        .regions = (uint64_t)(uintptr_t)regions,
        .region_count = REGIONS,
        .all_of = question->category,
        .wanted = question->category,
    };
    while (start < end) {
        argument.start = start;
        int count = ioctl(question->pagemap, PAGEMAP_SCAN_CALL, &argument);
        if (count < 0) {
            if (errno == EINTR)
                continue;
            return errno;
        }
        for (int i = 0; i < count; i++) { /* regions may overlap: bits are added, nothing is summed */
            uint64_t from = regions[i].start < start ? start : regions[i].start;
            uint64_t to = regions[i].end > end ? end : regions[i].end;
            if (from < to)
                take_region(question, from, to);
        }
        if (argument.walk_end <= start)
            return EIO; /* it would go on for ever */
        start = argument.walk_end;
    }
    return 0;
}

int mk_written_pages(
    int pagemap, uint64_t start, uint64_t length, uint64_t window, uint64_t origin, unsigned shift,
    uint8_t *bitmap)
{
    struct question question = {
        .flags = PROTECT | CHECK_ASYNC,
        .category = WRITTEN,
        .pagemap = pagemap,
        .base = start,
        .origin = origin,
        .shift = shift,
        .bitmap = bitmap,
    };
    uint64_t end = start + length;
    int error = 0;
    for (uint64_t at = start; at < end && !error;) {
        uint64_t next = window ? (at / window + 1) * window : end;
        if (next > end)
            next = end;
        error = ask(&question, at, next);
        at = next;
    }
    return error;
}

int mk_present_pages(
    int pagemap, uint64_t start, uint64_t length, uint64_t origin, unsigned shift, uint8_t *bitmap)
{
    struct question question = {
        .category = PRESENT,
        .pagemap = pagemap,
        .base = start,
        .origin = origin,
        .shift = shift,
        .whole = true,
        .bitmap = bitmap,
    };
    return ask(&question, start, start + length);
}

/* The last step of the probe, with everything open. */
static int probe_pages(int uffd, int pagemap, uint8_t *pages, uint64_t page_size)
{
    uint64_t start = (uint64_t)(uintptr_t)pages, bits = 0;
    unsigned shift = (unsigned)__builtin_ctzll(page_size);
    struct uffd_api api = {.api = 0xaa, .features = 1 << 15};
    struct uffd_register range = {.start = start, .length = 2 * page_size, .mode = 1 << 1};
    if (ioctl(uffd, UFFD_API_CALL, &api) || ioctl(uffd, UFFD_REGISTER_CALL, &range))
        return errno;
    int error = mk_written_pages(pagemap, start, 2 * page_size, 0, 0, shift, (uint8_t *)&bits);
    if (error)
        return error;
    bits = 0;
    *(volatile uint8_t *)(pages + page_size) = 1;
    error = mk_written_pages(pagemap, start, 2 * page_size, 0, 0, shift, (uint8_t *)&bits);
    if (error)
        return error;
    return little64(bits) == 2 ? 0 : ENOTSUP; /* exactly the page that was written */
}

int mk_probe_write_tracking(void)
{
    uint64_t page_size = (uint64_t)sysconf(_SC_PAGESIZE);
    int error = 0;
    int uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | 1 /* UFFD_USER_MODE_ONLY */);
    if (uffd < 0)
        return errno;
    int pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
    int file = memfd_create("migrate-probe", MFD_CLOEXEC);
    uint8_t *pages = MAP_FAILED;
    if (pagemap < 0 || file < 0 || ftruncate(file, (off_t)(2 * page_size)))
        error = errno;
    else
        pages = mmap(NULL, 2 * page_size, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (!error)
        error = pages == MAP_FAILED ? errno : probe_pages(uffd, pagemap, pages, page_size);
    if (pages != MAP_FAILED)
        munmap(pages, 2 * page_size);
    if (file >= 0)
        close(file);
    if (pagemap >= 0)
        close(pagemap);
    close(uffd);
    return error;
}

int mk_track_writes(int uffd, uint64_t start, uint64_t length)
{
    struct uffd_api api = {.api = 0xaa, .features = 1 << 15};
    struct uffd_register range = {.start = start, .length = length, .mode = 1 << 1};
    if (ioctl(uffd, UFFD_API_CALL, &api) && errno != EINVAL) /* EINVAL: its owner has done it */
        return errno;
    return ioctl(uffd, UFFD_REGISTER_CALL, &range) ? errno : 0;
}

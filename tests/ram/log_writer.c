/* An emulator's part of a dirty log: log_writer LOG PAGES MARKS. Prints how often a mark set a bit that was 0. */
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

int main(int argc, char **argv)
{
    if (argc != 4)
        return 2;
    int fd = open(argv[1], O_RDWR);
    uint64_t pages = strtoull(argv[2], NULL, 10), marks = strtoull(argv[3], NULL, 10), set = 0;
    uint64_t *log = mmap(NULL, (pages + 63) / 64 * 8, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (fd < 0 || log == MAP_FAILED)
        return 1;
    for (uint64_t i = 0, page = 0; i < marks; i++, page = (page + 7) % pages) {
        uint64_t bit = (uint64_t)1 << (page & 63);
        set += !(__atomic_fetch_or(log + page / 64, bit, __ATOMIC_RELEASE) & bit);
    }
    printf("%llu\n", (unsigned long long)set);
    return 0;
}

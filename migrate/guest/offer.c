/* A userfaultfd for whoever wants to know what this guest writes (LMT 2.1). */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "guest.h"

struct api {
    uint64_t api, features, ioctls;
};

int guest_offer_tracking(void)
{
    struct api api = {.api = 0xaa, .features = 1 << 15}; /* asynchronous write protection */
    int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | 1 /* UFFD_USER_MODE_ONLY */);
    if (fd >= 0 && ioctl(fd, _IOWR(0xaa, 0x3f, struct api), &api)) {
        int error = errno;
        close(fd);
        errno = error;
        return -1;
    }
    return fd;
}

"""Programs whose C library lies: about names, which nobody knows or which take for ever, and about the time.

`hangs.example` is looked up without an end, `nowhere.example` does not exist. With `CLOCK_JUMPS` in the
environment each look at the clock on the wall finds it a day before or behind. The rest is as it is.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from bench.lab import Lab

SOURCE = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <netdb.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static time_t jump(void)
{
    static int calls;
    if (getenv("CLOCK_JUMPS") == NULL)
        return 0;
    return __atomic_fetch_add(&calls, 1, __ATOMIC_RELAXED) % 2 ? 86400 : -86400;
}

int clock_gettime(clockid_t clock, struct timespec *now)
{
    int (*real)(clockid_t, struct timespec *) = dlsym(RTLD_NEXT, "clock_gettime");
    int result = real(clock, now);
    if (clock == CLOCK_REALTIME)
        now->tv_sec += jump();
    return result;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone)
{
    int (*real)(struct timeval *, void *) = dlsym(RTLD_NEXT, "gettimeofday");
    int result = real(now, zone);
    now->tv_sec += jump();
    return result;
}

time_t time(time_t *now)
{
    struct timespec read;
    clock_gettime(CLOCK_REALTIME, &read);
    if (now != NULL)
        *now = read.tv_sec;
    return read.tv_sec;
}

int getaddrinfo(const char *node, const char *service, const struct addrinfo *hints, struct addrinfo **found)
{
    int (*real)(const char *, const char *, const struct addrinfo *, struct addrinfo **) =
        dlsym(RTLD_NEXT, "getaddrinfo");
    if (node != NULL && strcmp(node, "nowhere.example") == 0)
        return EAI_NONAME;
    if (node != NULL && strcmp(node, "hangs.example") == 0) {
        close(open(getenv("HANGS_SINCE"), O_CREAT | O_WRONLY, 0600));
        for (;;)
            pause();
    }
    return real(node, service, hints, found);
}
"""


class LyingLab(Lab):
    """A lab whose programs are lied to."""

    def __init__(self, directory: Path, blocks: tuple[tuple[str, str], ...] = (("pc.ram", "1M"),)) -> None:
        super().__init__(directory, directory, blocks)
        self.since = directory / "hangs-since"
        """Exists once a lookup hangs."""
        self.variables = {"HANGS_SINCE": str(self.since)}
        library, source = directory / "lies.so", directory / "lies.c"
        self.variables["LD_PRELOAD"] = str(library)
        source.write_text(SOURCE)
        compiler = os.environ.get("CC", "cc").split()
        subprocess.run([*compiler, "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)

    def command(self, name: str) -> list[str]:
        """With the library before the C library."""
        return ["env", *(f"{name}={value}" for name, value in self.variables.items()), *super().command(name)]

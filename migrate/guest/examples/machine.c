/* A small emulator that moves live: its RAM holds program and data, its registers are device state. See
 * ../contract.md. cc -O2 -o machine machine.c; ./machine SOCKET run; at the destination: ./machine SOCKET wait */
#define _GNU_SOURCE
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>
enum { HALF = 1 << 18, RAM = HALF * 16, LOG = RAM / 4096 / 8, NEXT = 0, SUM, STORE, PRINT };
static unsigned long *ram, *dirty; /* the first half of RAM are instructions, the second are data */
static struct { unsigned long pc, count, sum; } *cpu;
static void step(void) {
    unsigned long at = HALF + cpu->count % HALF;
    switch (ram[cpu->pc++ % HALF]) {
    case NEXT: cpu->count++; break;
    case SUM: cpu->sum += ram[at]; break;
    case STORE: ram[at] = cpu->count; /* first the word, then the mark of its 4096 bytes */
        __atomic_fetch_or(&dirty[at / 512 / 64], 1ul << at / 512 % 64, __ATOMIC_RELEASE); break;
    case PRINT: if (cpu->count % (1 << 20) == 0) printf("%lu %lu\n", cpu->count, cpu->sum), fflush(stdout);
    }
}
static void *shared(const char *name, size_t size, int *fd) {
    *fd = memfd_create(name, MFD_ALLOW_SEALING);
    if (ftruncate(*fd, size) || fcntl(*fd, F_ADD_SEALS, F_SEAL_SHRINK)) perror(name);
    return mmap(0, size, PROT_READ | PROT_WRITE, MAP_SHARED, *fd, 0);
}
int main(int argc, char **argv) {
    int runs = argc == 3 && !strcmp(argv[2], "run"), waits = !runs, fds[3], peer = -1;
    ram = shared("ram", RAM, fds), dirty = shared("log", LOG, fds + 1), cpu = shared("cpu", sizeof *cpu, fds + 2);
    for (int i = 0; runs && i < HALF; i++) ram[i] = i % 4; /* the program: NEXT SUM STORE PRINT, and so on */
    int listener = socket(AF_UNIX, SOCK_SEQPACKET, 0);
    struct sockaddr_un place = {.sun_family = AF_UNIX};
    unlink(strncpy(place.sun_path, argc == 3 ? argv[1] : "", sizeof place.sun_path - 1));
    if (bind(listener, (void *)&place, sizeof place) || listen(listener, 1)) return perror("socket"), 1;
    for (;;) {
        for (int i = 0; runs && i < 10000; i++) step();
        if (!poll(&(struct pollfd){peer < 0 ? listener : peer, POLLIN, 0}, 1, runs ? 0 : -1)) continue;
        if (peer < 0) { peer = accept(listener, 0, 0); continue; }
        char call[256] = "", *said = "error I cannot do that";
        _Alignas(struct cmsghdr) char room[CMSG_SPACE(2 * sizeof(int))];
        struct iovec part = {call, sizeof call - 1};
        struct msghdr packet = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = room, .msg_controllen = sizeof room};
        if (recvmsg(peer, &packet, 0) <= 0) { close(peer), peer = -1; continue; } /* paused? it stays so */
        int came = packet.msg_controllen ? *(int *)CMSG_DATA(CMSG_FIRSTHDR(&packet)) : -1, first = 0, count = 0;
        if (!strcmp(call, waits ? "migrate 1 destination" : "migrate 1 source"))
            said = "ok\nram machine 4194304\nlog machine", count = 2, waits = !!waits;
        else if (!strcmp(call, "pause")) said = runs ? "ok" : "ok paused", runs = 0;
        else if (!strcmp(call, "state")) said = "ok\nstate cpu", first = 2, count = 1;
        else if (!strcmp(call, "load\nstate cpu") && pread(came, cpu, 24, 0) == 24) said = "ok", waits = 2;
        else if (!strcmp(call, "run") ? waits != 1 : !strcmp(call, "resume") && !waits) said = "ok", runs = 1, waits = 0;
        close(came), part = (struct iovec){said, strlen(said)};
        packet.msg_controllen = count ? CMSG_SPACE(count * sizeof(int)) : 0;
        if (count) *CMSG_FIRSTHDR(&packet) = (struct cmsghdr){CMSG_LEN(count * sizeof(int)), SOL_SOCKET, SCM_RIGHTS};
        if (count) memcpy(CMSG_DATA(CMSG_FIRSTHDR(&packet)), fds + first, count * sizeof(int));
        sendmsg(peer, &packet, MSG_NOSIGNAL);
    }
}

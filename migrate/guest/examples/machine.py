"""The machine of machine.c in Python, which moves live to another process, also to the one in C, and back.

    python machine.py SOCKET run        at the destination: python machine.py SOCKET wait

It offers a userfaultfd, through which the kernel notes what it writes, and no log. See ../contract.md.
"""

import ctypes
import fcntl
import mmap
import os
import select
import socket
import struct
import sys

HALF = 1 << 18  # words of program, and as many of data
RAM = HALF * 16
NEXT, SUM, STORE, PRINT = range(4)
CPU = struct.Struct("QQQ")
SYS_USERFAULTFD = {"x86_64": 323, "aarch64": 282}[os.uname().machine]
UFFDIO_API, WP_ASYNC = 0xC018AA3F, 1 << 15  # <linux/userfaultfd.h>


class Machine:
    """RAM, registers, and the answers to the daemons."""

    def __init__(self, running: bool) -> None:
        self.running, self.waiting, self.loaded = running, not running, False
        self.pc = self.count = self.sum = 0
        self.memory, self.state = os.memfd_create("ram"), os.memfd_create("cpu")
        os.truncate(self.memory, RAM)
        self.ram = memoryview(mmap.mmap(self.memory, RAM)).cast("Q")
        if running:
            self.ram[:HALF] = memoryview(struct.pack("4Q", NEXT, SUM, STORE, PRINT) * (HALF // 4)).cast("Q")
        self.userfaultfd = ctypes.CDLL(None).syscall(SYS_USERFAULTFD, os.O_CLOEXEC | 1)  # 1: only user mode
        fcntl.ioctl(self.userfaultfd, UFFDIO_API, struct.pack("QQQ", 0xAA, WP_ASYNC, 0))

    def step(self) -> None:
        at = HALF + self.count % HALF
        operation = self.ram[self.pc % HALF]
        self.pc += 1
        if operation == NEXT:
            self.count += 1
        elif operation == SUM:
            self.sum = (self.sum + self.ram[at]) % (1 << 64)
        elif operation == STORE:
            self.ram[at] = self.count
        elif operation == PRINT and self.count % (1 << 16) == 0:
            print(self.count, self.sum, flush=True)

    def answer(self, call: str, fds: list[int]) -> tuple[str, list[int]]:
        """The answer to a call, and the descriptors that go with it."""
        if call == "migrate 1 source" and not self.waiting:
            return f"ok\nram machine {RAM}\nuserfaultfd", [self.memory, self.userfaultfd]
        if call == "migrate 1 destination" and self.waiting:
            self.loaded = False
            return f"ok\nram machine {RAM}", [self.memory]
        if call == "pause":
            was_running, self.running = self.running, False
            return ("ok" if was_running else "ok paused"), []
        if call == "state":
            os.pwrite(self.state, CPU.pack(self.pc, self.count, self.sum), 0)
            return "ok\nstate cpu", [self.state]
        if call == "load\nstate cpu":
            self.pc, self.count, self.sum = CPU.unpack(os.pread(fds[0], CPU.size, 0))
            self.loaded = True
            return "ok", []
        if (call == "run" and self.loaded) or (call == "resume" and not self.waiting):
            self.running, self.waiting = True, False
            return "ok", []
        return "error I cannot do that", []


def main(path: str, what: str) -> None:
    machine = Machine(running=what == "run")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(path)
    listener.listen()
    daemon: socket.socket | None = None
    while True:
        for _ in range(1000 if machine.running else 0):
            machine.step()
        if not select.select([daemon or listener], [], [], 0 if machine.running else None)[0]:
            continue
        if daemon is None:
            daemon, _ = listener.accept()
            continue
        call, fds, _, _ = socket.recv_fds(daemon, 4096, 64)
        if call:
            words, given = machine.answer(call.decode(), fds)
            socket.send_fds(daemon, [words.encode()], given)
        else:  # the daemon is gone; a machine that was paused stays so: it may have been handed over
            daemon.close()
            daemon = None
        for fd in fds:
            os.close(fd)


main(*sys.argv[1:])

"""A userfaultfd of a process that knows nothing of us: made inside it, copied out, closed there (LMT 2.7).

This is a debugger's access, and asked for by name (`--dirty-tracker wp-inject`). It takes a millisecond, in a
process of its own: whatever becomes of the daemon meanwhile, also SIGKILL, that process finishes what it has
begun. A thread that was left in the middle would go on with foreign registers.
"""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path

from migrate.daemon.pidfd import copy_descriptor
from migrate.daemon.tracee import Tracee

_LIMIT_SECONDS = 20.0
_CLOSE, _USERFAULTFD = 3, 323  # x86-64
_USER_MODE_ONLY = 1
_API_CALL = 0xC018AA3F
_API = struct.pack("QQQ", 0xAA, 1 << 15, 0)  # asynchronous write protection
_YAMA = Path("/proc/sys/kernel/yama/ptrace_scope")


def inject_userfaultfd(pid: int) -> tuple[int, float]:
    """A userfaultfd of that process, ready for write protection, and for how many seconds a thread stood.

    Raises OSError: why there is none, for a person; the process is as it was.
    """
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            worker = subprocess.Popen(
                [sys.executable, "-m", "migrate.daemon.injection", str(pid), str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        ours.settimeout(_LIMIT_SECONDS)
        try:
            answer, fds, _, _ = socket.recv_fds(ours, 4096, 1)
        except TimeoutError:
            raise OSError(f"process {pid} did not answer to ptrace within {_LIMIT_SECONDS:g} s") from None
    worker.wait()
    if not fds:
        raise OSError(answer.decode(errors="replace") or "the injecting process ended without a word")
    try:
        fcntl.ioctl(fds[0], _API_CALL, _API)
    except OSError:
        os.close(fds[0])
        raise
    return fds[0], float(answer)


def _take(pid: int) -> tuple[int, float]:
    """As `inject_userfaultfd`, in the process of its own."""
    pidfd = os.pidfd_open(pid)
    try:
        tracee = Tracee(pid)
        began = time.monotonic()
        with tracee:
            number = tracee.call(_USERFAULTFD, os.O_CLOEXEC | os.O_NONBLOCK | _USER_MODE_ONLY)
            try:
                copy = copy_descriptor(pidfd, number)
            finally:
                tracee.call(_CLOSE, number)
        return copy, time.monotonic() - began
    finally:
        os.close(pidfd)


def _in_words(error: OSError) -> str:
    if isinstance(error, PermissionError) and _YAMA.exists():
        scope = _YAMA.read_text().strip()
        if scope != "0":
            return f"{error.strerror or error}; kernel.yama.ptrace_scope is {scope}: run this as root"
    return error.strerror or str(error)


def main() -> None:
    """PID and the number of a socket: answers with a descriptor and the time, or with what is wrong."""
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    with socket.socket(fileno=int(sys.argv[2])) as answers:
        try:
            fd, seconds = _take(int(sys.argv[1]))
        except OSError as error:
            answers.sendall(_in_words(error).encode())
        else:
            socket.send_fds(answers, [f"{seconds:.6f}".encode()], [fd])


if __name__ == "__main__":
    main()

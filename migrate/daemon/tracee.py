"""One thread of a foreign process, stopped for a moment to make system calls for us (ptrace(2), x86-64).

No code and no memory of the process is written: an instruction that is there already is run with other
registers, and then everything is as it was (LMT 2.7). All calls must come from one thread of ours. Never with
PTRACE_O_EXITKILL: if we die, the kernel lets go of the process, and it must live on.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import re
import signal
import time
from types import TracebackType
from typing import Self

_SEIZE, _INTERRUPT, _DETACH, _SINGLESTEP, _CONT = 0x4206, 0x4207, 17, 9, 7
_GETREGSET, _SETREGSET, _GETSIGMASK, _SETSIGMASK = 0x4204, 0x4205, 0x420A, 0x420B
_PRSTATUS = 1
_EVENT_STOP = 128
_WALL = 0x40000000
_WORDS = 27  # struct user_regs_struct
_RAX, _RDX, _RSI, _RDI, _ORIG_RAX, _RIP = 10, 12, 13, 14, 15, 16
_SYSCALL = b"\x0f\x05"
_MASK_BYTES = 8
_STEP_SECONDS = 5.0
_MOST_STOPS = 100
_POLL_SECONDS = 0.00005

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.restype = ctypes.c_long
_libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p]

Registers = ctypes.c_uint64 * _WORDS


class _Vector(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


class Tracee:
    """A thread of a process; a context manager: it stands inside, and goes on behind.

    Args:
        pid: the process; its first living thread is taken.

    Raises:
        OSError: why it cannot be had, for a person. Nothing was changed then.
    """

    def __init__(self, pid: int) -> None:
        if platform.machine() != "x86_64":
            raise OSError(f"system calls cannot be injected on {platform.machine()}, only on x86_64")
        self._pid = pid
        self._tid = _first_thread(pid)
        self._saved: ctypes.Array[ctypes.c_uint64] | None = None
        self._mask = ctypes.create_string_buffer(_MASK_BYTES)
        _check_status(self._tid)

    def __enter__(self) -> Self:
        self._ptrace(_SEIZE, "cannot be traced")
        try:
            self._interrupt()
            saved = self._registers()
            self._site = self._find_syscall(saved)
            self._ptrace(_GETSIGMASK, "keeps its signal mask to itself", _MASK_BYTES, _address(self._mask))
            self._saved = saved
            # Its signals wait meanwhile; SIGTRAP is how a step ends, and the kernel would change its handler
            # if it were blocked.
            every = ctypes.create_string_buffer(
                (~(1 << (signal.SIGTRAP - 1)) & (1 << 64) - 1).to_bytes(_MASK_BYTES, "little"), _MASK_BYTES
            )
            self._ptrace(_SETSIGMASK, "keeps its signal mask", _MASK_BYTES, _address(every))
        except BaseException:
            self._let_go()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._let_go()

    def call(self, number: int, *arguments: int) -> int:
        """Have it make a system call of up to three arguments. Raises OSError, the call's own error too."""
        assert self._saved is not None
        registers = Registers(*self._saved)
        registers[_RAX] = number
        registers[_ORIG_RAX] = (1 << 64) - 1  # the call that we interrupted is not begun again here
        registers[_RIP] = self._site
        for place, value in zip((_RDI, _RSI, _RDX), arguments, strict=False):
            registers[place] = value
        self._put(registers)
        pending = 0
        for _ in range(_MOST_STOPS):  # a stop for something else comes first, if there is one
            self._ptrace(_SINGLESTEP, "cannot be stepped", data=pending)
            event, number_of_signal = self._wait()
            pending = 0 if event or number_of_signal == signal.SIGTRAP else number_of_signal
            registers = self._registers()
            if registers[_RIP] == self._site + len(_SYSCALL):
                result = ctypes.c_int64(registers[_RAX]).value
                if -4096 < result < 0:
                    raise OSError(-result, os.strerror(-result))
                return result
        raise OSError(f"thread {self._tid} does not make the step it is asked for")

    def _let_go(self) -> None:
        """Put everything back. A process that has died needs nothing."""
        with contextlib.suppress(OSError):
            if self._saved is not None:
                self._put(self._saved)  # with the interrupted call, which begins again
                self._ptrace(_SETSIGMASK, "", _MASK_BYTES, _address(self._mask))
        with contextlib.suppress(OSError):
            self._ptrace(_DETACH, "")

    def _interrupt(self) -> None:
        """Stop it; a signal that comes just now is delivered first. Raises OSError: it is stopped anyhow."""
        self._ptrace(_INTERRUPT, "cannot be stopped")
        event, number = self._wait()
        while event != _EVENT_STOP:
            self._ptrace(_CONT, "cannot be continued", data=number)
            event, number = self._wait()
        if number != signal.SIGTRAP:
            raise OSError(f"thread {self._tid} is stopped, so that it cannot make a system call")

    def _wait(self) -> tuple[int, int]:
        """Until it stands: which event of ptrace, and which signal. Raises OSError: it does not."""
        end = time.monotonic() + _STEP_SECONDS
        while True:
            found, status = os.waitpid(self._tid, os.WNOHANG | _WALL)
            if found and os.WIFSTOPPED(status):
                return status >> 16, os.WSTOPSIG(status)
            if found:
                raise ProcessLookupError(f"process {self._pid} has ended")
            if time.monotonic() >= end:
                raise TimeoutError(f"thread {self._tid} did not stop within {_STEP_SECONDS:g} s")
            time.sleep(_POLL_SECONDS)

    def _registers(self) -> ctypes.Array[ctypes.c_uint64]:
        registers = Registers()
        vector = _Vector(ctypes.addressof(registers), ctypes.sizeof(registers))
        self._ptrace(_GETREGSET, "keeps its registers to itself", _PRSTATUS, _address(vector))
        if vector.length != ctypes.sizeof(registers):
            raise OSError(f"process {self._pid} is a 32-bit process")
        return registers

    def _put(self, registers: ctypes.Array[ctypes.c_uint64]) -> None:
        vector = _Vector(ctypes.addressof(registers), ctypes.sizeof(registers))
        self._ptrace(_SETREGSET, "keeps its registers", _PRSTATUS, _address(vector))

    def _find_syscall(self, registers: ctypes.Array[ctypes.c_uint64]) -> int:
        """Address of a system call instruction: the one it is in, or one of the vDSO. Raises OSError."""
        with open(f"/proc/{self._pid}/mem", "rb", buffering=0) as memory:
            at = registers[_RIP] - len(_SYSCALL)
            with contextlib.suppress(OSError, OverflowError):
                memory.seek(at)
                if memory.read(len(_SYSCALL)) == _SYSCALL:
                    return int(at)
            with open(f"/proc/{self._pid}/maps", errors="replace") as maps:
                vdso = re.search(r"^([0-9a-f]+)-([0-9a-f]+) r-x.*\[vdso\]$", maps.read(), re.MULTILINE)
            if vdso is not None:
                start, end = int(vdso[1], 16), int(vdso[2], 16)
                memory.seek(start)
                found = memory.read(end - start).find(_SYSCALL)
                if found >= 0:
                    return start + found
        raise OSError(f"no system call instruction was found in process {self._pid}")

    def _ptrace(self, request: int, problem: str, address: int = 0, data: int = 0) -> None:
        if _libc.ptrace(request, self._tid, address, data) == -1:
            number = ctypes.get_errno()
            raise OSError(number, f"process {self._pid} {problem} ({os.strerror(number)})")


def _address(thing: ctypes.Structure | ctypes.Array[ctypes.c_char]) -> int:
    return ctypes.addressof(thing)


def _first_thread(pid: int) -> int:
    """The first thread that has not ended: the main one, as a rule. Raises OSError."""
    try:
        for tid in sorted(map(int, os.listdir(f"/proc/{pid}/task"))):  # noqa: PTH208 - numbers
            if _status(tid).get("State", "X")[0] not in "ZX":
                return tid
    except FileNotFoundError:
        pass
    raise ProcessLookupError(f"process {pid} has ended")


def _check_status(tid: int) -> None:
    """Raise OSError where injecting would fail, or could harm the process."""
    status = _status(tid)
    if status["State"][0] in "Tt":
        raise OSError(f"thread {tid} is stopped, so that it cannot make a system call")
    if status.get("Seccomp", "0") != "0":
        raise PermissionError(
            f"thread {tid} runs under a seccomp filter, which may end it for a system call it does not know"
        )
    if int(status["SigIgn"], 16) >> (signal.SIGTRAP - 1) & 1:
        raise OSError(f"thread {tid} ignores SIGTRAP, which a step would change")


def _status(tid: int) -> dict[str, str]:
    with open(f"/proc/{tid}/status", errors="replace") as file:
        return {name: value.strip() for name, _, value in (line.partition(":") for line in file)}

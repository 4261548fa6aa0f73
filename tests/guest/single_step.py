"""Hold another process between any two of its instructions, by ptrace."""

from __future__ import annotations

import ctypes
import os
import signal

_SINGLESTEP, _SEIZE, _INTERRUPT = 9, 0x4206, 0x4207
_EXITKILL = 0x100000
_WALL = 0x40000000

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
_libc.ptrace.restype = ctypes.c_long


def _ptrace(request: int, pid: int, data: int = 0) -> None:
    if _libc.ptrace(request, pid, None, data) == -1:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))


def hold(pid: int) -> None:
    """Stop the process at whatever instruction it is; it dies with this one. Raises PermissionError."""
    _ptrace(_SEIZE, pid, _EXITKILL)
    _ptrace(_INTERRUPT, pid)
    _wait(pid)


def step(pid: int) -> None:
    """Let it do one instruction."""
    _ptrace(_SINGLESTEP, pid)
    _wait(pid)


def _wait(pid: int) -> None:
    _, status = os.waitpid(pid, _WALL)
    assert os.WIFSTOPPED(status), f"process {pid} ended with status {status}"
    assert os.WSTOPSIG(status) == signal.SIGTRAP

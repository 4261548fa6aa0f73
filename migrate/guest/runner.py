"""The running guest: the loops in C in slices of a few milliseconds, and between them what a process needs.

    open files (made or resumed) → finish the write in flight → slices until SIGTERM, SIGINT or the duration
    → every page whole, the witness written, files closed

SIGSTOP may come at any instruction and SIGCONT goes on as if nothing had been. SIGTSTP stops the guest too,
but between two page writes: each of them is marked in the dirty log then, if there is one.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from migrate.errors import MigrateError, RamError, VerifyError
from migrate.guest._native import Guest, catch_sigbus, offer_tracking
from migrate.guest.checker import describe_fault, native_model, require_readable_state
from migrate.guest.ram_files import RamFiles
from migrate.guest.witness import line_prefix

SLICE_NS = 5_000_000
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGTSTP)


@dataclass(frozen=True, slots=True)
class RunOptions:
    """What is not part of the guest's state and may differ from run to run."""

    host: str
    rate: int | None = None
    """Page writes a second instead of what RAM says; 0 = as fast as it can."""
    witness: Path | None = None
    pidfile: Path | None = None
    ready_file: Path | None = None
    dirty_logs: Sequence[Path] = ()
    """One for each block, or none: bitmaps of what it writes, made where they are missing."""
    duration: float | None = None
    """Seconds; None: until a signal."""


@dataclass(frozen=True, slots=True)
class RunSummary:
    """How a run went."""

    ended_by: str
    """SIGTERM, SIGINT or duration."""
    beat: int
    writes: int
    """Page writes over the guest's whole life."""
    writes_this_run: int
    seconds: float
    """Wall time of this run."""


def run_guest(files: RamFiles, options: RunOptions, on_ready: Callable[[int], None]) -> RunSummary:
    """Run the guest on these files until it is told to end.

    Args:
        files: made by `RamFiles.create` or opened by `RamFiles.resume`; stay open.
        options: see `RunOptions`.
        on_ready: called once with the beat when RAM is filled and the guest beats; must not raise.

    Raises VerifyError: a page is not as this guest left it (at the start: the page in flight). RamError:
    state page or headers are unfit. MigrateError: witness, dirty log, pid or ready file cannot be written.
    """
    state = require_readable_state(files)
    catch_sigbus()
    with ExitStack() as stack:
        with contextlib.suppress(
            OSError
        ):  # this kernel or its rules do not have it; whoever asks will say so
            stack.callback(os.close, offer_tracking())
        ended_by = stack.enter_context(_signals())
        witness = _open_witness(options.witness, stack)
        maps = files.map()
        for mapping in maps:
            stack.callback(mapping.close)
        block_pages = files.layout.block_pages
        logs = [_map_log(path, n, stack) for path, n in zip(options.dirty_logs, block_pages, strict=False)]
        guest = Guest(
            native_model(files.layout),
            maps,
            rate=files.layout.rate if options.rate is None else options.rate,
            witness=witness,
            witness_prefix=line_prefix(files.layout.guest_id, options.host),
            logs=logs,
        )
        stack.callback(guest.close)  # before the mappings, which cannot be closed while it has them
        if guest.recover() < 0:
            raise _fault(guest, files, "the page of the write in flight cannot be finished")
        if options.pidfile is not None:
            _write_file(options.pidfile, f"{os.getpid()}\n")
            stack.callback(options.pidfile.unlink, missing_ok=True)
        begin, begin_writes, ready = time.monotonic_ns(), guest.writes, False
        end = None if options.duration is None else begin + int(options.duration * 1e9)
        while True:
            if ended_by and ended_by[0] == signal.SIGTSTP.name:
                del ended_by[0]
                os.kill(os.getpid(), signal.SIGSTOP)
                continue
            if ended_by:
                break
            now = time.monotonic_ns()
            if end is not None and now >= end:
                ended_by.append("duration")
                break
            try:
                whole = guest.run(now + SLICE_NS if end is None else min(now + SLICE_NS, end))
            except OSError as error:
                raise MigrateError(
                    f"the witness log {options.witness} cannot be written: {error.strerror}",
                    guest="it ended between two page writes and can be resumed",
                ) from error
            if not whole:
                raise _fault(guest, files, "a page changed that only this guest may change")
            if not ready and guest.beat > state.beat and guest.writes >= files.layout.fill_writes:
                ready = True
                if options.ready_file is not None:
                    _write_file(options.ready_file, f"{os.getpid()}\n")
                on_ready(guest.beat)
        seconds = (time.monotonic_ns() - begin) / 1e9
        return RunSummary(ended_by[0], guest.beat, guest.writes, guest.writes - begin_writes, seconds)


@contextmanager
def _signals() -> Iterator[list[str]]:
    """Names of the signals that asked for the end, or a stop, in order."""
    received: list[str] = []

    def handler(number: int, frame: FrameType | None) -> None:
        del frame
        received.append(signal.Signals(number).name)

    before = {number: signal.signal(number, handler) for number in _SIGNALS}
    try:
        yield received
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)


def _open_witness(path: Path | None, stack: ExitStack) -> int:
    if path is None:
        return -1
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise MigrateError(f"the witness log {path} cannot be opened: {error.strerror}") from error
    stack.callback(os.close, fd)
    return fd


def _map_log(path: Path, pages: int, stack: ExitStack) -> mmap.mmap:
    """The dirty log of a block, made or grown as need be."""
    length = -(-pages // 64) * 8
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if os.fstat(fd).st_size < length:
                os.ftruncate(fd, length)
            return stack.enter_context(mmap.mmap(fd, length))
        finally:
            os.close(fd)
    except OSError as error:
        raise MigrateError(f"the dirty log {path} cannot be made: {error.strerror}") from error


def _write_file(path: Path, text: str) -> None:
    """Whole or not at all: somebody waits for the file and reads it at once."""
    unfinished = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        unfinished.write_text(text)
        unfinished.replace(path)
    except OSError as error:
        unfinished.unlink(missing_ok=True)
        raise MigrateError(f"{path} cannot be written: {error.strerror}") from error


def _fault(guest: Guest, files: RamFiles, what: str) -> MigrateError:
    if guest.fault is None:
        return RamError("the guest's state does not fit together")
    fault = describe_fault(guest.fault, files.paths)
    return VerifyError(
        f"{what}: {fault.kind}: {fault.text}",
        guest="it stopped before it wrote there",
        hint="migrate-guest --check --ram … tells more; does somebody else write to this RAM?",
    )

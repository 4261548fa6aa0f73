"""Hooks are real shells: their environment, their end, their output, and what they leave running."""

from __future__ import annotations

import asyncio
import os
import select
import signal
from pathlib import Path

import pytest

from migrate.daemon.hooks import TAIL_BYTES, HookError, hook_environment, run_hook
from migrate.errors import GuestError


def wait_gone(pid: int) -> None:
    """Until the process has ended, whoever its parent is."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        assert select.select([pidfd], [], [], 30)[0], f"process {pid} is still there"
    finally:
        os.close(pidfd)


def is_there(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] not in "ZX"
    except FileNotFoundError:
        return False


async def test_the_environment_of_the_contract(tmp_path: Path) -> None:
    environment = hook_environment(
        migration_id="c0ffee",
        attempt=2,
        side="source",
        ram={"pc.ram": tmp_path / "a", "vga.vram-1": tmp_path / "b", "PC_RAM": tmp_path / "c"},
        state_dir=tmp_path,
        guest_pid=77,
    )
    names = ["ID", "ATTEMPT", "SIDE", "RAM", "RAM_PC_RAM", "RAM_VGA_VRAM_1", "STATE_DIR", "GUEST_PID"]
    command = "; ".join(f'echo "$MIGRATE_{name}"' for name in names)
    ran = await run_hook("--on-prepare", command + '; echo "$PATH"', environment, 30.0)
    assert ran.output.split("\n") == [
        "c0ffee",
        "2",
        "source",
        f"{tmp_path}/a",
        f"{tmp_path}/a",  # of two names that read alike the first counts
        f"{tmp_path}/b",
        str(tmp_path),
        "77",
        os.environ["PATH"],
    ]


def test_what_is_unknown_is_not_in_the_environment() -> None:
    environment = hook_environment(migration_id="1", attempt=1, side="destination", ram={})
    assert sorted(environment) == ["MIGRATE_ATTEMPT", "MIGRATE_ID", "MIGRATE_SIDE"]


async def test_a_failure_is_told_with_status_command_and_what_it_said() -> None:
    with pytest.raises(HookError) as caught:
        await run_hook("--on-commit", "echo out; echo no such disk >&2; exit 42", {}, 30.0)
    error = caught.value
    assert isinstance(error, GuestError)
    assert (error.status, error.output) == (42, "out\nno such disk")
    assert "--on-commit ended with status 42" in error.message
    assert "exit 42" in error.message
    assert "no such disk" in error.message


async def test_an_end_by_signal_is_named() -> None:
    with pytest.raises(HookError, match="was ended by signal SIGSEGV") as caught:
        await run_hook("--state-cmd", "kill -SEGV $$", {}, 30.0)
    assert caught.value.status == -signal.SIGSEGV


async def test_only_the_end_of_much_output_is_kept() -> None:
    ran = await run_hook("--on-prepare", "yes x | head -c 1000000 >&2; echo; echo end >&2", {}, 30.0)
    assert ran.output.endswith("x\n\nend")
    assert TAIL_BYTES - 2 <= len(ran.output) <= TAIL_BYTES


async def test_output_cannot_play_tricks_with_a_terminal() -> None:
    ran = await run_hook("--on-prepare", r"printf 'a\033[2Jb\377c\tz'", {}, 30.0)
    assert ran.output == "a\ufffd[2Jb\ufffdc\tz"


async def test_a_guest_in_the_background_is_neither_waited_for_nor_ended() -> None:
    """It even holds the hook's output open."""
    ran = await run_hook("--on-commit", "sleep 600 & echo $!", {}, 30.0)
    guest = int(ran.output)
    try:
        assert is_there(guest)
    finally:
        os.kill(guest, signal.SIGKILL)
    wait_gone(guest)


async def test_a_guest_in_the_background_survives_a_status_that_is_not_0() -> None:
    with pytest.raises(HookError) as caught:
        await run_hook("--on-commit", "sleep 600 & echo $!; exit 1", {}, 30.0)
    guest = int(caught.value.output)
    try:
        assert is_there(guest)
    finally:
        os.kill(guest, signal.SIGKILL)
    wait_gone(guest)


async def test_a_hook_that_takes_too_long_is_ended_with_all_it_started() -> None:
    with pytest.raises(HookError, match=r"--on-prepare took longer than 0\.2 s and was ended") as caught:
        await run_hook("--on-prepare", "sleep 600 & echo $$ $!; wait", {}, 0.2)
    assert caught.value.status is None
    for pid in map(int, caught.value.output.split()):
        wait_gone(pid)


async def test_a_hook_that_ignores_the_polite_signal_is_ended_too() -> None:
    with pytest.raises(HookError, match="took longer") as caught:
        await run_hook("--on-prepare", "trap '' TERM; echo $$; while :; do sleep 600; done", {}, 0.2)
    wait_gone(int(caught.value.output))


async def test_a_cancelled_hook_is_ended_with_all_it_started(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    command = f"sleep 600 & echo $$ $! > {pipe}; wait"
    running = asyncio.create_task(run_hook("--on-prepare", command, {}, 600.0))
    pids = await asyncio.to_thread(pipe.read_text)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    for pid in map(int, pids.split()):
        wait_gone(pid)


async def test_a_hook_has_a_session_of_its_own_and_none_of_our_files(tmp_path: Path) -> None:
    with (tmp_path / "ram").open("wb") as ram:  # a lock on it must not live on in the guest
        ran = await run_hook(
            "--on-commit", "cut -d' ' -f6 /proc/$$/stat; echo $$; ls -l /proc/$$/fd", {}, 30.0
        )
        assert ram.fileno() > 2
    session, shell, *files = ran.output.split("\n")
    assert session == shell
    assert str(tmp_path) not in "".join(files)


async def test_what_cannot_be_started_is_said() -> None:
    with pytest.raises(HookError, match="--state-cmd could not be started") as caught:
        await run_hook("--state-cmd", "true", {"HUGE": "x" * (1 << 20)}, 30.0)
    assert caught.value.status is None


async def test_hooks_run_beside_each_other() -> None:
    """One waits for the other through a pipe: the event loop is not held up by either."""
    read, write = os.pipe()
    try:
        paths = {"IN": f"/proc/{os.getpid()}/fd/{read}", "OUT": f"/proc/{os.getpid()}/fd/{write}"}
        both = await asyncio.gather(
            run_hook("first", 'read line < "$IN"; echo "$line"', paths, 30.0),
            run_hook("second", 'echo hello > "$OUT"', paths, 30.0),
        )
    finally:
        os.close(read)
        os.close(write)
    assert both[0].output == "hello"

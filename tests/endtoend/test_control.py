"""Both daemons driven over their control sockets by QEMU's own client, unmodified."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from qemu.qmp import ExecuteError, QMPClient

from bench.lab import Lab, Program

OVER = {"completed", "failed", "cancelled"}


class Operator:
    """One client, and every event it was sent."""

    def __init__(self, client: QMPClient) -> None:
        self.client = client

    async def ask(self, command: str, **arguments: object) -> Any:
        """A command's value; `_` in an argument's name reads as `-`."""
        given = {name.replace("_", "-"): value for name, value in arguments.items()}
        return await self.client.execute(command, given or None)

    async def event(self, name: str, **data: object) -> dict[str, Any]:
        """The next event of that name with these data; the ones before it are dropped."""
        seen = []
        try:
            async with asyncio.timeout(20):
                async for event in self.client.events:
                    if event["event"] == name and data.items() <= event["data"].items():
                        assert event["timestamp"].keys() == {"seconds", "microseconds"}
                        return dict(event["data"])
                    seen.append((event["event"], event["data"]))
        except TimeoutError:
            pass
        raise AssertionError(f"no event {name} {data}; there were {seen}")

    async def end(self) -> str:
        """How the migration ends."""
        while True:
            status = (await self.event("MIGRATION"))["status"]
            if status in OVER:
                return str(status)


@contextlib.asynccontextmanager
async def operator(path: Path) -> AsyncIterator[Operator]:
    """A client that is connected and has negotiated."""
    client = QMPClient("test")
    await client.connect(str(path))
    try:
        yield Operator(client)
    finally:
        with contextlib.suppress(EOFError):  # how it tells that the daemon, asked to quit, has closed first
            await client.disconnect()


def idle_source(lab: Lab, guest: Program, path: Path, *options: str) -> Program:
    """A source that waits for `migrate`."""
    ram = [f"--ram={name}={file}" for name, file in lab.source_ram.items()]
    source = lab.run("migrate-src", *ram, f"--guest-pid={guest.pid}", f"--control={path}", *options)
    source.wait_event("control")
    return source


def port_of(destination: Program) -> int:
    return int(destination.wait_event("listening")["port"])


async def test_start_watch_change_cancel_and_retry(lab: Lab, shm_dir: Path) -> None:
    guest = lab.start_guest()
    destination = lab.start_destination(f"--control={shm_dir / 'dst'}")
    uri = f"tcp:127.0.0.1:{port_of(destination)}"
    source = idle_source(lab, guest, shm_dir / "src", "--max-bandwidth=4M")
    async with operator(shm_dir / "src") as src, operator(shm_dir / "dst") as dst:
        assert (await src.ask("query-migrate"))["status"] == "none"
        assert await src.ask("query-status") == {"running": True, "status": "running"}
        assert await dst.ask("query-status") == {"running": False, "status": "inmigrate"}

        with socket.socket() as unused:  # nobody listens there: it fails, and may be begun again
            unused.bind(("127.0.0.1", 0))
            await src.ask("migrate", uri=f"tcp:127.0.0.1:{unused.getsockname()[1]}")
            assert await src.end() == "failed"
        failed = await src.ask("query-migrate")
        assert failed["status"] == "failed" and "Connection refused" in failed["error-desc"]

        await src.ask("migrate", uri=uri)
        await src.event("MIGRATION", status="active")
        await src.event("MIGRATION_PASS", **{"pass": 1})
        with pytest.raises(ExecuteError, match="under way already"):
            await src.ask("migrate", uri=uri)
        report = await src.ask("query-migrate")
        assert report["status"] == "active" and report["ram"]["total"] == 16 << 20
        assert report["ram"]["dirty-sync-count"] == 1 and report["expected-downtime"] > 0
        await dst.event("MIGRATION", status="active")
        assert (await dst.ask("query-migrate"))["status"] == "active"
        await src.ask("migrate_cancel")
        assert await src.end() == "cancelled"
        assert await dst.end() == "cancelled"
        assert (await src.ask("query-migrate"))["error-desc"].startswith("cancelled")
        assert not lab.is_stopped(guest)

        await src.ask("migrate-set-parameters", max_bandwidth=0, downtime_limit=2000, max_rounds=99)
        assert await src.ask("query-migrate-parameters") == {
            "downtime-limit": 2000, "max-bandwidth": 0, "avail-switchover-bandwidth": 0,
            "xbzrle-cache-size": 64 << 20, "max-rounds": 99, "throttle": "off",
            "cpu-throttle-initial": 20, "cpu-throttle-increment": 10, "max-cpu-throttle": 99,
        }  # fmt: skip
        await src.ask("migrate", uri=uri)
        assert await src.end() == "completed"
        assert await dst.end() == "completed"
        report = await src.ask("query-migrate")
        assert report["status"] == "completed" and report["downtime"] > 0 and "error-desc" not in report
        assert (await src.ask("query-status"))["status"] == "postmigrate"
        assert await dst.ask("query-status") == {"running": True, "status": "running", "assumed": True}
        with pytest.raises(ExecuteError, match="handed over"):
            await src.ask("migrate", uri=uri)
        await src.ask("quit")
        await dst.ask("quit")
        assert await asyncio.to_thread(source.wait) == 0, source.story()
        assert await asyncio.to_thread(destination.wait) == 0, destination.story()
    assert not (shm_dir / "src").exists() and not (shm_dir / "dst").exists()
    lab.end_arrived_guest()
    lab.check_guest(lab.destination_ram)
    lab.check_witness()


async def test_the_guest_of_an_idle_source(lab: Lab, shm_dir: Path) -> None:
    """What `query-status` says is what the process does; where there is none to look at, it says so."""
    guest = lab.start_guest()
    idle_source(lab, guest, shm_dir / "seen")
    ram = [f"--ram={name}={file}" for name, file in lab.source_ram.items()]
    blind = lab.run("migrate-src", *ram, f"--control={shm_dir / 'blind'}")
    blind.wait_event("control")
    async with operator(shm_dir / "seen") as seen, operator(shm_dir / "blind") as other:
        assert await seen.ask("query-status") == {"running": True, "status": "running"}
        guest.signal(signal.SIGSTOP)
        await asyncio.to_thread(os.waitid, os.P_PID, guest.pid, os.WSTOPPED | os.WNOWAIT)
        assert await seen.ask("query-status") == {"running": False, "status": "paused"}
        guest.signal(signal.SIGCONT)
        assert await seen.ask("query-status") == {"running": True, "status": "running"}
        assert await other.ask("query-status") == {"running": True, "status": "running", "assumed": True}
        guest.kill()
        assert await seen.ask("query-status") == {"running": False, "status": "shutdown"}
        with pytest.raises(ExecuteError, match="the guest died"):
            await seen.ask("migrate", uri="tcp:127.0.0.1:1")
    gone = lab.run("migrate-src", *ram, f"--guest-pid={guest.pid}", f"--control={shm_dir / 'gone'}")
    assert await asyncio.to_thread(gone.wait) == 6
    assert not (shm_dir / "gone").exists()


async def test_the_pause_comes_when_it_is_asked_for(lab: Lab, shm_dir: Path) -> None:
    guest = lab.start_guest("--workload=kv", "--rate=20000")
    destination = lab.start_destination("--once")
    options = (
        "--max-bandwidth=8M",
        "--downtime-limit=0",
        "--max-rounds=1000",
        f"--control={shm_dir / 'src'}",
    )
    source = lab.start_source(port_of(destination), guest, *options)
    source.wait_event("status", lambda event: event["new"] == "active")
    async with operator(shm_dir / "src") as src:
        await src.ask("migrate-set-parameters", avail_switchover_bandwidth=1 << 30)
        await src.ask("migrate-pause")
        assert await src.end() == "completed"
    assert await asyncio.to_thread(source.wait) == 0, source.story()
    assert await asyncio.to_thread(destination.wait) == 0
    lab.end_arrived_guest()
    lab.check_guest(lab.destination_ram)
    lab.check_witness()


async def test_the_page_cache_changes_its_size_on_the_way(lab: Lab, shm_dir: Path) -> None:
    """Larger, more than is allowed, smaller, none; the migration goes on and arrives whole."""
    guest = lab.start_guest("--workload=kv", "--rate=2000")
    destination = lab.start_destination("--once", "--xbzrle-cache-limit=32M", f"--control={shm_dir / 'dst'}")
    options = ("--lanes=2", "--downtime-limit=0", "--max-rounds=100000", "--xbzrle-cache-size=4M")
    source = lab.start_source(port_of(destination), guest, *options, f"--control={shm_dir / 'src'}")
    source.wait_event("status", lambda event: event["new"] == "active")
    async with operator(shm_dir / "src") as src, operator(shm_dir / "dst") as dst:
        in_force = 4 << 20
        for size in (16 << 20, 64 << 20, 1 << 20, 0, 8 << 20):
            await src.ask("migrate-set-parameters", xbzrle_cache_size=size)
            told = await src.event("MIGRATION_CACHE", size=size)
            assert (await src.ask("query-migrate-parameters"))["xbzrle-cache-size"] == size
            if size > 32 << 20:
                assert "--xbzrle-cache-limit" in told["hint"]
            else:
                assert told["before"] == in_force
                in_force = size
                assert await dst.event("MIGRATION_CACHE", size=size)
            report = await src.ask("query-migrate")
            assert report.get("xbzrle-cache", {"cache-size": 0})["cache-size"] == in_force
        await src.ask("migrate-set-parameters", downtime_limit=5000)
        assert await src.end() == "completed"
    assert await asyncio.to_thread(source.wait) == 0, source.story()
    assert source.summary["lane-resets"] == 0, "the two caches never differed"
    assert await asyncio.to_thread(destination.wait) == 0
    lab.end_arrived_guest()
    lab.check_guest(lab.destination_ram)
    lab.check_witness()


async def test_quit_ends_what_is_under_way(lab: Lab, shm_dir: Path) -> None:
    guest = lab.start_guest()
    destination = lab.start_destination(f"--control={shm_dir / 'dst'}")
    source = idle_source(lab, guest, shm_dir / "src", "--max-bandwidth=4M")
    async with operator(shm_dir / "src") as src, operator(shm_dir / "dst") as dst:
        with pytest.raises(ExecuteError, match="no rounds"):
            await src.ask("migrate-pause")
        with pytest.raises(ExecuteError, match="--max-bandwidth"):
            await src.ask("migrate-set-parameters", max_bandwidth=7)
        with pytest.raises(ExecuteError, match="HOST:PORT"):
            await src.ask("migrate", uri="exec:cat")
        with pytest.raises(ExecuteError, match="not been found"):
            await dst.ask("migrate", uri="x:1")
        await src.ask("migrate_cancel")
        await src.ask("migrate", uri=f"127.0.0.1:{port_of(destination)}")
        await src.event("MIGRATION_PASS")
        await dst.ask("quit")
        assert await src.end() in OVER - {"completed"}
        await src.ask("quit")
    assert await asyncio.to_thread(destination.wait) == 130, destination.story()
    assert await asyncio.to_thread(source.wait) == 0, source.story()
    assert not lab.is_stopped(guest)

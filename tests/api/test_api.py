"""The library in a program of one's own: guests in the same process, events, cancels, errors."""

from __future__ import annotations

import asyncio
import inspect
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from machine import Machine, machines

import migrate
from migrate import Address, DestinationConfig, RamSpec, Receiver, SourceConfig, send
from migrate.api.run import MOST_EVENTS, Run
from migrate.protocol.stats import MigrationStats

README = Path(__file__).parents[2] / "README.md"


async def move(here: Machine, there: Machine, **options: Any) -> migrate.Result:
    """Move a machine and look that it goes on."""
    async with Receiver(there.destination(), guest=there) as receiver:
        result = await send(here.source(await receiver.address(), **options), guest=here)
        assert (await receiver).outcome == "completed"
    assert not here.runs
    assert here.calls[-2:] == ["pause", "state"]
    assert there.calls == ["load", "run"]
    await there.goes_on()
    there.check()
    return result


async def test_a_machine_goes_on_in_another_place() -> None:
    async with machines(2) as (here, there):
        result = await move(here, there, downtime_limit_ms=1000)
        assert (result.outcome, result.guest) == ("completed", "the guest runs at the destination")
        ram = result.statistics["ram"]
        assert isinstance(ram, Mapping) and ram["total"] == 1 << 20


async def test_two_moves_at_once_in_one_loop() -> None:
    async with machines(4) as (one, two, one_there, two_there):
        moves = (
            move(one, one_there, lanes=2, downtime_limit_ms=2000),
            move(two, two_there, xbzrle_cache_size=0, downtime_limit_ms=2000, verify="full"),
        )
        first, second = await asyncio.gather(*moves)
        assert first.statistics["verify"] == "ram"
        assert second.statistics["verify"] == "full"


async def test_events_are_what_the_command_prints() -> None:
    async with machines(2) as (here, there), Receiver(there.destination(), guest=there) as receiver:
        migration = send(here.source(await receiver.address(), downtime_limit_ms=1000), guest=here)
        events = [event async for event in migration]
        names = [event.name for event in events]
        assert names.index("tracker") < names.index("round") < names.index("paused") < names.index("running")
        assert names[-1] == "summary"
        assert (await migration).statistics == events[-1].fields
        assert {event.fields["status"] for event in events if event.name == "progress"} <= {
            "setup", "active", "device", "completed",
        }  # fmt: skip
        assert [event.name async for event in migration] == []
        arrived = [event.name async for event in receiver]
        assert arrived[0] == "listening" and "committed" in arrived


async def test_what_nobody_reads_does_not_grow() -> None:
    stats = MigrationStats(total=1 << 20)
    stats.start(0.0)

    async def start(reporter: migrate.Reporter) -> None:
        for now in (1.0, 2.0, 3.0):
            reporter.progress(stats, now)
        reporter.event("status")
        reporter.progress(stats, 4.0)

    run = Run("source", start, None)
    assert (await run).outcome == "none"
    events = [event async for event in run]
    assert [event.name for event in events] == ["progress", "status", "progress"]
    assert events[0].fields["total-time"] == 3000

    async def start_more(reporter: migrate.Reporter) -> None:
        for number in range(MOST_EVENTS + 5):
            reporter.event("status", number=number)

    run = Run("source", start_more, None)
    await run
    assert [event.fields["number"] async for event in run] == list(range(5, MOST_EVENTS + 5))


@pytest.mark.parametrize("way", ["method", "task", "block", "timeout"])
async def test_a_cancel_leaves_the_guest_running_here(way: str) -> None:
    async with machines(2) as (here, there), Receiver(there.destination(), guest=there) as receiver:
        migration = send(here.source(await receiver.address(), max_bandwidth=20_000), guest=here)
        async for event in migration:
            if event.name == "status" and event.fields["new"] == "active":
                break
        if way == "method":
            migration.cancel("enough of it")
            migration.cancel("again")
        elif way == "block":
            async with migration:
                pass
        with pytest.raises(migrate.CancelledMigration) as caught:
            if way == "task":
                waiting = asyncio.ensure_future(_wait(migration))
                await asyncio.sleep(0)
                waiting.cancel()
                await waiting
            elif way == "timeout":
                async with asyncio.timeout(0.01):
                    await migration
            else:
                await migration
        assert migration.done
        assert caught.value.guest == "the guest runs at the source as before"
        assert caught.value.side == "source"
        if way == "method":
            assert "enough of it" in caught.value.message
        with pytest.raises(migrate.CancelledMigration, match="the source cancelled") as caught:
            await receiver
        assert "pause" not in here.calls
        await here.goes_on()
        here.check()
        assert there.calls == []


async def _wait(migration: migrate.Migration) -> migrate.Result:
    return await migration


async def test_a_cancel_before_the_first_step() -> None:
    async with machines(2) as (here, _):
        migration = send(here.source(Address("127.0.0.1", 1)), guest=here)
        migration.cancel("not now")
        with pytest.raises(migrate.CancelledMigration, match="not now"):
            await migration
        assert [event async for event in migration] == []
        receiver = Receiver(_.destination(), guest=_)
        receiver.cancel()
        with pytest.raises(migrate.CancelledMigration):
            await receiver.address()


async def test_a_destination_that_fails_after_the_pause_leaves_the_guest_here() -> None:
    async with machines(2) as (here, there):

        async def load(state: Mapping[str, bytes]) -> None:
            raise OSError("no such device")

        there.load = load  # type: ignore[method-assign]
        async with Receiver(there.destination(), guest=there) as receiver:
            with pytest.raises(migrate.GuestError) as caught:
                await send(here.source(await receiver.address(), downtime_limit_ms=1000), guest=here)
            with pytest.raises(migrate.GuestError):
                await receiver
        error = caught.value
        assert "the guest's load() raised OSError: no such device" in error.message
        assert (error.side, error.exit_code) == ("destination", 6)
        assert error.guest == "the guest runs at the source as before"
        assert error.as_dict()["class"] == "GuestError"
        assert here.calls == ["pause", "state", "resume"]
        await here.goes_on()
        here.check()
        assert there.calls == []


@pytest.mark.parametrize(
    ("state", "text"),
    [
        ({"a/b": b""}, "names are"),
        ({"cpu": "text"}, "not bytes with a name"),
        ({7: b""}, "not bytes with a name"),
        ({f"piece{n}": b"" for n in range(65)}, "65 pieces"),
        (["cpu"], "gave list, not a mapping"),
        (ValueError("no state today"), "state() raised ValueError: no state today"),
    ],
    ids=str,
)
async def test_device_state_that_cannot_be(state: Any, text: str) -> None:
    async with machines(2) as (here, there):

        async def bad_state() -> Any:
            if isinstance(state, Exception):
                raise state
            return state

        here.state = bad_state  # type: ignore[method-assign]
        async with Receiver(there.destination(), guest=there) as receiver:
            with pytest.raises(migrate.GuestError) as caught:
                await send(here.source(await receiver.address(), downtime_limit_ms=1000), guest=here)
        assert text in caught.value.message
        assert caught.value.guest == "the guest runs at the source as before"
        assert here.calls == ["pause", "resume"]
        await here.goes_on()


async def test_a_pause_that_never_ends_is_taken_back() -> None:
    async with machines(2) as (here, there):

        async def pause() -> None:
            here.calls.append("pause")
            await asyncio.Event().wait()

        here.pause = pause  # type: ignore[method-assign]
        async with Receiver(there.destination(), guest=there) as receiver:
            config = here.source(await receiver.address(), downtime_limit_ms=1000, keepalive_timeout=0.3)
            with pytest.raises(migrate.GuestError, match=r"the guest's pause\(\) took longer than 0\.3 s"):
                await send(config, guest=here)
        assert here.calls == ["pause", "resume"] * 4
        await here.goes_on()
        here.check()


async def test_a_guest_of_our_own_excludes_other_ways() -> None:
    async with machines(2) as (here, there):
        with pytest.raises(migrate.UsageError, match="excludes guest_pid"):
            await send(here.source(Address("127.0.0.1", 1), guest_pid=1), guest=here)
        receiver = Receiver(there.destination(on_commit="true"), guest=there)
        with pytest.raises(migrate.UsageError, match="excludes on_prepare"):
            await receiver.address()


async def test_errors_are_those_of_the_command(shm_dir: Path) -> None:
    config = SourceConfig(Address("127.0.0.1", 1), (RamSpec("ram", shm_dir / "none"),))
    with pytest.raises(migrate.RamError, match="does not exist") as caught:
        await send(config)
    assert caught.value.hint is not None
    with pytest.raises(migrate.UsageError, match="--ram"):
        SourceConfig(Address("127.0.0.1", 1), ())
    async with Receiver(DestinationConfig(Address("127.0.0.1", 0))) as receiver:
        taken = await receiver.address()
        with pytest.raises(migrate.MigrateError, match="in use"):
            await Receiver(DestinationConfig(taken)).address()


def test_importing_costs_nothing() -> None:
    code = (
        "import sys, migrate; migrate.SourceConfig; assert not {'asyncio', 'migrate.kernel'} & {*sys.modules}"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_public_name_is_there_and_explained() -> None:
    assert set(migrate.__all__) == set(dir(migrate))
    for name in migrate.__all__:
        value = getattr(migrate, name)
        if name != "__version__":
            assert inspect.getdoc(value), name
            methods = [m for n, m in vars(value).items() if not n.startswith("_") and inspect.isfunction(m)]
            assert not [method for method in methods if not method.__doc__], name
    with pytest.raises(AttributeError):
        migrate.nothing_of_the_kind  # noqa: B018


def test_the_example_of_the_readme_runs() -> None:
    example = README.read_text().split("## From Python")[1].split("```python\n")[1].split("```")[0]
    ran = subprocess.run(
        [sys.executable, "-c", example], capture_output=True, text=True, check=False, timeout=60
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.endswith("the guest runs at the destination\n")

"""Both daemons with a guest on a socket that does what it should not: bounded, one clear error, one owner."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import re
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from scripted_guest import BYTES, Reply, ScriptedGuest, says, scripted_guest

import migrate
from migrate import Address, DestinationConfig, Receiver, SourceConfig, send

RAM = f"ok\nram ram {BYTES}"
LOCAL = Address("127.0.0.1", 0)


@pytest.fixture(autouse=True)
def what_a_guest_gave_is_closed() -> Iterator[None]:
    before = memfds()
    yield
    assert memfds() == before


def memfds() -> int:
    links = [f"/proc/self/fd/{name}" for name in os.listdir("/proc/self/fd")]  # noqa: PTH208
    return sum(os.path.lexists(link) and os.readlink(link).startswith("/memfd:") for link in links)  # noqa: PTH115


def source(path: Path, to: Address, **options: Any) -> SourceConfig:
    return SourceConfig(to, (), guest_socket=path, **{"downtime_limit_ms": 2000, **options})


def destination(path: Path, **options: Any) -> DestinationConfig:
    return DestinationConfig(LOCAL, guest_socket=path, once=True, **options)


@contextlib.asynccontextmanager
async def receiver(path: Path, **options: Any) -> AsyncIterator[Receiver]:
    async with asyncio.timeout(60), Receiver(destination(path, **options)) as made:
        await made.address()
        yield made


async def refused(here: Path, there: Path, text: str) -> None:
    """The destination looks at the guest there when somebody comes, and says no."""
    async with receiver(there) as arriving:
        with pytest.raises(migrate.RefusedError, match=re.escape(text)) as caught:
            await send(source(here, await arriving.address()))
        assert caught.value.guest == "the guest runs at the source as before"


async def test_ram_and_state_move(tmp_path: Path) -> None:
    with scripted_guest(tmp_path / "a") as here, scripted_guest(tmp_path / "b") as there:
        there.state = {}
        here.state = {"cpu0": b"one", "vga": b"", "disk": os.urandom(100_000)}
        async with receiver(there.path) as arriving:
            migration = send(source(here.path, await arriving.address()))
            result = await migration
            assert (await arriving).outcome == "completed"
        assert result.guest == "the guest runs at the destination"
        assert here.calls == ["migrate 1 source", "pause", "state"]
        assert there.calls == ["migrate 1 destination", "load", "run"]
        assert there.state == here.state
        assert os.pread(there.memory, BYTES, 0) == os.pread(here.memory, BYTES, 0)


async def test_ram_that_the_guest_does_not_offer_is_named_by_the_options(shm_dir: Path) -> None:
    file = shm_dir / "named.ram"
    file.write_bytes(os.urandom(BYTES))
    with (
        scripted_guest(shm_dir / "a", migrate=says("ok")) as here,
        scripted_guest(shm_dir / "b", migrate=says("ok")) as there,
    ):
        named = (migrate.RamSpec("ram", shm_dir / "there.ram"),)
        async with Receiver(DestinationConfig(LOCAL, named, guest_socket=there.path, once=True)) as arriving:
            config = SourceConfig(
                await arriving.address(), (migrate.RamSpec("ram", file),), guest_socket=here.path
            )
            await send(config)
            await arriving
        assert (shm_dir / "there.ram").read_bytes() == file.read_bytes()
        with pytest.raises(migrate.UsageError, match="offers no RAM: name it with --ram"):
            await send(source(here.path, Address("127.0.0.1", 1)))
        here.scripts.clear()
        await refused(here.path, there.path, "offers no RAM: name it with --ram")
    with (
        scripted_guest(shm_dir / "c") as both,
        pytest.raises(migrate.UsageError, match="leave out --ram"),
    ):
        await send(SourceConfig(Address("127.0.0.1", 1), named, guest_socket=both.path))


def read_only(guest: ScriptedGuest) -> int:
    fd = os.open(f"/proc/self/fd/{guest.memory}", os.O_RDONLY)
    guest._open.append(fd)
    return fd


def path_only(guest: ScriptedGuest) -> int:
    fd = os.open(f"/proc/self/fd/{guest.memory}", os.O_PATH)
    guest._open.append(fd)
    return fd


def pipe(guest: ScriptedGuest) -> int:
    ends = os.pipe()
    guest._open.extend(ends)
    return ends[0]


def ram(guest: ScriptedGuest) -> int:
    return guest.memory


def unsealed(guest: ScriptedGuest) -> int:
    return guest.memfd("log", bytes(64))


def sealed(guest: ScriptedGuest) -> int:
    fd = guest.memfd("log", bytes(BYTES // 4096 // 8))
    fcntl.fcntl(fd, 1033, 0x0002)  # F_ADD_SEALS, F_SEAL_SHRINK
    return fd


def short(guest: ScriptedGuest) -> int:
    fd = guest.memfd("log", bytes(8))
    fcntl.fcntl(fd, 1033, 0x0002)
    return fd


@pytest.mark.parametrize(
    ("offer", "text"),
    [
        (says("error I am busy"), "answered to 'migrate 1 source': I am busy"),
        (says("yes"), "does not keep to the contract: it answered 'yes'"),
        (says(RAM), "named 1 things and sent 0 descriptors"),
        (says(RAM, ram, ram), "named 1 things and sent 2 descriptors"),
        (says(b"ok" + b"\nx" * 40_000), "sent more than 65536 bytes"),
        (says("ok\nram ram 4096", ram), f"has {BYTES} bytes, not 4096"),
        (says(RAM, pipe), "not a regular file"),
        (says(RAM, path_only), "is not open for reading"),
        (says("ok\nstate cpu", ram), "something else than ram, log and userfaultfd"),
        (says(f"{RAM}\nlog ram", ram, unsealed), "no memfd with F_SEAL_SHRINK"),
        (says(f"{RAM}\nlog ram", ram, short), "has 8 bytes, 32 are needed"),
        (says(f"{RAM}\nlog other", ram, sealed), "not one for each"),
        (lambda guest, _: guest.peer.shutdown(socket.SHUT_RDWR), "has closed its connection"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_an_offer_that_cannot_be_used(tmp_path: Path, offer: Any, text: str) -> None:
    with scripted_guest(tmp_path / "a", migrate=offer) as here:
        with pytest.raises(migrate.GuestError, match=re.escape(text)) as caught:
            await send(source(here.path, Address("127.0.0.1", 1)))
        assert caught.value.side == "source"


async def test_a_destination_does_not_lend_its_rights(tmp_path: Path) -> None:
    """It may be root: what the guest may not write, it must not write for the guest."""
    with (
        scripted_guest(tmp_path / "a") as here,
        scripted_guest(tmp_path / "b", migrate=says(RAM, read_only)) as there,
    ):
        await refused(here.path, there.path, "not open for reading and writing")
        there.scripts["migrate"] = says(RAM, path_only)
        await refused(here.path, there.path, "not open for reading and writing")
        assert set(there.calls) == {"migrate 1 destination"}


@pytest.mark.parametrize("kind", ["none", "stream", "file", "long"])
async def test_nobody_listens_there(tmp_path: Path, kind: str) -> None:
    path = tmp_path / ("x" * 120 if kind == "long" else "a")
    with socket.socket(socket.AF_UNIX) as stream:
        if kind == "stream":
            stream.bind(os.fspath(path))
            stream.listen()
        elif kind == "file":
            path.touch()
        with pytest.raises(migrate.GuestError, match="cannot be connected to") as caught:
            await send(source(path, Address("127.0.0.1", 1)))
        assert "SOCK_SEQPACKET" in str(caught.value.hint)
        with scripted_guest(tmp_path / "here") as here:
            await refused(here.path, path, "cannot be connected to")


async def test_a_guest_that_says_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("migrate.daemon.socket_guest.OFFER_SECONDS", 0.1)
    with (
        scripted_guest(tmp_path / "a", migrate=lambda *_: None) as here,
        pytest.raises(migrate.GuestError, match=r"did not answer to 'migrate 1 source' within 0\.1 s"),
    ):
        await send(source(here.path, Address("127.0.0.1", 1)))


async def fails_at_the_source(
    tmp_path: Path, scripts: dict[str, Any], state: dict[str, bytes] | None = None, **options: Any
) -> tuple[ScriptedGuest, migrate.MigrateError]:
    """A move that fails because of the guest at the source."""
    with scripted_guest(tmp_path / "a", **scripts) as here, scripted_guest(tmp_path / "b") as there:
        here.state = here.state if state is None else state
        async with receiver(there.path) as arriving:
            with pytest.raises(migrate.MigrateError) as caught:
                await send(source(here.path, await arriving.address(), **options))
        assert "run" not in there.calls
        return here, caught.value


@pytest.mark.parametrize(
    ("reply", "text"),
    [
        (says("error not today"), "answered to 'state': not today"),
        (says("ok\nram ram 4096", ram), "something else than at most 64 pieces of state"),
        (says("ok\nstate cpu", pipe), "not a regular file"),
        (says("ok\nstate a/b", ram), "names are"),
        (says("ok\nstate cpu", lambda guest: _large(guest, 65 << 20)), "at most 67108864 bytes a piece"),
        (
            says(
                "ok" + "".join(f"\nstate s{n}" for n in range(5)),
                *[lambda guest: _large(guest, 60 << 20)] * 5,
            ),
            "and 268435456 in all",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_state_that_cannot_be_used(tmp_path: Path, reply: Any, text: str) -> None:
    here, error = await fails_at_the_source(tmp_path, {"state": reply})
    assert isinstance(error, migrate.GuestError)
    assert text in error.message
    assert error.guest == "the guest runs at the source as before"
    assert here.calls[-3:] == ["pause", "state", "resume"]


def _large(guest: ScriptedGuest, length: int) -> int:
    fd = guest.memfd("large")
    os.ftruncate(fd, length)
    return fd


async def test_a_pause_without_an_answer_is_taken_back_in_order(tmp_path: Path) -> None:
    """The late answer belongs to the pause, the next to the resume: neither is taken for the other."""

    def pause(guest: ScriptedGuest, _: list[int]) -> Reply | None:
        return None

    def resume(guest: ScriptedGuest, _: list[int]) -> Reply:
        assert guest.peer is not None
        guest.peer.send(b"ok")  # at last, to pause
        return b"ok", []

    scripts = {"pause": pause, "resume": resume}
    here, error = await fails_at_the_source(tmp_path, scripts, keepalive_timeout=0.3)
    assert "did not answer to 'pause' within 0.3 s" in error.message
    assert error.guest == "the guest runs at the source"
    assert here.calls[1:] == ["pause", "resume"] * 4


async def test_state_that_comes_too_late_is_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("migrate.daemon.socket_guest.STATE_SECONDS", 0.2)

    def resume(guest: ScriptedGuest, _: list[int]) -> Reply:
        assert guest.peer is not None
        socket.send_fds(guest.peer, [b"ok\nstate cpu"], [guest.memfd("cpu")])
        return b"ok", []

    here, error = await fails_at_the_source(tmp_path, {"state": lambda *_: None, "resume": resume})
    assert "did not answer to 'state' within 0.2 s" in error.message
    assert error.guest == "the guest runs at the source as before"
    assert here.calls[-1] == "resume"


async def test_a_connection_that_breaks_in_the_pause_is_made_again_to_resume(tmp_path: Path) -> None:
    def state(guest: ScriptedGuest, _: list[int]) -> Reply | None:
        assert guest.peer is not None
        guest.peer.shutdown(socket.SHUT_RDWR)
        return None

    here, error = await fails_at_the_source(tmp_path, {"state": state})
    assert "has closed its connection" in error.message
    assert error.guest == "the guest runs at the source as before"
    assert here.calls == ["migrate 1 source", "pause", "state", "resume"]


async def test_a_guest_that_cannot_be_resumed_is_named(tmp_path: Path) -> None:
    scripts = {"state": says("error none"), "resume": says("error stuck")}
    here, error = await fails_at_the_source(tmp_path, scripts)
    assert error.guest == "the guest is still stopped at the source"
    assert "s.send(b'resume')" in str(error.hint)
    assert str(here.path) in str(error.hint)


async def test_a_guest_that_was_paused_before_stays_paused(tmp_path: Path) -> None:
    scripts = {"pause": says("ok paused"), "state": says("error none")}
    here, _ = await fails_at_the_source(tmp_path, scripts)
    assert here.calls == ["migrate 1 source", "pause", "state"]


async def test_words_that_nobody_asked_for_end_it(tmp_path: Path) -> None:
    with scripted_guest(tmp_path / "a") as here, scripted_guest(tmp_path / "b") as there:
        async with receiver(there.path) as arriving:
            migration = send(source(here.path, await arriving.address(), max_bandwidth=20_000))
            async for event in migration:
                if event.name == "status" and event.fields["new"] == "active":
                    assert here.peer is not None
                    here.peer.send(b"ok\nhello")
            with pytest.raises(migrate.GuestError, match="does not keep to the contract") as caught:
                await migration
        assert caught.value.guest == "the guest runs at the source as before"
        assert "pause" not in here.calls


async def test_a_destination_that_does_not_load_leaves_the_guest_here(tmp_path: Path) -> None:
    with (
        scripted_guest(tmp_path / "a") as here,
        scripted_guest(tmp_path / "b", load=says("error no")) as there,
    ):
        async with receiver(there.path) as arriving:
            with pytest.raises(migrate.GuestError, match="answered to 'load': no") as caught:
                await send(source(here.path, await arriving.address()))
            assert caught.value.guest == "the guest runs at the source as before"
            with pytest.raises(migrate.GuestError):
                await arriving
        assert here.calls[-1] == "resume"
        assert "run" not in there.calls


async def test_a_guest_that_does_not_answer_to_run_is_undecided(tmp_path: Path) -> None:
    with scripted_guest(tmp_path / "a") as here, scripted_guest(tmp_path / "b", run=lambda *_: None) as there:
        async with receiver(there.path, hook_timeout=0.3) as arriving:
            with pytest.raises(migrate.UndecidedError, match="did not answer to 'run'") as caught:
                await send(source(here.path, await arriving.address()))
            assert "what resumes it: python3 -c" in str(caught.value.hint)
            with pytest.raises(migrate.GuestError, match="was handed over, but could not be started"):
                await arriving
        assert here.calls[-1] == "state", "nobody resumes it"


async def test_a_guest_that_leaves_during_the_move_ends_it_before_any_pause(tmp_path: Path) -> None:
    with scripted_guest(tmp_path / "a") as here, scripted_guest(tmp_path / "b") as there:
        async with receiver(there.path) as arriving:
            migration = send(source(here.path, await arriving.address(), max_bandwidth=20_000))
            async for event in migration:
                if event.name == "status" and event.fields["new"] == "active":
                    there.close()
            with pytest.raises(migrate.GuestError, match="has closed its connection"):
                await migration
            with pytest.raises(migrate.GuestError):
                await arriving
        assert "pause" not in here.calls


@pytest.mark.parametrize("trouble", ["says no", "breaks"])
async def test_a_destination_that_goes_on_has_one_connection_a_migration(
    tmp_path: Path, trouble: str
) -> None:
    """A failed move, then one that succeeds."""

    def load(guest: ScriptedGuest, _: list[int]) -> Reply | None:
        assert guest.peer is not None
        del guest.scripts["load"]
        if trouble == "says no":
            return b"error not yet", []
        guest.peer.shutdown(socket.SHUT_RDWR)
        return None

    with scripted_guest(tmp_path / "a") as here, scripted_guest(tmp_path / "b", load=load) as there:
        config = DestinationConfig(LOCAL, guest_socket=there.path)
        async with asyncio.timeout(60), Receiver(config) as arriving:
            with pytest.raises(migrate.GuestError):
                await send(source(here.path, await arriving.address()))
            result = await send(source(here.path, await arriving.address()))
        assert result.outcome == "completed"
        assert there.calls == ["migrate 1 destination", "load"] * 2 + ["run"]

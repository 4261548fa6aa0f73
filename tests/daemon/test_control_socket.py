"""The control socket as a file and as a server: who may connect, who is cut off, what is left behind."""

from __future__ import annotations

import asyncio
import json
import socket
import stat
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from migrate.daemon.control_socket import MAX_BACKLOG, MAX_CLIENTS, ControlSocket
from migrate.errors import UsageError
from migrate.protocol.qmp import MAX_LINE, Request

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


def echo(request: Request) -> object:
    return dict(request.arguments)


def names_in(directory: Path) -> list[str]:
    return [path.name for path in directory.iterdir()]


@pytest_asyncio.fixture
async def server(tmp_path: Path) -> AsyncIterator[ControlSocket]:
    made = ControlSocket(tmp_path / "qmp", echo)
    await made.open()
    yield made
    await made.close()
    assert names_in(tmp_path) == []


async def connect(path: Path, *, negotiate: bool = True) -> Streams:
    reader, writer = await asyncio.open_unix_connection(str(path), limit=1 << 22)
    assert (await reader.readline()).startswith(b'{"QMP"')
    if negotiate:
        writer.write(b'{"execute": "qmp_capabilities"}\n')
        assert await reader.readline() == b'{"return": {}}\r\n'
    return reader, writer


async def test_only_its_owner_may_connect(server: ControlSocket, tmp_path: Path) -> None:
    assert stat.S_IMODE((tmp_path / "qmp").stat().st_mode) == 0o600


async def test_several_clients_with_answers_and_events_of_their_own(
    server: ControlSocket, tmp_path: Path
) -> None:
    clients = [await connect(tmp_path / "qmp") for _ in range(3)]
    silent, silent_writer = await connect(tmp_path / "qmp", negotiate=False)
    for number, (_, writer) in enumerate(clients):
        for ident in range(100):
            writer.write(b'{"exec-oob": "echo", "arguments": {"n": %d}, "id": %d}' % (number, ident))
    for number, (reader, _) in enumerate(clients):
        for ident in range(100):
            assert json.loads(await reader.readline()) == {"return": {"n": number}, "id": ident}
    server.event("MIGRATION", {"status": "active"})
    for reader, writer in clients:
        assert json.loads(await reader.readline())["event"] == "MIGRATION"
        writer.close()
    silent_writer.write(b'{"execute": "echo"}')
    assert b"CommandNotFound" in await silent.readline(), "no event before the negotiation"
    silent_writer.close()


async def test_a_client_that_sends_without_end_gets_one_answer(server: ControlSocket, tmp_path: Path) -> None:
    reader, writer = await connect(tmp_path / "qmp")
    writer.write(b"x" * (8 * MAX_LINE) + b'\n{"execute": "echo"}')
    assert str(MAX_LINE).encode() in await reader.readline()
    assert await reader.readline() == b'{"return": {}}\r\n'
    writer.close()


async def test_a_client_that_does_not_read_is_cut_off_and_nobody_else(
    server: ControlSocket, tmp_path: Path
) -> None:
    reader, writer = await connect(tmp_path / "qmp")
    with socket.socket(socket.AF_UNIX) as sleeper:
        sleeper.connect(str(tmp_path / "qmp"))
        sleeper.send(b'{"execute": "qmp_capabilities"}')
        writer.write(b'{"execute": "echo"}')  # answered after the other one's negotiation was read
        assert await reader.readline() == b'{"return": {}}\r\n'
        for _ in range(3 * MAX_BACKLOG // 100_000):
            server.event("FULL", {"text": "x" * 100_000})
            assert json.loads(await reader.readline())["event"] == "FULL"
        received = 0
        sleeper.settimeout(10)
        while part := sleeper.recv(1 << 20):
            received += len(part)
        assert received < 2 * MAX_BACKLOG
    writer.write(b'{"execute": "echo"}')
    assert await reader.readline() == b'{"return": {}}\r\n'
    writer.close()


async def test_no_more_clients_than_allowed(server: ControlSocket, tmp_path: Path) -> None:
    clients = [await connect(tmp_path / "qmp") for _ in range(MAX_CLIENTS)]
    reader, writer = await asyncio.open_unix_connection(str(tmp_path / "qmp"))
    assert await reader.read() == b""
    for _, each in [*clients, (reader, writer)]:
        each.close()


async def test_a_socket_on_which_somebody_answers_is_not_taken(server: ControlSocket, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="another program answers"):
        await ControlSocket(tmp_path / "qmp", echo).open()
    _, writer = await connect(tmp_path / "qmp")
    writer.close()


async def test_a_stale_socket_is_replaced(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(tmp_path / "qmp"))
    server = ControlSocket(tmp_path / "qmp", echo)
    await server.open()
    _, writer = await connect(tmp_path / "qmp")
    writer.close()
    await server.close()
    assert names_in(tmp_path) == []


async def test_what_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "qmp").write_text("precious")
    with pytest.raises(UsageError, match="something else"):
        await ControlSocket(tmp_path / "qmp", echo).open()
    assert (tmp_path / "qmp").read_text() == "precious"
    assert names_in(tmp_path) == ["qmp"]


@pytest.mark.parametrize(("name", "why"), [("x" * 108, "107 bytes"), ("missing/qmp", "No such file")])
async def test_a_path_that_cannot_be(tmp_path: Path, name: str, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        await ControlSocket(tmp_path / name, echo).open()


async def test_a_path_that_another_has_taken_meanwhile_is_not_removed(tmp_path: Path) -> None:
    server = ControlSocket(tmp_path / "qmp", echo)
    await server.open()
    (tmp_path / "qmp").unlink()
    (tmp_path / "qmp").write_text("another's")
    await server.close()
    assert (tmp_path / "qmp").read_text() == "another's"

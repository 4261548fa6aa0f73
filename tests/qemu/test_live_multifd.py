"""Multifd into a running `migrate-dst`: from a real QEMU, and from captures played to it."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
from live_qemu import (
    SHUT_FAILED,
    SHUT_LOADED,
    WAIT_SECONDS,
    Destination,
    Qemu,
    Tap,
    check_stored,
    send,
    wait_until,
)
from multifd_support import METHODS, make_channels, opening, rounds
from qemu_support import MULTIFD, channels, stream, truth

WITH_RETURN_PATH = "multifd-pc-q10.0"


class Player:
    """Plays the channels of one migration to a port, each as fast as it is taken."""

    def __init__(self, port: int, main: bytes, extra: Sequence[bytes], *, main_first: bool = True) -> None:
        self.answers = b""
        self._port = port
        self.sockets = [self._connect()]
        self._threads = [threading.Thread(target=self._read, daemon=True)]
        order = [main, *extra]
        for _ in extra:
            self.sockets.append(self._connect())
        pairs = list(zip(self.sockets, order, strict=True))
        if not main_first:
            # Their openings are on their way before the main channel says a word.
            for sock, data in pairs[1:]:
                sock.sendall(data[:64])
            pairs = [pairs[0], *((sock, data[64:]) for sock, data in pairs[1:])]
        for sock, data in pairs:
            self._threads.append(threading.Thread(target=self._send, args=(sock, data), daemon=True))
        for thread in self._threads:
            thread.start()

    def join(self) -> bytes:
        """Until all is sent and answered; returns the answers."""
        for thread in self._threads:
            thread.join(WAIT_SECONDS)
            assert not thread.is_alive()
        self.close()
        return self.answers

    def close(self) -> None:
        for sock in self.sockets:
            sock.close()

    def _connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self._port))

    def _read(self) -> None:
        with contextlib.suppress(OSError):
            while part := self.sockets[0].recv(4096):
                self.answers += part
        for sock in self.sockets:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    @staticmethod
    def _send(sock: socket.socket, data: bytes) -> None:
        with contextlib.suppress(OSError):
            sock.sendall(data)


def check_blocks(output: Path, name: str) -> None:
    for block, content in truth(name).items():
        assert (output / f"{block}.ram").read_bytes() == content, block


@pytest.mark.parametrize("method", METHODS)
def test_a_running_guest_with_two_channels(qemu: Qemu, output: Path, method: str) -> None:
    qemu.capabilities("multifd", "return-path")
    qemu.do(
        "migrate-set-parameters",
        multifd_channels=2,
        multifd_compression=method,
        downtime_limit=20,
        max_bandwidth=20 << 20,
    )
    options = ("--once", f"--output-dir={output}", "--multifd-channels=2")
    with Destination(*options) as destination:
        tap = Tap(destination.port, connections=3)
        qemu.do("migrate", uri=f"tcp:127.0.0.1:{tap.port}")
        assert qemu.wait_migrated()["status"] == "completed", destination.program.story()
        assert destination.program.wait() == 0, destination.program.story()
        tap.join()
    ram = check_stored(output, tap)
    assert bytes(tap.back).endswith(SHUT_LOADED)
    migration = json.loads((output / "migration.json").read_text())
    sent = sum(map(len, tap.extra))
    assert sent - 2 * 1344 <= migration["multifd_bytes"] <= sent, (
        "all but empty packets behind the last barrier"
    )
    source = qemu.ram_file.read_bytes()
    differing = sum(ram["mem"][at : at + 4096] != source[at : at + 4096] for at in range(0, 16 << 20, 4096))
    assert differing <= 8, "more than what QEMU 7.2 is known to lose"
    qemu.goes_on()


@pytest.mark.parametrize(
    ("there", "here", "said"), [(3, 2, "channel 2, 2 are awaited"), (1, 2, "1 of 2 multifd channels")]
)
def test_a_wrong_number_of_channels_is_told_and_the_guest_runs_on(
    qemu: Qemu, output: Path, there: int, here: int, said: str
) -> None:
    qemu.capabilities("multifd", "return-path")
    qemu.do("migrate-set-parameters", multifd_channels=there)
    options = ("--once", f"--output-dir={output}", f"--multifd-channels={here}", "--keepalive-timeout=1")
    with Destination(*options) as destination:
        qemu.do("migrate", uri=f"tcp:127.0.0.1:{destination.port}")
        assert qemu.wait_migrated()["status"] == "failed"
        assert destination.program.wait() in (4, 5)
        error = destination.program.wait_event("error")
        assert said in error["message"] and "multifd-channels" in error["hint"]
    qemu.goes_on()


def test_a_cancel_and_then_a_second_attempt(qemu: Qemu, output: Path) -> None:
    qemu.capabilities("multifd", "return-path")
    qemu.do("migrate-set-parameters", multifd_channels=2, max_bandwidth=1 << 20, downtime_limit=1)
    with Destination(f"--output-dir={output}", "--multifd-channels=2") as destination:
        qemu.do("migrate", uri=f"tcp:127.0.0.1:{destination.port}")
        destination.program.wait_event("connected")
        wait_until((output / "mem.ram").exists, "RAM file")
        qemu.do("migrate_cancel")
        assert qemu.wait_migrated()["status"] == "cancelled"
        destination.program.wait_event("error")
        qemu.do("migrate-set-parameters", max_bandwidth=1 << 30, downtime_limit=300)
        qemu.do("migrate", uri=f"tcp:127.0.0.1:{destination.port}")
        assert qemu.wait_migrated()["status"] == "completed"
        destination.program.wait_event("stored")
    qemu.goes_on()


@pytest.mark.parametrize("name", MULTIFD)
@pytest.mark.parametrize("main_first", [True, False])
def test_captures_of_both_versions(name: str, main_first: bool, output: Path) -> None:
    extra = channels(name)
    options = ("--once", f"--output-dir={output}", f"--multifd-channels={len(extra)}")
    with Destination(*options) as destination:
        player = Player(destination.port, stream(name), extra, main_first=main_first)
        assert destination.program.wait() == 0, destination.program.story()
        answers = player.join()
    check_blocks(output, name)
    assert answers.endswith(SHUT_LOADED) == (name == WITH_RETURN_PATH)


@pytest.mark.parametrize(("count", "method"), [(1, "zstd"), (8, "none"), (8, "zlib")])
def test_one_to_eight_channels(count: int, method: str, output: Path) -> None:
    extra = make_channels(rounds(WITH_RETURN_PATH), count, method)
    options = ("--once", f"--output-dir={output}", f"--multifd-channels={count}")
    with Destination(*options) as destination:
        player = Player(destination.port, stream(WITH_RETURN_PATH), extra, main_first=count == 1)
        assert destination.program.wait() == 0, destination.program.story()
        assert player.join().endswith(SHUT_LOADED)
    check_blocks(output, WITH_RETURN_PATH)


def test_every_failure_of_a_channel_is_answered_on_the_return_path(output: Path) -> None:
    main, extra = stream(WITH_RETURN_PATH), channels(WITH_RETURN_PATH)
    flipped = bytearray(extra[1])
    flipped[64] ^= 1
    # Where the count is said, all openings are there before the main channel begins to wait for them.
    for wrong, main_first, status, said in (
        ([extra[0], bytes(flipped), extra[2]], True, 5, "does not begin as one"),
        ([extra[0], extra[1][:-1500], extra[2]], True, 4, "wait"),
        ([extra[0], extra[1][:40_000], extra[2]], True, 4, "wait"),
        ([extra[0], opening(1, b"another machine!"), extra[2]], False, 4, "2 of 3 multifd channels"),
        ([extra[0], extra[0], extra[2]], False, 4, "2 of 3 multifd channels"),
    ):
        options = ("--once", f"--output-dir={output}", "--multifd-channels=3", "--keepalive-timeout=1")
        with Destination(*options) as destination:
            player = Player(destination.port, main, wrong, main_first=main_first)
            assert destination.program.wait() == status, destination.program.story()
            assert player.join().endswith(SHUT_FAILED)
            assert said in destination.program.wait_event("error")["message"]
        assert (output / "mem.ram.migrating").exists()


def test_a_source_that_goes_away_ends_all_threads(output: Path) -> None:
    main, extra = stream(WITH_RETURN_PATH), channels(WITH_RETURN_PATH)
    with Destination("--once", f"--output-dir={output}", "--multifd-channels=3") as destination:
        player = Player(destination.port, main[: len(main) // 2], extra)
        wait_until((output / "mem.ram").exists, "RAM file")
        player.sockets[0].shutdown(socket.SHUT_WR)
        assert destination.program.wait() == 5
        assert player.join().endswith(SHUT_FAILED)


def test_a_cancel_while_a_barrier_is_awaited(output: Path) -> None:
    main, extra = stream(WITH_RETURN_PATH), channels(WITH_RETURN_PATH)
    with Destination("--once", f"--output-dir={output}", "--multifd-channels=3") as destination:
        player = Player(destination.port, main, extra[:2])
        wait_until((output / "mem.ram").exists, "RAM file")
        destination.program.signal(signal.SIGTERM)
        assert destination.program.wait() == 130, destination.program.story()
        assert player.join().endswith(SHUT_FAILED)


def test_channels_that_nobody_asked_for(output: Path) -> None:
    with Destination(f"--output-dir={output}") as destination:
        assert send(destination.port, opening(0)) == b""
        destination.program.wait_event("warning", lambda event: "--multifd-channels" in event["message"])
    options = (f"--output-dir={output}", "--multifd-channels=2", "--keepalive-timeout=1")
    with Destination(*options) as destination:
        assert send(destination.port, b"\x11\x22\x33\x44\0\0\0\2" + bytes(56)) == b""
        destination.program.wait_event("warning", lambda event: "no page channel" in event["message"])
        assert send(destination.port, opening(0)) == b"", "no main channel comes: it is closed"

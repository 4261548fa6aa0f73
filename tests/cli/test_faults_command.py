"""migrate-faults: what its words mean, and the command itself between two real sockets."""

from __future__ import annotations

import json
import shlex
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from migrate.cli.toxic_spec import Partition, parse_duration, parse_partition, parse_step_command, parse_toxic
from migrate.daemon.toxics import Bandwidth, Corrupt, Latency, ResetPeer, Slicer
from migrate.protocol import frames
from migrate.protocol import messages as m

PATIENCE = 30.0


@pytest.mark.parametrize(("text", "seconds"), [("20ms", 0.02), ("1.5s", 1.5), ("2m", 120.0), ("0s", 0.0)])
def test_times(text: str, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds)


def test_every_key_of_a_toxic_arrives() -> None:
    toxic = parse_toxic("latency:latency=20ms,jitter=5ms,direction=both,connections=0+2,after=1M")
    assert isinstance(toxic, Latency)
    assert (toxic.latency, toxic.jitter, toxic.direction, toxic.after) == (0.02, 0.005, "both", 1 << 20)
    assert [toxic.connections(index) for index in range(4)] == [True, False, True, False]

    rate = parse_toxic("bandwidth:rate=100Mbit,shared=yes,connections=lanes")
    assert isinstance(rate, Bandwidth)
    assert (rate.rate, rate.shared, rate.connections(0), rate.connections(1)) == (
        12_500_000,
        True,
        False,
        True,
    )

    flips = parse_toxic("corrupt:offsets=10+2K,probability=0.5,bit=7")
    assert isinstance(flips, Corrupt)
    assert (flips.offsets, flips.probability, flips.bit) == ((10, 2048), 0.5, 7)

    slices = parse_toxic("slicer:average_size=100,size_variation=10,delay=1ms")
    assert isinstance(slices, Slicer)
    assert (slices.average_size, slices.size_variation, slices.delay) == (100, 10, 0.001)

    reset = parse_toxic("reset_peer")
    assert isinstance(reset, ResetPeer) and reset.direction == "upstream" and reset.connections(77)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("packet_loss", "'packet_loss' is no toxic: choose from latency, "),
        ("latency", "latency: latency must be given"),
        ("latency:latency=20", "'20' is not a time"),
        ("latency:latency=1s,latency=2s", "latency is given twice"),
        ("latency:jitter", "'jitter' is not KEY=VALUE"),
        ("latency:latency=1s,rate=5", "'rate=5' is not KEY=VALUE with a key of latency, jitter, "),
        ("bandwidth:rate=0", "a rate of 0 would carry nothing"),
        ("bandwidth:rate=1M,shared=maybe", "'maybe' is not yes or no"),
        ("slicer:average_size=0", "slices of 0 bytes"),
        ("corrupt:probability=2", "'2' is not a probability"),
        ("corrupt:bit=8", "'8' is not a bit"),
        ("timeout:direction=sideways", "'sideways' is not upstream"),
        ("timeout:connections=-1", "'-1' does not name connections"),
    ],
)
def test_a_wrong_toxic_says_what_is_right(text: str, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse_toxic(text)
    assert message in str(caught.value)


def test_partitions() -> None:
    assert parse_partition("2s+500ms") == Partition(2.0, 0.5, "reset")
    assert parse_partition("1m+5s:silent") == Partition(60.0, 5.0, "silent")
    for text in ("2s", "2s+", "2s+5s:loud", "2+5"):
        with pytest.raises(ValueError):
            parse_partition(text)


class Command:
    """A running migrate-faults and what it told."""

    def __init__(self, *options: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "migrate.cli.faults", "--listen", "127.0.0.1:0", "--json", *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._guard = threading.Timer(PATIENCE, self._process.kill)
        self._guard.start()
        self.port = int(self.wait_for("listening")["port"])

    def wait_for(self, name: str) -> dict[str, Any]:
        """The next event of that name; fails if the program ends before it."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            event: dict[str, Any] = json.loads(line)
            if event["event"] == name:
                return event
        raise AssertionError(f"no event {name}: it ended")

    def end(self, number: int = signal.SIGTERM) -> int:
        """Its exit code after a signal; nothing may stand on standard error."""
        self._process.send_signal(number)
        _, errors = self._process.communicate(timeout=PATIENCE)
        self._guard.cancel()
        assert errors == ""
        return self._process.returncode


@pytest.fixture
def target() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(PATIENCE)
        yield listener


def _where(target: socket.socket) -> tuple[str, str]:
    return "--target", f"127.0.0.1:{target.getsockname()[1]}"


def _dial(command: Command) -> socket.socket:
    return socket.create_connection(("127.0.0.1", command.port), PATIENCE)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_bit_is_flipped_and_the_end_told(target: socket.socket, number: int) -> None:
    command = Command(*_where(target), "--toxic", "corrupt:offsets=3,bit=1")
    with _dial(command) as client:
        there, _ = target.accept()
        with there:
            there.settimeout(PATIENCE)
            client.sendall(b"\0" * 8)
            assert there.recv(8, socket.MSG_WAITALL) == b"\0\0\0\2\0\0\0\0"
            there.sendall(b"back")
            assert client.recv(4, socket.MSG_WAITALL) == b"back"
    ended = command.wait_for("ended")
    assert (ended["connection"], ended["how"]) == (0, "close")
    assert (ended["upstream-bytes"], ended["downstream-bytes"]) == (8, 4)
    assert command.end(number) == 0


def test_a_partition_ends_connections_and_lets_none_in(target: socket.socket) -> None:
    command = Command(*_where(target), "--partition", "0s+300ms:reset")
    with _dial(command) as client:
        client.settimeout(PATIENCE)
        assert command.wait_for("partition")["how"] == "reset"
        with pytest.raises(ConnectionResetError):
            client.recv(1)
        command.wait_for("restored")
    with _dial(command), target:
        assert command.wait_for("connection")["connection"] == 1
    assert command.end() == 0


def test_a_command_runs_when_a_message_goes_past(target: socket.socket, tmp_path: Path) -> None:
    """It has ended before the message arrives."""
    ran = tmp_path / "ran"
    command = Command(*_where(target), "--at", f"ping:touch {shlex.quote(str(ran))}; exit 3")
    frame = frames.encode_frame(m.Ping(1))
    with _dial(command) as client:
        there, _ = target.accept()
        with there:
            there.settimeout(PATIENCE)
            client.sendall(frames.PREFACE_CONTROL + frame)
            assert there.recv(8, socket.MSG_WAITALL) == frames.PREFACE_CONTROL
            assert there.recv(len(frame), socket.MSG_WAITALL) == frame
            assert ran.exists()
            client.sendall(frame)
            assert there.recv(len(frame), socket.MSG_WAITALL) == frame
    step = command.wait_for("step")
    assert (step["message"], step["status"]) == ("ping", 3)
    assert command.end() == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("commit", "is not MESSAGE:COMMAND"),
        ("commit: ", "is not MESSAGE:COMMAND"),
        ("comit:true", "'comit' is no control message: choose from accept, "),
    ],
)
def test_a_wrong_step_says_what_is_right(text: str, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse_step_command(text)
    assert message in str(caught.value)


def test_usage_and_a_port_that_is_taken(target: socket.socket) -> None:
    def run(*options: str) -> tuple[int, str]:
        done = subprocess.run(
            [sys.executable, "-m", "migrate.cli.faults", *options],
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        return done.returncode, done.stderr

    taken = f"127.0.0.1:{target.getsockname()[1]}"
    code, text = run("--listen", taken, "--target", taken)
    assert (code, f"cannot listen on {taken}" in text) == (4, True)
    code, text = run("--listen", taken, "--target", taken, "--toxic", "latency")
    assert (code, "--toxic: latency: latency must be given" in text) == (2, True)
    overlapping = ("--partition", "1s+5s", "--partition", "2s+1s")
    code, text = run("--listen", taken, "--target", taken, *overlapping)
    assert (code, "begins before the one given before it has ended" in text) == (2, True)

"""Streams captured from real QEMUs, with the RAM that their source had when it stood still."""

from __future__ import annotations

import json
import random

import pytest
from qemu_support import IGNORE_SHARED, MULTIFD, POSTCOPY, PRECOPY, Receiver, meta, stream, truth

from migrate.errors import StreamError
from migrate.protocol.qemu_wire import Command

COUNTED = {
    "zero": "zero",
    "zero_again": "zero_again",
    "page": "normal",
    "xbzrle": "xbzrle",
    "xbzrle_runs": "xbzrle_runs",
    "xbzrle_bytes": "xbzrle_bytes",
    "named": "named",
    "continue": "continued",
}


def check_counts(name: str, receiver: Receiver) -> None:
    expected = meta(name)["records"]
    assert receiver.ram is not None
    totals = receiver.ram.totals
    for theirs, ours in COUNTED.items():
        assert totals[ours] == expected.get(theirs, 0), theirs
    for section in ("part", "end", "eos"):
        assert receiver.counts[section] == expected.get(section, 0), section
    assert [int(command) for command, _ in receiver.commands] == meta(name)["commands"]


@pytest.mark.parametrize("name", PRECOPY)
def test_ram_and_counts_are_those_of_the_source(name: str) -> None:
    with Receiver() as receiver:
        assert receiver.take(stream(name)) == truth(name)
        check_counts(name, receiver)
        assert receiver.reader.description is not None
        devices = {device["name"] for device in json.loads(receiver.reader.description)["devices"]}
        assert "timer" in devices
        state = receiver.reader.device_state
        assert stream(name).endswith(state) and state[0] == 4


@pytest.mark.parametrize("name", PRECOPY[::3])
def test_pieces_of_any_size_give_the_same(name: str, rng: random.Random) -> None:
    data = stream(name)
    pieces = sorted(rng.sample(range(len(data)), 400))
    with Receiver() as receiver:
        assert receiver.take(data, pieces) == truth(name)
        check_counts(name, receiver)


def test_byte_by_byte_gives_the_same_and_the_end_is_seen_with_the_last_byte() -> None:
    data = stream("ignore-shared-q7.2")
    with Receiver() as receiver:
        for at in range(len(data)):
            assert not receiver.reader.finished, at
            receiver.reader.feed(data[at : at + 1])
        assert receiver.reader.finished


@pytest.mark.parametrize("name", IGNORE_SHARED)
def test_ignored_blocks_are_announced_and_stay_empty(name: str) -> None:
    with Receiver() as receiver:
        content = receiver.take(stream(name))
        check_counts(name, receiver)
        assert receiver.configuration is not None
        assert receiver.configuration.capabilities == ("x-ignore-shared",)
    expected = truth(name)
    assert content == expected | {"mem": bytes(len(expected["mem"]))}


@pytest.mark.parametrize("name", POSTCOPY)
def test_postcopy_is_read_from_a_file_and_refused_where_a_guest_would_wait(name: str) -> None:
    with Receiver(recorded=True) as receiver:
        assert receiver.take(stream(name)) == truth(name)
        check_counts(name, receiver)
        assert receiver.reader.device_state.startswith(b"\x08\x00\x04\x00\x00")
    with Receiver() as receiver, pytest.raises(StreamError) as caught:
        receiver.take(stream(name))
    assert caught.value.rule == "postcopy"


@pytest.mark.parametrize("name", MULTIFD)
def test_the_main_channel_of_multifd_is_read(name: str) -> None:
    expected = meta(name)["records"]
    with Receiver() as receiver:
        receiver.take(stream(name))
        assert receiver.ram is not None
        totals = receiver.ram.totals
        assert totals["zero"] + totals["zero_again"] == expected.get("zero", 0) + expected.get(
            "zero_again", 0
        )
        assert totals["normal"] == totals["xbzrle"] == 0
        assert receiver.flushes == expected.get("multifd_flush", 0)


def test_a_return_path_is_seen() -> None:
    with Receiver(apply=False) as receiver:
        receiver.take(stream("return-path-q10.0"))
    assert receiver.commands[:2] == [(Command.OPEN_RETURN_PATH, b""), (Command.PING, b"\0\0\0\1")]


def test_silence_ends_a_stream_only_behind_a_section_that_began(rng: random.Random) -> None:
    data = stream("pc-xbzrle-q7.2")
    end = data.rindex(b"\0\6") + 1
    with Receiver(apply=False) as receiver:
        receiver.reader.feed(data[: end - 5000])
        assert receiver.reader.in_device_state and not receiver.reader.silent()
        receiver.reader.feed(data[end - 5000 : end - 1])
        assert not receiver.reader.silent()
        receiver.reader.feed(data[end - 1 : end])
        assert receiver.reader.silent() and receiver.reader.finished
        assert receiver.reader.description is None and data[:end].endswith(receiver.reader.device_state)
    unknown = rng.randrange(1 << 31, 1 << 32).to_bytes(4, "big")
    with Receiver(apply=False) as receiver:
        receiver.reader.feed(data[: end - 5] + unknown + b"\0")
        assert not receiver.reader.silent()

"""What the fault proxy takes for a message, and that every byte goes past in its order, whatever it is."""

from __future__ import annotations

import random

import pytest

from migrate.daemon.fault_steps import StepReader
from migrate.protocol import frames
from migrate.protocol import messages as m
from migrate.protocol.schema import MAX_MESSAGE_BYTES

SAID = (m.Ping(1), m.Commit(bytes(16), 3, bytes(16)), m.Cancel("enough"))
STREAM = frames.PREFACE_CONTROL + b"".join(map(frames.encode_frame, SAID))
NAMES = ["ping", "commit", "cancel"]


def feed(reader: StepReader, pieces: list[bytes], direction: str = "upstream") -> tuple[bytes, list[str]]:
    """All that went past, and the names."""
    past, names = b"", []
    for piece in pieces:
        for data, name in reader.feed(direction, piece):
            past += data
            names += [name] if name else []
    return past, names


@pytest.mark.parametrize("step", [1, 7, len(STREAM)])
def test_messages_are_named_however_they_come(step: int) -> None:
    pieces = [STREAM[at : at + step] for at in range(0, len(STREAM), step)]
    assert feed(StepReader(), pieces) == (STREAM, NAMES)


def test_a_message_is_held_until_it_is_whole() -> None:
    reader = StepReader()
    assert feed(reader, [STREAM[:-1]]) == (STREAM[: -len(frames.encode_frame(SAID[-1]))], NAMES[:-1])
    assert list(reader.rest("upstream")) == [(frames.encode_frame(SAID[-1])[:-1], "")]
    assert list(reader.rest("upstream")) == []


def test_answers_are_named_once_the_opening_is_known() -> None:
    reader = StepReader()
    feed(reader, [STREAM])
    answer = frames.encode_frame(m.Pong(1))
    assert feed(reader, [answer[:3], answer[3:]], "downstream") == (answer, ["pong"])


@pytest.mark.parametrize(
    "stream",
    [
        frames.PREFACE_LANE + b"batches",
        b"MIG",
        b"QEVM" + bytes(100),
        frames.PREFACE_CONTROL + (MAX_MESSAGE_BYTES + 1).to_bytes(4, "big") + bytes(100),
        frames.PREFACE_CONTROL + frames.encode_frame(m.Ping(1))[:-1] + b"?" + STREAM,
    ],
    ids=["lane", "short", "qemu", "too long", "damaged"],
)
def test_what_is_no_message_goes_past_as_it_is(stream: bytes, rng: random.Random) -> None:
    reader = StepReader()
    cut = rng.randrange(1, len(stream))
    past, names = feed(reader, [stream[:cut], stream[cut:]])
    assert past + b"".join(data for data, _ in reader.rest("upstream")) == stream
    assert names == []


def test_damage_one_way_keeps_the_order_of_the_other() -> None:
    reader = StepReader()
    past, _ = feed(reader, [STREAM[:-5]])
    feed(reader, [b"\xff" * 20], "downstream")
    assert past + feed(reader, [STREAM[-5:], b"more"])[0] == STREAM + b"more"

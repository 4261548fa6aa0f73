"""Real streams, cut and with a bit flipped: read as an independent decoder reads them, or refused."""

from __future__ import annotations

import os
import random

import pytest
from qemu_oracle import IllegalError, decode
from qemu_support import IGNORE_SHARED, PRECOPY, Receiver, stream, truth

from migrate.errors import StreamError

DAMAGES = int(os.environ.get("MIGRATE_TEST_DAMAGES", "7"))
"""Of each kind and capture; `.ci/run` does 200."""
EARLY = 2000
"""Every third damage falls into the first bytes, where most of the container stands."""


def ours(data: bytes) -> tuple[dict[str, bytes], bytes] | None:
    with Receiver() as receiver:
        try:
            return dict(receiver.take(data)), receiver.reader.device_state
        except StreamError as error:
            assert 0 <= error.offset <= len(data)
            assert error.rule and error.rule in str(error)
            return None


def oracle(data: bytes) -> tuple[dict[str, bytes], bytes] | None:
    try:
        return decode(data)
    except IllegalError:
        return None


def places(rng: random.Random, data: bytes, count: int) -> list[int]:
    return [rng.randrange(EARLY if number % 3 == 0 else len(data)) for number in range(count)]


@pytest.mark.parametrize("name", PRECOPY + IGNORE_SHARED)
def test_a_cut_stream(name: str, rng: random.Random) -> None:
    data = stream(name)
    for at in places(rng, data, DAMAGES):
        assert ours(data[:at]) == oracle(data[:at]), at


@pytest.mark.parametrize("name", PRECOPY + IGNORE_SHARED)
def test_a_stream_with_a_flipped_bit(name: str, rng: random.Random) -> None:
    data = stream(name)
    for at in places(rng, data, DAMAGES):
        bit = rng.randrange(8)
        damaged = bytearray(data)
        damaged[at] ^= 1 << bit
        assert ours(bytes(damaged)) == oracle(bytes(damaged)), (at, bit)


def test_the_independent_decoder_agrees_with_the_truth() -> None:
    for name in PRECOPY:
        assert decode(stream(name))[0] == truth(name)

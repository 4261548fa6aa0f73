"""Page channels of multifd as files: captured ones, and the same pages packed and spread in other ways."""

from __future__ import annotations

import itertools
import os
import random
import struct

import pytest
from multifd_support import METHODS, P, Pages, make_channels, opening, packer, packet, rounds
from qemu_oracle import IllegalError, decode
from qemu_support import MULTIFD, Receiver, channels, stream, truth

from migrate.errors import StreamError
from migrate.protocol.qemu_multifd import MultifdChannel, decode_opening

DAMAGES = int(os.environ.get("MIGRATE_TEST_DAMAGES", "5"))
"""Of each kind, capture and method; `.ci/run` does 200."""
EARLY = 1500
ONE = (Pages(b"mem", ((0, bytes(range(256)) * 16), (P, b"x" * P)), (2 * P,)),)


def ours(main: bytes, extra: list[bytes]) -> tuple[dict[str, bytes], bytes] | None:
    with Receiver(channels=extra) as receiver:
        try:
            return dict(receiver.take(main)), receiver.reader.device_state
        except StreamError as error:
            assert error.rule and error.offset >= 0
            return None


def oracle(main: bytes, extra: list[bytes]) -> tuple[dict[str, bytes], bytes] | None:
    try:
        return decode(main, extra)
    except IllegalError:
        return None


@pytest.mark.parametrize("name", MULTIFD)
def test_captured_channels_give_the_sources_ram(name: str) -> None:
    with Receiver(channels=channels(name)) as receiver:
        assert receiver.take(stream(name)) == truth(name)
        assert receiver.ram is not None and not any(receiver.ram.never_sent.values())
    assert decode(stream(name), channels(name))[0] == truth(name)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("count", [1, 3, 8])
def test_any_number_of_channels_and_every_method(method: str, count: int) -> None:
    name = MULTIFD[count % 3]
    with Receiver(channels=make_channels(rounds(name), count, method)) as receiver:
        assert receiver.take(stream(name)) == truth(name)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", MULTIFD)
def test_cut_and_flipped_channels_are_read_as_an_independent_decoder_does(
    name: str, method: str, rng: random.Random
) -> None:
    whole = channels(name) if method == "none" else make_channels(rounds(name), 2, method)
    for number, cut in itertools.product(range(DAMAGES), (True, False)):
        extra = list(whole)
        which = rng.randrange(len(extra))
        data = bytearray(extra[which])
        at = rng.randrange(EARLY if number % 2 == 0 else len(data))
        if cut:
            del data[at:]
        else:
            data[at] ^= 1 << rng.randrange(8)
        extra[which] = bytes(data)
        assert ours(stream(name), extra) == oracle(stream(name), extra), (which, at, cut)


def read_all(data: bytes) -> int:
    """Packets in a channel; raises StreamError."""
    channel = MultifdChannel(P, decode_opening(data).number)
    at = 64
    found = 0
    while at + len(channel.wanted) <= len(data):
        wanted = channel.wanted
        wanted[:] = data[at : at + len(wanted)]
        at += len(wanted)
        found += channel.filled() is not None
    return found


def changed(at: int, value: int) -> bytes:
    made = bytearray(make_channels([ONE], 1, "none")[0])
    struct.pack_into(">I", made, at, value)
    return bytes(made)


FLAGS, ALLOCATED, NORMAL, SIZE, ZERO = (64 + at for at in (8, 12, 16, 20, 32))


@pytest.mark.parametrize(
    ("data", "rule"),
    [
        (changed(0, 0x11223345), "multifd-opening"),
        (changed(4, 2), "multifd-opening"),
        (changed(64, 0), "multifd-packet"),
        (changed(68, 2), "multifd-packet"),
        (changed(FLAGS, 0x80), "multifd-packet"),
        (changed(FLAGS, 0x06), "multifd-packet"),
        (changed(FLAGS, 0x08), "multifd-method"),
        (changed(FLAGS, 0x40), "multifd-device"),
        (changed(ALLOCATED, 129), "multifd-packet"),
        (changed(NORMAL, 128), "multifd-packet"),
        (changed(NORMAL, 0xFFFFFFFF), "multifd-packet"),
        (changed(ZERO, 0xFFFFFFFF), "multifd-packet"),
        (changed(SIZE, 2 * P + 1), "multifd-packet"),
        (changed(SIZE, 0), "multifd-packet"),
    ],
)
def test_illegal_packets_are_refused_by_name(data: bytes, rule: str) -> None:
    with pytest.raises(StreamError) as caught:
        read_all(data)
    assert caught.value.rule == rule
    assert read_all(make_channels([ONE], 1, "none")[0]) == 2


def test_a_stale_size_of_an_empty_packet_is_no_data() -> None:
    stale = bytearray(packet(1, None, bytes))
    struct.pack_into(">I", stale, 20, 8 * P)
    assert read_all(opening(0) + bytes(stale) + bytes(stale)) == 2


@pytest.mark.parametrize("method", ["zlib", "zstd"])
def test_a_packet_that_unpacks_to_more_than_its_pages_is_refused(method: str) -> None:
    for length in (P - 1, P + 1, 32 << 20):
        pack = packer(method)
        bomb = packet(METHODS[method], Pages(b"mem", ((0, bytes(length)),), ()), pack)
        assert len(bomb) < 256 << 10
        with pytest.raises(StreamError) as caught:
            read_all(opening(0) + bomb)
        assert caught.value.rule == "multifd-data"


def test_a_channel_keeps_its_method() -> None:
    plain, packed = packet(0, ONE[0], bytes), packet(2, ONE[0], packer("zlib"))
    for data in (plain + packed, packed + plain):
        with pytest.raises(StreamError) as caught:
            read_all(opening(0) + data)
        assert caught.value.rule == "multifd-method"


def test_channels_must_be_complete_and_end_with_a_barrier() -> None:
    main, extra = stream(MULTIFD[1]), channels(MULTIFD[1])
    tail = packet(0, ONE[0], bytes)
    for wrong, rule in (
        ([extra[0], extra[0]], "multifd-opening"),
        ([extra[1]], "multifd-opening"),
        ([extra[0] + tail, extra[1]], "multifd-barrier"),
        ([extra[0] + tail[:-1], extra[1]], "truncated"),
    ):
        with Receiver(channels=wrong) as receiver, pytest.raises(StreamError) as caught:
            receiver.take(main)
        assert caught.value.rule == rule

"""The stream with a QEMU's devices: where it ends, what it must not hold, and what is answered to it."""

from __future__ import annotations

import random

import pytest
from qemu_support import IGNORE_SHARED, stream

from migrate.errors import GuestError, ProtocolError
from migrate.protocol import qemu_devices
from migrate.protocol.qemu_devices import DeviceStream
from migrate.protocol.qemu_return_path import ReturnPath
from migrate.protocol.qemu_wire import encode_pong, encode_shut


@pytest.mark.parametrize("name", IGNORE_SHARED)
def test_it_ends_with_its_last_byte_and_not_before(name: str, rng: random.Random) -> None:
    data = stream(name)
    cuts = sorted({rng.randrange(1, len(data)) for _ in range(200)} | {len(data) - 1})
    collected = DeviceStream()
    at = 0
    for cut in cuts:
        assert not collected.feed(data[at:cut])
        at = cut
    assert collected.feed(data[at:])
    assert collected.data == data


def test_a_stream_with_ram_in_it_is_refused() -> None:
    with pytest.raises(ProtocolError, match="x-ignore-shared"):
        DeviceStream().feed(stream("return-path-q7.2"))


def test_what_is_too_large_names_what_to_change(monkeypatch: pytest.MonkeyPatch) -> None:
    data = stream(IGNORE_SHARED[0])
    monkeypatch.setattr(qemu_devices, "MAX_BLOB_BYTES", len(data) - 1)
    with pytest.raises(GuestError, match="beside the shared RAM") as caught:
        DeviceStream().feed(data)
    assert caught.value.hint is not None and "--ram" in caught.value.hint


@pytest.mark.parametrize("status", [0, 1, 0xFFFFFFFF])
def test_the_last_answer_counts(status: int) -> None:
    answers = encode_pong(b"\0\0\0\1") + encode_shut(status)
    path = ReturnPath()
    for at in range(len(answers)):
        assert path.shut is None
        path.feed(answers[at : at + 1])
    assert path.shut == status


@pytest.mark.parametrize("answer", ["0001000500", "0001000000", "0002ffff"])
def test_no_answer_looks_so(answer: str) -> None:
    with pytest.raises(ProtocolError):
        ReturnPath().feed(bytes.fromhex(answer))

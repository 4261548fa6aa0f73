"""Records of journals: whatever is torn, flipped or foreign in a slot is noticed, and the other counts."""

from __future__ import annotations

import json
import random
from dataclasses import replace

import pytest
from protocol_support import flipped

from migrate.errors import JournalError
from migrate.protocol.journal_record import (
    HEADER_BYTES,
    SLOT_BYTES,
    JournalRecord,
    PausedGuest,
    RamPlace,
    Step,
    decode_file,
    decode_slot,
    encode_slot,
)

RECORD = JournalRecord(
    "source",
    Step.PAUSING,
    "00" * 16,
    "boot",
    (RamPlace("pc.ram", "/dev/shm/é", 1, 2),),
    number=3,
    attempt=1,
    root="ab" * 16,
    peer="[::1]:4444",
    guest=PausedGuest("command", resume_cmd="true", environment={"MIGRATE_ID": "x"}),
)


def _file(first: bytes, second: bytes) -> bytes:
    return first.ljust(SLOT_BYTES, b"\0") + second.ljust(SLOT_BYTES, b"\0")


@pytest.mark.parametrize("step", list(Step), ids=lambda step: step.value)
def test_a_record_comes_back_as_it_was(step: Step) -> None:
    record = replace(RECORD, step=step)
    assert decode_slot(encode_slot(record, 7)) == (7, record)
    assert decode_slot(encode_slot(replace(record, guest=None), 7)) == (7, replace(record, guest=None))


def test_the_later_of_two_whole_records_counts() -> None:
    older, newer = encode_slot(RECORD, 4), encode_slot(replace(RECORD, step=Step.COMMITTED), 5)
    for data in (_file(older, newer), _file(newer, older)):
        assert decode_file(data)[1].step is Step.COMMITTED


def test_a_write_torn_at_every_byte_leaves_the_record_before_it() -> None:
    """Over zeros, and over the record before the last."""
    newer = encode_slot(replace(RECORD, step=Step.COMMITTED), 5)
    for under in (b"", encode_slot(RECORD, 3)):
        for at in range(len(newer)):
            slot = (newer[:at] + under[at:]).ljust(SLOT_BYTES, b"\0")
            sequence, record = decode_file(_file(slot, encode_slot(RECORD, 4)))
            assert (sequence, record.step) == (4, Step.PAUSING), at


def test_every_flipped_bit_is_found(rng: random.Random) -> None:
    slot = encode_slot(RECORD, 5)
    for bit in range(8 * len(slot)):
        assert decode_slot(bytes(flipped(slot, bit))) is None, bit


@pytest.mark.parametrize("data", [b"", bytes(2 * SLOT_BYTES), b"MIGRJRNL", b"\xff" * (2 * SLOT_BYTES)])
def test_no_whole_record_is_an_error(data: bytes) -> None:
    with pytest.raises(JournalError, match="neither"):
        decode_file(data)


def _with_payload(payload: bytes, version: int = 1) -> bytes:
    from migrate import kernel

    head = b"MIGRJRNL" + version.to_bytes(2, "big") + bytes(2)
    head += len(payload).to_bytes(4, "big") + (5).to_bytes(8, "big")
    return head + kernel.crc32c(head + payload).to_bytes(4, "big") + payload


def test_the_layout_is_as_documented() -> None:
    slot = encode_slot(RECORD, 5)
    assert _with_payload(slot[HEADER_BYTES:]) == slot


def test_another_version_is_named() -> None:
    with pytest.raises(JournalError, match="version 2"):
        decode_slot(_with_payload(b"{}", version=2))


@pytest.mark.parametrize(
    "change",
    [
        {"step": "wherever"},
        {"number": "3"},
        {"ram": 5},
        {"ram": [{"name": "x"}]},
        {"ram": [{"name": "x", "path": 7, "device": 1, "inode": 2}]},
        {"guest": {"way": 1}},
        {"guest": []},
        {"surplus": 1},
        {"boot": None},
    ],
)
def test_what_no_record_says_is_refused(change: dict[str, object]) -> None:
    content = json.loads(encode_slot(RECORD, 5)[HEADER_BYTES:])
    with pytest.raises(JournalError, match="no version 1 says"):
        decode_slot(_with_payload(json.dumps(content | change).encode()))
    for payload in (b"[]", b"{", b"null", b"[" * 20000):
        with pytest.raises(JournalError):
            decode_slot(_with_payload(payload))


def test_a_record_that_does_not_fit_is_refused() -> None:
    ram = tuple(RamPlace(str(number), "x" * 4000, 1, number) for number in range(20))
    with pytest.raises(JournalError, match="too long"):
        encode_slot(replace(RECORD, ram=ram), 1)

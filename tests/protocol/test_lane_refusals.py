"""What a destination lane refuses: wrong places, wrong claims, flipped bits; RAM is as before each time."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from lane_pair import LanePair, deliver, lane_pair
from protocol_support import PAGE, flipped

from migrate import kernel
from migrate.errors import ProtocolError, RamError, RecordError
from migrate.kernel.results import STAGE_BULK, STAGE_LAST, STAGE_ROUND
from migrate.protocol.batch import HEADER_BYTES, BatchHeader, Codec, Kind, encode_marker, pack_body
from migrate.protocol.lane_destination import DestinationLane, ReceiverState
from migrate.protocol.records import encode_block_list


@pytest.fixture
def pair(shm_dir: Path, rng: random.Random) -> Iterator[LanePair]:
    """Lane 0 of 2 after its first round: epoch 1, two batches of records and a marker applied."""
    with lane_pair(shm_dir / "x", (8, 8), lanes=2) as pair:
        for page in range(6):
            pair.here.write(0, page, rng.randbytes(PAGE))
        pair.open(0)
        pair.start_round(STAGE_BULK)
        pair.run_out(0, limit=4 * PAGE)
        yield pair


def _batch(header: BatchHeader, body: bytes) -> bytes:
    """The batch with lengths and CRCs that fit the body."""
    wire = bytes(pack_body(header.codec, memoryview(body)))
    header = replace(header, wire_length=len(wire), plain_length=len(body), body_crc=kernel.crc32c(wire))
    return header.encode() + wire


def _due(lane: DestinationLane, /, kind: Kind = Kind.ROUND_END, **changes: object) -> BatchHeader:
    """The header that is due, of a batch without records."""
    header = BatchHeader(
        kind=kind,
        stage=STAGE_ROUND,
        lane=lane.number,
        epoch=lane.epoch,
        sequence=lane.sequence + 1,
        round=2,
        records=0,
        wire_length=0,
        plain_length=0,
        digest_sum=0,
        body_crc=0,
    )
    return replace(header, **changes)  # type: ignore[arg-type]


def _marker(lane: DestinationLane) -> bytes:
    assert lane.cache is not None
    return encode_marker(lane.cache.digest, lane.lane_sum)


class Unchanged:
    """What a refused batch may not change."""

    def __init__(self, pair: LanePair) -> None:
        self.pair = pair
        self.before = self._now()

    def _now(self) -> object:
        lane = self.pair.destination[0]
        return self.pair.there.read(), bytes(self.pair.digests.array), lane.position, lane.lane_sum

    def check(self) -> None:
        assert self._now() == self.before


def _refused(pair: LanePair, batch: bytes, words: str) -> None:
    """Refused, nothing changed, nothing more is taken, and after a reset the lane works."""
    lane = pair.destination[0]
    unchanged = Unchanged(pair)
    with pytest.raises(ProtocolError, match=words) as refusal:
        deliver(lane, batch)
    unchanged.check()
    with pytest.raises(ProtocolError) as again:
        lane.header(_batch(_due(lane), _marker(lane))[:HEADER_BYTES])
    assert again.value is refusal.value, "the first error finishes the epoch"
    unchanged.check()
    pair.reset(0)
    pair.open(0)
    pair.open(1)
    pair.finish()


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"lane": 1}, "of lane 1"),
        ({"lane": 65535}, "of lane 65535"),
        ({"epoch": 0}, "epoch 0"),
        ({"epoch": 2}, "epoch 2"),
        ({"sequence": 0}, "batch 0"),
        ({"sequence": 4}, "batch 4 .* came where batch 5"),
        ({"sequence": 6}, "batch 6"),
        ({"sequence": 2**64 - 1}, "batch 18446744073709551615"),
        ({"round": 0}, "round 0 came after round 1"),
        ({"kind": Kind.RESET}, "begins with its reset"),
        ({"kind": Kind.FINAL}, "while the guest runs"),
        ({"kind": Kind.ROUND_END, "records": 1}, "only a batch of records"),
        ({"kind": Kind.ROUND_END, "digest_sum": 1}, "only a batch of records"),
        ({"kind": Kind.RECORDS, "records": 1}, "truncated|record-count"),
    ],
)
def test_not_the_batch_that_is_due(pair: LanePair, changes: dict[str, object], words: str) -> None:
    lane = pair.destination[0]
    assert lane.position == (1, 4)
    body = b"" if changes.get("kind") is Kind.RECORDS else _marker(lane)
    _refused(pair, _batch(_due(lane, **changes), body), words)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda cache, total: encode_marker(cache + 1, total), "caches of the two sides differ"),
        (lambda cache, total: encode_marker(cache, total ^ 1), "digests of the two sides differ"),
        (lambda cache, total: encode_marker(cache, total)[:-1], "malformed"),
        (lambda cache, total: encode_marker(cache, total) + b"\0", "malformed"),
        (lambda cache, total: b"", "malformed"),
    ],
)
@pytest.mark.parametrize("kind", [Kind.ROUND_END, Kind.FINAL])
def test_a_marker_that_does_not_fit(
    pair: LanePair, kind: Kind, change: Callable[[int, int], bytes], words: str
) -> None:
    lane = pair.destination[0]
    assert lane.cache is not None
    header = _due(lane, kind, stage=STAGE_LAST)
    _refused(pair, _batch(header, change(lane.cache.digest, lane.lane_sum)), words)


@pytest.mark.parametrize(
    "blocks",
    [
        [("b0", 8 * PAGE)],
        [("b1", 8 * PAGE), ("b0", 8 * PAGE)],
        [("b0", 8 * PAGE), ("b1", 9 * PAGE)],
        [("b0", 8 * PAGE), ("b1", 8 * PAGE), ("b2", PAGE)],
    ],
)
def test_other_blocks_in_the_reset_batch(pair: LanePair, blocks: list[tuple[str, int]]) -> None:
    pair.reset(0)
    pair.open(0)
    lane = pair.destination[0]
    body = encode_block_list(blocks, PAGE)
    _refused(pair, _batch(_due(lane, Kind.RESET), body), "other RAM blocks")


@pytest.mark.parametrize("kind", [Kind.RECORDS, Kind.ROUND_END, Kind.FINAL])
def test_a_lane_begins_with_its_reset_batch(pair: LanePair, kind: Kind) -> None:
    pair.reset(0)
    pair.open(0)
    lane = pair.destination[0]
    _refused(pair, _batch(_due(lane, kind, stage=STAGE_LAST), _marker(lane)), "begins with its reset")


def test_a_closed_or_finished_lane_takes_nothing(pair: LanePair) -> None:
    pair.open(1)
    pair.finish()
    lane = pair.destination[0]
    batch = _batch(_due(lane), _marker(lane))
    for state in (ReceiverState.FINISHED, ReceiverState.CLOSED):
        assert lane.state is state
        with pytest.raises(ProtocolError, match=state.value):
            lane.header(batch[:HEADER_BYTES])
        lane.close()


def test_epochs_only_grow(pair: LanePair) -> None:
    lane = pair.destination[0]
    with pytest.raises(ValueError, match="close it first"):
        lane.open(2)
    lane.close()
    for epoch in (0, 1):
        with pytest.raises(ProtocolError, match="old epoch"):
            lane.open(epoch)
    lane.open(7)
    assert lane.position == (7, 0)


def test_a_body_without_a_header(pair: LanePair) -> None:
    with pytest.raises(ValueError, match="no header"):
        pair.destination[0].body(bytearray())


@pytest.mark.parametrize("end", ["page of another lane", "delta without a cache", "too few", "wrong sum"])
def test_records_that_are_illegal(pair: LanePair, rng: random.Random, end: str) -> None:
    pair.here.write(0, 2, rng.randbytes(8))
    pair.start_round()
    made = pair.make(0)
    assert made is not None
    header, body = BatchHeader.decode(made[0][:HEADER_BYTES]), made[0][HEADER_BYTES:]
    rule = "digest"
    if end == "page of another lane":
        body, rule = body.replace(b"\x02b0", b"\x02b1"), "wrong-lane"
    elif end == "delta without a cache":
        cache = pair.destination[0].cache
        assert made[1].fill is not None and made[1].fill.xbzrle == 1 and cache is not None
        cache.clear()
        rule = "xbzrle-not-held"
    elif end == "too few":
        header, rule = replace(header, records=2), "record-count"
    else:
        header = replace(header, digest_sum=header.digest_sum ^ 1)
    unchanged = Unchanged(pair)
    with pytest.raises(RecordError) as caught:
        deliver(pair.destination[0], _batch(header, body))
    assert caught.value.rule == rule
    unchanged.check()


def test_a_truncated_file_is_not_written_longer(pair: LanePair) -> None:
    pair.here.write(0, 2, b"x" * PAGE)
    pair.start_round()
    made = pair.make(0)
    assert made is not None
    with pair.there.specs[0].path.open("r+b") as file:
        file.truncate(PAGE)
    with pytest.raises(RamError):
        pair.deliver(0, made[0])
    assert pair.there.specs[0].path.stat().st_size == PAGE


# --- flipped bits ---------------------------------------------------------------------------------


def _small_round(pair: LanePair, rng: random.Random) -> list[bytes]:
    """The batches of an epoch that moves one page of zeros: reset, records, round end; none is delivered."""
    pair.here.write(0, 3, rng.randbytes(PAGE))
    pair.open(0)
    pair.run_round(STAGE_BULK)
    pair.here.write(0, 3, bytes(PAGE))
    pair.reset(0)
    pair.open(0)
    pair.start_round()
    batches = []
    while (made := pair.make(0)) is not None:
        batches.append(made[0])
    return batches


@pytest.mark.parametrize("sealed", [False, True], ids=["damaged", "with new CRCs"])
@pytest.mark.parametrize("codec", list(Codec))
def test_each_bit_of_a_small_batch_flipped(
    shm_dir: Path, rng: random.Random, codec: Codec, sealed: bool
) -> None:
    """Damaged on the way: refused. By a liar with correct CRCs: refused, or RAM gets what it should get."""
    with lane_pair(shm_dir / "x", (8,)) as pair:
        batches = _small_round(pair, rng)
        assert len(batches) == 3
        before, position = Unchanged(pair), pair.destination[0].position
        sum_before = pair.destination[0].lane_sum
        accepted = 0
        if codec is Codec.ZLIB:
            batches = [_packed(batch) for batch in batches]
        for index, batch in enumerate(batches):
            for bit in range(8 * len(batch)):
                if sealed and bit // 8 in range(56, 64):
                    continue  # the CRCs themselves
                lane = pair.new_destination(0, readback=False)
                lane.lane_sum, lane.sequence = sum_before, 0
                lane.open(position[0])
                for earlier in batches[:index]:
                    deliver(lane, earlier)
                changed = flipped(batch, bit)
                if sealed:
                    changed = _seal(changed)
                try:
                    deliver(lane, changed)
                except ProtocolError:
                    assert index == 2 or pair.there.read() == before.before[0]  # type: ignore[index]
                else:
                    accepted += 1
                    assert sealed, f"bit {bit} of batch {index} went unseen"
                    assert index == 0 or pair.there.read() == pair.here.read()
                _rewind(pair, before)
        if codec is Codec.NONE:  # zlib has many ways to say the same
            assert accepted <= 3 * (32 + 2), "round and stage are nobody's business but the cache's"


def _packed(batch: bytes) -> bytes:
    header = BatchHeader.decode(batch[:HEADER_BYTES])
    return _batch(replace(header, codec=Codec.ZLIB), batch[HEADER_BYTES:])


def _seal(batch: bytearray) -> bytearray:
    """Make both CRCs right again."""
    batch[56:60] = kernel.crc32c(batch[HEADER_BYTES:]).to_bytes(4, "big")
    batch[60:64] = kernel.crc32c(batch[:60]).to_bytes(4, "big")
    return batch


def _rewind(pair: LanePair, to: Unchanged) -> None:
    """Put RAM and digests back to what they were."""
    ram, digests, _, _ = to.before  # type: ignore[misc]
    if pair.there.read() != ram:
        pair.there.write(0, 0, ram[0])
    pair.digests.array[:] = digests

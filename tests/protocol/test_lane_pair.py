"""A source lane and a destination lane, batch by batch: rounds, the window, resets, and what is owed."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from lane_pair import InFlight, LanePair, lane_pair, record_pages
from protocol_support import PAGE

from migrate.errors import ProtocolError
from migrate.kernel.results import STAGE_BULK, STAGE_LAST, STAGE_ROUND
from migrate.protocol.batch import Codec, Kind
from migrate.protocol.lane_destination import ReceiverState
from migrate.protocol.lane_source import MAX_UNACKNOWLEDGED_BATCHES, LaneState

ALL_KINDS = pytest.mark.parametrize(
    "lanes, rule, codec",
    [
        (1, "default", Codec.NONE),
        (1, "qemu", Codec.ZLIB),
        (2, "default", Codec.ZLIB),
        (2, "qemu", Codec.NONE),
        (3, "default", Codec.NONE),
    ],
)


def _open_all(pair: LanePair) -> None:
    for number in range(pair.lanes):
        pair.open(number)


@ALL_KINDS
def test_rounds(shm_dir: Path, rng: random.Random, lanes: int, rule: str, codec: Codec) -> None:
    with lane_pair(shm_dir / "x", (40, 30, 20), lanes, rule=rule, codec=codec) as pair:
        pair.here.dirty_randomly(rng, 60)
        _open_all(pair)
        sent = pair.run_round(STAGE_BULK)
        for _ in range(5):
            pair.check_equal()
            pair.here.dirty_randomly(rng, 30)
            sent += pair.run_round()
        pair.here.dirty_randomly(rng, 10)
        pair.finish()
        assert all(lane.state is LaneState.FINISHED for lane in pair.source)
        assert all(lane.state is ReceiverState.FINISHED for lane in pair.destination)
        fills = [batch.fill for batch in sent if batch.fill is not None]
        assert min(sum(fill.xbzrle for fill in fills), sum(fill.zero for fill in fills)) > 0
        numbers = [batch.round for batch in sent if batch.kind is Kind.ROUND_END]
        assert numbers == [number for number in range(1, 7) for _ in range(lanes)]


def test_a_lane_without_pages_takes_part(shm_dir: Path) -> None:
    with lane_pair(shm_dir / "x", (4,), lanes=3) as pair:
        pair.here.write(0, 1, b"x" * PAGE)
        _open_all(pair)
        kinds = [batch.kind for batch in pair.run_round(STAGE_BULK)]
        assert kinds == [Kind.RESET, Kind.RECORDS, Kind.ROUND_END, *[Kind.RESET, Kind.ROUND_END] * 2]
        pair.finish()


def test_pages_of_any_size(shm_dir: Path, rng: random.Random) -> None:
    """The largest page fits into the smallest batch; above 16383 bytes there is no XBZRLE."""
    with lane_pair(shm_dir / "x", (3,), cache_bytes=1 << 20, page_size=65536) as pair:
        pair.open(0)
        for stage in (STAGE_BULK, STAGE_ROUND, STAGE_LAST):
            pair.here.dirty_randomly(rng, 4)
            batches = pair.run_round(stage, limit=1)
            assert all(batch.fill.xbzrle == 0 for batch in batches if batch.fill is not None)
        pair.check_equal()


def test_the_window(shm_dir: Path) -> None:
    pages = MAX_UNACKNOWLEDGED_BATCHES + 8
    with lane_pair(shm_dir / "x", (pages,)) as pair:
        for page in range(pages):
            pair.here.write(0, page, bytes([page + 1]) * PAGE)
        pair.open(0)
        lane = pair.source[0]
        pair.start_round(STAGE_BULK)
        made = []
        for _ in range(MAX_UNACKNOWLEDGED_BATCHES):
            assert not lane.window_full
            made.append(pair.make(0, limit=1))
        assert lane.window_full
        with pytest.raises(ValueError, match="window is full"):
            lane.next_batch()
        lane.acknowledge(lane.epoch - 1, 5)  # of an older epoch: means nothing any more
        assert lane.window_full
        lane.acknowledge(lane.epoch, 3)
        more = [pair.make(0, limit=1) for _ in range(3)]
        assert lane.window_full
        with pytest.raises(ProtocolError, match="sent were 35"):
            lane.acknowledge(lane.epoch, 36)
        for batch in made + more:
            assert batch is not None
            applied = pair.deliver(0, batch[0])
            lane.acknowledge(applied.epoch, applied.sequence)
        pair.run_out(0)
        pair.finish()


# --- resets -----------------------------------------------------------------------------------------

_DIRTY = 5


def _in_the_middle(pair: LanePair, rng: random.Random, cut: int, applied: int, acknowledged: int) -> None:
    """Round 2, a page a batch: `cut` batches sent, `applied` of them applied, `acknowledged` of those."""
    pair.here.dirty_randomly(rng, 20)
    pair.open(0)
    pair.run_round(STAGE_BULK)
    for page in range(_DIRTY):
        pair.here.write(0, page, rng.randbytes(PAGE))
    pair.start_round()
    for number in range(cut):
        made = pair.make(0, limit=1)
        assert made is not None
        assert record_pages(made[0]) == [("b0", number)]
        if number < applied:
            batch = pair.deliver(0, made[0])
            if number < acknowledged:
                pair.source[0].acknowledge(batch.epoch, batch.sequence)


@pytest.mark.parametrize("cut", range(_DIRTY + 1))
def test_reset_at_each_batch_with_each_position(shm_dir: Path, rng: random.Random, cut: int) -> None:
    positions = [(applied, ack) for applied in range(cut + 1) for ack in {0, applied // 2, applied}]
    for attempt, (applied, acknowledged) in enumerate(positions):
        with lane_pair(shm_dir / f"{attempt}", (8,)) as pair:
            _in_the_middle(pair, rng, cut, applied, acknowledged)
            lane, there = pair.source[0], pair.destination[0]
            assert lane.remaining == _DIRTY - cut
            assert pair.reset(0) == cut - applied, "owed is what was sent and not applied"
            assert lane.remaining == _DIRTY - applied
            assert lane.cache is not None and there.cache is not None
            assert lane.cache.entries == there.cache.entries == 0
            assert lane.state is LaneState.CLOSED
            pair.open(0)
            again = pair.run_out(0)
            assert (again[0][1].kind, again[-1][1].kind) == (Kind.RESET, Kind.ROUND_END)
            pages = [
                page for data, batch in again if batch.kind is Kind.RECORDS for page in record_pages(data)
            ]
            assert pages == [("b0", page) for page in range(applied, _DIRTY)], "owed pages go out unasked"
            assert lane.remaining == 0
            pair.check_equal()
            pair.finish()


def test_an_older_epoch_was_applied(shm_dir: Path, rng: random.Random) -> None:
    """The new connection never arrived: nothing of its epoch counts as applied."""
    with lane_pair(shm_dir / "x", (8,)) as pair:
        _in_the_middle(pair, rng, cut=3, applied=3, acknowledged=1)
        pair.reset(0)
        lane = pair.source[0]
        old = pair.destination[0].position
        lane.open(lane.epoch + 1)  # at the source only
        assert [pair.make(0, limit=1) is not None for _ in range(3)] == [True] * 3
        assert lane.reset(*old) == 2
        lane.open(lane.epoch + 1)
        pair.destination[0].open(lane.epoch)
        pair.run_out(0)
        pair.check_equal()
        pair.finish()


def test_what_is_owed_stays_owed_over_several_resets(shm_dir: Path, rng: random.Random) -> None:
    with lane_pair(shm_dir / "x", (8,)) as pair:
        _in_the_middle(pair, rng, cut=4, applied=1, acknowledged=0)
        for _ in range(3):
            assert pair.reset(0) == 3
            pair.open(0)
            assert pair.make(0) is not None  # the reset batch; nothing arrives
            assert pair.make(0, limit=1) is not None
        pair.reset(0)
        pair.open(0)
        pair.run_out(0)
        pair.check_equal()


def test_pages_that_the_destination_lost_are_sent_though_unchanged(shm_dir: Path, rng: random.Random) -> None:
    with lane_pair(shm_dir / "x", (8, 8), lanes=2) as pair:
        for block, page in ((0, 3), (1, 5)):  # no zeros: a destination that knows no better skips those
            pair.here.write(block, page, rng.randbytes(PAGE))
        _open_all(pair)
        pair.run_round(STAGE_BULK)
        wrong = pair.harvest()
        assert wrong.count() == 0
        stripe = pair.image.layout.stripe_pages
        for block, page in ((0, 3), (1, 5)):
            pair.there.write(block, page, b"somebody else" * 70 + bytes(114))
            wrong.set_range(block * stripe + page, 1)
        for number, lane in enumerate(pair.source):
            pair.reset(number)
            lane.owe(wrong)
            assert lane.remaining == 1
            pair.open(number)
            pair.run_out(number)
        pair.check_equal()


def test_a_reset_in_the_last_round_goes_on_as_a_live_one(shm_dir: Path, rng: random.Random) -> None:
    with lane_pair(shm_dir / "x", (8,)) as pair:
        pair.here.dirty_randomly(rng, 9)
        pair.open(0)
        pair.run_round(STAGE_BULK)
        pair.here.dirty_randomly(rng, 9)
        pair.run_round(STAGE_LAST)
        assert pair.source[0].state is LaneState.FINISHED
        with pytest.raises(ValueError, match="finished"):
            pair.start_round()
        pair.reset(0)
        pair.here.dirty_randomly(rng, 9)
        pair.open(0)
        last = pair.run_out(0)[-1][1]
        assert (last.kind, last.stage) == (Kind.ROUND_END, STAGE_ROUND)
        pair.round += 1
        pair.finish()


def test_a_round_begins_while_another_is_being_sent(shm_dir: Path, rng: random.Random) -> None:
    """As at the timeout: the rest goes out under the new number and stage, and nothing is left."""
    with lane_pair(shm_dir / "x", (20,)) as pair:
        for page in range(20):
            pair.here.write(0, page, rng.randbytes(PAGE))
        pair.open(0)
        pair.start_round(STAGE_BULK)
        for _ in range(4):
            made = pair.make(0, limit=1)
            assert made is not None
            pair.deliver(0, made[0])
        pair.here.write(0, 1, rng.randbytes(PAGE))
        pair.start_round(STAGE_LAST)
        sent = [batch for _, batch in pair.run_out(0, limit=1)]
        assert {(batch.round, batch.stage) for batch in sent} == {(2, STAGE_LAST)}
        assert sent[-1].kind is Kind.FINAL
        pair.check_equal()


def test_a_round_that_begins_while_the_lane_is_down(shm_dir: Path, rng: random.Random) -> None:
    with lane_pair(shm_dir / "x", (8,)) as pair:
        pair.here.dirty_randomly(rng, 9)
        pair.start_round(STAGE_BULK)
        assert pair.source[0].next_batch() is None
        pair.open(0)
        kinds = [batch.kind for _, batch in pair.run_out(0)]
        assert (kinds[0], kinds[-1]) == (Kind.RESET, Kind.ROUND_END)
        pair.check_equal()


@ALL_KINDS
def test_any_order_of_everything(
    shm_dir: Path, rng: random.Random, lanes: int, rule: str, codec: Codec
) -> None:
    """Writes, batches, deliveries, acknowledgements and cuts at random; then everything is equal."""
    for attempt in range(4):
        with lane_pair(shm_dir / f"{attempt}", (20, 10, 10), lanes, 1 << 14, rule, codec) as pair:
            wires = [InFlight() for _ in range(lanes)]
            pair.start_round(STAGE_BULK)
            for _ in range(300):
                _random_step(pair, wires, rng)
            for number, wire in enumerate(wires):
                _cut(pair, wire, number)
                pair.open(number)
                pair.run_out(number)
            pair.finish()


def _random_step(pair: LanePair, wires: list[InFlight], rng: random.Random) -> None:
    number = rng.randrange(pair.lanes)
    lane, wire = pair.source[number], wires[number]
    step = rng.random()
    if step < 0.2:
        pair.here.dirty_randomly(rng, 3)
    elif step < 0.25:
        if all(lane.state in (LaneState.IDLE, LaneState.CLOSED) for lane in pair.source):
            pair.start_round()
    elif step < 0.3:
        _cut(pair, wire, number)
    elif lane.state is LaneState.CLOSED:
        pair.open(number)
    elif step < 0.6:
        if not lane.window_full and (made := pair.make(number, rng.choice([1, 3000, 1 << 20]))) is not None:
            wire.batches.append(made[0])
    elif step < 0.85:
        if wire.batches:
            applied = pair.deliver(number, wire.batches.popleft())
            wire.acknowledgements.append((applied.epoch, applied.sequence))
    elif wire.acknowledgements:
        lane.acknowledge(*wire.acknowledgements.popleft())


def _cut(pair: LanePair, wire: InFlight, number: int) -> None:
    wire.clear()
    pair.reset(number)

"""Page caches of another size while it runs: both ends together, over every fault, and hostile bytes."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from lane_pair import InFlight, LanePair, deliver, lane_pair
from protocol_support import PAGE
from sim_network import Channel, Fault
from sim_states import destination_in, source_in
from simulation import Scenario, World, run

from migrate import kernel
from migrate.errors import ProtocolError
from migrate.kernel.results import STAGE_BULK, STAGE_ROUND
from migrate.protocol import actions as a
from migrate.protocol import messages as m
from migrate.protocol.batch import HEADER_BYTES, BatchHeader, Kind, decode_resize, encode_resize
from migrate.protocol.destination_states import DestinationState
from migrate.protocol.lane_destination import PreparedCache
from migrate.protocol.lane_source import LaneState
from migrate.protocol.schema import Message
from migrate.protocol.source_states import SourceState

SIZES = (0, 5000, 1 << 14, 1 << 16, 1 << 17)
RULES = pytest.mark.parametrize("rule", ["default", "qemu"])


def _caches(pair: LanePair, size: int) -> list[kernel.PageCache | None]:
    return [kernel.PageCache(pair.keys, size, pair.rule) if size else None for _ in range(2)]


def _resize(pair: LanePair, lane: int, number: int, size: int) -> None:
    """What the two machines do once they agree."""
    here, there = _caches(pair, size)
    pair.destination[lane].prepared = PreparedCache(number, size, there)
    pair.source[lane].resize(number, size, here)


def _edit_all(pair: LanePair, what: bytes) -> None:
    for page in range(8):
        pair.here.write(0, page, what, 77)


# --- two lanes of one pair ----------------------------------------------------------------------------


@RULES
def test_entries_are_kept_and_hit(shm_dir: Path, rng: random.Random, rule: str) -> None:
    with lane_pair(shm_dir / "x", (8,), rule=rule) as pair:
        pair.open(0)
        for page in range(8):
            pair.here.write(0, page, rng.randbytes(PAGE))
        pair.run_round(STAGE_BULK)
        _edit_all(pair, b"one")
        pair.run_round()
        before = pair.source[0].cache
        assert before is not None
        held = sorted(before.items())
        _resize(pair, 0, 1, 1 << 17)
        assert [batch.kind for _, batch in pair.run_out(0)] == [Kind.CACHE_RESIZE]
        now = pair.source[0].cache
        assert now is not None and now is not before and sorted(now.items()) == held
        assert not pair.source[0].resizing
        _edit_all(pair, b"two")
        fills = [batch.fill for batch in pair.run_round() if batch.fill is not None]
        assert sum(fill.cache_hit for fill in fills) == 8, "every page is held over the change"
        assert sum(fill.cache_miss for fill in fills) == 0
        pair.finish()


@RULES
def test_any_sizes_one_after_the_other(shm_dir: Path, rng: random.Random, rule: str) -> None:
    with lane_pair(shm_dir / "x", (30, 20), lanes=2, rule=rule) as pair:
        for lane in range(2):
            pair.open(lane)
        pair.run_round(STAGE_BULK)
        for number in range(1, 12):
            for lane in range(2):
                _resize(pair, lane, number, rng.choice(SIZES))
            pair.here.dirty_randomly(rng, 40)
            kinds = [batch.kind for batch in pair.run_round()]
            assert kinds.count(Kind.CACHE_RESIZE) == 2
            pair.check_equal()
        pair.finish()


def test_not_in_the_middle_of_a_round(shm_dir: Path, rng: random.Random) -> None:
    with lane_pair(shm_dir / "x", (8,)) as pair:
        pair.here.dirty_randomly(rng, 20)
        pair.open(0)
        pair.start_round(STAGE_BULK)
        kinds = []
        for step in range(20):
            made = pair.make(0, limit=1)
            if made is None:
                break
            pair.deliver(0, made[0])
            kinds.append(made[1].kind)
            if step == 2:
                _resize(pair, 0, 1, 1 << 17)
        assert kinds[0] is Kind.RESET and kinds[-2:] == [Kind.ROUND_END, Kind.CACHE_RESIZE]
        assert set(kinds[1:-2]) == {Kind.RECORDS}


@pytest.mark.parametrize("applied", [False, True])
@pytest.mark.parametrize("again", [False, True])
def test_a_reset_around_the_change(shm_dir: Path, rng: random.Random, applied: bool, again: bool) -> None:
    """The change is told again in the next epoch exactly if it was not applied in this one."""
    with lane_pair(shm_dir / "x", (8,)) as pair:
        pair.here.dirty_randomly(rng, 20)
        pair.open(0)
        pair.run_round(STAGE_BULK)
        _resize(pair, 0, 1, 1 << 17)
        made = pair.make(0)
        assert made is not None and made[1].kind is Kind.CACHE_RESIZE
        if applied:
            pair.deliver(0, made[0])  # and its acknowledgement is lost
        pair.reset(0)
        if again:
            pair.open(0)
            for _ in range(2):
                pair.make(0)  # nothing arrives
            pair.reset(0)
        assert pair.source[0].resizing is not applied
        pair.open(0)
        pair.here.dirty_randomly(rng, 20)
        pair.start_round(STAGE_ROUND)
        kinds = [batch.kind for _, batch in pair.run_out(0)]
        assert (kinds[1] is Kind.CACHE_RESIZE) is not applied
        assert kinds.count(Kind.CACHE_RESIZE) == (0 if applied else 1)
        for lane in (pair.source[0], pair.destination[0]):
            assert lane.cache is not None and lane.cache.bytes_allocated > 1 << 16
        pair.finish()


@RULES
def test_any_order_with_changes(shm_dir: Path, rng: random.Random, rule: str) -> None:
    """Batches, deliveries, acknowledgements, cuts and changes at random; then everything is equal."""
    changes = 0
    for attempt in range(6):
        with lane_pair(shm_dir / f"{attempt}", (20, 10), 2, 1 << 14, rule) as pair:
            wires = [InFlight() for _ in range(2)]
            numbers = [0, 0]
            pair.start_round(STAGE_BULK)
            for _ in range(400):
                _random_step(pair, wires, numbers, rng)
            for lane, wire in enumerate(wires):
                wire.clear()
                pair.reset(lane)
                pair.open(lane)
                pair.run_out(lane)
                assert not pair.source[lane].resizing
                assert pair.destination[lane].prepared is None
            pair.finish()
            changes += sum(numbers)
    assert changes > 20


def _random_step(pair: LanePair, wires: list[InFlight], numbers: list[int], rng: random.Random) -> None:
    lane = rng.randrange(2)
    source, wire = pair.source[lane], wires[lane]
    step = rng.random()
    if step < 0.15:
        pair.here.dirty_randomly(rng, 3)
    elif step < 0.2:
        if all(each.state in (LaneState.IDLE, LaneState.CLOSED) for each in pair.source):
            pair.start_round()
    elif step < 0.24:
        wire.clear()
        pair.reset(lane)
    elif step < 0.32:
        if not source.resizing:
            numbers[lane] += 1
            _resize(pair, lane, numbers[lane], rng.choice(SIZES))
    elif source.state is LaneState.CLOSED:
        pair.open(lane)
    elif step < 0.6:
        if not source.window_full and (made := pair.make(lane, rng.choice([1, 3000]))) is not None:
            wire.batches.append(made[0])
    elif step < 0.85:
        if wire.batches:
            applied = pair.deliver(lane, wire.batches.popleft())
            wire.acknowledgements.append((applied.epoch, applied.sequence))
    elif wire.acknowledgements:
        source.acknowledge(*wire.acknowledgements.popleft())


def _announcement(pair: LanePair, body: bytes) -> bytes:
    """A batch as a hostile source may make it, due next."""
    lane = pair.destination[0]
    header = BatchHeader(
        Kind.CACHE_RESIZE, 2, 0, lane.epoch, lane.sequence + 1, 9, 0, len(body), len(body), 0,
        kernel.crc32c(body),
    )  # fmt: skip
    return header.encode() + body


@pytest.mark.parametrize(
    "body, word",
    [
        (encode_resize(1, 1 << 17), "not agreed"),
        (encode_resize(2, 1 << 16), "not agreed"),
        (encode_resize(2, 1 << 60), "not agreed"),
        (encode_resize(2, 0), "not agreed"),
        (encode_resize(2, 1 << 17)[:-1], "malformed"),
        (encode_resize(2, 1 << 17) + b"x", "malformed"),
        (b"", "malformed"),
    ],
)
def test_an_announcement_of_something_else(shm_dir: Path, body: bytes, word: str) -> None:
    with lane_pair(shm_dir / "x", (8,)) as pair:
        pair.open(0)
        pair.run_round(STAGE_BULK)
        _resize(pair, 0, 2, 1 << 17)
        cache, prepared = pair.destination[0].cache, pair.destination[0].prepared
        with pytest.raises(ProtocolError, match=word):
            deliver(pair.destination[0], _announcement(pair, body))
        assert (pair.destination[0].cache, pair.destination[0].prepared) == (cache, prepared)


def test_an_announcement_twice_or_of_nothing(shm_dir: Path) -> None:
    with lane_pair(shm_dir / "x", (8,)) as pair:
        pair.open(0)
        pair.run_round(STAGE_BULK)
        _resize(pair, 0, 1, 1 << 17)
        pair.run_out(0)
        with pytest.raises(ProtocolError, match="not agreed"):
            deliver(pair.destination[0], _announcement(pair, encode_resize(1, 1 << 17)))


def test_an_announcement_among_records(shm_dir: Path, rng: random.Random) -> None:
    with lane_pair(shm_dir / "x", (8,)) as pair:
        pair.here.dirty_randomly(rng, 30)
        pair.open(0)
        pair.start_round(STAGE_BULK)
        for _ in range(2):
            made = pair.make(0, limit=1)
            assert made is not None
            pair.deliver(0, made[0])
        pair.destination[0].prepared = PreparedCache(1, 0, None)
        with pytest.raises(ProtocolError, match="middle of a round"):
            deliver(pair.destination[0], _announcement(pair, encode_resize(1, 0)))


def test_the_body_of_an_announcement() -> None:
    for number, size in ((0, 0), (1, 1 << 20), ((1 << 32) - 1, (1 << 64) - 1)):
        assert decode_resize(encode_resize(number, size)) == (number, size)
    assert HEADER_BYTES + len(encode_resize(1, 2)) == 76


# --- two machines -------------------------------------------------------------------------------------

ROUNDS = Scenario(pages=(2, 2), small_writes=True, downtime_limit_ms=0, max_rounds=4, timeout_action="pause")


def _sizes(world: World) -> list[tuple[str, object]]:
    return [(side, report.fields["size"]) for side, report in world.reports if report.name == "cache-resized"]


@RULES
@pytest.mark.parametrize("lanes", [1, 2, 3])
def test_a_move_with_changes(shm_dir: Path, rng: random.Random, lanes: int, rule: str) -> None:
    scenario = replace(
        ROUNDS,
        pages=(4, 3, 3),
        lanes=lanes,
        cache_rule=rule,
        max_rounds=14,
        resizes=((30, 1 << 16), (300, 0), (600, 1 << 15)),
    )
    world = run(shm_dir, scenario, rng.getrandbits(32))
    assert world.source.machine.outcome == "completed"
    assert world.source.machine.stats.lane_resets == 0, "the caches of the two ends never differed"
    sizes = _sizes(world)
    assert sizes, "it had the time for one change at least"
    for side in ("source", "destination"):
        assert [size for where, size in sizes if where == side] == [1 << 16, 0, 1 << 15][: len(sizes) // 2]
    last = sizes[-1][1]
    assert world.source.machine.stats.cache_size == world.destination.made.stats.cache_size == last


def test_of_several_wishes_the_last_counts(shm_dir: Path, rng: random.Random) -> None:
    scenario = replace(ROUNDS, resizes=tuple((50 + n, (1 << 14) + (n << 10)) for n in range(20)))
    world = run(shm_dir, scenario, rng.getrandbits(32))
    sizes = [size for side, size in _sizes(world) if side == "source"]
    assert 1 <= len(sizes) < 10 and sizes[-1] == (1 << 14) + (19 << 10)


def test_the_same_size_is_no_change(shm_dir: Path, rng: random.Random) -> None:
    world = run(shm_dir, replace(ROUNDS, resizes=((0, 1 << 14), (100, 1 << 14))), rng.getrandbits(32))
    assert not world.was_received(m.CacheResize)


@pytest.mark.parametrize("side", ["source", "destination"])
def test_no_memory(shm_dir: Path, rng: random.Random, side: str) -> None:
    """Whoever has none: the caches stay as they are, and the next wish is asked for all the same."""
    scenario = replace(
        ROUNDS, max_rounds=8, resizes=((50, 1 << 15), (51, 1 << 16)), failing=((f"{side} allocates", 1),)
    )
    world = run(shm_dir, scenario, rng.getrandbits(32))
    refused = [report.fields for where, report in world.reports if report.name == "cache-refused"]
    assert len(refused) == 1 and refused[0]["in_force"] == 1 << 14
    assert "no memory" in str(refused[0]["reason"])
    assert [size for where, size in _sizes(world) if where == "source"] == [1 << 16]


def test_more_than_is_allowed(shm_dir: Path, rng: random.Random) -> None:
    scenario = replace(ROUNDS, cache_limit=1 << 15, resizes=((50, 1 << 16),))
    world = run(shm_dir, scenario, rng.getrandbits(32))
    (refused,) = (report.fields for _, report in world.reports if report.name == "cache-refused")
    assert refused["reason"] == "65536 bytes are wanted, the destination allows 32768"
    assert refused["hint"] == "change --xbzrle-cache-limit at the destination"
    assert world.count(a.AllocateCaches) == 1, "the destination has not even looked for memory"
    assert world.source.machine.outcome == "completed"
    assert world.source.machine.stats.cache_size == 1 << 14


@pytest.mark.parametrize("channel", ["control up", "control down", "lane up"])
@pytest.mark.parametrize("lanes", [1, 2])
def test_cut_after_every_byte_of_a_change(
    shm_dir: Path, rng: random.Random, channel: Channel, lanes: int
) -> None:
    """The question, its answer, the announcement on each lane: cut anywhere, the wish is fulfilled."""
    seed = rng.getrandbits(32)
    scenario = replace(ROUNDS, lanes=lanes, max_rounds=12, resizes=((100, 1 << 16),))
    marks: list[int] = []

    def note(world: World) -> None:
        if world.steps == 100 or (len(marks) == 1 and len(_sizes(world)) == 2):
            marks.append(world.network.delivered[channel])

    run(shm_dir, scenario, seed, note)
    assert len(marks) == 2
    step = 1 if channel != "lane up" else max(1, (marks[1] - marks[0]) // 150)
    for at in range(marks[0], marks[1] + 30, step):
        world = run(shm_dir, replace(scenario, faults=(Fault(channel, at),)), seed)
        assert world.network.fired
        assert world.source.machine.outcome == "completed"
        assert {side for side, _ in _sizes(world)} == {"source", "destination"}, f"byte {at}"
        assert len(_sizes(world)) == 2
        assert world.source.machine.stats.lane_resets <= lanes, "and only because of the cut"


# --- what a peer may say ------------------------------------------------------------------------------


def _there(world: World, *messages: Message) -> list[Message]:
    machine = world.destination.made
    for message in messages:
        machine.message(world.now, message)
    return [action.message for action in machine.take_actions() if isinstance(action, a.Send)]


def test_questions_to_the_destination(shm_dir: Path, rng: random.Random) -> None:
    def check(act: Callable[[World], list[Message]], *expected: type[Message]) -> None:
        with destination_in(shm_dir, DestinationState.ACTIVE, rng.getrandbits(32)) as world:
            sent = act(world)
            assert [type(message) for message in sent] == list(expected), sent

    big, small = 1 << 21, 1 << 15
    check(lambda w: _there(w, m.CacheResize(1, big)), m.CacheRefused)
    check(lambda w: _there(w, m.CacheResize(1, big), m.CacheResize(1, big)), m.CacheRefused, m.CacheRefused)
    check(lambda w: _there(w, m.CacheResize(1, big), m.CacheResize(2, (1 << 64) - 1)), *[m.CacheRefused] * 2)
    check(lambda w: _there(w, m.CacheResize(1, 100)), m.CacheRefused)
    check(lambda w: _there(w, m.CacheResize(1, small)))  # memory first
    check(lambda w: _there(w, m.CacheResize(1, small), m.CacheResize(1, small)))
    check(lambda w: _there(w, m.CacheResize(1, small), m.CacheResize(2, small)), m.Failed)
    check(lambda w: _there(w, m.CacheResize(2, small), m.CacheResize(1, small)), m.Failed)
    check(lambda w: _there(w, m.CacheResize(1, small), m.CacheResize(1, 0)), m.Failed)
    check(lambda w: _there(w, m.CacheResize(0, small)), m.Failed)

    def agreed(world: World, *after: Message) -> list[Message]:
        _there(world, m.CacheResize(1, 0))
        world.destination.made.caches_allocated(world.now, [None] * 2)
        return _there(world, *after)

    check(agreed, m.CacheAgreed)
    check(lambda w: agreed(w, m.CacheResize(1, 0)), m.CacheAgreed, m.CacheAgreed)
    check(lambda w: agreed(w, m.CacheResize(2, 0)), m.CacheAgreed, m.Failed)


@pytest.mark.parametrize("answer", [m.CacheAgreed(1), m.CacheRefused(7, "no", "", "")])
def test_an_answer_without_a_question(shm_dir: Path, rng: random.Random, answer: Message) -> None:
    with source_in(shm_dir, SourceState.SENDING, rng.getrandbits(32)) as world:
        world.source.input(world.source.machine.message, answer)
        world.finish()
        assert isinstance(world.error, ProtocolError)
        assert world.guest.runs_here


def test_answers_to_a_question_that_was_answered(shm_dir: Path, rng: random.Random) -> None:
    with source_in(shm_dir, SourceState.SENDING, rng.getrandbits(32)) as world:
        machine = world.source.machine
        machine.set_parameters(world.now, {"xbzrle-cache-size": 1 << 15})
        machine.caches_allocated(world.now, [None, None])
        for answer in (m.CacheAgreed(1), m.CacheAgreed(1), m.CacheRefused(1, "no", "", ""), m.CacheAgreed(0)):
            machine.message(world.now, answer)
        actions = machine.take_actions()
        assert sum(isinstance(action, a.ResizeCache) for action in actions) == 2
        assert machine.state is SourceState.SENDING

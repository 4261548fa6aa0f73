"""A destination that holds RAM already: an old copy, or what a daemon that was killed had received."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest
from protocol_support import PAGE, SEED
from sim_network import Channel, Fault
from simulation import Scenario, World, run

from migrate import kernel
from migrate.errors import NetworkError, ProtocolError
from migrate.protocol import messages as m
from migrate.protocol.source_warm import GRACE_SECONDS, SourceWarm
from migrate.ram.digests import DIGEST_BYTES, DigestTable
from migrate.ram.layout import PageLayout

OLD_COPY = Scenario(pages=(5, 4), warm=6, small_writes=True)
IDLE = replace(OLD_COPY, warm=9, write_seconds=0.0)


def _ram(world: World) -> dict[str, int]:
    ram = world.source.machine.stats.as_dict(world.now)["ram"]
    assert isinstance(ram, dict)
    return ram


def _pages_sent(world: World) -> int:
    return _ram(world)["normal"] + _ram(world)["duplicate"]


@pytest.mark.parametrize("rule", ["default", "qemu"])
@pytest.mark.parametrize("lanes", [1, 2])
def test_nothing_is_sent_of_what_is_there(shm_dir: Path, rng: random.Random, lanes: int, rule: str) -> None:
    scenario = replace(IDLE, lanes=lanes, cache_rule=rule)
    world = run(shm_dir, scenario, rng.getrandbits(32))
    assert world.source.machine.outcome == "completed"
    assert _ram(world)["normal"] == 0
    if rule == "default":  # QEMU's sends the zeros of the bulk round in any case
        assert _ram(world)["duplicate"] == 0


@pytest.mark.parametrize("tracker", ["scan", "log", "stop"])
@pytest.mark.parametrize("verify", ["stream", "ram", "full"])
def test_an_old_copy_becomes_equal(
    shm_dir: Path, rng: random.Random, verify: str, tracker: str
) -> None:  # that it is equal is asserted at the commit
    for _ in range(10):
        pages = rng.choice([(5, 4), (2, 40)])  # the second has holes, where the old copy has none
        scenario = replace(OLD_COPY, pages=pages, verify=verify, tracker=tracker, warm=rng.randrange(1, 9))
        world = run(shm_dir, scenario, rng.getrandbits(32))
        assert world.source.machine.outcome == "completed"
        assert world.was_received(m.Digests)


def test_nothing_is_there(shm_dir: Path, rng: random.Random) -> None:
    """It was asked for, but the destination has no files yet."""
    begun: list[World] = []

    def remove_files(world: World) -> None:
        if not begun:
            for spec in world.there.specs:
                spec.path.unlink()
        begun.append(world)

    world = run(shm_dir, OLD_COPY, rng.getrandbits(32), remove_files)
    assert world.source.machine.outcome == "completed"
    assert not world.was_received(m.Digests)


@pytest.mark.parametrize("channel", ["control up", "control down"])
def test_cut_after_every_byte(shm_dir: Path, rng: random.Random, channel: Channel) -> None:
    scenario = replace(OLD_COPY, pages=(2,), warm=1, reconnect_timeout=20.0)
    seed = rng.getrandbits(32)
    whole = run(shm_dir, scenario, seed)
    outcomes = set()
    for at in range(rng.randrange(3), whole.network.delivered[channel], 3):
        world = run(shm_dir, replace(scenario, faults=(Fault(channel, at),)), seed)
        outcomes.add(world.source.machine.outcome)
        if world.source.machine.link.agreed is not None and not world.commit_sent:
            pytest.fail(f"a broken link before the commit must be survived\n{world.story()}")
    assert "completed" in outcomes


@pytest.mark.parametrize(
    "scenario",
    [
        Scenario(pages=(5, 4)),
        Scenario(pages=(8, 7), lanes=2, tracker="log", batch_limit=PAGE, write_seconds=0.0),
        Scenario(pages=(3, 3), lanes=2, cache_rule="qemu", codec="zlib", small_writes=True),
        Scenario(pages=(3, 3), tracker="log", resizes=((30, 1 << 15), (60, 1 << 13))),
        OLD_COPY,
    ],
    ids=["scan", "two lanes, idle, log", "two lanes, qemu's rule", "caches change their size", "old copy"],
)
def test_the_destination_is_killed_at_any_step(shm_dir: Path, rng: random.Random, scenario: Scenario) -> None:
    seed = rng.getrandbits(32)
    scenario = replace(scenario, reconnect_timeout=20.0)
    whole = run(shm_dir, scenario, seed)
    anew = 0
    for step in range(1 + rng.randrange(5), whole.steps, 5):
        steps = (step, step + rng.randrange(1, 200)) if rng.random() < 0.3 else (step,)
        world = run(shm_dir, replace(scenario, restarts=steps), seed)
        if not _asked_to_begin_anew(world):
            continue
        anew += 1
        assert world.source.machine.outcome == "completed", world.story()
        assert world.source.machine.stats.remaining_pages == 0
    assert anew > 5, "hardly any step hit a migration under way"


def _asked_to_begin_anew(world: World) -> bool:
    return any(isinstance(message, m.Reject) and message.anew for _, message in world.messages)


def test_only_what_is_missing_is_sent_again(shm_dir: Path, rng: random.Random) -> None:
    """A destination that is killed once everything is there costs its digests, and no page."""
    scenario = Scenario(pages=(6,), write_seconds=0.0, reconnect_timeout=20.0)
    restarted: list[int] = []

    def kill_after_the_first_round(world: World) -> None:
        if not restarted and world.count_reports("round") == 1 and world.there.read() == world.here.read():
            restarted.append(_pages_sent(world))
            world.restart_destination()

    world = run(shm_dir, scenario, rng.getrandbits(32), kill_after_the_first_round)
    assert world.source.machine.outcome == "completed"
    assert restarted and _pages_sent(world) == restarted[0]


# --- hostile digests ----------------------------------------------------------------------------------


LAYOUT = PageLayout(PAGE, [("a", 3 * PAGE), ("b", 2 * PAGE)])


@pytest.fixture
def warm() -> SourceWarm:
    """Waits for the digests of attempt 4 since second 100."""
    table = DigestTable(kernel.Keys(SEED, PAGE), LAYOUT)
    waiting = SourceWarm(table, LAYOUT.ram_bytes)
    waiting.begin(100.0, 4)
    return waiting


def _all_zeros() -> bytearray:
    return bytearray(DigestTable(kernel.Keys(SEED, PAGE), LAYOUT).array)


def _piece(data: bytes, first: int = 0, last: bool = True, number: int = 4) -> m.Digests:
    return m.Digests(number, first, data, last)


def test_digests_in_pieces(warm: SourceWarm) -> None:
    held = _all_zeros()
    page = LAYOUT.blocks[1].first_page
    held[DIGEST_BYTES * page] ^= 1
    half = DIGEST_BYTES * (page - 1)
    assert warm.message(_piece(bytes(held[:half]), last=False)) is None
    assert warm.waiting
    differing = warm.message(_piece(bytes(held[half:]), first=page - 1))
    assert differing is not None
    assert (differing.count(), differing.next()) == (1, page)
    assert not warm.waiting


@pytest.mark.parametrize("first", [1, 2**40])
def test_digests_out_of_order(warm: SourceWarm, first: int) -> None:
    with pytest.raises(ProtocolError, match="out of order"):
        warm.message(_piece(bytes(_all_zeros()), first=first))


@pytest.mark.parametrize(("change", "last"), [(-16, True), (16, True), (16, False), (0, False), (-1, True)])
def test_another_number_of_digests(warm: SourceWarm, change: int, last: bool) -> None:
    held = bytes(_all_zeros()) + bytes(16)
    with pytest.raises(ProtocolError, match="not as many"):
        warm.message(_piece(held[: len(held) - 16 + change], last=last))


def test_digests_of_pages_that_no_block_has(warm: SourceWarm) -> None:
    held = _all_zeros()
    held[DIGEST_BYTES * 3] ^= 1  # the page behind block a
    with pytest.raises(ProtocolError, match="no RAM block has"):
        warm.message(_piece(bytes(held)))


def test_digests_of_an_attempt_that_is_over(warm: SourceWarm) -> None:
    assert warm.message(_piece(bytes(_all_zeros()), number=3)) is None
    assert warm.waiting


def test_digests_that_never_come(warm: SourceWarm) -> None:
    warm.check(100.0 + GRACE_SECONDS)
    with pytest.raises(NetworkError, match="RAM files"):
        warm.check(101.0 + GRACE_SECONDS)

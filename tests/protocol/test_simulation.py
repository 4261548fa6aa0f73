"""Whole migrations in the simulation: clean ones of every kind, and what goes wrong at either side."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from simulation import Scenario, World, run

from migrate.errors import (
    CancelledMigration,
    GuestError,
    MigrateError,
    NetworkError,
    NotConvergedError,
    RamError,
    VerifyError,
)
from migrate.protocol import actions as a
from migrate.protocol import messages as m
from migrate.protocol.source_states import DECIDED, SourceState


def _story(world: World) -> list[str]:
    """Names of what the source reported, without the numbers of rounds."""
    return [report.name for side, report in world.reports if side == "source"]


@pytest.mark.parametrize("verify", ["stream", "ram", "full"])
@pytest.mark.parametrize("codec", ["none", "zlib"])
@pytest.mark.parametrize("rule", ["default", "qemu"])
@pytest.mark.parametrize("lanes", [1, 2, 3])
def test_a_clean_move(
    shm_dir: Path, rng: random.Random, lanes: int, rule: str, codec: str, verify: str
) -> None:
    scenario = Scenario(
        pages=(6, 5, 4), lanes=lanes, cache_rule=rule, codec=codec, verify=verify, batch_limit=4000
    )
    world = run(shm_dir, scenario, rng.getrandbits(32))
    assert world.source.machine.outcome == "completed"
    assert world.error is None
    assert world.guest.pauses == 1
    story = _story(world)
    assert [name for name in story if name not in ("round", "status", "outlook")] == [
        "negotiated",
        "pausing",
        "paused",
        "prepared",
        "committed",
        "running",
    ]
    assert story.count("round") >= 2
    stats = world.source.machine.stats
    assert stats.remaining_pages == stats.lane_resets == stats.reconnects == 0
    assert stats.status == "completed"
    blobs = [message for side, message in world.messages if isinstance(message, m.StateBlob)]
    assert [blob.data for blob in blobs] == [b"state of pause 1"]


def test_many_rounds(shm_dir: Path, rng: random.Random) -> None:
    scenario = Scenario(downtime_limit_ms=0, max_rounds=12, timeout_action="pause")
    world = run(shm_dir, scenario, rng.getrandbits(32))
    assert world.source.machine.outcome == "completed"
    assert world.source.machine.rounds.number == 13


def test_without_live_rounds(shm_dir: Path, rng: random.Random) -> None:
    world = run(shm_dir, Scenario(tracker="stop"), rng.getrandbits(32))
    assert world.source.machine.outcome == "completed"
    assert world.source.machine.rounds.number == 1


def test_a_guest_that_writes_nothing(shm_dir: Path, rng: random.Random) -> None:
    world = run(shm_dir, Scenario(write_seconds=0.0), rng.getrandbits(32))
    assert world.source.machine.outcome == "completed"


@pytest.mark.parametrize("action", ["cancel", "pause"])
@pytest.mark.parametrize("batch_limit", [1, 1 << 20])
def test_the_timeout(shm_dir: Path, rng: random.Random, action: str, batch_limit: int) -> None:
    scenario = Scenario(
        pages=(20, 20),
        lanes=2,
        downtime_limit_ms=0,
        timeout=0.25,
        timeout_action=action,
        batch_limit=batch_limit,
        max_rounds=10_000,
    )
    world = run(shm_dir, scenario, rng.getrandbits(32))
    if action == "pause":
        assert world.source.machine.outcome == "completed"
    else:
        assert isinstance(world.error, NotConvergedError)
        assert isinstance(world.destination.error, NotConvergedError), "both sides say the same"
        assert world.guest.pauses == 0


# --- what fails -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "failing, kind, pauses",
    [
        (("pause", 4), GuestError, 0),
        (("state", 1), GuestError, 1),
        (("prepare", 1), GuestError, 1),
    ],
)
def test_a_failure_before_the_commit(
    shm_dir: Path,
    rng: random.Random,
    failing: tuple[str, int],
    kind: type[MigrateError],
    pauses: int,
) -> None:
    world = run(shm_dir, Scenario(failing=(failing,)), rng.getrandbits(32))
    assert isinstance(world.error, kind)
    assert world.guest.runs_here
    assert world.guest.pauses == pauses
    assert world.destination.error is not None


def test_a_pause_that_fails_sometimes(shm_dir: Path, rng: random.Random) -> None:
    world = run(shm_dir, Scenario(failing=(("pause", 3),)), rng.getrandbits(32))
    assert world.source.machine.outcome == "completed"
    assert world.source.machine.stats.aborted_pauses == 3


def test_a_guest_that_cannot_be_resumed(shm_dir: Path, rng: random.Random) -> None:
    world = run(shm_dir, Scenario(failing=(("prepare", 1), ("resume", 1))), rng.getrandbits(32))
    assert isinstance(world.error, GuestError)
    assert world.error.guest == "the guest is still stopped at the source"


def test_a_guest_that_cannot_be_resumed_to_go_on(shm_dir: Path, rng: random.Random) -> None:
    """The pause was given up to go on with precopy: no use without a guest that runs."""
    scenario = Scenario(verify="full", tampered=1, failing=(("resume", 1),))
    world = run(shm_dir, scenario, rng.getrandbits(32))
    assert isinstance(world.error, GuestError)
    assert world.error.guest == "the guest is still stopped at the source"


def test_the_commit_command_fails(shm_dir: Path, rng: random.Random) -> None:
    """Nobody knows whether the guest runs there, so it does not run here."""
    world = run(shm_dir, Scenario(failing=(("commit", 1),)), rng.getrandbits(32))
    assert world.source.machine.outcome == "undecided"
    assert world.destination.made.outcome == "start-failed"
    assert not world.guest.runs_here


def test_the_destination_cannot_say_how_the_start_went(shm_dir: Path, rng: random.Random) -> None:
    """A fault of the daemon while it starts the guest must not leave both sides waiting."""

    def break_down(world: World) -> None:
        if world.handed_over and not world.destination.finished:
            world.destination.input(world.destination.made.failed, MigrateError("out of file descriptors"))

    world = run(shm_dir, Scenario(commit_seconds=1.0), rng.getrandbits(32), break_down)
    assert world.source.machine.outcome == "undecided"
    assert world.destination.made.outcome == "start-failed"


@pytest.mark.parametrize("lanes", [1, 2])
def test_ram_of_the_destination_is_changed_by_somebody(shm_dir: Path, rng: random.Random, lanes: int) -> None:
    for tampered in (1, 2):
        scenario = Scenario(verify="full", lanes=lanes, tampered=tampered)
        world = run(shm_dir, scenario, rng.getrandbits(32))
        assert world.source.machine.outcome == "completed"
        assert world.guest.pauses == tampered + 1
        assert world.source.machine.stats.remaining_pages == 0


def test_it_is_changed_again_and_again(shm_dir: Path, rng: random.Random) -> None:
    world = run(shm_dir, Scenario(verify="full", tampered=99), rng.getrandbits(32))
    assert isinstance(world.error, VerifyError)
    assert world.guest.runs_here
    assert isinstance(world.destination.error, VerifyError)


def test_a_writer_that_ignores_the_pause(shm_dir: Path, rng: random.Random) -> None:
    def let_go(world: World) -> None:
        world.guest.ignores_pause = True

    world = run(shm_dir, Scenario(confirm_seconds=0.1), rng.getrandbits(32), let_go)
    if world.source.machine.outcome == "completed":  # it wrote only after the last look before the commit
        assert isinstance(world.error, VerifyError)
    else:
        assert isinstance(world.error, GuestError)
        assert "changed after the guest was paused" in str(world.error)


def test_somebody_resumes_the_guest(shm_dir: Path, rng: random.Random) -> None:
    done = False

    def meddle(world: World) -> None:
        nonlocal done
        if world.source.machine.state is SourceState.LAST_ROUND and not done:
            done = world.guest.runs_here = True

    world = run(shm_dir, Scenario(), rng.getrandbits(32), meddle)
    assert world.source.machine.outcome == "completed"
    assert world.guest.pauses == 2
    assert any("somebody resumed" in str(report.fields) for _, report in world.reports)


@pytest.mark.parametrize(
    "what", ["source cancels", "destination cancels", "destination's disk is full", "guest dies"]
)
def test_an_end_at_every_step(shm_dir: Path, rng: random.Random, what: str) -> None:
    seed = rng.getrandbits(32)
    scenario = Scenario(pages=(2,), small_writes=True)
    steps = run(shm_dir, scenario, seed).steps
    outcomes = set()
    for at in range(1, steps):
        accepted: list[bool] = []

        def interfere(world: World, at: int = at, accepted: list[bool] = accepted) -> None:
            if world.steps == at:
                accepted.append(_interfere(world, what))

        world = run(shm_dir, scenario, seed, interfere)
        outcomes.add(world.source.machine.outcome)
        if accepted and accepted[0]:
            assert world.source.machine.outcome != "completed", f"step {at}"
            assert world.error is not None
            assert world.error.exit_code in (4, 6, 9, 10, 130), repr(world.error)
        else:
            assert world.source.machine.outcome == "completed", f"step {at}: too late"
    assert "completed" in outcomes and len(outcomes) >= 2


def _interfere(world: World, what: str) -> bool:
    """Returns whether it was taken up."""
    source, there = world.source, world.destination
    if what == "source cancels":
        return _input(world, source.machine.cancel, "Ctrl-C")
    if what == "guest dies":
        if source.machine.state in DECIDED:
            return False
        world.guest.dead, world.guest.runs_here = True, False
        error = GuestError("the guest died", side="source", guest="the guest runs nowhere")
        source.input(source.machine.failed, error)
        return True
    if there.machine is None or there.finished or world.handed_over:
        return False
    if what == "destination cancels":
        cancelled = there.machine.cancel(world.now, "Ctrl-C")
        there.perform()
        return cancelled
    there.input(there.machine.failed, RamError("no space is left on the device"))
    return True


def _input(world: World, cancel: object, reason: str) -> bool:
    assert callable(cancel)
    accepted = bool(cancel(world.now, reason))
    world.source.perform()
    return accepted


def test_both_ends_of_a_cancel_say_so(shm_dir: Path, rng: random.Random) -> None:
    def cancel(world: World) -> None:
        if world.source.machine.state is SourceState.SENDING:
            _input(world, world.source.machine.cancel, "Ctrl-C")

    world = run(shm_dir, Scenario(), rng.getrandbits(32), cancel)
    assert isinstance(world.error, CancelledMigration)
    assert isinstance(world.destination.error, CancelledMigration)
    assert world.source.machine.stats.status == world.destination.made.stats.status == "cancelled"


def test_hooks_of_a_pause_that_was_given_up_are_stopped(shm_dir: Path, rng: random.Random) -> None:
    def cancel(world: World) -> None:
        if world.source.machine.state is SourceState.PREPARING and world.count(a.RunPrepare):
            _input(world, world.source.machine.cancel, "Ctrl-C")

    world = run(shm_dir, Scenario(prepare_seconds=5.0), rng.getrandbits(32), cancel)
    assert world.count(a.StopHook) == 1
    assert world.guest.runs_here


def test_nobody_listens(shm_dir: Path, rng: random.Random) -> None:
    world = run(shm_dir, Scenario(listening=False), rng.getrandbits(32))
    assert isinstance(world.error, NetworkError)
    assert world.destination.machine is None

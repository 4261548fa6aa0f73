"""Every input in every state of the destination: a way of the table, no change, or an orderly end."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from message_values import MESSAGE_TYPES, example
from protocol_support import MIGRATION, SECRET
from sim_states import destination_in
from simulation import World

from migrate.errors import GuestError, JournalError, ProtocolError, RamError
from migrate.protocol import actions as a
from migrate.protocol import messages as m
from migrate.protocol.batch import Kind
from migrate.protocol.destination_states import DestinationState
from migrate.protocol.journal_record import Step
from migrate.protocol.lane_destination import AppliedBatch
from migrate.protocol.schema import Message

D = DestinationState
DESTINATION = pytest.mark.parametrize("state", list(D), ids=lambda state: state.value)
ERROR = GuestError("for the test")


def _destination_inputs(world: World) -> dict[str, Callable[[float], object]]:
    machine = world.destination.made
    lane = machine.lanes.lane(0)
    applied = AppliedBatch(Kind.ROUND_END, lane.epoch, lane.sequence, 1, 2, 100, 40, None)
    again = replace(machine.hello, attempt=machine.hello.attempt + 1, resume=True)
    opening = m.LaneOpen(MIGRATION, machine.hello.attempt, 0, lane.epoch + 1, SECRET)
    pause = machine.pause.number
    digests = bytearray(machine.digests.array)
    inputs: dict[str, Callable[[float], object]] = {}
    if machine.pause._handover._writing:
        step = machine.pause._handover._writing[0]
        inputs = {
            "journalled": lambda now: machine.journalled(now, step, None),
            "not journalled": lambda now: machine.journalled(now, step, JournalError("no space")),
        }
    question = m.Question(MIGRATION, machine.pause.number, machine.pause._root)
    return inputs | {
        "question": lambda now: machine.asked(now, question),
        "question of another pause": lambda now: machine.asked(now, replace(question, root=bytes(16))),
        "resume": lambda now: machine.resume(now, again),
        "resume old attempt": lambda now: machine.resume(now, replace(again, attempt=1)),
        "resume without saying so": lambda now: machine.resume(now, replace(again, resume=False)),
        "resume another guest": lambda now: machine.resume(now, replace(again, digest_seed=bytes(32))),
        "connection lost": lambda now: machine.connection_lost(now, "cut"),
        "tick": machine.tick,
        "tick later": lambda now: machine.tick(now + 3.0),
        "tick much later": lambda now: machine.tick(now + 1000.0),
        "lane opened": lambda now: machine.lane_opened(opening),
        "lane opened by a stranger": lambda now: machine.lane_opened(replace(opening, secret=bytes(32))),
        "lane that does not exist": lambda now: machine.lane_opened(replace(opening, lane=9)),
        "lane of an old epoch": lambda now: machine.lane_opened(replace(opening, epoch=lane.epoch)),
        "lane of an old attempt": lambda now: machine.lane_opened(replace(opening, attempt=0)),
        "batches applied": lambda now: machine.batches_applied(now, 0, [applied, applied]),
        "lane failed": lambda now: machine.lane_failed(now, 0, ProtocolError("bad bytes")),
        "lane cut": lambda now: machine.lane_failed(now, 0, ConnectionResetError("cut")),
        "disk full": lambda now: machine.lane_failed(now, 0, RamError("no space")),
        "lane stopped": lambda now: machine.lane_stopped(now, 0),
        "verified": lambda now: machine.pause.verified(now, None),
        "verified by reading": lambda now: machine.pause.verified(now, digests),
        "verified as unequal": lambda now: machine.pause.verified(now, bytearray(len(digests))),
        "prepare ended": lambda now: machine.pause.prepare_ended(now, pause, None, 0.1),
        "prepare failed": lambda now: machine.pause.prepare_ended(now, pause, ERROR, 0.1),
        "old prepare failed": lambda now: machine.pause.prepare_ended(now, pause + 1, ERROR, 0.1),
        "commit ended": lambda now: machine.pause.start_ended(now, None, 0.1),
        "commit failed": lambda now: machine.pause.start_ended(now, ERROR, 0.1),
        "failed": lambda now: machine.failed(now, ERROR),
        "cancel": lambda now: machine.cancel(now, "Ctrl-C"),
    }


def _check_destination(world: World, before: D) -> None:
    machine = world.destination.made
    actions = machine.take_actions()
    if before is D.ENDED:
        assert actions == []
    finishes = [action for action in actions if isinstance(action, a.Finish)]
    assert bool(finishes) == (machine.state is D.ENDED and before is not D.ENDED)
    if finishes:
        assert len(finishes) == 1 and actions[-1] is finishes[0], "nothing follows the end"
    written = [action.step for action in actions if isinstance(action, a.WriteJournal)]
    starts = any(isinstance(action, a.RunCommit) for action in actions)
    assert not starts or before is D.STARTING, "nothing starts before it is on disk"
    assert (Step.STARTING in written) == (machine.state is D.STARTING and before is not D.STARTING)
    if before in (D.STARTING, D.RUNNING):
        assert machine.state in (D.STARTING, D.RUNNING, D.ENDED)
        assert machine.outcome in ("completed", "start-failed") or machine.state is D.STARTING
    if before is D.PREPARED and machine.state in (D.ACTIVE, D.DECLINING, D.ENDED):
        assert Step.DECLINED in written, "a promise that is not kept is taken back on disk"
    said = [action.message for action in actions if isinstance(action, a.Send)]
    if any(isinstance(message, m.Verdict) and message.step == "declined" for message in said):
        assert before is D.DECLINING, "nobody hears of it before it is on disk"
    if before in (D.PREPARING, D.PREPARED) and machine.state in (D.ACTIVE, D.DECLINING, D.ENDED):
        assert any(isinstance(action, a.StopHook) for action in actions)


@DESTINATION
def test_every_input_at_the_destination(shm_dir: Path, rng: random.Random, state: D) -> None:
    seed = rng.getrandbits(32)
    with destination_in(shm_dir, state, seed) as world:
        names = list(_destination_inputs(world))
    for name in names:
        for after in ("", "connection lost", "resume"):
            with destination_in(shm_dir, state, seed) as world:
                inputs = _destination_inputs(world)
                if after:
                    inputs[after](world.now)
                    world.destination.perform()
                before = world.destination.made.state
                try:
                    inputs[name](world.now)
                except ProtocolError:
                    assert name.startswith("lane "), "only a lane is refused like this"
                    assert world.destination.made.state is before
                _check_destination(world, before)


def _messages_to_destination(world: World) -> list[Message]:
    machine = world.destination.made
    hello, pause = machine.hello, machine.pause.number
    root = machine.root.to_bytes(16, "big")
    positions = [m.LanePosition(*position) for position in machine.lanes.positions]
    found: list[Message] = [example(cls) for cls in MESSAGE_TYPES]
    found += [
        m.Commit(hello.migration, hello.attempt, root),
        m.Commit(hello.migration, hello.attempt, bytes(16)),
        m.Commit(hello.migration, hello.attempt + 1, root),
        m.Commit(bytes(16), hello.attempt, root),
        m.Prepare(pause, root, positions, []),
        m.Prepare(pause + 1, root, positions, []),
        m.Prepare(pause + 1, root, positions[:1], []),
        m.Prepare(pause + 1, root, positions, [m.Blob("x", 3, bytes(32))]),
        m.StateBlob("x", bytes(1000)),
        m.Resumed(pause, True, "because"),
        m.Resumed(pause, False, "because"),
        m.Failed(4, "there"),
        m.Cancel("Ctrl-C"),
        m.Settled(hello.migration, False),
        m.Settled(hello.migration, True),
    ]
    for lane in (0, 9):
        epoch = machine.lanes.positions[0][0]
        found += [m.LaneBroken(lane, number, "cut") for number in (0, epoch, epoch + 1)]
    return found


@DESTINATION
def test_every_message_to_the_destination(shm_dir: Path, rng: random.Random, state: D) -> None:
    seed = rng.getrandbits(32)
    with destination_in(shm_dir, state, seed) as world:
        count = len(_messages_to_destination(world))
    for index in range(count):
        for after in ("", "resume"):
            with destination_in(shm_dir, state, seed) as world:
                message = _messages_to_destination(world)[index]
                if after:
                    _destination_inputs(world)[after](world.now)
                    world.destination.perform()
                before = world.destination.made.state
                world.destination.made.message(world.now, message)
                _check_destination(world, before)
                if world.destination.made.state is D.STARTING and before is D.PREPARED:
                    assert isinstance(message, m.Commit)
                    assert message.root == world.source.machine.root.to_bytes(16, "big")


def test_more_device_state_than_allowed(shm_dir: Path, rng: random.Random) -> None:
    """Refused as soon as it is too much, not when all of it is here."""
    for chunks, size in ((m.MAX_BLOBS + 1, 1), (m.MAX_BLOB_BYTES // m.CHUNK_BYTES + 1, m.CHUNK_BYTES)):
        with destination_in(shm_dir, D.ACTIVE, rng.getrandbits(32)) as world:
            machine = world.destination.made
            for index in range(chunks):
                assert machine.state is D.ACTIVE
                name = f"{index}" if size == 1 else "one"
                machine.message(world.now, m.StateBlob(name, bytes(size)))
            assert machine.state is D.ENDED
            finish = machine.take_actions()[-1]
            assert isinstance(finish, a.Finish) and isinstance(finish.error, ProtocolError)

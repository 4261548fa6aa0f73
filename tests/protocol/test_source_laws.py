"""Every input in every state of the source: a way of the table, no change, or an orderly end."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from message_values import MESSAGE_TYPES, example
from protocol_support import SECRET
from sim_states import source_in
from simulation import World

from migrate.errors import GuestError, JournalError, MigrateError, NetworkError, RamError
from migrate.protocol import actions as a
from migrate.protocol import messages as m
from migrate.protocol.batch import Kind
from migrate.protocol.journal_record import Step
from migrate.protocol.lane_source import SentBatch
from migrate.protocol.schema import Message
from migrate.protocol.source_rounds import HarvestResult
from migrate.protocol.source_states import DECIDED, PAUSED, SourceState
from migrate.ram.bitmap import DirtyBitmap

S = SourceState
SOURCE = pytest.mark.parametrize("state", list(S), ids=lambda state: state.value)
ERROR = GuestError("for the test")


def _source_inputs(world: World) -> dict[str, Callable[[float], object]]:
    """Everything the shell may say; `(now)` is left to fill in."""
    machine = world.source.machine
    pages = world.source_image.layout.total_pages
    harvest = HarvestResult(DirtyBitmap(pages), 0, 0.001, world.now)
    pause = machine.pause
    inputs: dict[str, Callable[[float], object]] = {
        "connected": machine.connected,
        "connection lost": lambda now: machine.connection_lost(now, "cut"),
        "failed": lambda now: machine.failed(now, ERROR),
        "cancel": lambda now: machine.cancel(now, "Ctrl-C"),
        "set parameters": lambda now: machine.set_parameters(now, {"max-bandwidth": 1 << 20}),
        "switch over": machine.switch_over,
        "tick": machine.tick,
        "tick later": lambda now: machine.tick(now + 3.0),
        "tick much later": lambda now: machine.tick(now + 1000.0),
        "tracking": lambda now: machine.tracking(now, harvest),
        "harvested": lambda now: machine.harvested(now, harvest),
        "resumed": machine.resumed,
        "resume failed": lambda now: machine.resume_failed(now, ERROR),
        "paused": pause.paused,
        "pause failed": lambda now: pause.pause_failed(now, ERROR),
        "state collected": lambda now: pause.state_collected(now, []),
        "state failed": lambda now: pause.state_failed(now, ERROR),
        "confirmed": lambda now: pause.confirmed(now, None),
        "not confirmed": lambda now: pause.confirmed(now, ERROR),
        "reread": lambda now: pause.reread(now, None),
        "reread differs": lambda now: pause.reread(now, ERROR),
    }
    if machine.commit._handover._writing:
        step = machine.commit._handover._writing[0]
        inputs |= {
            "journalled": lambda now: machine.journalled(now, step, None),
            "not journalled": lambda now: machine.journalled(now, step, JournalError("no space")),
        }
    if machine.link.lanes:
        lane = machine.link.lanes[1].lane
        batch = SentBatch(Kind.ROUND_END, lane.epoch, lane.sequence + 1, 1, 2, 100, None)
        inputs |= {
            "batch sent": lambda now: machine.batch_sent(now, 1, batch),
            "old batch sent": lambda now: machine.batch_sent(now, 1, replace(batch, epoch=0)),
            "lane broken": lambda now: machine.lane_broken(now, 1, "cut"),
            "lane stopped": lambda now: machine.lane_stopped(now, 1),
        }
    return inputs


def _check_source(world: World, before: S) -> None:
    """After an input: where it may stand, what it may have asked for, and for whom the guest runs."""
    machine = world.source.machine
    actions = machine.take_actions()
    if before is S.ENDED:
        assert actions == []
        assert machine.state is S.ENDED
    finishes = [action for action in actions if isinstance(action, a.Finish)]
    assert bool(finishes) == (machine.state is S.ENDED and before is not S.ENDED)
    if finishes:
        assert len(finishes) == 1 and actions[-1] is finishes[0], "nothing follows the end"
    resumes = any(isinstance(action, a.ResumeGuest) for action in actions)
    if before in DECIDED:
        assert not resumes
        assert machine.state in (*DECIDED, S.ENDED)
    if before in PAUSED and machine.state not in PAUSED | {S.COMMITTING}:
        assert resumes, "a pause that is left is always a guest that is resumed"
    written = [action.step for action in actions if isinstance(action, a.WriteJournal)]
    sent = [action.message for action in actions if isinstance(action, a.Send)]
    if machine.state is S.COMMITTING and before is not S.COMMITTING:
        assert written == [Step.COMMITTED]
        assert not any(isinstance(message, m.Commit) for message in sent), "not before it is on disk"


@SOURCE
def test_every_input_at_the_source(shm_dir: Path, rng: random.Random, state: S) -> None:
    seed = rng.getrandbits(32)
    with source_in(shm_dir, state, seed) as world:
        names = list(_source_inputs(world))
    for name in names:
        with source_in(shm_dir, state, seed) as world:
            call = _source_inputs(world)[name]
            call(world.now)
            _check_source(world, state)


def _messages_to_source(world: World) -> list[Message]:
    """One small example of each type, and what a destination might really say, at any time."""
    machine = world.source.machine
    found: list[Message] = [example(cls) for cls in MESSAGE_TYPES]
    root = machine.root.to_bytes(16, "big")
    number = machine.pause.number
    hello = machine.link.hello
    found.append(
        m.Accept(1, "", hello.cache_bytes, hello.cache_rule, 2, hello.codec, hello.verify, SECRET, [], 0)
    )
    found.append(
        m.Accept(9, "", hello.cache_bytes, "lru", 2, "zstd", "maybe", SECRET, [m.LanePosition(9, 9)] * 2, 0)
    )
    array = bytes(len(machine.digests.array))
    for pause in (number, number + 1):
        found += [
            m.Prepared(pause, root, 5, 5),
            m.Prepared(pause, bytes(16), 5, 5),
            m.Refused(pause, "no"),
            m.Unequal(pause, bytes(16)),
            m.Digests(pause, 0, array[:64], False),
            m.Digests(pause, 0, array, True),
            m.Digests(pause, 7, array, True),
        ]
    for lane in (0, 2):
        link = machine.link.lanes[lane] if lane < len(machine.link.lanes) else None
        epoch, sequence = (link.lane.epoch, link.lane.sequence) if link is not None else (1, 1)
        for position in ((epoch, sequence), (epoch, 0), (epoch, sequence + 1), (epoch + 1, 0), (0, 0)):
            found += [m.Ack(lane, *position), m.LaneReset(lane, *position, "as the destination says")]
    steps = ("prepared", "declined", "starting", "unknown", "busy", "nonsense")
    found += [m.Verdict(number, step, "as the destination says") for step in steps]
    found.append(m.Forgotten(hello.migration))
    found += [m.Failed(code, "there") for code in (0, 3, 5, 9, 130, 255)]
    return found


@SOURCE
def test_every_message_to_the_source(shm_dir: Path, rng: random.Random, state: S) -> None:
    """Whatever a peer says, the promises hold to the end of the migration."""
    seed = rng.getrandbits(32)
    with source_in(shm_dir, state, seed) as world:
        count = len(_messages_to_source(world))
    for index in range(count):
        with source_in(shm_dir, state, seed) as world:
            message = _messages_to_source(world)[index]
            world.source.machine.message(world.now, message)
            taken = world.source.machine.take_actions()
            if state is S.ENDED:
                assert taken == []
                continue
            if isinstance(message, m.Verdict) and message.step == "declined" and state in DECIDED:
                continue  # believed: who else should know
            world.source.carry_out(taken)
            if state is S.NEW:
                continue
            if isinstance(message, m.Running) and state is S.COMMITTING:
                assert world.source.machine.state is S.REREADING  # believed: who else should know
                continue
            world.finish()


@pytest.mark.parametrize("error", [GuestError("x"), NetworkError("x"), MigrateError("x")])
def test_the_first_error_stands(shm_dir: Path, rng: random.Random, error: MigrateError) -> None:
    with source_in(shm_dir, S.SENDING, rng.getrandbits(32)) as world:
        world.source.machine.failed(world.now, error)
        world.source.machine.failed(world.now, RamError("later"))
        world.source.machine.cancel(world.now, "later")
        world.source.perform()
        world.finish()
        assert world.error is error

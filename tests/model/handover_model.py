"""The handover as a finite state space: the product's two machines, and all that can go wrong around them.

A world is both handovers (handover_source.py, handover_destination.py) with what is on their disks, the guest
at both places, and a connection whose messages arrive in order, late, or not at all. `Model.moves` lists what
can happen next, a step of a program or a fault, any number of times each:

* the connection breaks, with what is on its way; a program is killed, also in the middle of a write (which is
  on disk then, or torn, and the record before it counts); a write fails, and is on disk or not;
* a host is started anew: its programs, its guest and its boot are gone;
* on-commit fails, and has started the guest or not; a guest dies while it is paused; somebody else sends
  SIGCONT before the commit;
* either side gives up, at any time; a daemon that slept goes on where it was; `recover` at either side; a
  person who has looked forces;
* with an arbiter: it gives no answer, and has decided or not.

What surrounds the machines in the daemons (rounds, proof, hooks) is reduced to its order: pause, prepare,
look once more, commit. Which program may act is what the journals' locks make of it: one a side.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any, NamedTuple, TypeVar

from migrate.protocol.handover_destination import DestinationHandover
from migrate.protocol.handover_destination import Order as There
from migrate.protocol.handover_source import Order as Here
from migrate.protocol.handover_source import SourceHandover
from migrate.protocol.journal_record import Step

Message = tuple[str, Any]
_IGNORED = ("reason", "_orders")


class Program(NamedTuple):
    """A running program of one side: a daemon, or whoever took up its journal."""

    live: bool
    """The daemon itself; else `recover`, or what answers questions from a journal."""
    machine: tuple[Any, ...]
    work: tuple[Any, ...] = ()
    """Writes and commands under way, in order."""
    phase: str = ""
    """Of the daemon at the source: idle, pausing, paused, preparing, prepared, resuming, deciding."""
    ends: bool = False
    """Nothing new is begun."""
    connected: bool = False
    """At the destination: the connection of the world is this program's."""


class World(NamedTuple):
    """Everything there is."""

    here: Program | None
    there: Program | None
    disk_here: Step | None = Step.MOVING
    disk_there: Step | None = Step.RECEIVING
    pause: int = 0
    """Number of the source's last pause, in its journal too."""
    prepared: int = 0
    """Of the destination's."""
    same_boot: bool = True
    """The destination's journal is of this boot."""
    runs_here: bool = True
    runs_there: bool = False
    alive: bool = True
    """The guest at the source exists, running or stopped."""
    started: bool = False
    """It was let go at the destination at some time."""
    lost: bool = False
    """It was let go there, and died there."""
    decided: str = ""
    """By the arbiter: `source` or `destination`, for ever."""
    linked: bool = True
    up: tuple[Message, ...] = ()
    down: tuple[Message, ...] = ()


_Tuple = TypeVar("_Tuple", World, Program)


def replace(value: _Tuple, **changes: Any) -> _Tuple:
    """A changed copy."""
    return value._replace(**changes)  # type: ignore[no-any-return]


def freeze(machine: SourceHandover | DestinationHandover) -> tuple[Any, ...]:
    """Its state, but for what is only said to people."""
    return tuple(value for name, value in vars(machine).items() if name not in _IGNORED)


def thaw_source(state: tuple[Any, ...]) -> SourceHandover:
    """The machine in that state."""
    return _thaw(SourceHandover(), state)


def thaw_destination(state: tuple[Any, ...]) -> DestinationHandover:
    """The machine in that state."""
    return _thaw(DestinationHandover(), state)


def _thaw(machine: Any, state: tuple[Any, ...]) -> Any:
    names = [name for name in vars(machine) if name not in _IGNORED]
    for name, value in zip(names, state, strict=True):
        setattr(machine, name, value)
    return machine


def first_world(*, arbiter: bool) -> World:
    """RAM is on its way, the guest runs at the source."""
    here = Program(True, freeze(SourceHandover()), phase="idle")
    return World(here, Program(True, freeze(DestinationHandover(arbiter=arbiter)), connected=True))


@cache
def _step_source(state: tuple[Any, ...], call: str, arguments: tuple[Any, ...]) -> tuple[Any, Any, list[Any]]:
    """An input to the source's machine: its state afterwards, its step, its orders."""
    machine = thaw_source(state)
    getattr(machine, call)(*arguments)
    orders = machine.take_orders()
    return freeze(machine), machine.step, orders


@cache
def _step_destination(
    state: tuple[Any, ...], call: str, arguments: tuple[Any, ...]
) -> tuple[Any, Any, list[Any]]:
    """The same of the destination's."""
    machine = thaw_destination(state)
    getattr(machine, call)(*arguments)
    orders = machine.take_orders()
    return freeze(machine), machine.step, orders


Move = tuple[str, bool, World]
"""What happens, whether it is a fault, and the world after it."""


class Model:
    """The moves of a world.

    Args:
        pauses: how many the source makes at most.
        arbiter: there is one.
    """

    def __init__(self, pauses: int, *, arbiter: bool) -> None:
        self._pauses = pauses
        self._arbiter = arbiter

    def moves(self, world: World) -> Iterator[Move]:
        """Everything that can happen next."""
        for name, fault, after in self._all(world):
            if after != world:
                yield name, fault, after

    def _all(self, world: World) -> Iterator[Move]:
        yield from self._guest(world)
        yield from self._link(world)
        if world.here is not None:
            yield from self._source(world, world.here)
        else:
            yield from self._recover_here(world)
        if world.there is not None:
            yield from self._destination(world, world.there)
        else:
            yield from self._recover_there(world)

    # --- the guest, the link, the hosts -----------------------------------------------------------

    def _guest(self, world: World) -> Iterator[Move]:
        if world.alive and not world.runs_here:
            yield "the stopped guest dies", True, replace(world, alive=False)
            if self._undecided(world):
                yield "somebody sends SIGCONT", True, replace(world, runs_here=True)

    @staticmethod
    def _undecided(world: World) -> bool:
        """Nothing at the source says more than `pausing`, on disk or on its way."""
        if world.disk_here not in (Step.MOVING, Step.PAUSING):
            return False
        return world.here is None or thaw_source(world.here.machine).may_release

    def _link(self, world: World) -> Iterator[Move]:
        if world.linked:
            yield "the connection breaks", True, _cut(world)
        if world.linked and not world.down and (world.there is None or not world.there.connected):
            yield "the connection ends", False, _cut(world)
        if world.here is not None:
            yield "the source is killed", True, self._kill_here(world)
            if world.here.work and isinstance(world.here.work[0], Step):
                written = replace(world, disk_here=world.here.work[0])
                yield "the source is killed in a write", True, self._kill_here(written)
        boot = self._kill_here(world) if world.here is not None else world
        yield "the source's host starts anew", True, replace(boot, alive=False, runs_here=False)
        if world.there is not None:
            yield "the destination is killed", True, self._kill_there(world)
            if world.there.work and isinstance(world.there.work[0], Step):
                written = replace(world, disk_there=world.there.work[0])
                yield "the destination is killed in a write", True, self._kill_there(written)
        boot = self._kill_there(world) if world.there is not None else world
        lost = world.lost or world.runs_there
        yield (
            "the destination's host starts anew",
            True,
            replace(boot, runs_there=False, lost=lost, same_boot=False),
        )

    @staticmethod
    def _kill_here(world: World) -> World:
        return _cut(replace(world, here=None))

    @staticmethod
    def _kill_there(world: World) -> World:
        return _cut(replace(world, there=None))

    # --- the source ---------------------------------------------------------------------------------

    def _source(self, world: World, program: Program) -> Iterator[Move]:
        yield from self._work_here(world, program)
        machine = thaw_source(program.machine)
        if world.down and (program.live or not program.work):
            yield from self._read_here(world, program)
        if program.live:
            yield from self._daemon_here(world, program, machine)
        elif not program.work:
            if not world.linked and machine.step in (Step.COMMITTED, Step.DONE, Step.RESUMED):
                yield "recover asks", False, self._ask(world, program)
            if self._arbiter and not world.linked and machine.step is Step.COMMITTED:
                yield "recover claims", False, self._tell_here(world, program, "unanswered")
            yield "recover gives up", False, self._kill_here(world)
        if program.live and program.phase == "deciding":
            if not world.linked:
                yield "the source asks", False, self._ask(world, program)
            yield "the source gives up", False, self._kill_here(world)

    def _daemon_here(self, world: World, program: Program, machine: SourceHandover) -> Iterator[Move]:
        phase = program.phase
        if phase == "idle":
            if world.linked and world.pause < self._pauses and not program.ends and world.alive:
                after = replace(world, pause=world.pause + 1)
                yield "a pause", False, self._tell_here(after, replace(program, phase="pausing"), "pause")
            if not program.work:
                disk = None if machine.step is Step.MOVING else world.disk_here
                yield "the source ends", False, replace(self._kill_here(world), disk_here=disk)
            if not world.linked and world.there is not None and world.there.live and not program.ends:
                yield from self._greet(world)
        if phase == "paused" and world.linked:
            after = replace(
                world, here=replace(program, phase="preparing"), up=(*world.up, ("prepare", world.pause))
            )
            yield "prepare", False, after
        if phase == "prepared":
            if world.alive and not world.runs_here:
                yield "commit", False, self._tell_here(world, replace(program, phase="deciding"), "commit")
            else:
                yield "the guest does not stand", False, self._release(world, program)
        if phase in ("pausing", "paused", "preparing", "prepared"):
            yield "the pause is given up", False, self._release(world, program)

    def _release(self, world: World, program: Program) -> World:
        after = _say(world, "up", ("resumed", world.pause))
        return self._tell_here(after, replace(program, phase="resuming"), "release")

    def _greet(self, world: World) -> Iterator[Move]:
        """A hello of the next attempt: whatever the destination had prepared is void."""
        assert world.there is not None
        machine = thaw_destination(world.there.machine)
        if (
            machine.step in (Step.STARTING, Step.RUNNING)
            or Step.STARTING in world.there.work
            or world.there.ends
        ):
            return
        after = replace(world, linked=True)
        there = replace(world.there, connected=True)
        yield "the source is back", False, self._tell_there(after, there, "void", "a new attempt")

    def _ask(self, world: World, program: Program) -> World:
        """A connection with a question; who answers depends on who has the journal there."""
        there = world.there
        if there is not None:
            machine = thaw_destination(there.machine)
            promised = machine.promised or machine.step in (Step.STARTING, Step.RUNNING)
            if not there.live or there.ends or not promised or world.linked:
                return world  # busy
            after = replace(world, there=replace(there, connected=True), linked=True, up=(), down=())
        elif world.disk_there is None or world.prepared != world.pause:
            after = replace(world, linked=True, up=(), down=())
            after = self._tell_here(after, program, "link")
            return replace(after, up=(), down=(("verdict", None),))
        else:
            machine = self._found_there(world)
            answers = Program(False, freeze(machine), connected=True)
            after = replace(world, there=answers, linked=True, up=(), down=())
        return self._tell_here(after, program, "link")

    def _work_here(self, world: World, program: Program) -> Iterator[Move]:
        if not program.work:
            return
        order, rest = program.work[0], replace(program, work=program.work[1:])
        if isinstance(order, Step):
            done = replace(world, disk_here=order)
            yield (
                f"source: {order.value} on disk",
                False,
                self._tell_here(done, rest, "journalled", order, True),
            )
            for disk in (world, done):
                yield (
                    f"source: {order.value} fails",
                    True,
                    self._tell_here(disk, rest, "journalled", order, False),
                )
        elif order is Here.PAUSE:
            if rest.phase == "pausing":
                yield (
                    "the guest stops",
                    False,
                    replace(world, runs_here=False, here=replace(rest, phase="paused")),
                )
            else:
                yield "given up before it began", False, replace(world, here=rest)
        elif order is Here.CLAIM:
            claimed = _claim(world, "source")
            won = claimed.decided == "source"
            yield "source: the arbiter decides", False, self._tell_here(claimed, rest, "claimed", won, "")
            for after in (world, claimed):
                yield "source: no answer", True, self._tell_here(after, rest, "claimed", None, "")
            yield "killed when it had claimed", True, self._kill_here(claimed)
        else:
            assert order is Here.RESUME
            after = replace(world, runs_here=world.alive)
            phase = "idle" if rest.phase == "resuming" else rest.phase
            yield "the guest runs here", False, self._tell_here(after, replace(rest, phase=phase), "resumed")

    def _read_here(self, world: World, program: Program) -> Iterator[Move]:
        (kind, value), rest = world.down[0], replace(world, down=world.down[1:])
        decided = not program.live or program.phase == "deciding"
        if kind == "prepared":
            if program.phase == "preparing" and value == world.pause:
                yield "prepared", False, replace(rest, here=replace(program, phase="prepared"))
            else:
                yield "prepared, late", False, rest
        elif not decided:
            yield f"{kind}, for nobody", False, rest
        elif kind == "running":
            yield "running", False, self._tell_here(rest, program, "running")
        elif kind == "start-failed":
            yield "start-failed", False, self._tell_here(rest, program, "start_failed", "")
        elif kind == "verdict":
            yield "verdict", False, self._tell_here(rest, program, "verdict", value, "")
        else:
            assert kind == "forgotten"
            yield "forgotten", False, self._tell_here(rest, program, "forgotten")

    def _recover_here(self, world: World) -> Iterator[Move]:
        """`recover`, and the supervisor, whose part of it is the same."""
        if world.disk_here is None:
            return
        machine = SourceHandover(world.disk_here)
        after = replace(world, here=Program(False, freeze(machine)))
        assert after.here is not None
        yield "recover here", False, self._tell_here(after, after.here, "recover")

    def _tell_here(self, world: World, program: Program, call: str, *arguments: Any) -> World:
        """An input to the source's machine, and its orders."""
        machine, step, orders = _step_source(program.machine, call, arguments)
        work, ended, removed = list(program.work), False, False
        for order in orders:
            if isinstance(order, Step) or order in (Here.PAUSE, Here.RESUME, Here.CLAIM):
                work.append(order)
            elif order is Here.COMMIT:
                world = _say(world, "up", ("commit", world.pause))
            elif order is Here.ASK:
                world = _say(world, "up", ("question", world.pause))
            elif order is Here.SETTLE:
                world = _say(world, "up", ("settled", step is Step.RESUMED))
            elif order is Here.PAUSE_FAILED:
                program = replace(program, phase="resuming")
                machine, step, more = _step_source(machine, "release", ())
                work += more
            elif order in (Here.UNDECIDED, Here.UNSETTLED):
                ended = True
            elif order is Here.FORGET:
                ended = removed = True
            elif order is Here.HANDED_OVER:
                assert world.started, "the source believes in a success that never was"
        if not program.live and not work and step is Step.MOVING:
            ended = removed = True  # a pause that was never decided: the guest runs, nobody will ask
        if removed:
            world = replace(world, disk_here=None)
        if ended and not work:
            return self._kill_here(world)
        return replace(world, here=replace(program, machine=machine, work=tuple(work)))

    # --- the destination ------------------------------------------------------------------------------

    def _destination(self, world: World, program: Program) -> Iterator[Move]:
        yield from self._work_there(world, program)
        machine = thaw_destination(program.machine)
        if world.up and program.connected and (program.live or not program.work):
            yield from self._read_there(world, program)
        started = machine.step in (Step.STARTING, Step.RUNNING) or Step.STARTING in program.work
        if program.live and not program.ends and not started:
            yield "the destination gives up", False, self._fail_there(world, program)
        waits = machine.step is Step.RUNNING if program.live else not world.linked
        if waits and not program.work:
            yield "the destination waits no longer", False, self._kill_there(world)

    def _fail_there(self, world: World, program: Program) -> World:
        machine = thaw_destination(program.machine)
        if not machine.promised:
            keep = machine.step is Step.DECLINED
            after = replace(world, disk_there=world.disk_there if keep else None)
            return self._kill_there(after)
        return self._tell_there(world, replace(program, ends=True), "void", "it gave up")

    def _work_there(self, world: World, program: Program) -> Iterator[Move]:
        if not program.work:
            return
        order, rest = program.work[0], replace(program, work=program.work[1:])
        if isinstance(order, Step):
            done = replace(world, disk_there=order)
            yield (
                f"destination: {order.value} on disk",
                False,
                self._tell_there(done, rest, "journalled", order, True),
            )
            for disk in (world, done):
                after = self._tell_there(disk, rest, "journalled", order, False)
                yield f"destination: {order.value} fails", True, after
        elif order is There.CLAIM:
            claimed = _claim(world, "destination")
            won = claimed.decided == "destination"
            yield "there: the arbiter decides", False, self._tell_there(claimed, rest, "claimed", won, "")
            for after in (world, claimed):
                yield "there: no answer", True, self._tell_there(after, rest, "claimed", None, "")
            yield "killed there when it had claimed", True, self._kill_there(claimed)
        elif order is There.START:
            assert world.same_boot, "it starts what has gone with the boot"
            going = replace(world, runs_there=not world.lost, started=True)
            yield "the guest runs there", False, self._tell_there(going, rest, "started", None)
            yield "on-commit fails", True, self._tell_there(world, rest, "started", "it failed")
            yield "on-commit fails late", True, self._tell_there(going, rest, "started", "it failed")
            yield "killed when it had started", True, self._kill_there(going)
        else:
            assert order is There.LOOK
            yield "it looks", False, self._tell_there(world, rest, "looked", world.runs_there)

    def _read_there(self, world: World, program: Program) -> Iterator[Move]:
        (kind, value), rest = world.up[0], replace(world, up=world.up[1:])
        machine = thaw_destination(program.machine)
        if kind == "prepare":
            if program.live and not program.ends and not machine.promised:
                yield (
                    "prepared there",
                    False,
                    self._tell_there(replace(rest, prepared=value), program, "prepare"),
                )
            yield "refused", False, rest
        elif kind == "resumed":
            yield "resumed", False, self._tell_there(rest, program, "void", "resumed")
        elif kind == "commit":
            expected = value == world.prepared
            assert expected or not program.live, "a commit of another pause on the daemon's connection"
            yield "commit comes", False, self._tell_there(rest, program, "commit") if expected else rest
        elif kind == "question":
            yield "question", False, self._tell_there(rest, program, "asked")
        else:
            assert kind == "settled"
            yield "settled", False, self._tell_there(rest, program, "settled", value)

    def _found_there(self, world: World) -> DestinationHandover:
        assert world.disk_there is not None
        return DestinationHandover(world.disk_there, world.same_boot, arbiter=self._arbiter)

    def _recover_there(self, world: World) -> Iterator[Move]:
        """`migrate-dst recover`, and a person who has looked at a guest that did not survive its host."""
        if world.disk_there not in (Step.PREPARED, Step.STARTING):
            return
        after = replace(world, there=Program(False, freeze(self._found_there(world))))
        assert after.there is not None
        yield "recover there", False, self._tell_there(after, after.there, "recover")
        if world.disk_there is Step.STARTING and not world.runs_there and not world.lost:
            yield "a person declines", False, self._tell_there(after, after.there, "force", Step.DECLINED)
        if world.disk_there is Step.STARTING and world.lost:
            yield "a person saw it run", False, self._tell_there(after, after.there, "force", Step.RUNNING)

    def _tell_there(self, world: World, program: Program, call: str, *arguments: Any) -> World:
        """An input to the destination's machine, and its orders."""
        machine, step, orders = _step_destination(program.machine, call, arguments)
        work, ended = list(program.work), False

        def say(message: Message) -> None:
            nonlocal world
            if program.connected:
                world = _say(world, "down", message)

        for order in orders:
            if isinstance(order, Step) or order in (There.START, There.LOOK, There.CLAIM):
                work.append(order)
                if order is Step.PREPARED:
                    world = replace(world, same_boot=True)
            elif order is There.PREPARED:
                say(("prepared", world.prepared))
            elif order is There.SAY_STEP:
                say(("verdict", step))
            elif order is There.SAY_RUNNING:
                say(("running", None))
            elif order is There.SAY_START_FAILED:
                say(("start-failed", None))
                ended = True
            elif order is There.DECLINED and program.ends:
                say(("verdict", Step.DECLINED))
                ended = True
            elif order is There.DECLINE_FAILED and program.ends:
                ended = True
            elif order is There.REFUSE:
                return self._fail_there(world, replace(program, machine=machine))
            elif order is There.FORGET:
                world = replace(world, disk_there=None)
                say(("forgotten", None))
                ended = True
        if ended and not work:
            return replace(world, there=None, up=())  # what it said is still on its way
        return replace(world, there=replace(program, machine=machine, work=tuple(work)))


def _cut(world: World) -> World:
    """The connection is gone, with everything on its way."""
    here, there = world.here, world.there
    world = replace(world, linked=False, up=(), down=())
    if here is not None:
        machine = thaw_source(here.machine)
        machine.unlink()
        here = replace(here, machine=freeze(machine))
        if here.live and here.phase in ("pausing", "paused", "preparing", "prepared"):
            machine.release()
            work = (*here.work, *machine.take_orders())
            here = replace(here, machine=freeze(machine), work=work, phase="resuming")
    if there is not None:
        there = replace(there, connected=False)
    if there is not None and there.live and not there.ends:
        peer = thaw_destination(there.machine)
        if Step.PREPARED in there.work and peer.promised:  # not said yet: the source cannot have committed
            peer.void("the connection broke")
            there = replace(there, machine=freeze(peer), work=(*there.work, *peer.take_orders()))
    return replace(world, here=here, there=there)


def _claim(world: World, side: str) -> World:
    """The first one decides."""
    return replace(world, decided=world.decided or side)


def _say(world: World, way: str, message: Message) -> World:
    if not world.linked:
        return world
    return replace(world, **{way: (*getattr(world, way), message)})  # type: ignore[arg-type]

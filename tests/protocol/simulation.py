"""Two migration machines over a wire that is not there, in one thread and in fake time.

`run` moves a small guest from one directory to another: real lanes, real files, real bytes on the control
connection; the network, the clock, the threads and the guest are simulated, and what happens next is drawn
from a seeded generator. After every step the promises are checked: one owner, nobody resumes after the
commit, equal RAM when it arrives, nothing after the end, no progress that runs backwards without a word why.
"""

from __future__ import annotations

import heapq
import math
import random
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from protocol_support import MIGRATION, PAGE, RamFiles, make_hello
from sim_destination import DestinationShell
from sim_guest import Guest, LogTracker
from sim_network import Fault, Network
from sim_source import SourceShell, WatchedSource

from migrate import kernel
from migrate.config import Address, SourceConfig, Throttle
from migrate.errors import MigrateError
from migrate.protocol import actions as a
from migrate.protocol import messages as m
from migrate.protocol.destination_states import DestinationState
from migrate.protocol.journal_record import Step
from migrate.protocol.schema import Message
from migrate.protocol.source_states import SourceState
from migrate.ram.image import RamImage
from migrate.ram.marker import marker_path
from migrate.ram.trackers import DirtyTracker, ScanTracker, StopTracker

STEP_SECONDS = 0.0004
TICK_SECONDS = 0.05
MOST_SECONDS = 600.0
MOST_STEPS = 300_000
UNPREPARED = (DestinationState.ACTIVE, DestinationState.PREPARING)


MORE_REMAINS = {"outlook", "lane-reset", "begun-anew"}
TAKES_LONGER = {"outlook", "pausing", "resumed"}
"""Reports that say why."""


@dataclass(frozen=True)
class Scenario:
    """What is moved, how, and what goes wrong on the way."""

    pages: tuple[int, ...] = (4, 3)
    lanes: int = 1
    codec: str = "none"
    cache_rule: str = "default"
    cache_bytes: int = 1 << 14
    cache_limit: int = 1 << 20
    verify: str = "ram"
    batch_limit: int = 1 << 20
    tracker: str = "scan"
    """scan, log (a bitmap that the guest sets: what was fetched from it is gone) or stop."""
    listening: bool = True
    """The destination can be reached."""

    downtime_limit_ms: int = 300
    max_rounds: int = 30
    timeout: float = 0.0
    timeout_action: str = "cancel"
    keepalive_timeout: float = 2.0
    reconnect_timeout: float = 10.0
    throttle: Throttle = 0

    write_seconds: float = 0.004
    """Between two writes of the guest; 0: it writes nothing."""
    small_writes: bool = False
    """It changes a few bytes only, on pages that were zero at first."""
    pause_seconds: float = 0.0
    resume_seconds: float = 0.0
    state_seconds: float = 0.0
    tracker_seconds: float = 0.0
    harvest_seconds: float = 0.0
    confirm_seconds: float = 0.0
    look_seconds: float = 0.0
    late_seconds: float = 0.0
    """So long after a write its mark may come in the log, while the guest runs."""
    unmarked: float = 0.0
    """The share of writes that nothing marks."""
    verify_seconds: float = 0.0
    prepare_seconds: float = 0.0
    commit_seconds: float = 0.0

    warm: int = 0
    """So many pages are at the destination already, others hold something else; 0: a cold start."""
    restarts: tuple[int, ...] = ()
    """Steps at which the destination's daemon is killed and started again, if it is not prepared by then."""
    resizes: tuple[tuple[int, int], ...] = ()
    """(step, bytes): a person wants page caches of that size from there on."""
    faults: tuple[Fault, ...] = ()
    failing: tuple[tuple[str, int], ...] = ()
    """(work, how many times it fails): pause, resume, state, prepare, commit, throttle, source allocates,
    destination allocates."""
    tampered: int = 0
    """How many times somebody writes to the destination's RAM before it is verified."""


class World:
    """Both shells, the network, the guest, the clock, and the promises.

    Args:
        directory: for the RAM files of both sides.
        on_step: called after every step, to interfere.
    """

    def __init__(
        self,
        directory: Path,
        scenario: Scenario,
        seed: int,
        on_step: Callable[[World], None] | None = None,
    ) -> None:
        self.scenario = scenario
        self.rng = random.Random(seed)
        self.now = 1000.0
        self.steps = 0
        self.commit_sent = False
        self.handed_over = False
        self.actions: list[tuple[str, a.Action]] = []
        self.journals: list[tuple[str, Step]] = []
        """(side, step) in the order in which they were to be written."""
        self.removed: set[str] = set()
        """Sides whose journal is gone."""
        self.messages: list[tuple[str, Message]] = []
        """(side that received it, message)."""
        self.on_step = on_step
        self._shown: tuple[int, float, float] = (0, math.inf, math.inf)
        """Pages that remain, time left at best and at worst, after the last step."""
        self._told = 0
        self.network = Network(self.rng, list(scenario.faults))
        if not scenario.listening:
            self.network.down_until = math.inf
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._number = 0
        self._failing = Counter(dict(scenario.failing))
        self._tampered = scenario.tampered

        self.here = RamFiles(directory / "source", scenario.pages)
        self.there = RamFiles(directory / "destination", scenario.pages)
        self.here.create()
        self.guest = Guest(self.here, self.rng, scenario.small_writes)
        for _ in range(sum(scenario.pages)):
            self.guest.write()
        if scenario.warm:
            self._make_old_copy(scenario.warm)
        self.source_image = RamImage.open_source(self.here.specs, PAGE)
        self._image: RamImage | None = None
        self.tracker = self._make_tracker()
        self.source = SourceShell(self, self._make_source())
        self.destination = DestinationShell(self)

    def _make_old_copy(self, pages: int) -> None:
        """The destination's files hold some of the guest's pages, zeros, and the pages of another guest."""
        self.there.create()
        for number, (here, count) in enumerate(zip(self.here.read(), self.scenario.pages, strict=True)):
            for page in range(count):
                if pages > 0:
                    self.there.write(number, page, here[page * PAGE : (page + 1) * PAGE])
                elif self.rng.random() < 0.5:
                    self.there.write(number, page, self.rng.randbytes(PAGE))
                pages -= 1

    def _make_tracker(self) -> DirtyTracker:
        if self.scenario.tracker == "scan":
            return ScanTracker(threads=1)
        if self.scenario.tracker == "stop":
            return StopTracker()
        tracker = LogTracker()
        self.here.on_write = partial(self._mark, tracker)
        return tracker

    def _mark(self, tracker: LogTracker, block: int, page: int) -> None:
        """The guest wrote: data is stored first, its mark may come later, or never."""
        if self.scenario.unmarked and self.rng.random() < self.scenario.unmarked:
            return
        if not self.scenario.late_seconds:
            tracker.mark(block, page)
            return
        tracker.unmarked.append((block, page))  # a guest that is to stand marks what it has stored
        seconds = self.rng.random() * self.scenario.late_seconds
        self.after(seconds, partial(tracker.mark_late, block, page))

    def all_marked(self) -> None:
        """The guest stands: every store has its mark."""
        if isinstance(self.tracker, LogTracker):
            for block, page in list(self.tracker.unmarked):
                self.tracker.mark_late(block, page)

    def _make_source(self) -> WatchedSource:
        scenario = self.scenario
        config = SourceConfig(
            to=Address("destination", 4444),
            ram=tuple(self.here.specs),
            xbzrle_cache_size=0,
            downtime_limit_ms=scenario.downtime_limit_ms,
            max_rounds=scenario.max_rounds,
            timeout=scenario.timeout,
            timeout_action=scenario.timeout_action,  # type: ignore[arg-type]
            keepalive_timeout=scenario.keepalive_timeout,
            reconnect_timeout=scenario.reconnect_timeout,
            throttle=scenario.throttle,
            guest_pid=1 if scenario.throttle else None,
        )
        hello = make_hello(
            list(self.here.lengths.items()),
            lanes=scenario.lanes,
            codec=scenario.codec,
            cache_rule=scenario.cache_rule,
            cache_bytes=scenario.cache_bytes,
            verify=scenario.verify,
            warm=bool(scenario.warm),
        )
        return WatchedSource(hello, config, self.source_image, self.tracker.live)

    def close(self) -> None:
        """Let go of files and threads."""
        self.tracker.close()
        self.source_image.close()
        if self._image is not None:
            self._image.close()

    # --- for the shells -----------------------------------------------------------------------------

    def open_destination(self, *, keep: bool = False) -> RamImage:
        """The destination's image, marked as incoming."""
        if self._image is None:
            self._image = RamImage.open_destination(self.there.specs, self.here.lengths, PAGE)
            self._image.mark(MIGRATION.hex(), keep=keep)
        return self._image

    def restart_destination(self) -> None:
        """Its daemon is killed and started again at once."""
        there = self.destination
        if self.source.finished or (there.machine is not None and there.machine.state not in UNPREPARED):
            return
        there.kill()
        if self._image is not None:
            self._image.close()
            self._image = None
        for connection in self.network.backlog:
            connection.close("destination")
        self.network.backlog.clear()
        self.destination = DestinationShell(self)

    def after(self, seconds: float, work: Callable[[], None]) -> None:
        """Do it later."""
        self._number += 1
        heapq.heappush(self._timers, (self.now + seconds, self._number, work))

    def delay(self) -> float:
        """How long a quick job takes."""
        return self.rng.random() * 0.004

    def fails(self, work: str) -> bool:
        """Whether this job fails this time."""
        self._failing[work] -= 1
        return self._failing[work] >= 0

    def allocate(
        self, side: str, keys: kernel.Keys, wanted: a.AllocateCaches
    ) -> list[kernel.PageCache | None] | None:
        """Page caches of another size, or none because there is no memory."""
        if self.fails(f"{side} allocates"):
            return None
        if wanted.share == 0:
            return [None] * wanted.lanes
        rule = self.scenario.cache_rule
        return [kernel.PageCache(keys, wanted.share, rule) for _ in range(wanted.lanes)]

    def tamper(self) -> None:
        """Somebody else may write to the destination's RAM."""
        if self._tampered > 0:
            self._tampered -= 1
            block = self.rng.randrange(len(self.scenario.pages))
            page = self.rng.randrange(self.scenario.pages[block])
            self.there.write(block, page, self.rng.randbytes(PAGE))

    def device_state(self) -> list[tuple[str, bytes]]:
        """What the devices hold: another thing in every pause."""
        return [("devices", b"state of pause %d" % self.guest.pauses), ("none", b"")]

    def record(self, side: str, action: a.Action) -> None:
        """A machine asked for something."""
        self.actions.append((side, action))

    def received(self, side: str, message: Message) -> None:
        """A message came out of the wire."""
        self.messages.append((side, message))

    def hand_over(self) -> None:
        """The destination begins to start the guest."""
        assert self.commit_sent, "the destination starts the guest without a commit"
        assert not self.guest.runs_here, "the guest runs at the source when it is handed over"
        if not self.guest.ignores_pause:  # else somebody may write after the last look at RAM
            assert self.there.read() == self.here.read(), "RAM differs at the commit"
        assert list(self.destination.made.pause.blobs.items()) == self.device_state(), (
            "state of another pause"
        )
        self.handed_over = True
        self.open_destination().unmark()

    # --- running ------------------------------------------------------------------------------------

    def run(self) -> World:
        """From the beginning to the end of both sides."""
        self.begin()
        return self.finish()

    def begin(self) -> None:
        """Start the source's machine, the clock and the guest."""
        self.source.input(self.source.machine.start)
        self._tick()
        if self.scenario.write_seconds:
            self._guest_writes()

    def finish(self) -> World:
        """To the end of both sides."""
        while not self.ended:
            self.step()
        self.check_end()
        return self

    @property
    def ended(self) -> bool:
        """Both sides have finished, and nothing of the source's last orders is left."""
        there = self.destination
        return self.source.finished and (there.machine is None or there.finished) and not there.events

    def step(self) -> None:
        """One thing happens."""
        ready = self._ready()
        while not ready:
            self.now = max(self.now, self._timers[0][0])
            ready = self._ready()
        self.rng.choice(ready)()
        self.now += STEP_SECONDS
        self.steps += 1
        if self.steps in self.scenario.restarts:
            self.restart_destination()
        for step, size in self.scenario.resizes:
            if step == self.steps:
                self.resize(size)
        self._check()
        if self.on_step is not None:
            self.on_step(self)

    def resize(self, size: int) -> None:
        """A person wants page caches of that size."""
        if not self.source.finished:
            self.source.machine.set_parameters(self.now, {"xbzrle-cache-size": size})
            self.source.perform()

    def _ready(self) -> list[Callable[[], None]]:
        ready = self.source.steps() + self.destination.steps()
        for connection, pipe in self.network.deliverable():
            ready.append(lambda c=connection, p=pipe: self.network.deliver(self.now, c, p))
        if self._timers[0][0] <= self.now:
            ready.append(self._next_timer)
        return ready

    def _next_timer(self) -> None:
        heapq.heappop(self._timers)[2]()

    def _tick(self) -> None:
        self.source.input(self.source.machine.tick)
        if self.destination.machine is not None:
            self.destination.input(self.destination.machine.tick)
        self.after(TICK_SECONDS, self._tick)

    def _guest_writes(self) -> None:
        if self.guest.writes_now:
            self.guest.write()
        if self.source.finished:
            return  # what it writes from now on is nobody's business
        share = 1 - self.guest.throttle_percent / 100
        self.after(self.scenario.write_seconds / share * (0.5 + self.rng.random()), self._guest_writes)

    # --- the promises ---------------------------------------------------------------------------------

    def _check(self) -> None:
        guest, machine = self.guest, self.source.machine
        assert self.now < 1000 + MOST_SECONDS, f"no end: {self.story()}"
        assert self.steps < MOST_STEPS, f"no end: {self.story()}"
        assert not (guest.runs_here and guest.runs_there), "two owners"
        taken_back = machine.commit.journal_step in (Step.TAKEN_BACK, Step.RESUMED)
        if self.commit_sent and not taken_back:
            assert not guest.runs_here, "the guest runs at the source after the commit"
        self._check_progress()
        finished = machine.state is SourceState.ENDED
        assert self.source.finished == finished, "the source's machine ended without saying so"
        there = self.destination
        finished = there.machine is not None and there.machine.state is DestinationState.ENDED
        assert there.finished == finished, "the destination's machine ended without saying so"

    def _check_progress(self) -> None:
        stats = self.source.machine.stats
        told = {report.name for report in self.source.reports[self._told :]}
        self._told = len(self.source.reports)
        remaining, best, worst = self._shown
        left = stats.time_left(self.now) or (math.inf, math.inf)
        self._shown = (stats.remaining_pages, *left)
        if stats.ended is not None or stats.current_round is None or stats.current_round.round == 1:
            return
        assert stats.remaining_pages <= remaining or told & MORE_REMAINS, "more remains, and nobody says why"
        longer = left[0] > best + 1e-9 or left[1] > worst + 1e-9
        assert not longer or told & TAKES_LONGER, "it takes longer, and nobody says why"

    def check_end(self) -> None:
        """Where the guest is, what was said about it, and what is left on the disk."""
        guest, machine = self.guest, self.source.machine
        place = machine.guest_place
        assert machine.stats.throttle_percent == 0, "the throttle is lifted at every end"
        error = self.source.error
        if machine.outcome == "completed":
            assert guest.runs_there and not guest.runs_here, self.story()
            assert place == "the guest runs at the destination"
        elif machine.outcome == "undecided":
            assert ("source", Step.COMMITTED) in self.journals and not guest.runs_here, self.story()
            assert error is not None and error.exit_code == 10
            assert "stopped at the source" in place and "may run at the destination" in place
        else:
            taken_back = machine.commit.journal_step in (Step.TAKEN_BACK, Step.RESUMED)
            assert not guest.runs_there and (taken_back or not self.commit_sent), self.story()
            assert error is not None, self.story()
            if guest.runs_here:
                assert place == "the guest runs at the source as before", self.story()
            else:
                assert guest.dead or "still stopped" in place, self.story()
        assert self.destination.machine is None or guest.runs_there == (
            self.destination.machine.outcome == "completed"
        )
        if self._image is not None:
            marked = [marker_path(spec.path).exists() for spec in self.there.specs]
            assert marked == [not self.handed_over] * len(marked)
        if error is not None:
            assert error.guest == place

    def story(self) -> str:
        """What happened, for the report of a failure."""
        machine = self.source.machine
        lines = [f"source {machine.state.value} {machine.outcome}: {self.source.error!r}"]
        there = self.destination.machine
        if there is not None:
            lines.append(f"destination {there.state.value} {there.outcome}: {self.destination.error!r}")
        lines += [f"{side}: {action.name} {action.fields}" for side, action in self.reports][-40:]
        return "\n".join(lines)

    @property
    def reports(self) -> list[tuple[str, a.Report]]:
        """What both machines told."""
        return [(side, action) for side, action in self.actions if isinstance(action, a.Report)]

    def count(self, kind: type[a.Action]) -> int:
        """How many actions of that kind were asked for."""
        return sum(isinstance(action, kind) for _, action in self.actions)

    def count_reports(self, name: str) -> int:
        """How often the source told that."""
        return sum(side == "source" and report.name == name for side, report in self.reports)

    @property
    def error(self) -> MigrateError | None:
        """What the source ended with."""
        return self.source.error

    def was_received(self, kind: type[Message]) -> bool:
        """Whether a message of that kind came out of the wire."""
        return any(isinstance(message, kind) for _, message in self.messages)


def run(
    directory: Path,
    scenario: Scenario,
    seed: int,
    on_step: Callable[[World], None] | None = None,
) -> World:
    """Move the guest; the world as it is at the end, its files gone."""
    where = directory / "run"
    world = World(where, scenario, seed, on_step)
    try:
        return world.run()
    except AssertionError as error:
        error.add_note(f"seed {seed}, {scenario}\n{world.story()}")
        raise
    finally:
        world.close()
        shutil.rmtree(where)


__all__ = ["Fault", "Scenario", "World", "m", "run"]

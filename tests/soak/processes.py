"""Real daemons and a real guest: a faulty network, and kill -9 of either daemon when something happens.

Whatever comes of it, `recover` brings it to one owner; then the guest moves, if it has not yet, over a
network without faults. It ends at the destination, without a lost write, a second owner or a difference.
"""

from __future__ import annotations

import asyncio
import random
import shlex
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any

from bench.lab import Lab, Program
from bench.stress import COMPARE
from migrate.daemon.fault_proxy import FaultProxy
from migrate.daemon.toxics import Corrupt, Latency, LimitData, Slicer, Toxic
from tests.soak.tally import Tally

SOURCE_STEPS = ("negotiated", "round", "pausing", "paused", "prepared", "committed", "running")
DESTINATION_STEPS = ("connected", "prepared", "committed", "running")
QUICK = ("--keepalive-timeout=1", "--reconnect-timeout=3")
RECOVERIES = 20
REFUSED = 3


def migrate_processes(seed: int, count: int) -> Tally:
    """So many guests, from that seed on."""
    tally = Tally()
    for number in range(seed, seed + count):
        with tempfile.TemporaryDirectory(prefix="migrate-test-soak-", dir="/dev/shm") as directory:
            story = _Story(Path(directory), random.Random(number), tally)
            try:
                with story.lab:
                    story.run()
            except AssertionError as error:
                what = "hangs" if "still running" in str(error) else "lost guests"
                tally.went_wrong(what, f"--seed {number} processes: {story.what}\n{error}")
            tally.done += 1
    return tally


class _Story:
    """One guest and what becomes of it."""

    def __init__(self, directory: Path, rng: random.Random, tally: Tally) -> None:
        self.lab = Lab(directory, directory, [("pc.ram", "8M")])
        self.what = ""
        self._resume = self.lab.resume_command
        self._rng = rng
        self._tally = tally
        self._differing = directory / "differing"
        self._killed = rng.choice(("source", "destination", "neither"))
        steps = SOURCE_STEPS if self._killed == "source" else DESTINATION_STEPS
        self._when = rng.choice(steps)

    def run(self) -> None:
        """From the first beat to the last."""
        rng, lab = self._rng, self.lab
        options = [
            *QUICK,
            f"--lanes={rng.choice((1, 2, 3))}",
            f"--verify={rng.choice(('stream', 'ram', 'full'))}",
            f"--dirty-tracker={rng.choice(('auto', 'scan'))}",
            f"--xbzrle-cache-size={rng.choice(('0', '1M'))}",
            "--downtime-limit=1000",
            "--timeout-action=pause",
            "--max-rounds=4",
        ]
        toxics = _draw_toxics(rng)
        self.what = f"kill {self._killed} at {self._when}, {toxics}, {' '.join(options)}"
        guest = lab.start_guest(f"--workload={rng.choice(('kv', 'sparse', 'mixed'))}", "--rate=3000")
        port = _free_port()
        destination = self._start_destination(port)
        with _Proxy(port, rng.randrange(1 << 30)) as proxy:
            for toxic in toxics:
                proxy.add(toxic)
            source = lab.start_source(proxy.port, guest, *options)
            self._kill(source, destination)
            if self._killed == "destination":
                destination = self._start_destination(port)
            source.wait()
            self._count_resets(source)
            self._settle(source)
        if lab.is_stopped(guest):
            lab.wait_arrived()
            self._tally.facts["moved at once"] += 1
        else:
            assert not lab.has_arrived, f"it runs at both sides\n{source.story()}"
            self._tally.facts["moved at a later attempt"] += 1
            self._move(guest, port)
        self._check()

    def _move(self, guest: Program, port: int) -> None:
        """Without faults; a destination that waits for a source that is no more says no for a while.

        What it was prepared for by a source that has given up, it has to be told by a person.
        """
        options = (*QUICK, "--warm", "--timeout-action=pause", "--max-rounds=4")
        for _ in range(RECOVERIES):
            source = self.lab.start_source(port, guest, *options)
            code = source.wait()
            if code == 0:
                return
            if code != REFUSED:
                break
            if "migrate-dst recover" in str(source.wait_event("error")["hint"]):
                state = f"--state-dir={self.lab.destination_state}"
                recovery = self.lab.run("migrate-dst", "recover", state)
                assert recovery.wait() == 0, recovery.story()
                self._tally.facts["given back by migrate-dst recover"] += 1
            else:
                time.sleep(0.5)
        raise AssertionError(source.story())

    def _start_destination(self, port: int) -> Program:
        """One that compares both files before it lets the guest go, once for each migration."""
        lab = self.lab
        script = lab.witness.with_name("compare.py")
        script.write_text(COMPARE)
        pairs = [str(path) for path in (lab.source_ram["pc.ram"], lab.destination_ram["pc.ram"])]
        compare = shlex.join([sys.executable, str(script), str(self._differing), *pairs])
        running = lab.running_command
        return lab.start_destination(
            *QUICK,
            f"--on-commit={running} || {{ {compare}; {self._resume} }}",
            f"--is-running={running}",
            resume=False,
            listen=f"127.0.0.1:{port}",
        )

    def _kill(self, source: Program, destination: Program) -> None:
        """Kill -9 as soon as the step is told; it may never come to that."""
        victim = {"source": source, "destination": destination}.get(self._killed)
        if victim is None:
            return
        with suppress(AssertionError):
            victim.wait_event(self._when, seconds=20.0)
            self._tally.facts[f"{self._killed} killed"] += 1
        victim.kill()

    def _settle(self, source: Program) -> None:
        """`recover` until nothing is left to be settled."""
        for _ in range(RECOVERIES):
            recovery = self.lab.run("migrate-src", "recover", f"--state-dir={self.lab.source_state}")
            if recovery.wait() == 0:
                return
        raise AssertionError(f"{RECOVERIES} recoveries were not enough\n{recovery.story()}\n{source.story()}")

    def _count_resets(self, source: Program) -> None:
        for event in source.found("lane-reset"):
            self._tally.facts["lane resets"] += 1
            self._tally.reset_cost(4096 * int(event["owed-pages"]))
        self._tally.facts["killed destinations survived"] += len(source.found("begun-anew"))

    def _check(self) -> None:
        lab, tally = self.lab, self._tally
        lab.end_arrived_guest(beat_seconds=0.05)
        differing = int(self._differing.read_text())
        if differing:
            tally.went_wrong("differing bytes", f"{self.what}\n{differing}")
        for check, name in ((lab.check_arrived, "damaged guests"), (lab.check_witness, "two owners")):
            try:
                check()
            except AssertionError as error:
                tally.went_wrong(name, f"{self.what}\n{error}")


def _draw_toxics(rng: random.Random) -> list[Toxic]:
    """None to three; control and lanes, cuts and flips anywhere in 12 MiB."""
    found: list[Toxic] = []
    for _ in range(rng.randrange(4)):
        connection = rng.choice((0, 1, 1, 2, 3))
        at = int(10 ** rng.uniform(2.5, 4.5 if connection == 0 else 7))
        kind = rng.randrange(4)
        if kind < 2:
            found.append(LimitData(bytes=at, connections=connection.__eq__))
        elif kind == 2:
            found.append(Corrupt(offsets=(at,), connections=connection.__eq__))
        else:
            found.append(rng.choice((Latency(latency=0.02, direction="both"), Slicer(average_size=3000))))
    return found


class _Proxy:
    """A FaultProxy in an event loop of its own, in a thread."""

    def __init__(self, target: int, seed: int) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._proxy = FaultProxy("127.0.0.1", target, seed=seed)

    def __enter__(self) -> _Proxy:
        self._thread.start()
        self._call(self._proxy.__aenter__())
        return self

    def __exit__(self, *error: object) -> None:
        self._call(self._proxy.__aexit__(None, None, None))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    @property
    def port(self) -> int:
        """Where it listens."""
        return self._proxy.port

    def add(self, toxic: Toxic) -> None:
        """From now on."""
        self._loop.call_soon_threadsafe(self._proxy.add, toxic)

    def _call(self, work: Coroutine[Any, Any, object]) -> object:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(30)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])

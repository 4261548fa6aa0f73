"""Either daemon killed, or stopped and continued later, at each step of the protocol: one owner, a way on.

The fault proxy does it when the message was sent and has not arrived. Afterwards `recover` settles what is
left; then the guest runs at exactly one side, and its witness has seen no second owner and no lost beat.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.lab import Lab, Program
from migrate.daemon.fault_proxy import FaultProxy

STEPS = ("hello", "accept", "prepare", "prepared", "commit", "running", "settled", "forgotten")
NAP_SECONDS = 1.5
"""Longer than the other side waits."""
PATIENCE = {
    signal.SIGSTOP: ("--keepalive-timeout=0.4", "--reconnect-timeout=0.6"),
    signal.SIGKILL: ("--keepalive-timeout=0.4", "--reconnect-timeout=20"),
}
"""Too little for who sleeps; enough for a daemon that is started anew."""
RECOVERIES = 20


class Moved:
    """A guest between two daemons, of which one is hit."""

    def __init__(self, lab: Lab, patience: tuple[str, ...]) -> None:
        self.lab = lab
        self.patience = patience
        self.guest = lab.start_guest("--rate=100")
        self._resume = lab.resume_command
        self.destination = self.start_destination("127.0.0.1:0")
        self.port: int = self.destination.wait_event("listening")["port"]
        self.source: Program

    def start_destination(self, listen: str) -> Program:
        """One that starts the guest once, however often it is told to."""
        running = self.lab.running_command
        hooks = (f"--on-commit={running} || {{ {self._resume} }}", f"--is-running={running}")
        return self.lab.start_destination(*self.patience, *hooks, resume=False, listen=listen)

    def settle(self) -> str:
        """Who has the guest in the end: `source` or `destination`."""
        for _ in range(RECOVERIES):
            recovery = self.lab.run("migrate-src", "recover", f"--state-dir={self.lab.source_state}")
            if recovery.wait() == 0:
                break
        else:
            raise AssertionError(f"it cannot be settled\n{recovery.story()}\n{self.source.story()}")
        if not self.lab.is_stopped(self.guest):
            assert not self.lab.has_arrived, f"it runs at both sides\n{self.source.story()}"
            return "source"
        self.lab.wait_arrived()
        return "destination"


@pytest.fixture
def moved(shm_dir: Path, number: signal.Signals) -> Iterator[Moved]:
    with Lab(shm_dir, shm_dir, [("pc.ram", "2M")]) as lab:
        yield Moved(lab, PATIENCE[number])


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
@pytest.mark.parametrize("victim", ["source", "destination"])
@pytest.mark.parametrize("step", STEPS)
def test_one_owner(moved: Moved, step: str, victim: str, number: signal.Signals) -> None:
    async def run() -> None:
        async with asyncio.timeout(60), FaultProxy("127.0.0.1", moved.port) as proxy:
            hit = asyncio.Event()

            async def strike() -> None:
                program = moved.source if victim == "source" else moved.destination
                program.signal(number)
                if number is signal.SIGKILL:
                    await asyncio.to_thread(program.wait)
                hit.set()

            proxy.at(step, strike)
            moved.source = moved.lab.start_source(proxy.port, moved.guest, *moved.patience)
            await hit.wait()
            if number is signal.SIGSTOP:
                await asyncio.sleep(NAP_SECONDS)  # this is the fault: it is away for so long
                (moved.source if victim == "source" else moved.destination).signal(signal.SIGCONT)
            elif victim == "destination":
                await asyncio.to_thread(moved.start_destination, f"127.0.0.1:{moved.port}")
            await asyncio.to_thread(moved.source.wait)
            owner = await asyncio.to_thread(moved.settle)
            assert owner in possible_owners(step, victim, number), moved.source.story()
            if owner == "destination":
                await asyncio.to_thread(moved.lab.end_arrived_guest)

    asyncio.run(run())
    moved.lab.check_witness()


def possible_owners(step: str, victim: str, number: signal.Signals) -> set[str]:
    """Whose the guest may be once all is settled."""
    if victim == "destination" and number is signal.SIGKILL and step != "hello":
        return {"destination"}  # the one that was started anew goes on where its journal and its RAM are
    first = "prepared" if victim == "destination" else "commit"  # `prepared` was sent: the source goes on
    if STEPS.index(step) >= STEPS.index(first):
        return {"destination"}
    if victim == "source" and number is signal.SIGSTOP:
        return {"source", "destination"}  # it wakes up to a deadline that passed, or to a reset: tries again
    return {"source"}

"""A guest in the test's own process: it counts in its RAM, and its register says how far it came.

One step stores the number of the step in the next of its cells. So RAM tells which steps were done and the
register which comes next: a lost step leaves a gap, a repeated one or a stale page an older number.
"""

from __future__ import annotations

import asyncio
import contextlib
import mmap
import os
import struct
from collections.abc import AsyncIterator, Mapping

from migrate import Address, DestinationConfig, RamSpec, SourceConfig

CELLS = 8192
BYTES = 1 << 20
STRIDE = BYTES // CELLS


class Machine:
    """A Guest and an ArrivingGuest."""

    def __init__(self) -> None:
        self.fd = os.memfd_create("machine")
        os.ftruncate(self.fd, BYTES)
        self.ram = mmap.mmap(self.fd, BYTES)
        self.steps = 0
        self.runs = False
        self.calls: list[str] = []
        self.moved = asyncio.Event()

    async def pause(self) -> None:
        self.calls.append("pause")
        self.runs = False

    async def resume(self) -> None:
        self.calls.append("resume")
        self.runs = True

    async def state(self) -> Mapping[str, bytes]:
        self.calls.append("state")
        return {"cpu": struct.pack("<Q", self.steps)}

    async def load(self, state: Mapping[str, bytes]) -> None:
        self.calls.append("load")
        (self.steps,) = struct.unpack("<Q", state["cpu"])

    async def run(self) -> None:
        self.calls.append("run")
        self.runs = True

    async def work(self) -> None:
        """Run until cancelled."""
        while True:
            for _ in range(100 if self.runs else 0):
                struct.pack_into("<Q", self.ram, self.steps % CELLS * STRIDE, self.steps + 1)
                self.steps += 1
            self.moved.set()
            await asyncio.sleep(0.001)

    async def goes_on(self, steps: int = 500) -> None:
        """Wait for so many more steps."""
        end = self.steps + steps
        async with asyncio.timeout(20):
            while self.steps < end:
                self.moved.clear()
                await self.moved.wait()

    def check(self) -> None:
        """RAM is what so many steps make of it, no more and no less."""
        for cell in range(CELLS):
            last = cell + (self.steps - 1 - cell) // CELLS * CELLS if cell < self.steps else -1
            (found,) = struct.unpack_from("<Q", self.ram, cell * STRIDE)
            assert found == last + 1, f"cell {cell} after {self.steps} steps"

    def source(self, to: Address, **options: object) -> SourceConfig:
        return SourceConfig(to, (RamSpec.of_descriptor("ram", self.fd),), **options)  # type: ignore[arg-type]

    def destination(self, **options: object) -> DestinationConfig:
        fields = {"listen": Address("127.0.0.1", 0), "once": True, **options}
        return DestinationConfig(ram=(RamSpec.of_descriptor("ram", self.fd),), **fields)  # type: ignore[arg-type]


@contextlib.asynccontextmanager
async def machines(count: int) -> AsyncIterator[list[Machine]]:
    """Machines, at work if they are let; the first half runs."""
    made = [Machine() for _ in range(count)]
    tasks = [asyncio.ensure_future(machine.work()) for machine in made]
    for machine in made[: count // 2]:
        machine.runs = True
        await machine.goes_on()
    try:
        yield made
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for machine in made:
            machine.ram.close()
            os.close(machine.fd)

"""One whole move of a practice guest by the real programs, for the parts of the benchmark that need one."""

from __future__ import annotations

import asyncio
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench.lab import Event, Lab, Program
from migrate.daemon.fault_proxy import FaultProxy
from migrate.daemon.toxics import Bandwidth

MOVE_SECONDS = 180.0
SAMPLE_SECONDS = 0.01


@dataclass
class Moved:
    """What became of a move."""

    status: int
    """Exit status of migrate-src."""
    source: Event
    """The source's summary."""
    error: str
    """What the source said where it failed."""
    peak_bytes: dict[str, int] = field(default_factory=dict)
    """Peak resident memory of each daemon, by side."""


class PeakWatch:
    """The most resident memory a process ever had (VmHWM), looked at until it is gone.

    The kernel keeps the peak, so that nothing between two looks is missed; only what grows in the last
    moment before the end is.
    """

    def __init__(self, program: Program) -> None:
        self.peak_bytes = 0
        self._status = Path(f"/proc/{program.pid}/status")
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> int:
        """The peak in bytes."""
        self._end.set()
        self._thread.join()
        return self.peak_bytes

    def _watch(self) -> None:
        while not self._end.wait(SAMPLE_SECONDS):
            try:
                lines = self._status.read_text().splitlines()
            except OSError:
                return
            for line in lines:
                if line.startswith("VmHWM:"):
                    self.peak_bytes = int(line.split()[1]) << 10


async def move(
    memory: Path,
    size: str,
    guest_options: Sequence[str],
    source_options: Sequence[str],
    *,
    destination_options: Sequence[str] = (),
    tracker: str = "auto",
    link_rate: float | None = None,
) -> Moved:
    """Start a guest, move it, and check at the destination that nothing was lost.

    Args:
        memory: directory on tmpfs for both sides' RAM files.
        tracker: for `log` the guest keeps one.
        link_rate: bytes a second that the link lets through, all connections together; None: no limit.

    Raises:
        AssertionError: the guest is not what it was, or a program hangs.
    """
    with tempfile.TemporaryDirectory(prefix="migrate-test-bench-", dir=memory) as directory:
        lab = Lab(Path(directory), Path(directory), [("pc.ram", size)])
        with lab:
            kept, read = lab.dirty_logs() if tracker == "log" else ([], [])
            guest = lab.start_guest(*guest_options, *kept)
            destination = lab.start_destination("--once", *destination_options)
            port = destination.wait_event("listening")["port"]
            async with FaultProxy("127.0.0.1", port) as proxy:
                if link_rate is not None:
                    proxy.add(Bandwidth(rate=link_rate, shared=True))
                    port = proxy.port
                source = lab.start_source(port, guest, f"--dirty-tracker={tracker}", *read, *source_options)
                watches = {"source": PeakWatch(source), "destination": PeakWatch(destination)}
                status = await asyncio.to_thread(source.wait, MOVE_SECONDS)
                await asyncio.to_thread(destination.wait)
            peaks = {side: watch.stop() for side, watch in watches.items()}
            if status == 0:
                await asyncio.to_thread(lab.end_arrived_guest, 0.05)
                lab.check_arrived()
                lab.check_witness()
            said = [event["message"] for event in source.found("error")]
            return Moved(status, source.summary, " ".join(said), peaks)

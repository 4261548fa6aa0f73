"""What the compiled loops of the practice guest offer to Python (guest.h has the rules behind them)."""

from collections.abc import Sequence

def page_sum(page: bytes | bytearray | memoryview) -> int:
    """Sum of a data page of 4096 bytes, as its word 3 must hold it. ValueError: another length."""

def table_entry(block: int, page: int, version: int, kind: int) -> int:
    """Version-table entry of a page; kind 1 filled, 2 zero."""

class Model:
    """Layout, seed and workload of a guest: what decides each of its writes."""

    def __init__(
        self,
        *,
        tag: int,
        seed: int,
        workload: int,
        fill_writes: int,
        blocks: Sequence[tuple[int, int, int, int]],
    ) -> None:
        """`blocks`: (pages, first table page, first data page, pages of the working set) each. ValueError."""

class Check:
    """Adds up verdicts over the data pages of a guest that does not run.

    `slot`: (number, place, operation, table entry, sum) of the write in flight, or None.
    """

    def __init__(self, model: Model, slot: tuple[int, int, int, int, int] | None) -> None: ...
    def pages(
        self,
        block: int,
        first: int,
        pages: bytes | bytearray | memoryview,
        entries: bytes | bytearray | memoryview,
    ) -> None:
        """Judge whole pages of a block from page number `first`, with 8 bytes of table entry each."""
    @property
    def counts(self) -> tuple[int, ...]:
        """Pages by verdict: good, torn, lost, stale, damaged, table stale, table damaged."""
    @property
    def stale_table_pages(self) -> int: ...
    @property
    def versions(self) -> int:
        """Sum of the versions of all pages: what the counter of finished writes must be."""
    @property
    def faults(self) -> list[tuple[int, int, int, int, int]]:
        """The first 32: (verdict, block, page, version found, version expected)."""

class Guest:
    """A guest over its mapped RAM; one thread may use it."""

    def __init__(
        self,
        model: Model,
        rams: Sequence[object],
        *,
        rate: int,
        witness: int,
        witness_prefix: bytes,
        logs: Sequence[object] = (),
    ) -> None:
        """Writable buffers `rams` and, or none, `logs`, one a block. `witness`: open descriptor, or -1.

        ValueError.
        """
    def close(self) -> None:
        """Let go of the buffers."""
    def recover(self) -> int:
        """Finish the write in flight. 0: none was; 1: finished; -1: its page cannot be right (`fault`)."""
    def run(self, until_ns: int) -> bool:
        """Run until CLOCK_MONOTONIC reaches `until_ns` or a signal comes in a sleep; without the GIL.

        Ends between two writes. False: stopped before a page that is not as this guest left it (`fault`).
        OSError: the witness could not be written.
        """
    @property
    def fault(self) -> tuple[int, int, int, int, int] | None:
        """(verdict, block, page, version found, version expected)."""
    @property
    def beat(self) -> int: ...
    @property
    def writes(self) -> int: ...

def catch_sigbus() -> None:
    """From now on SIGBUS (truncated RAM file, full file system) ends the process: a message, code 9."""

def offer_tracking() -> int:
    """A new userfaultfd of this process: who gets hold of it can track what is written. OSError: refused."""

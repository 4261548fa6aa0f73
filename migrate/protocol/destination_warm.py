"""RAM files that held something before the move: read once, and told to the source before the first page.

reading ──held_ram_read──→ known: told now, and again after every accept until the source has heard it all
"""

from __future__ import annotations

from collections.abc import Callable

from migrate.protocol import actions as a
from migrate.protocol import messages as m
from migrate.ram.digests import DigestTable


class DestinationWarm:
    """What one destination machine holds at its beginning.

    Args:
        table: the destination's own; holds zeros until RAM is read.
        emit: takes the actions.
    """

    def __init__(self, table: DigestTable, emit: Callable[[a.Action], None]) -> None:
        self._table = table
        self._emit = emit
        self._known = False

    def begin(self) -> None:
        """Have the files read."""
        self._emit(a.ReadDigests())

    def read(self, digests: bytearray, hello: m.Hello) -> None:
        """They hold this; the source that said hello wants to know."""
        self._table.array[:] = digests
        self._table.recompute_root()
        self._known = True
        self.tell(hello)

    def tell(self, hello: m.Hello) -> None:
        """Send what is known, if it is, and if the source has not heard it yet."""
        if self._known and hello.warm:
            self._emit(a.SendDigests(hello.attempt, self._table.array))

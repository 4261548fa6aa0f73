"""Standard streams that somebody closed before he started us (`>&-`, a bare supervisor)."""

from __future__ import annotations

import os
import sys


def hold_standard_streams() -> None:
    """Put /dev/null where standard input, output or error is closed; the first thing a program does.

    The next file or socket would take the free number. libuv then ends the process when that is closed
    (`uv__close` insists on a number above 2), with a guest in the pause if it comes to that; and what a child
    says on its standard error would go into a RAM file or onto a lane.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            taken = os.open(os.devnull, os.O_RDONLY if number == 0 else os.O_WRONLY)  # the lowest free one
            os.set_inheritable(taken, True)
    if sys.stdin is None:
        sys.stdin = os.fdopen(0, closefd=False)
    if sys.stdout is None:
        sys.stdout = os.fdopen(1, "w", closefd=False)
    if sys.stderr is None:
        sys.stderr = os.fdopen(2, "w", closefd=False)

"""Calls that may never return, and that nothing can interrupt, in a thread that nobody waits for.

The loop's own pool of threads is joined when the loop closes and once more when the program exits, so a
call that hangs there keeps a cancelled program alive for as long. A daemon thread of its own is simply left
behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


async def left_behind(call: Callable[[], T], name: str) -> T:
    """The call's result, or what it raised. Sets no deadline: whoever waits does.

    Args:
        name: of the thread.
    """
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[T] = loop.create_future()

    def tell(result: list[T], problem: Exception | None) -> None:
        if answer.done():
            return
        if problem is not None:
            answer.set_exception(problem)
        else:
            answer.set_result(result[0])

    def work() -> None:
        result: list[T] = []
        problem: Exception | None = None
        try:
            result.append(call())
        except Exception as error:  # whatever it is: it must be told, or somebody would wait for ever
            problem = error
        with contextlib.suppress(RuntimeError):  # the loop has been closed meanwhile: nobody waits
            loop.call_soon_threadsafe(tell, result, problem)

    threading.Thread(target=work, name=name, daemon=True).start()
    return await answer

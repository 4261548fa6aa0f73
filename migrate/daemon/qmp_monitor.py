"""A QEMU's monitor: commands with a time limit, descriptors handed over, one kind of error.

The client is QEMU's own package. It needs the socket of its event loop for handing descriptors over, which
not every loop gives away; so the socket is made here.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import struct
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from qemu.qmp import EventListener, ExecuteError, QMPClient, QMPError, Runstate

from migrate.errors import GuestError

ANSWER_SECONDS = 10.0
"""For one command; none that is used here does long work before it answers."""
CONNECT_SECONDS = 5.0
"""Less than a peer waits for the answer to its hello (`keepalive-timeout`)."""
_LOOK_SECONDS = 0.05
_CLOSE_SECONDS = 2.0
_SECOND_SOCKET = (
    "it serves one client at a time: close the other one, or give that QEMU a second monitor,"
    " -qmp unix:PATH,server=on,wait=off"
)


class Monitor:
    """The connection to one monitor.

    Args:
        path: unix socket of QEMU's `-qmp unix:PATH,server=on,wait=off`.
        side: "source" or "destination", for errors.

    Attributes:
        pid: the process that listens there; None before `connect`. Where somebody else opened the socket for
            QEMU it is not QEMU's.
    """

    def __init__(self, path: Path, side: str) -> None:
        self.path = path
        self.side = side
        self.pid: int | None = None
        self._client = QMPClient("guest")
        self._client.logger.setLevel(logging.CRITICAL)  # what matters comes as an exception
        self._events = EventListener(("MIGRATION",))
        self._client.register_listener(self._events)
        self._socket: socket.socket | None = None
        self._lost = asyncio.Event()
        self._watch: asyncio.Task[None] | None = None

    @property
    def connected(self) -> bool:
        """QEMU is there."""
        return not self._lost.is_set() and self._client.runstate is Runstate.RUNNING

    async def connect(self) -> None:
        """Open it. Raises GuestError."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.setblocking(False)
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                await asyncio.get_running_loop().sock_connect(sock, str(self.path))
                credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
                self.pid = struct.unpack("iII", credentials)[0] or None
                self._socket = sock.dup()
                await self._client.connect(sock)
        except TimeoutError:
            sock.close()
            raise self._error(f"the monitor at {self.path} does not answer", _SECOND_SOCKET) from None
        except (OSError, QMPError) as error:
            sock.close()
            reason = error.strerror if isinstance(error, OSError) else str(error)
            raise self._error(
                f"no QEMU answers at {self.path}: {reason}",
                f"start it with -qmp unix:{self.path},server=on,wait=off",
            ) from error
        self._watch = asyncio.ensure_future(self._watch_end())

    async def execute(self, command: str, **arguments: object) -> Any:
        """Run a command; underscores in names of arguments stand for hyphens. Raises GuestError."""
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                return await self._client.execute(
                    command, {name.replace("_", "-"): value for name, value in arguments.items()}
                )
        except TimeoutError:
            raise self._error(f"QEMU did not answer to {command} within {ANSWER_SECONDS:g} s") from None
        except ExecuteError as error:
            raise self._error(f"QEMU refused {command}: {error}") from error
        except QMPError as error:
            raise self._error(
                f"QEMU's monitor {self.path} was closed before it answered {command}"
            ) from error

    async def hand_over(self, name: str, fd: int) -> None:
        """Give QEMU a copy of an open descriptor, which `fd:NAME` means afterwards. Raises GuestError."""
        assert self._socket is not None
        try:  # nothing is on its way: commands are given one after the other
            socket.send_fds(self._socket, [b" "], [fd])
        except OSError as error:
            raise self._error(f"QEMU's monitor {self.path} takes no descriptor: {error.strerror}") from error
        await self.execute("getfd", fdname=name)

    async def migration(self, ends: Collection[str], seconds: float) -> Mapping[str, Any]:
        """`query-migrate`'s answer once its status is one of these. Raises GuestError: it does not come."""
        end = time.monotonic() + seconds
        while True:
            self._events.clear()
            found: Mapping[str, Any] = await self.execute("query-migrate")
            status = found.get("status", "none")
            if status in ends:
                return found
            if time.monotonic() >= end:
                raise self._error(f"QEMU's own migration is {status!r} after {seconds:g} s")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._events.get(), _LOOK_SECONDS)

    async def run_state(self) -> str:
        """`query-status`'s status. Raises GuestError."""
        return str((await self.execute("query-status"))["status"])

    async def lost(self) -> None:
        """Wait until QEMU is gone, or has closed the monitor."""
        await self._lost.wait()

    async def close(self) -> None:
        """Leave; the second call does nothing."""
        if self._socket is None:
            return
        self._socket.close()
        self._socket = None
        with contextlib.suppress(TimeoutError, OSError, EOFError, QMPError):
            async with asyncio.timeout(_CLOSE_SECONDS):
                await self._client.disconnect()
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.gather(self._watch, return_exceptions=True)
            self._watch = None

    async def _watch_end(self) -> None:
        while self._client.runstate is Runstate.RUNNING:
            await self._client.runstate_changed()
        self._lost.set()

    def _error(self, message: str, hint: str | None = None) -> GuestError:
        return GuestError(message, side=self.side, hint=hint)

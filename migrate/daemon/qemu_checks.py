"""What a QEMU must be like so that we can move its RAM and it moves its devices; asked over its monitor."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from migrate.config import RamSpec
from migrate.daemon.qmp_monitor import Monitor
from migrate.errors import GuestError, RefusedError
from migrate.protocol.messages import QemuMachine

_NEEDED = ("events", "return-path", "x-ignore-shared")
_HARMLESS = frozenset({"auto-converge", "late-block-activate", "validate-uuid", "xbzrle", "zero-blocks"})
_IN_A_FILE = "memory-backend-file"


class Capabilities:
    """The migration capabilities of one QEMU: ours while we need them, then as they were.

    Args:
        more: beside what both sides need.
    """

    def __init__(self, monitor: Monitor, more: Sequence[str] = ()) -> None:
        self._monitor = monitor
        self._wanted = (*_NEEDED, *more)
        self._before: dict[str, bool] = {}

    async def check(self) -> None:
        """Raise RefusedError unless they can be set and none stands in the way."""
        found = await self._found()
        side = self._monitor.side
        for name in self._wanted:
            if name not in found:
                raise RefusedError(
                    f"the QEMU at {self._monitor.path} does not know the migration capability {name}",
                    side=side,
                    hint="QEMU 4.0 or newer is needed",
                )
        for name, state in found.items():
            if state and name not in self._wanted and name not in _HARMLESS:
                raise RefusedError(
                    f"the migration capability {name} is on in the QEMU at {self._monitor.path}",
                    side=side,
                    hint=f"in its monitor: migrate_set_capability {name} off",
                )

    async def set(self) -> None:
        """Turn on what is needed. Raises GuestError."""
        found = await self._found()
        self._before |= {name: False for name in self._wanted if not found[name]}
        await self._put(dict.fromkeys(self._before, True))

    async def restore(self) -> None:
        """Put back what `set` changed, as far as QEMU still lets us."""
        before, self._before = self._before, {}
        with contextlib.suppress(GuestError):
            await self._put(before)

    async def _found(self) -> Mapping[str, bool]:
        listed = await self._monitor.execute("query-migrate-capabilities")
        return {entry["capability"]: entry["state"] for entry in listed}

    async def _put(self, states: Mapping[str, bool]) -> None:
        if states:
            listed = [{"capability": name, "state": state} for name, state in states.items()]
            await self._monitor.execute("migrate-set-capabilities", capabilities=listed)


async def machine_of(monitor: Monitor) -> QemuMachine:
    """What both ends must have in common. Raises GuestError."""
    name = str(await monitor.execute("qom-get", path="/machine", property="type"))
    kvm = await monitor.execute("query-kvm")
    return QemuMachine(name.removesuffix("-machine"), "kvm" if kvm["enabled"] else "tcg")


class _Backend(NamedTuple):
    name: str
    size: int
    share: bool
    path: Path | None


async def check_ram(monitor: Monitor, ram: Sequence[RamSpec]) -> None:
    """Raise RefusedError unless QEMU's RAM is exactly these files, shared.

    What is shared is left out of QEMU's own stream, so all of it must be moved by us; what is not shared
    would travel there.
    """
    backends = await _backends(monitor)
    for backend in backends:
        if not backend.share or backend.path is None:
            raise RefusedError(
                f"the memory {backend.name!r} of the QEMU at {monitor.path} is not a shared file",
                side=monitor.side,
                hint=f"start it with -object memory-backend-file,id={backend.name},size={backend.size},"
                f"mem-path={ram[0].path},share=on -machine …,memory-backend={backend.name}",
            )
    paths = [str(backend.path) for backend in backends]
    for spec in ram:
        if not any(_same(spec.path, backend.path) for backend in backends):
            raise RefusedError(
                f"--ram {spec.name}={spec.path} is no memory of the QEMU at {monitor.path}, which has"
                f" {', '.join(paths) or 'none in files'}",
                side=monitor.side,
                hint=f"--ram {spec.name}={paths[0]}" if len(paths) == 1 else None,
            )
    for backend in backends:
        if not any(_same(spec.path, backend.path) for spec in ram):
            raise RefusedError(
                f"the memory {backend.name!r} of the QEMU at {monitor.path} is not among --ram",
                side=monitor.side,
                hint=f"add --ram {backend.name}={backend.path}",
            )


async def _backends(monitor: Monitor) -> list[_Backend]:
    found = []
    for entry in await monitor.execute("query-memdev"):
        name = str(entry.get("id", ""))
        path = None
        if name:
            kind = await monitor.execute("qom-get", path=f"/objects/{name}", property="type")
            if kind == _IN_A_FILE:
                path = Path(await monitor.execute("qom-get", path=f"/objects/{name}", property="mem-path"))
        found.append(_Backend(name, int(entry["size"]), bool(entry.get("share")), path))
    return found


def _same(ours: Path, theirs: Path | None) -> bool:
    with contextlib.suppress(OSError):
        return theirs is not None and ours.samefile(theirs)
    return False

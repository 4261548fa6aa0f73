"""What a guest handed over as descriptors: looked at before anything is done with them.

A descriptor must allow its holder what is done with it here: this program may have more rights than the
guest, and must not lend them.
"""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Sequence
from pathlib import Path

from migrate.config import RamSpec
from migrate.daemon.device_state import DeviceState, checked_states
from migrate.daemon.guest_socket import Given, close_all
from migrate.errors import GuestError, ProtocolError, UsageError
from migrate.protocol.guest_contract import check_offer, check_state
from migrate.protocol.messages import MAX_BLOB_BYTES, MAX_STATE_BYTES
from migrate.ram.trackers.log import log_bytes

_O_PATH = 0o10000000  # asm-generic/fcntl.h
_F_GET_SEALS = 1034  # <linux/fcntl.h>
_F_SEAL_SHRINK = 0x0002
_READ_BYTES = 1 << 20


class GuestOffer:
    """RAM, and perhaps logs or a userfaultfd. Owns the descriptors.

    Args:
        given: the items of the guest's first answer.
        side: at the destination RAM is written.

    Attributes:
        ram: the blocks in the guest's order; empty: the guest leaves it to --ram.
        logs: descriptor of the dirty log of each block, by name; empty: there are none.
        userfaultfd: -1: none.

    Raises:
        GuestError: something does not fit; everything is closed then.
    """

    def __init__(self, given: Sequence[Given], side: str) -> None:
        self._fds = [fd for _, fd in given]
        self.logs: dict[str, int] = {}
        self.userfaultfd = -1
        ram = []
        try:
            check_offer([item for item, _ in given])
            lengths = {item.name: item.length for item, _ in given if item.kind == "ram"}
            for item, fd in given:
                if item.kind == "ram":
                    what = f"the RAM of block {item.name!r}"
                    _check_file(fd, what, writable=side == "destination")
                    if os.fstat(fd).st_size != item.length:
                        raise ProtocolError(f"{what} has {os.fstat(fd).st_size} bytes, not {item.length}")
                    ram.append(RamSpec.of_descriptor(item.name, fd))
                elif item.kind == "log":
                    _check_log(fd, item.name, log_bytes(lengths[item.name]))
                    self.logs[item.name] = fd
                else:
                    self.userfaultfd = fd
        except (OSError, ProtocolError) as error:
            self.close()
            raise GuestError(f"what the guest offers cannot be used: {error}", side=side) from error
        self.ram = tuple(ram)

    def ram_with(self, named: tuple[RamSpec, ...], path: Path) -> tuple[RamSpec, ...]:
        """The guest's RAM, or what --ram names. Raises UsageError: both, or neither."""
        if bool(named) == bool(self.ram):
            text = (
                "offers its RAM by itself: leave out --ram" if named else "offers no RAM: name it with --ram"
            )
            raise UsageError(f"the guest at {path} {text}")
        return self.ram or named

    def close(self) -> None:
        """Close the descriptors; the second call does nothing."""
        fds, self._fds = self._fds, []
        close_all(fds)


def read_states(given: Sequence[Given]) -> list[DeviceState]:
    """The pieces of device state in these files, which are closed. Blocks: call it in a thread.

    Raises GuestError.
    """
    try:
        check_state([item for item, _ in given])
        lengths = []
        for item, fd in given:
            _check_file(fd, f"the state {item.name!r}", writable=False)
            lengths.append(os.fstat(fd).st_size)
        if max(lengths, default=0) > MAX_BLOB_BYTES or sum(lengths) > MAX_STATE_BYTES:
            raise ProtocolError(f"at most {MAX_BLOB_BYTES} bytes a piece and {MAX_STATE_BYTES} in all")
        pieces = {item.name: _read(fd, length) for (item, fd), length in zip(given, lengths, strict=True)}
    except (OSError, ProtocolError) as error:
        raise GuestError(f"the guest's device state cannot be used: {error}", side="source") from error
    finally:
        close_all(fd for _, fd in given)
    return checked_states("the guest", pieces)


def write_states(states: Sequence[DeviceState]) -> list[int]:
    """A memfd for each piece, to be read from its start. Blocks: call it in a thread. Raises GuestError."""
    fds: list[int] = []
    try:
        for state in states:
            fds.append(os.memfd_create(f"migrate-{state.name}", os.MFD_CLOEXEC))
            with os.fdopen(fds[-1], "wb", closefd=False) as file:
                file.write(state.data)
            os.lseek(fds[-1], 0, os.SEEK_SET)
    except OSError as error:
        close_all(fds)
        raise GuestError(f"the device state could not be stored: {error.strerror}") from error
    return fds


def _check_file(fd: int, what: str, *, writable: bool) -> None:
    """Raise ProtocolError unless it is a regular file, open for what will be done with it."""
    flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    allowed = (os.O_RDWR,) if writable else (os.O_RDONLY, os.O_RDWR)
    if flags & _O_PATH or flags & os.O_ACCMODE not in allowed:
        raise ProtocolError(f"{what} is not open for reading{' and writing' if writable else ''}")
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        raise ProtocolError(f"{what} is not a regular file")


def _check_log(fd: int, name: str, needed: int) -> None:
    """A log is mapped: were it cut off meanwhile, that would be a SIGBUS."""
    what = f"the log of block {name!r}"
    _check_file(fd, what, writable=True)
    try:
        seals = fcntl.fcntl(fd, _F_GET_SEALS)
    except OSError:
        seals = 0
    if not seals & _F_SEAL_SHRINK:
        raise ProtocolError(f"{what} is no memfd with F_SEAL_SHRINK")
    if os.fstat(fd).st_size < needed:
        raise ProtocolError(f"{what} has {os.fstat(fd).st_size} bytes, {needed} are needed")


def _read(fd: int, length: int) -> bytes:
    data = bytearray()
    while len(data) < length:
        part = os.pread(fd, min(_READ_BYTES, length - len(data)), len(data))
        if not part:
            raise ProtocolError("a piece of it was cut off while it was read")
        data += part
    return bytes(data)

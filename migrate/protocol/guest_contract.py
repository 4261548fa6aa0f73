"""The guest contract: what is said on a guest's socket (migrate/guest/contract.md is its page for authors).

A SOCK_SEQPACKET connection: one message a packet, at most 64 KiB of UTF-8 in lines. The daemon calls, the
guest answers each call with one message, in order. Each item line of a message goes with one descriptor
(SCM_RIGHTS), in the order of the lines.

    call       = "migrate" SP version SP ("source" | "destination") | "pause" | "resume" | "state"
               | "load" *(LF "state" SP name) | "run"
    answer     = "ok" [SP "paused"] *(LF item) [LF] | "error" SP text
    item       = "ram" SP name SP length | "log" SP name | "userfaultfd" | "state" SP name

Sans I/O. What a guest says is as hostile as what a peer sends.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from migrate.errors import ProtocolError
from migrate.protocol.messages import MAX_BLOBS, MAX_BLOCKS

CONTRACT_VERSION = 1
MAX_PACKET_BYTES = 64 << 10
MAX_DESCRIPTORS = 2 * MAX_BLOCKS + 1
"""A RAM file and a log for each block, and a userfaultfd."""
MAX_ERROR_TEXT = 1000

PAUSE = b"pause"
RESUME = b"resume"
STATE = b"state"
RUN = b"run"
RESUME_BY_HAND = (
    'python3 -c "import socket; s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET);'
    " s.connect({path!r}); s.send(b'resume')\""
)
"""For a shell; it does not wait for the answer."""


def offer_call(side: str) -> bytes:
    """The first call of a connection: which side the daemon is."""
    return f"migrate {CONTRACT_VERSION} {side}".encode()


def load_call(names: Sequence[str]) -> bytes:
    """The device state at the destination; a descriptor for each name goes with it."""
    return "\n".join(["load", *(f"state {name}" for name in names)]).encode()


class Item(NamedTuple):
    """A line that goes with a descriptor."""

    kind: str
    name: str = ""
    length: int = 0


class Answer(NamedTuple):
    """What a guest said to a call."""

    items: tuple[Item, ...] = ()
    was_paused: bool = False
    """To `pause`: it had been paused before by somebody else."""
    error: str | None = None
    """The guest could not do it, and why."""


def parse_answer(packet: bytes, descriptors: int) -> Answer:
    """Read one answer.

    Args:
        packet: as it came.
        descriptors: how many came with it.

    Raises:
        ProtocolError: it is none, or has not one descriptor for each item.
    """
    try:
        first, *lines = packet.decode().removesuffix("\n").split("\n")
    except UnicodeDecodeError:
        raise ProtocolError("it answered what is no UTF-8") from None
    if first.startswith("error "):
        if lines or descriptors:
            raise ProtocolError("more than a line of text came with its error")
        return Answer(error=first.removeprefix("error ")[:MAX_ERROR_TEXT])
    if first not in ("ok", "ok paused"):
        raise ProtocolError(f"it answered {first[:64]!r}, which is neither ok nor error")
    if len(lines) != descriptors:
        raise ProtocolError(f"it named {len(lines)} things and sent {descriptors} descriptors")
    items = tuple(_item(line) for line in lines)
    if len(set(items)) != len(items):
        raise ProtocolError("it named a thing twice")
    return Answer(items, first == "ok paused")


def check_offer(items: Sequence[Item]) -> None:
    """Raise ProtocolError unless a guest may offer these: RAM, and for each block a log or none at all."""
    blocks = [item.name for item in items if item.kind == "ram"]
    logs = [item.name for item in items if item.kind == "log"]
    if not all(item.kind in ("ram", "log", "userfaultfd") for item in items):
        raise ProtocolError("it offered something else than ram, log and userfaultfd")
    if len(blocks) > MAX_BLOCKS or len(set(blocks)) != len(blocks):
        raise ProtocolError(f"it offered more than {MAX_BLOCKS} RAM blocks, or one twice")
    if logs and sorted(logs) != sorted(blocks):
        raise ProtocolError("it offered dirty logs, but not one for each of its RAM blocks")


def check_state(items: Sequence[Item]) -> None:
    """Raise ProtocolError unless these are pieces of device state; their names are checked elsewhere."""
    if not all(item.kind == "state" for item in items) or len(items) > MAX_BLOBS:
        raise ProtocolError(f"it gave something else than at most {MAX_BLOBS} pieces of state")


def _item(line: str) -> Item:
    kind, *words = line.split(" ")
    if kind == "userfaultfd" and not words:
        return Item(kind)
    if kind in ("log", "state") and len(words) == 1 and _is_name(words[0]):
        return Item(kind, words[0])
    if (
        kind == "ram"
        and len(words) == 2
        and _is_name(words[0])
        and re.fullmatch("[1-9][0-9]{0,17}", words[1])
    ):
        return Item(kind, words[0], int(words[1]))
    raise ProtocolError(f"it named {line[:64]!r}, which is nothing that a guest has")


def _is_name(word: str) -> bool:
    return 1 <= len(word.encode()) <= 255 and word.isprintable()

"""Negotiation: one pure function from what the source wants and what the destination allows.

agreed cache   smaller of wanted and allowed, bytes of data and index of all lanes together; 0 where a
               lane's share holds no page, or pages are too large for XBZRLE (qemu-ram-stream.md 3.2)
lanes          smaller of wanted and allowed
version        highest that both speak
everything else is the source's wish or a reject that names the option to change, and on which side
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from migrate.config import CACHE_RULES, VERIFY_LEVELS
from migrate.protocol.batch import CODECS
from migrate.protocol.messages import MAX_LANES, PROTOCOL_VERSION, Hello, QemuMachine, Reject

MAX_XBZRLE_PAGE_BYTES = 16383
CACHE_INDEX_BYTES = 32  # a slot's entry in the index, see the kernel's contract


@dataclass(frozen=True)
class Offer:
    """What the destination has and allows."""

    blocks: Mapping[str, int | None]
    """Block name → length of an existing file, None where the file is made to measure."""
    free_bytes: int
    """Room for RAM on the file systems of the blocks."""
    cache_limit: int
    lane_limit: int = MAX_LANES
    holds_ram: bool = False
    """A RAM file has content that could be kept."""
    qemu: QemuMachine | None = None
    """The QEMU that waits here; it loads the devices of the source's."""
    arbiter: bool = False
    """This side has one."""


@dataclass(frozen=True)
class Agreement:
    """What both sides do from now on."""

    version: int
    cache_bytes: int
    cache_rule: str
    lanes: int
    codec: str
    verify: str
    cache_limit: int
    """What the source may ask for later, at most."""
    warm: bool
    """The RAM files keep what they hold, and the source is told its digests."""

    def as_fields(self) -> dict[str, object]:
        """Fields of the event `negotiated`."""
        return {
            "cache_size": self.cache_bytes,
            "cache_rule": self.cache_rule,
            "lanes": self.lanes,
            "compression": self.codec,
            "verify": self.verify,
        }


def lane_cache_bytes(cache_bytes: int, lanes: int) -> int:
    """A lane's share of the agreed cache; both ends compute it."""
    return cache_bytes // lanes


def cache_is_of_use(cache_bytes: int, lanes: int, page_size: int) -> bool:
    """Whether every lane's share holds a page at least, and XBZRLE can do such pages."""
    slot = page_size + CACHE_INDEX_BYTES
    return page_size <= MAX_XBZRLE_PAGE_BYTES and lane_cache_bytes(cache_bytes, lanes) >= slot


def _agreed_cache(hello: Hello, offer: Offer, lanes: int) -> int:
    agreed = min(hello.cache_bytes, offer.cache_limit)
    return agreed if cache_is_of_use(agreed, lanes, hello.page_size) else 0


def negotiate(hello: Hello, offer: Offer) -> Agreement | Reject:
    """Agree, or say which option has to change on which side."""
    if PROTOCOL_VERSION not in hello.versions:
        theirs = ", ".join(map(str, sorted(hello.versions)))
        return Reject(
            f"the source speaks protocol {theirs}, the destination {PROTOCOL_VERSION}",
            "install the same version of migrate on both hosts",
            "source",
        )
    if hello.page_size & (hello.page_size - 1):
        return Reject(f"a page of {hello.page_size} bytes is not a power of two", "page size", "source")
    for option, value, known in (
        ("--verify", hello.verify, VERIFY_LEVELS),
        ("--xbzrle-cache-rule", hello.cache_rule, CACHE_RULES),
        ("--compression", hello.codec, tuple(CODECS)),
    ):
        if value not in known:
            return Reject(f"{option} {value} is not known here; known: {', '.join(known)}", option, "source")
    problem = _blocks_problem(hello, offer) or _qemu_problem(hello, offer) or _arbiter_problem(hello, offer)
    if problem is not None:
        return problem
    if hello.data_bytes > offer.free_bytes:
        return Reject(
            f"the guest has {hello.data_bytes} bytes of RAM in use, the file systems of the destination's"
            f" --ram files have room for {offer.free_bytes}",
            "make room, or put --ram on a larger file system",
            "destination",
        )
    lanes = min(hello.lanes, offer.lane_limit)
    return Agreement(
        PROTOCOL_VERSION,
        _agreed_cache(hello, offer, lanes),
        hello.cache_rule,
        lanes,
        hello.codec,
        hello.verify,
        offer.cache_limit,
        hello.warm and offer.holds_ram,
    )


def _blocks_problem(hello: Hello, offer: Offer) -> Reject | None:
    names = [block.name for block in hello.blocks]
    for name in names:
        if names.count(name) > 1:
            return Reject(f"RAM block {name!r} is listed twice", "--ram", "source")
        if name not in offer.blocks:
            return Reject(
                f"the source has a RAM block {name!r} that the destination does not map",
                f"--ram {name}=PATH",
                "destination",
            )
    for name in offer.blocks:
        if name not in names:
            return Reject(
                f"the destination maps a RAM block {name!r} that the source does not have",
                f"--ram {name}=PATH (take it away, or give it to the source)",
                "destination",
            )
    for block in hello.blocks:
        if block.length == 0 or block.length % hello.page_size:
            return Reject(
                f"RAM block {block.name!r} of {block.length} bytes is not a multiple of the page",
                "--ram",
                "source",
            )
        here = offer.blocks[block.name]
        if here is not None and here != block.length:
            return Reject(
                f"RAM block {block.name!r} is {block.length} bytes at the source and its file here {here}",
                f"remove the file of --ram {block.name}, or give the right one",
                "destination",
            )
    return None


def _qemu_problem(hello: Hello, offer: Offer) -> Reject | None:
    if not hello.qemu:
        if offer.qemu is None:
            return None
        return Reject(
            "a QEMU waits at the destination, but the source moves a guest without one",
            "--guest-qmp SOCKET (or start migrate-dst without it)",
            "source",
        )
    if offer.qemu is None:
        return Reject(
            "the source moves the guest of a QEMU, but none waits at the destination",
            "--guest-qmp SOCKET",
            "destination",
        )
    [theirs], ours = hello.qemu, offer.qemu
    if theirs.machine != ours.machine:
        return Reject(
            f"the source's QEMU has the machine {theirs.machine!r}, the destination's {ours.machine!r}",
            f"start QEMU with -machine {theirs.machine}",
            "destination",
        )
    if theirs.accelerator != ours.accelerator:
        return Reject(
            f"the source's QEMU runs with {theirs.accelerator}, the destination's with {ours.accelerator}",
            f"start QEMU with -accel {theirs.accelerator}",
            "destination",
        )
    return None


def _arbiter_problem(hello: Hello, offer: Offer) -> Reject | None:
    """One that only one side asks would let both have the guest."""
    if hello.arbiter and not offer.arbiter:
        return Reject("the source has an arbiter, the destination none", "--arbiter DIR", "destination")
    if offer.arbiter and not hello.arbiter:
        return Reject("the destination has an arbiter, the source none", "--arbiter DIR", "source")
    return None

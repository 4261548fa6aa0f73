"""Negotiation as a table: what is agreed, and that every reject names an option and a side."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from message_values import messages
from protocol_support import PAGE, make_hello

from migrate.protocol import frames
from migrate.protocol import messages as m
from migrate.protocol.handshake import (
    CACHE_INDEX_BYTES,
    Agreement,
    Offer,
    lane_cache_bytes,
    negotiate,
)

SLOT = PAGE + CACHE_INDEX_BYTES
OFFER = Offer({"pc.ram": None}, free_bytes=1 << 30, cache_limit=1 << 20)
PC = m.QemuMachine("pc-i440fx-7.2", "kvm")
AGREED = Agreement(
    version=m.PROTOCOL_VERSION,
    cache_bytes=1 << 16,
    cache_rule="default",
    lanes=1,
    codec="none",
    verify="ram",
    cache_limit=1 << 20,
    warm=False,
)


def test_the_plain_case() -> None:
    assert negotiate(make_hello(), OFFER) == AGREED


@pytest.mark.parametrize(
    "wanted, offered, agreed",
    [
        # cache: the smaller, 0 where no page fits into a lane's share or the pages are too large
        ({"cache_bytes": 1 << 30}, {}, {"cache_bytes": 1 << 20}),
        ({"cache_bytes": 1 << 20}, {"cache_limit": 1 << 20}, {"cache_bytes": 1 << 20}),
        ({"cache_bytes": 0}, {}, {"cache_bytes": 0}),
        ({}, {"cache_limit": 0}, {"cache_bytes": 0}),
        ({"cache_bytes": SLOT}, {}, {"cache_bytes": SLOT}),
        ({"cache_bytes": SLOT - 1}, {}, {"cache_bytes": 0}),
        ({"cache_bytes": 2 * SLOT, "lanes": 2}, {}, {"cache_bytes": 2 * SLOT, "lanes": 2}),
        ({"cache_bytes": 2 * SLOT - 1, "lanes": 2}, {}, {"cache_bytes": 0, "lanes": 2}),
        ({"cache_bytes": 2 * SLOT - 1, "lanes": 2}, {"lane_limit": 1}, {"cache_bytes": 2 * SLOT - 1}),
        ({"page_size": 8192, "blocks": [m.Block("pc.ram", 8192)]}, {}, {}),
        ({"page_size": 16384, "blocks": [m.Block("pc.ram", 16384)]}, {}, {"cache_bytes": 0}),
        # warm: if it is wished for and there is something
        ({"warm": True}, {"holds_ram": True}, {"warm": True}),
        ({"warm": True}, {}, {"warm": False}),
        ({}, {"holds_ram": True}, {"warm": False}),
        # lanes: the smaller
        ({"lanes": 16}, {}, {"lanes": 16}),
        ({"lanes": 16}, {"lane_limit": 3}, {"lanes": 3}),
        ({"lanes": 2}, {"lane_limit": 3}, {"lanes": 2}),
        # the source's wish
        ({"cache_rule": "qemu"}, {}, {"cache_rule": "qemu"}),
        ({"codec": "zlib"}, {}, {"codec": "zlib"}),
        ({"verify": "full"}, {}, {"verify": "full"}),
        ({"verify": "stream"}, {}, {"verify": "stream"}),
        # versions and blocks
        ({"versions": [9, m.PROTOCOL_VERSION, 7]}, {}, {}),
        ({}, {"blocks": {"pc.ram": 8 * PAGE}}, {}),
        ({"data_bytes": 1 << 30}, {}, {}),
        ({"data_bytes": 8}, {"free_bytes": 8}, {}),
        ({"attempt": 7, "resume": True, "check": True}, {}, {}),
        ({"qemu": [PC]}, {"qemu": PC}, {}),
    ],
)
def test_agreed(
    wanted: Mapping[str, object], offered: Mapping[str, object], agreed: Mapping[str, object]
) -> None:
    offer = replace(OFFER, **offered)  # type: ignore[arg-type]
    found = negotiate(make_hello(**wanted), offer)
    assert found == replace(AGREED, **agreed, cache_limit=offer.cache_limit)  # type: ignore[arg-type]


def _blocks(*blocks: tuple[str, int]) -> dict[str, object]:
    return {"blocks": [m.Block(name, length) for name, length in blocks]}


@pytest.mark.parametrize(
    "wanted, offered, side, option, words",
    [
        ({"versions": [2, 9]}, {}, "source", "same version", "speaks protocol 2, 9"),
        ({"page_size": 3072, **_blocks(("pc.ram", 3072))}, {}, "source", "page size", "power of two"),
        ({"verify": "maybe"}, {}, "source", "--verify", "maybe is not known"),
        ({"cache_rule": "lru"}, {}, "source", "--xbzrle-cache-rule", "lru is not known"),
        ({"codec": "zstd"}, {}, "source", "--compression", "known: none, zlib"),
        (_blocks(("pc.ram", PAGE), ("pc.ram", PAGE)), {}, "source", "--ram", "listed twice"),
        (_blocks(("pc.ram", PAGE), ("vga", PAGE)), {}, "destination", "--ram vga=PATH", "'vga'"),
        (
            {},
            {"blocks": {"pc.ram": None, "vga": None}},
            "destination",
            "--ram vga=PATH",
            "the source does not have",
        ),
        (_blocks(("pc.ram", 0)), {}, "source", "--ram", "multiple of the page"),
        (_blocks(("pc.ram", PAGE + 1)), {}, "source", "--ram", "multiple of the page"),
        ({}, {"blocks": {"pc.ram": 9 * PAGE}}, "destination", "--ram pc.ram", f"{9 * PAGE}"),
        ({}, {"blocks": {"pc.ram": 0}}, "destination", "--ram pc.ram", f"{8 * PAGE} bytes"),
        ({"data_bytes": (1 << 30) + 1}, {}, "destination", "--ram", "have room for 1073741824"),
        ({"qemu": [PC]}, {}, "destination", "--guest-qmp", "none waits at the destination"),
        ({}, {"qemu": PC}, "source", "--guest-qmp", "moves a guest without one"),
        (
            {"qemu": [PC]},
            {"qemu": replace(PC, machine="q35")},
            "destination",
            "-machine pc-i440fx-7.2",
            "q35",
        ),
        ({"qemu": [PC]}, {"qemu": replace(PC, accelerator="tcg")}, "destination", "-accel kvm", "with tcg"),
    ],
)
def test_rejected(
    wanted: Mapping[str, object], offered: Mapping[str, object], side: str, option: str, words: str
) -> None:
    found = negotiate(make_hello(**wanted), replace(OFFER, **offered))  # type: ignore[arg-type]
    assert isinstance(found, m.Reject)
    assert found.side == side
    assert option in found.option
    assert words in found.reason


@given(messages(m.Hello), st.integers(0, 1 << 40), st.integers(0, 1 << 40), st.integers(1, 16))
def test_any_hello(hello: m.Hello, free: int, cache_limit: int, lane_limit: int) -> None:
    """Never more than either side allows; else a reject that a person can act on and the wire can carry."""
    offer = Offer({block.name: None for block in hello.blocks}, free, cache_limit, lane_limit)
    found = negotiate(hello, offer)
    if isinstance(found, m.Reject):
        assert found.reason and found.option and found.side in ("source", "destination")
        assert list(frames.FrameReader().feed(frames.encode_frame(found))) == [found]
        return
    assert found.cache_bytes <= min(hello.cache_bytes, cache_limit)
    assert 1 <= found.lanes <= min(hello.lanes, lane_limit)
    assert lane_cache_bytes(found.cache_bytes, found.lanes) * found.lanes <= found.cache_bytes
    assert hello.data_bytes <= free

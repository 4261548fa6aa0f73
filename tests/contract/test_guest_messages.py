"""Answers of a guest: what is read, and that everything else is one error."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from migrate.errors import ProtocolError
from migrate.protocol.guest_contract import (
    Answer,
    Item,
    check_offer,
    check_state,
    load_call,
    offer_call,
    parse_answer,
)


def test_the_calls_are_lines_of_words() -> None:
    assert offer_call("source") == b"migrate 1 source"
    assert load_call(["cpu0", "vga"]) == b"load\nstate cpu0\nstate vga"
    assert load_call([]) == b"load"


@pytest.mark.parametrize(
    ("packet", "descriptors", "answer"),
    [
        (b"ok", 0, Answer()),
        (b"ok\n", 0, Answer()),
        (b"ok paused", 0, Answer(was_paused=True)),
        (b"error no such thing", 0, Answer(error="no such thing")),
        (b"error " + b"x" * 5000, 0, Answer(error="x" * 1000)),
        (b"ok\nram 0000:00:02.0/vga.vram 4096\n", 1, Answer((Item("ram", "0000:00:02.0/vga.vram", 4096),))),
        (
            b"ok\nram r 8192\nlog r\nuserfaultfd",
            3,
            Answer((Item("ram", "r", 8192), Item("log", "r"), Item("userfaultfd"))),
        ),
        (b"ok\nstate cpu", 1, Answer((Item("state", "cpu"),))),
    ],
)
def test_answers(packet: bytes, descriptors: int, answer: Answer) -> None:
    assert parse_answer(packet, descriptors) == answer


@pytest.mark.parametrize(
    ("packet", "descriptors"),
    [
        (b"", 0),
        (b"OK", 0),
        (b"ok\0", 0),
        (b"ok \n", 0),
        (b"\xff", 0),
        (b"error", 0),
        (b"error x", 1),
        (b"error x\nram r 1", 0),
        (b"ok\nram r 4096", 0),
        (b"ok\nram r 4096", 2),
        (b"ok", 1),
        (b"ok\nram r", 1),
        (b"ok\nram r 0", 1),
        (b"ok\nram r -1", 1),
        (b"ok\nram r 1e3", 1),
        (b"ok\nram r 0x10", 1),
        ("ok\nram r ٣".encode(), 1),
        (b"ok\nram r " + b"9" * 19, 1),
        (b"ok\nram  4096", 1),
        (b"ok\nram a b 4096", 1),
        (b"ok\nram " + b"r" * 256 + b" 4096", 1),
        (b"ok\nram r\x1b 4096", 1),
        (b"ok\nuserfaultfd 3", 1),
        (b"ok\nuserfaultfd\nuserfaultfd", 2),
        (b"ok\nstate", 1),
        (b"ok\nstate cpu\n\n", 1),
        (b"ok\nrom r", 1),
    ],
)
def test_everything_else_is_refused(packet: bytes, descriptors: int) -> None:
    with pytest.raises(ProtocolError):
        parse_answer(packet, descriptors)


LINES = st.lists(
    st.sampled_from(
        ["ok", "ok paused", "error", "error x", "ram r 4096", "log r", "userfaultfd", "state s", ""]
    )
    | st.text(max_size=20)
)


@given(st.binary(max_size=200) | LINES.map(lambda lines: "\n".join(lines).encode()), st.integers(0, 5))
def test_no_bytes_do_anything_else(packet: bytes, descriptors: int) -> None:
    try:
        answer = parse_answer(packet, descriptors)
    except ProtocolError:
        return
    assert len(answer.items) == descriptors
    assert all(item.kind in ("ram", "log", "userfaultfd", "state") for item in answer.items)
    assert all(item.name.isprintable() and " " not in item.name for item in answer.items)


def test_what_may_be_offered() -> None:
    ram, log = Item("ram", "r", 4096), Item("log", "r")
    check_offer([])
    check_offer([ram, log, Item("ram", "q", 4096), Item("log", "q"), Item("userfaultfd")])
    for wrong in (
        [Item("state", "s")],
        [ram, Item("ram", "r", 8192)],
        [log],
        [ram, Item("ram", "q", 4096), log],
        [Item("ram", str(number), 1) for number in range(65)],
    ):
        with pytest.raises(ProtocolError):
            check_offer(wrong)


def test_what_may_be_given_as_state() -> None:
    check_state([Item("state", str(number)) for number in range(64)])
    for wrong in ([Item("ram", "r", 1)], [Item("state", str(number)) for number in range(65)]):
        with pytest.raises(ProtocolError):
            check_state(wrong)

"""The shape of QMP: lines of JSON in and out, byte for byte; nothing that a client sends gets further."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from migrate import __version__
from migrate.protocol.qmp import (
    MAX_LINE,
    QmpError,
    Request,
    RequestReader,
    Session,
    event,
    failure,
    greeting,
    parse,
    reply,
)
from migrate.protocol.qmp_commands import COMMANDS, check_arguments, commands_of

NEGOTIATE = Request("qmp_capabilities")


@pytest.mark.parametrize(
    ("line", "request_"),
    [
        (b'{"execute": "query-status"}', Request("query-status")),
        (b' {"exec-oob":"x","id":"a"}\r', Request("x", {}, "a")),
        (b'{"execute":"x","arguments":{"a":[{}]},"id":{"n":[1]}}', Request("x", {"a": [{}]}, {"n": [1]})),
        (b'{"execute":"x","id":null}', Request("x")),
        ('{"execute":"ü"}'.encode(), Request("ü")),
    ],
)
def test_a_request_is_read(line: bytes, request_: Request) -> None:
    assert parse(line) == request_


@pytest.mark.parametrize(
    ("line", "ident", "desc"),
    [
        (b"nonsense", None, "invalid JSON"),
        (b'{"execute": "x"', None, "invalid JSON"),
        (b'{"execute": "x"} {"execute": "y"}', None, "invalid JSON"),
        (b'{"execute": "\xff"}', None, "invalid JSON"),
        (b"[" * (MAX_LINE - 1), None, "invalid JSON"),
        (b'{"a":' * 13_000, None, "invalid JSON"),
        (b'{"id": ' + b"9" * 5000 + b"}", None, "invalid JSON"),
        (b'{"execute": "x", "arguments": {"a": Infinity}}', None, "invalid JSON"),
        (b"[]", None, "a JSON object"),
        (b"1", None, "a JSON object"),
        (b'{"id": 7}', 7, "'execute' is missing"),
        (b'{"execute": 1, "id": 7}', 7, "must be a string"),
        (b'{"execute": "x", "exec-oob": "x", "id": 7}', 7, "exclude"),
        (b'{"execute": "x", "arguments": [], "id": 7}', 7, "must be an object"),
        (b'{"execute": "x", "argument": {}, "id": 7}', 7, "'argument' is unexpected"),
    ],
)
def test_a_malformed_request_is_refused_with_its_id(line: bytes, ident: object, desc: str) -> None:
    request = parse(line)
    assert request.error is not None
    assert desc in request.error.desc
    assert request.id == ident
    assert len(failure(request, request.error)) < 500


def names(requests: list[Request]) -> list[str]:
    return [request.execute or str(request.error) for request in requests]


def test_lines_are_cut_wherever_the_bytes_are(rng: random.Random) -> None:
    stream = b"".join(b'{"execute": "%d"}\r\n' % number for number in range(50)) + b"\n \n"
    for _ in range(20):
        reader, found, at = RequestReader(), [], 0
        while at < len(stream):
            step = rng.randint(1, 40)
            found += reader.feed(stream[at : at + step])
            at += step
        assert names(found) == [str(number) for number in range(50)]


def test_requests_need_no_line_ends_and_a_line_end_ends_nonsense() -> None:
    text = b'{"execute": "a", "arguments": {"s": "}\\"{[\\\\"}}{"execute": "b"} {"execute": "c"}'
    for cut in range(len(text)):
        reader = RequestReader()
        assert names(reader.feed(text[:cut]) + reader.feed(text[cut:])) == ["a", "b", "c"]
    for nonsense in (b"{{{[", b'"', b'{"a": "\\', b"]}", b"hello", b"]"):
        *refused, after = RequestReader().feed(nonsense + b'\n{"execute": "after"}\n')
        assert after.execute == "after"
        assert refused and all(request.error is not None for request in refused)


def test_the_longest_line_is_read_and_one_byte_more_is_not() -> None:
    def line(length: int) -> bytes:
        head = b'{"execute": "x", "id": "'
        return head + b"i" * (length - len(head) - 2) + b'"}'

    assert len(line(MAX_LINE)) == MAX_LINE
    assert names(RequestReader().feed(line(MAX_LINE))) == ["x"]
    refused, after = RequestReader().feed(line(MAX_LINE + 1) + line(100))
    assert refused.error is not None and str(MAX_LINE) in refused.error.desc
    assert after.execute == "x"


def test_an_endless_line_is_refused_once_and_keeps_no_memory() -> None:
    reader = RequestReader()
    found = [request for _ in range(100) for request in reader.feed(b"x" * MAX_LINE)]
    assert len(found) == 1
    assert len(reader._rest) < MAX_LINE
    assert names(reader.feed(b'\n{"execute": "after"}\n')) == ["after"]


@given(st.binary(max_size=300))
def test_any_bytes_get_an_answer(data: bytes) -> None:
    for request in RequestReader().feed(data + b"\n"):
        json.loads(failure(request, QmpError("x")))


def test_nothing_before_the_negotiation_and_the_negotiation_once() -> None:
    session = Session()
    with pytest.raises(QmpError, match="qmp_capabilities") as problem:
        session.admit(Request("query-status"))
    assert problem.value.kind == "CommandNotFound"
    assert not session.negotiated
    assert session.admit(NEGOTIATE) is False
    assert session.negotiated
    assert session.admit(Request("query-status")) is True
    with pytest.raises(QmpError, match="already"):
        session.admit(NEGOTIATE)


@pytest.mark.parametrize(
    "arguments", [{"enable": ["oob", "telepathy"]}, {"enable": "oob"}, {"enabled": []}, {"enable": [{}]}]
)
def test_a_capability_that_is_not_offered_is_refused(arguments: dict[str, Any]) -> None:
    session = Session()
    with pytest.raises(QmpError):
        session.admit(Request("qmp_capabilities", arguments))
    assert not session.negotiated


def test_the_lines_that_go_out() -> None:
    assert greeting().endswith(b'"capabilities": ["oob"]}}\r\n')
    assert json.loads(greeting())["QMP"]["version"]["package"] == f"migrate {__version__}"
    assert reply(Request("x", {}, 7), {}) == b'{"return": {}, "id": 7}\r\n'
    assert reply(Request("x"), [float("inf"), 1.5]) == b'{"return": [null, 1.5]}\r\n'
    assert failure(Request("x", {}, "a"), QmpError("no", "CommandNotFound")) == (
        b'{"error": {"class": "CommandNotFound", "desc": "no"}, "id": "a"}\r\n'
    )
    assert event("MIGRATION", {"status": "active"}, 5.0000015) == (
        b'{"event": "MIGRATION", "data": {"status": "active"},'
        b' "timestamp": {"seconds": 5, "microseconds": 2}}\r\n'
    )
    assert b"\n" not in reply(Request("x", {}, "a\nb"), "c\nd")[:-2], "one line each"


@pytest.mark.parametrize(
    ("name", "arguments", "desc"),
    [
        ("migrate", {}, "'uri' is missing"),
        ("migrate", {"uri": 4444}, "expected: string"),
        ("migrate", {"uri": "tcp:x:1", "blk": True}, "'blk' is unexpected"),
        ("migrate-set-parameters", {"downtime-limit": "300"}, r"expected: integer \(ms\)"),
        ("migrate-set-parameters", {"downtime-limit": 0.5}, "expected: integer"),
        ("migrate-set-parameters", {"max-bandwidth": True}, r"expected: integer \(bytes/s\)"),
        ("query-status", {"a": 1}, "'a' is unexpected"),
    ],
)
def test_arguments_are_those_of_the_table(name: str, arguments: dict[str, object], desc: str) -> None:
    with pytest.raises(QmpError, match=desc):
        check_arguments(commands_of("source")[name], arguments)


def test_the_table_says_what_each_side_knows() -> None:
    assert len({command.name for command in COMMANDS}) == len(COMMANDS)
    assert commands_of("source").keys() - commands_of("destination").keys() == {
        "migrate", "migrate-pause", "migrate-set-parameters", "query-migrate-parameters",
    }  # fmt: skip
    check_arguments(commands_of("source")["migrate-set-parameters"], {"max-rounds": 3, "downtime-limit": 1})

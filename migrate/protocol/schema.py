"""Typed messages over msgpack: one strict encoder and decoder for all control messages.

A message is a frozen dataclass registered with `@message("type")`. On the wire it is a msgpack array
`[type, field, field, …]` in the order of the fields. Field types: `int` with a `Range`, `bool`, `str` and
`bytes` with a `Range` of their length, `list[...]` of these or of other such dataclasses, with a `Range` of
the count. Anything else than exactly the declared form is a ProtocolError: a peer's bytes are hostile.
`Text` is for people: what is too long, or no UTF-8, is cut or replaced where it is encoded.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Annotated, Any, ClassVar, TypeVar, get_args, get_origin, get_type_hints

import msgpack  # type: ignore[import-untyped]

from migrate.errors import ProtocolError

MAX_MESSAGE_BYTES = 1 << 20
MAX_LIST_ITEMS = 64
MAX_LISTS = 128
"""Of one message, nested ones included: a megabyte of empty lists would take a hundred of memory."""


@dataclasses.dataclass(frozen=True)
class Range:
    """Bounds of a number, or of the length of a text, of bytes (both in bytes) or of a list."""

    low: int
    high: int

    def check(self, value: int, what: str) -> None:
        if not self.low <= value <= self.high:
            raise ProtocolError(f"{what} is {value}, allowed is {self.low}…{self.high}")


U8 = Annotated[int, Range(0, 2**8 - 1)]
U16 = Annotated[int, Range(0, 2**16 - 1)]
U32 = Annotated[int, Range(0, 2**32 - 1)]
U64 = Annotated[int, Range(0, 2**63 - 1)]
Id16 = Annotated[bytes, Range(16, 16)]
Secret = Annotated[bytes, Range(32, 32)]
Name = Annotated[str, Range(1, 255)]
MAX_TEXT_BYTES = 4096
Text = Annotated[str, Range(0, MAX_TEXT_BYTES)]


class Message:
    """Base of all control messages."""

    TYPE: ClassVar[str]


M = TypeVar("M", bound=type[Message])
_BY_TYPE: dict[str, type[Message]] = {}
_Packer = Callable[[Any], Any]


def message(kind: str) -> Callable[[M], M]:
    """Register a frozen dataclass as the control message of that type."""

    def register(cls: M) -> M:
        cls.TYPE = kind
        _BY_TYPE[kind] = cls
        return cls

    return register


def known_types() -> dict[str, type[Message]]:
    """Every registered message by its type; the tests walk it."""
    return dict(_BY_TYPE)


def encode(value: Message) -> bytes:
    """The msgpack form of a message. Raises ValueError where it exceeds the size limit: a fault of ours."""
    data: bytes = msgpack.packb([value.TYPE, *_fields_out(value)], use_bin_type=True)
    if len(data) > MAX_MESSAGE_BYTES:
        raise ValueError(f"a {value.TYPE} message of {len(data)} bytes is beyond the limit")
    return data


def decode(data: bytes) -> Message:
    """Read one message.

    Raises:
        ProtocolError: not msgpack, too large, unknown type, a field missing, surplus or out of bounds.
    """
    if len(data) > MAX_MESSAGE_BYTES:
        raise ProtocolError(f"a control message of {len(data)} bytes is beyond {MAX_MESSAGE_BYTES}")
    lists = 0

    def count(items: list[Any]) -> list[Any]:
        nonlocal lists
        lists += 1
        if lists > MAX_LISTS:
            raise ValueError(f"more than {MAX_LISTS} lists")
        return items

    try:
        parts = msgpack.unpackb(
            data, raw=False, list_hook=count, max_array_len=MAX_LIST_ITEMS, max_map_len=0, max_ext_len=0
        )
    except Exception as error:  # msgpack raises half a dozen unrelated classes for bad input
        reason = str(error) or type(error).__name__
        raise ProtocolError(f"a control message is not valid msgpack: {reason}") from error
    if not isinstance(parts, list) or not parts or not isinstance(parts[0], str):
        raise ProtocolError("a control message is not a list that begins with its type")
    cls = _BY_TYPE.get(parts[0])
    if cls is None:
        raise ProtocolError(f"unknown control message {parts[0][:40]!r}")
    found = _fields_in(cls, parts[1:], parts[0])
    assert isinstance(found, Message)
    return found


def _fields_out(value: Any) -> list[Any]:
    cls: Any = type(value)
    return [_out(hint, getattr(value, name)) for name, hint in _hints(cls)]


def _out(hint: Any, value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return _fields_out(value)
    if isinstance(value, list):
        return [_out(None, item) for item in value]
    if hint == Text:
        return value.encode(errors="replace")[:MAX_TEXT_BYTES].decode(errors="ignore")
    return value


def _fields_in(cls: type[Any], parts: list[Any], what: str) -> Any:
    hints = _hints(cls)  # type: ignore[arg-type]  # a class is hashable, whatever its metaclass might say
    if len(parts) != len(hints):
        raise ProtocolError(f"{what} has {len(parts)} fields instead of {len(hints)}")
    return cls(*(_in(hint, part, f"{what}.{n}") for (n, hint), part in zip(hints, parts, strict=True)))


@functools.cache
def _hints(cls: Any) -> list[tuple[str, Any]]:
    hints = get_type_hints(cls, include_extras=True)
    return [(field.name, hints[field.name]) for field in dataclasses.fields(cls)]


def _in(hint: Any, value: Any, what: str) -> Any:
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        if not isinstance(value, list):
            raise ProtocolError(f"{what} is not a list of fields")
        return _fields_in(hint, value, what)
    bounds: Range | None = None
    if get_origin(hint) is Annotated:
        hint, bounds = get_args(hint)
    wanted = get_origin(hint) or hint
    if type(value) is not wanted:
        raise ProtocolError(f"{what} is {type(value).__name__} instead of {wanted.__name__}")
    if bounds is not None:
        size = value if wanted is int else len(value.encode()) if wanted is str else len(value)
        bounds.check(size, what)
    if wanted is list:
        return [_in(get_args(hint)[0], item, f"{what}[{index}]") for index, item in enumerate(value)]
    return value

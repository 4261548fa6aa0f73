"""Values for every control message, made from its declared fields."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from hypothesis import strategies as st

from migrate.protocol import messages as m
from migrate.protocol.schema import Message, Range, known_types

assert m.Hello.TYPE in known_types(), "the messages are registered by their module"
MESSAGE_TYPES: list[type[Message]] = [known_types()[name] for name in sorted(known_types())]


def fields(cls: type) -> dict[str, Any]:
    """Field name → declared type with its range, in order."""
    hints = get_type_hints(cls, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}  # type: ignore[arg-type]


def split(hint: Any) -> tuple[Any, Range | None]:
    """The plain type and the range of a field."""
    if get_origin(hint) is Annotated:
        plain, bounds = get_args(hint)
        return plain, bounds
    return hint, None


def values(hint: Any) -> st.SearchStrategy[Any]:
    """Legal values of a field; long ones only short of what makes a test slow."""
    plain, bounds = split(hint)
    if dataclasses.is_dataclass(plain):
        return messages(plain)  # type: ignore[arg-type]
    if plain is bool:
        return st.booleans()
    assert bounds is not None, f"{hint} has no range"
    low, high = bounds.low, bounds.high
    if plain is int:
        return st.one_of(st.integers(low, high), st.sampled_from([low, high]))
    if plain is bytes:
        return st.binary(min_size=low, max_size=min(high, max(low, 200)))
    if plain is str:
        text = st.text(st.characters(codec="utf-8"), min_size=low, max_size=max(low, min(high, 100) // 4))
        longest = st.just("é" * (high // 2) + "x" * (high % 2))
        return st.one_of(text.filter(lambda value: low <= len(value.encode()) <= high), longest)
    assert get_origin(plain) is list
    return st.lists(values(get_args(plain)[0]), min_size=low, max_size=min(high, max(low, 5)))


def messages(cls: type) -> st.SearchStrategy[Any]:
    """Legal messages of a class."""
    return st.builds(cls, **{name: values(hint) for name, hint in fields(cls).items()})


def largest(hint: Any) -> Any:
    """The value of a field that takes most bytes on the wire."""
    plain, bounds = split(hint)
    if dataclasses.is_dataclass(plain):
        return plain(*(largest(field) for field in fields(plain).values()))  # type: ignore[operator, arg-type]
    if plain is bool:
        return True
    assert bounds is not None
    if plain is int:
        return bounds.high
    if plain is bytes:
        return bytes(bounds.high)
    if plain is str:
        return "x" * bounds.high
    return [largest(get_args(plain)[0]) for _ in range(bounds.high)]


def example(cls: type[Message]) -> Message:
    """One small message of a class, the same each time."""
    return cls(*(_smallest(hint) for hint in fields(cls).values()))


def _smallest(hint: Any) -> Any:
    plain, bounds = split(hint)
    if dataclasses.is_dataclass(plain):
        return plain(*(_smallest(field) for field in fields(plain).values()))  # type: ignore[operator, arg-type]
    if plain is bool:
        return False
    assert bounds is not None
    if plain is int:
        return bounds.low
    if plain is bytes:
        return bytes(bounds.low)
    if plain is str:
        return "x" * bounds.low
    return [_smallest(get_args(plain)[0]) for _ in range(bounds.low)]

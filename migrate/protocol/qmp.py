"""QMP's shape for the control socket: lines of JSON in, lines of JSON out. Sans I/O.

    → {"QMP": {"version": {"qemu": {…}, "package": "migrate 0.1.0"}, "capabilities": ["oob"]}}
    ← {"execute": "qmp_capabilities", "arguments": {"enable": ["oob"]}, "id": 1}
    → {"return": {}, "id": 1}
    → {"event": "MIGRATION", "data": {"status": "active"}, "timestamp": {"seconds": …, "microseconds": …}}
    → {"error": {"class": "CommandNotFound", "desc": "…"}, "id": 2}

The shape, the error classes and the negotiation are those of QEMU's QMP specification. Every command here
answers at once, so that `exec-oob` does what `execute` does. A request ends where its JSON object does (some
clients, as QEMU's own, send no line ends), at the latest with its line, so that nonsense costs one line; it
has at most MAX_LINE bytes.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from migrate import __version__

MAX_LINE = 64 << 10
"""Bytes of a request, its end included."""
CAPABILITIES = ("oob",)
_TOKEN = re.compile(rb'[{}\[\]"\\\n]')
_NEWLINE = 0x0A

ErrorClass = Literal["GenericError", "CommandNotFound"]


class QmpError(Exception):
    """A request that cannot be served.

    Attributes:
        kind: QMP's error class.
        desc: what to tell the client.
    """

    def __init__(self, desc: str, kind: ErrorClass = "GenericError") -> None:
        super().__init__(desc)
        self.desc = desc
        self.kind = kind


@dataclass(frozen=True, slots=True)
class Request:
    """A well-formed request, or what is known of one that is not."""

    execute: str = ""
    arguments: Mapping[str, object] = field(default_factory=dict)
    id: object = None
    """As the client gave it; None: it gave none (JSON's null counts as none)."""
    error: QmpError | None = None
    """Why it cannot be served; the other fields then hold what could be read."""


class RequestReader:
    """Cuts a stream into requests; keeps less than MAX_LINE bytes, whatever comes."""

    def __init__(self) -> None:
        self._rest = bytearray()
        self._skips = False
        """Inside a request that is too long already."""
        self._begin()

    def _begin(self) -> None:
        self._depth = 0
        self._in_string = False
        self._escaped = False
        self._skips = False
        self._rest.clear()

    def feed(self, data: bytes) -> list[Request]:
        """The requests that end in `data`; one that is too long is a request with an error."""
        found: list[Request] = []
        start = at = 0
        while at < len(data):
            if self._escaped:
                self._escaped = False
                at += data[at] != _NEWLINE
                continue
            match = _TOKEN.search(data, at)
            if match is None:
                break
            at = match.end()
            if self._ends(match[0]):
                self._take(data[start:at], found)
                if not self._skips and self._rest.strip():
                    found.append(parse(bytes(self._rest)))
                self._begin()
                start = at
        self._take(data[start:], found)
        return found

    def _ends(self, token: bytes) -> bool:
        """Whether the request ends with this token."""
        if token == b"\n":
            return True
        if token == b'"':
            self._in_string = not self._in_string
        elif token == b"\\":
            self._escaped = self._in_string
        elif not self._in_string:
            self._depth += 1 if token in b"{[" else -1
            return self._depth <= 0
        return False

    def _take(self, part: bytes, found: list[Request]) -> None:
        if self._skips:
            return
        if len(self._rest) + len(part) <= MAX_LINE:
            self._rest += part
            return
        self._rest.clear()
        self._skips = True
        found.append(Request(error=QmpError(f"a request has at most {MAX_LINE} bytes")))


def parse(line: bytes) -> Request:
    """One request; never raises: what is wrong with it stands in `error`."""
    try:
        value = json.loads(line, parse_constant=_no_constant)
    except (ValueError, RecursionError) as problem:  # UnicodeDecodeError is a ValueError
        return Request(error=QmpError(f"invalid JSON: {problem}"))
    if not isinstance(value, dict):
        return Request(error=QmpError("a request is a JSON object"))
    try:
        return _request(value)
    except QmpError as error:
        return Request(id=value.get("id"), error=error)


def _request(value: Mapping[str, object]) -> Request:
    """Raises QmpError."""
    name = value.get("execute", value.get("exec-oob"))
    arguments = value.get("arguments", {})
    if "execute" in value and "exec-oob" in value:
        raise QmpError("'execute' and 'exec-oob' exclude each other")
    if name is None:
        raise QmpError("the member 'execute' is missing")
    if not isinstance(name, str):
        raise QmpError("the member 'execute' must be a string")
    if not isinstance(arguments, dict):
        raise QmpError("the member 'arguments' must be an object")
    unknown = value.keys() - {"execute", "exec-oob", "arguments", "id"}
    if unknown:
        raise QmpError(f"the member {_shown(min(unknown))} is unexpected")
    return Request(name, arguments, value.get("id"))


def _no_constant(name: str) -> object:
    raise ValueError(f"{name} is no JSON")


def _shown(name: str) -> str:
    return repr(name if len(name) <= 64 else name[:64] + "…")


class Session:
    """What one client has agreed to."""

    def __init__(self) -> None:
        self.negotiated = False
        """Commands are taken, and events are sent."""

    def admit(self, request: Request) -> bool:
        """Whether the request is a command to carry out; False: it was the negotiation, done now.

        Raises QmpError: malformed, or not its turn.
        """
        if request.error is not None:
            raise request.error
        if request.execute != "qmp_capabilities":
            if not self.negotiated:
                raise QmpError(
                    "expecting capabilities negotiation with 'qmp_capabilities'", "CommandNotFound"
                )
            return True
        if self.negotiated:
            raise QmpError("capabilities negotiation is already complete, command ignored", "CommandNotFound")
        enable = request.arguments.get("enable", [])
        if request.arguments.keys() - {"enable"} or not isinstance(enable, list):
            raise QmpError("qmp_capabilities takes 'enable', a list of capabilities")
        for capability in enable:
            if capability not in CAPABILITIES:
                raise QmpError(f"capability {_shown(str(capability))} is not available")
        self.negotiated = True
        return False


def version() -> dict[str, object]:
    """The value of `query-version`. The member `qemu` is where QMP's clients look for a version."""
    numbers = [int(part) for part in __version__.split(".")[:3]]
    names = ("major", "minor", "micro")
    return {"qemu": dict(zip(names, numbers, strict=True)), "package": f"migrate {__version__}"}


def greeting() -> bytes:
    """The first line that a client reads."""
    return _line({"QMP": {"version": version(), "capabilities": list(CAPABILITIES)}})


def reply(request: Request, value: object) -> bytes:
    """The line that answers a request."""
    return _line({"return": value} | _ident(request))


def failure(request: Request, error: QmpError) -> bytes:
    """The line that refuses a request."""
    return _line({"error": {"class": error.kind, "desc": error.desc}} | _ident(request))


def event(name: str, data: Mapping[str, object], timestamp: float) -> bytes:
    """The line of an event; `timestamp` in seconds since the epoch."""
    seconds, microseconds = divmod(round(timestamp * 1_000_000), 1_000_000)
    stamp = {"seconds": seconds, "microseconds": microseconds}
    return _line({"event": name, "data": data, "timestamp": stamp})


def _ident(request: Request) -> dict[str, object]:
    return {} if request.id is None else {"id": request.id}


def _line(value: Mapping[str, object]) -> bytes:
    return json.dumps(_finite(value), allow_nan=False).encode() + b"\r\n"


def _finite(value: object) -> object:
    """JSON has no infinity: null in its place."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(name): _finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value

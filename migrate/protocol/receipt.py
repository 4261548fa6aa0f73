"""The receipt of a completed move: what was proved, in a form that can be signed and checked for ever.

A receipt is a file of two lines of ASCII, each ended by a newline, each one JSON object in canonical form:
keys sorted, no white space, characters beyond ASCII as \\uXXXX, numbers whole.

1   what is proved: `Receipt`, field by field
2   who says so, over the bytes of line 1 without its newline (receipt_signature.py)

Whatever is not exactly in this form is refused, so that no byte can be changed unnoticed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from migrate.errors import VerifyError

FORMAT = "migrate-receipt-1"
MOST_BYTES = 1 << 20
_FIELDS: dict[str, type] = {
    "format": str,
    "migration": str,
    "attempt": int,
    "side": str,
    "level": str,
    "root": str,
    "source_read_again": bool,
    "ram": dict,
    "source_software": str,
    "destination_software": str,
    "completed_at": int,
    "total_time_ms": int,
}


@dataclass(frozen=True, slots=True)
class Receipt:
    """What one side saw proved."""

    migration: str
    attempt: int
    side: str
    """Whose receipt it is: source or destination."""
    level: str
    """Of proof: stream, ram or full (README, Proof)."""
    root: str
    """Keyed root of all page digests, hex: the same at both sides, and in both receipts."""
    source_read_again: bool
    """After the handover the source read its stopped RAM once more, and it was what had been sent."""
    ram: dict[str, int]
    """RAM block → length, bytes."""
    source_software: str
    destination_software: str
    completed_at: int
    """Seconds since 1970, UTC, by the clock of that side."""
    total_time_ms: int
    format: str = FORMAT

    def encode(self) -> bytes:
        """Line 1, without its newline: what is signed."""
        return canonical(asdict(self))


def canonical(value: Mapping[str, object]) -> bytes:
    """The one form of a JSON object (see above)."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode("ascii")


def encode_file(receipt: bytes, signature: Mapping[str, object]) -> bytes:
    """Both lines."""
    return receipt + b"\n" + canonical(signature) + b"\n"


def decode_file(data: bytes) -> tuple[Receipt, bytes, dict[str, object]]:
    """The receipt, the bytes that are signed, and the signature.

    Raises:
        VerifyError: it is not a receipt, or not in canonical form.
    """
    lines = data.split(b"\n")
    if len(data) > MOST_BYTES or len(lines) != 3 or lines[2]:
        raise VerifyError("this is no receipt: not two lines")
    fields, signature = _object(lines[0]), _object(lines[1])
    if fields.get("format") != FORMAT:
        raise VerifyError(f"this is no receipt of the form {FORMAT}")
    if {name: type(value) for name, value in fields.items()} != _FIELDS:
        raise VerifyError("this is no receipt: a field is missing, too many, or of another kind")
    return Receipt(**fields), lines[0], signature  # type: ignore[arg-type]  # just compared


def _object(line: bytes) -> dict[str, object]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise VerifyError(f"this is no receipt: {error}") from error
    if not isinstance(value, dict) or canonical(value) != line:
        raise VerifyError("the receipt is not in canonical form: it was changed")
    return value

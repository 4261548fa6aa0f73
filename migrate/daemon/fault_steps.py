"""Protocol steps as the fault proxy sees them: which control message is about to go past.

Only on connections that begin as control connections of ours do, and without TLS. A message is held until it
is there as a whole, so that what is to happen at its step happens after it was sent and before it arrives.
"""

from __future__ import annotations

from collections.abc import Iterator

from migrate.errors import ProtocolError
from migrate.protocol import frames
from migrate.protocol.schema import MAX_MESSAGE_BYTES

_LENGTH_BYTES = 4


class StepReader:
    """Cuts the bytes of both directions of one connection into messages.

    What is none (another kind of connection, or damaged on the way) goes past as it comes.
    """

    def __init__(self) -> None:
        self._is_control: bool | None = None
        """None: its first bytes have not come yet."""
        self._held = {"upstream": bytearray(), "downstream": bytearray()}

    def feed(self, direction: str, data: bytes) -> Iterator[tuple[bytes, str]]:
        """Pieces that may go on, each with the name of the message that it is; "" for what is none."""
        held = self._held[direction]
        held += data
        if self._is_control is None:
            if direction == "downstream":
                return  # nobody answers before he was spoken to, but the first words may still be held
            if len(held) < frames.PREFACE_BYTES and frames.PREFACE_CONTROL.startswith(held):
                return
            self._is_control = held.startswith(frames.PREFACE_CONTROL)
            if self._is_control:
                yield bytes(held[: frames.PREFACE_BYTES]), ""
                del held[: frames.PREFACE_BYTES]
        while self._is_control and held:
            if len(held) < frames.HEADER_BYTES:
                return
            end = frames.HEADER_BYTES + int.from_bytes(held[:_LENGTH_BYTES], "big")
            if end > frames.HEADER_BYTES + MAX_MESSAGE_BYTES:
                self._is_control = False
            elif len(held) < end:
                return
            else:
                piece = bytes(held[:end])
                del held[:end]
                yield piece, self._name(piece)
        yield from self.rest(direction)

    def rest(self, direction: str) -> Iterator[tuple[bytes, str]]:
        """What is still held: nothing more will complete it."""
        held = self._held[direction]
        if held:
            yield bytes(held), ""
            held.clear()

    def _name(self, frame: bytes) -> str:
        try:
            return next(iter(frames.FrameReader().feed(frame))).TYPE
        except (ProtocolError, StopIteration):
            self._is_control = False
            return ""

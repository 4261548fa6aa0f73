"""Decoders of the peer's bytes, fed with what was legal once: never anything but the documented error.

Checksums are right again after each change, so that it is the decoder behind them that is tried. The kernel
has its own fuzzer in C, with sanitizers: bin/fuzz-kernel.
"""

from __future__ import annotations

import random
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from lane_pair import LanePair, lane_pair
from message_values import MESSAGE_TYPES, example

from migrate import kernel
from migrate.errors import ProtocolError
from migrate.kernel.results import STAGE_BULK, STAGE_ROUND
from migrate.protocol import frames
from migrate.protocol.batch import HEADER_BYTES
from migrate.protocol.qmp import RequestReader
from migrate.protocol.schema import encode
from tests.soak.tally import Tally

LONGEST_SECONDS = 1.0
MOST_GROWTH = 64 << 20
EACH = 200
"""Changes of one original."""
REQUEST = (
    b'{"execute": "migrate-set-parameters", "arguments": {"downtime-limit": 300, "x": [1, null]}, "id": 7}\n'
)
Decode = Callable[[bytearray], object]


def mutate(seed: int, count: int) -> Tally:
    """So many changed messages, batches and requests."""
    rng = random.Random(seed)
    tally = Tally()
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    with (
        tempfile.TemporaryDirectory(prefix="migrate-test-soak-", dir="/dev/shm") as directory,
        lane_pair(Path(directory) / "pair", pages=(7, 5)) as pair,
    ):
        originals: list[tuple[bytes, Decode]] = [(encode(example(cls)), _message) for cls in MESSAGE_TYPES]
        originals += [(REQUEST, _request)] * 4
        batches = _batches(pair, rng)
        take = _Batches(pair, batches[0])
        originals += [(batch, take) for batch in batches]
        while tally.done < count:
            original, decode = rng.choice(originals)
            _change(original, decode, rng, min(EACH, count - tally.done), tally)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - grown
    if grown > MOST_GROWTH:
        tally.went_wrong("growth beyond the bound", f"--seed {seed}: {grown} bytes")
    return tally


def _change(original: bytes, decode: Decode, rng: random.Random, count: int, tally: Tally) -> None:
    for _ in range(count):
        data = _changed(original, rng)
        tally.done += 1
        began = time.perf_counter()
        try:
            decode(data)
        except ProtocolError:
            tally.facts["refused"] += 1
        except Exception as error:
            tally.went_wrong(
                "undocumented errors", f"{type(error).__name__}: {error} for {bytes(data).hex()}"
            )
        else:
            tally.facts["legal still, or again"] += 1
        if time.perf_counter() - began > LONGEST_SECONDS:
            tally.went_wrong("hangs", bytes(data).hex())


def _changed(original: bytes, rng: random.Random) -> bytearray:
    """Bytes set, inserted, removed or repeated, in one to four places."""
    data = bytearray(original)
    for _ in range(rng.randrange(1, 5)):
        at = rng.randrange(len(data) + 1)
        length = rng.choice((1, 1, 2, 4, 9))
        match rng.randrange(5):
            case 0 if at < len(data):
                data[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
            case 1 if at < len(data):
                data[at] ^= 1 << rng.randrange(8)
            case 2:
                data[at:at] = rng.randbytes(length)
            case 3:
                del data[at : at + length]
            case _:
                data[at:at] = data[at : at + length]
    return data


def _message(payload: bytearray) -> None:
    frame = len(payload).to_bytes(4, "big") + kernel.crc32c(payload).to_bytes(4, "big") + payload
    list(frames.FrameReader().feed(frame))


def _request(line: bytearray) -> None:
    RequestReader().feed(bytes(line))


class _Batches:
    """Batches of one lane, each for a destination that takes it as the first, or as the one after it."""

    def __init__(self, pair: LanePair, opening: bytes) -> None:
        self._pair = pair
        self._opening = opening

    def __call__(self, data: bytearray) -> None:
        head, body = data[:HEADER_BYTES].ljust(HEADER_BYTES, b"\0"), data[HEADER_BYTES:]
        if len(data) > HEADER_BYTES:
            head[32:36] = len(body).to_bytes(4, "big")
            head[36:40] = len(body).to_bytes(4, "big")
            head[56:60] = kernel.crc32c(body).to_bytes(4, "big")
        lane = self._pair.new_destination(0)
        lane.open(self._pair.source[0].epoch)
        if head[16:24] != self._opening[16:24]:
            head[16:24] = (2).to_bytes(8, "big")
            lane.header(self._opening[:HEADER_BYTES])
            lane.body(bytearray(self._opening[HEADER_BYTES:]))
        length = lane.header(bytes(head[:60]) + kernel.crc32c(head[:60]).to_bytes(4, "big"))
        lane.body(body[:length].ljust(length, b"\0"))


def _batches(pair: LanePair, rng: random.Random) -> list[bytes]:
    """Batches of whole pages, zeros and deltas, and those without pages."""
    pair.here.dirty_randomly(rng, 30)
    pair.open(0)
    found = []
    for stage in (STAGE_BULK, STAGE_ROUND):
        pair.start_round(stage)
        found += [data for data, _ in pair.run_out(0)]
        pair.here.dirty_randomly(rng, 8, only_small=True)
    return found

"""One bit flipped on the way: in a batch, its header or body, or in a control frame.

Found means: an error, or nothing at all for want of bytes, which the deadlines end; RAM stays as it was.
"""

from __future__ import annotations

import random
import tempfile
from pathlib import Path

from lane_pair import LanePair, lane_pair
from message_values import MESSAGE_TYPES, example

from migrate.errors import ProtocolError
from migrate.kernel.results import STAGE_BULK
from migrate.protocol import frames
from migrate.protocol.batch import HEADER_BYTES, Codec
from tests.soak.tally import Tally

BATCH_FLIPS = 500
"""Flips tried on one batch, each by a lane of its own."""


def flip_bits(seed: int, count: int) -> Tally:
    """So many flips; every second one in a control frame."""
    rng = random.Random(seed)
    tally = Tally()
    with tempfile.TemporaryDirectory(prefix="migrate-test-soak-", dir="/dev/shm") as directory:
        while tally.done < count:
            most = min(BATCH_FLIPS, count - tally.done)
            codec = rng.choice((Codec.NONE, Codec.ZLIB))
            with lane_pair(Path(directory) / str(tally.done), pages=(7, 5), codec=codec) as pair:
                _flip_batches(pair, rng, most // 2, tally)
            _flip_frames(rng, most - most // 2, tally)
    return tally


def _flip_batches(pair: LanePair, rng: random.Random, count: int, tally: Tally) -> None:
    pair.here.dirty_randomly(rng, 30)
    pair.open(0)
    opening = pair.make(0)
    pair.start_round(STAGE_BULK)
    pages = pair.make(0)
    assert opening is not None and pages is not None
    before = pair.there.read()
    for _ in range(count):
        lane = pair.new_destination(0)
        lane.open(pair.source[0].epoch)
        batch = rng.choice((opening, pages))
        if batch is pages:
            lane.header(opening[0][:HEADER_BYTES])
            lane.body(bytearray(opening[0][HEADER_BYTES:]))
        data = bytearray(batch[0])
        bit = rng.randrange(8 * len(data))
        data[bit // 8] ^= 1 << bit % 8
        tally.done += 1
        try:
            lane.header(data[:HEADER_BYTES])
            lane.body(data[HEADER_BYTES:])
        except ProtocolError:
            tally.facts["found in a batch"] += 1
        else:
            tally.went_wrong("flips not found", f"bit {bit} of a batch of {len(data)} bytes")
        if pair.there.read() != before:
            tally.went_wrong("bytes written by a bad batch", f"bit {bit} of a batch of {len(data)} bytes")


def _flip_frames(rng: random.Random, count: int, tally: Tally) -> None:
    for _ in range(count):
        frame = bytearray(frames.encode_frame(example(rng.choice(MESSAGE_TYPES))))
        bit = rng.randrange(8 * len(frame))
        frame[bit // 8] ^= 1 << bit % 8
        tally.done += 1
        try:
            taken = list(frames.FrameReader().feed(frame))
        except ProtocolError:
            tally.facts["found in a frame"] += 1
            continue
        if taken:
            tally.went_wrong("flips not found", f"bit {bit} of a frame gave {taken}")
        tally.facts["waiting for more of a frame"] += 1

"""One lane's connection as the source's machine counts it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from lane_pair import LanePair, lane_pair
from protocol_support import PAGE

from migrate.errors import ProtocolError
from migrate.kernel.results import STAGE_BULK
from migrate.protocol.batch import Kind
from migrate.protocol.lane_link import LaneLink, LinkState
from migrate.protocol.lane_source import SentBatch


@pytest.fixture
def pair(shm_dir: Path) -> Iterator[LanePair]:
    """A lane with three pages to send."""
    with lane_pair(shm_dir / "x", (3,)) as pair:
        for page in range(3):
            pair.here.write(0, page, bytes([page + 1]) * PAGE)
        pair.start_round(STAGE_BULK)
        yield pair


@pytest.fixture
def link(pair: LanePair) -> LaneLink:
    """Its link, down."""
    return LaneLink(pair.source[0])


def _send(link: LaneLink, count: int, now: float = 0.0) -> list[SentBatch]:
    """Let the lane send that many batches, a page each."""
    sent = []
    for _ in range(count):
        made = link.lane.next_batch(1)
        assert made is not None
        link.sent(made[1], now)
        sent.append(made[1])
    return sent


def _open(link: LaneLink, now: float = 0.0) -> None:
    link.open(now)
    assert link.state is LinkState.UP
    assert link.has_thread


def _break_and_reset(link: LaneLink, position: tuple[int, int], now: float = 0.0) -> int:
    link.broken("cut")
    assert not link.resettable, "its thread runs"
    link.has_thread = False
    assert not link.resettable, "the peer has not named its position"
    link.position_known(*position)
    assert link.resettable
    owed = link.reset(now)
    assert link.state is LinkState.DOWN
    return owed


def test_in_flight_bytes(link: LaneLink) -> None:
    _open(link)
    sent = _send(link, 4)
    sizes = [batch.wire_bytes for batch in sent]
    assert link.in_flight_bytes == sum(sizes)
    assert link.acknowledged(1, 2, 1.0) == sizes[0] + sizes[1]
    assert link.acknowledged(1, 2, 1.0) == 0, "the same again says nothing new"
    assert link.in_flight_bytes == sizes[2] + sizes[3]
    assert link.acknowledged(1, 4, 1.0) == sizes[2] + sizes[3]
    assert not link.in_flight


def test_acknowledgements_of_what_never_was(link: LaneLink) -> None:
    _open(link)
    _send(link, 2)
    for epoch, sequence in ((1, 3), (2, 1), (2, 0)):
        with pytest.raises(ProtocolError, match="never sent"):
            link.acknowledged(epoch, sequence, 0.0)
    assert link.acknowledged(0, 99, 0.0) == 0, "an older epoch means nothing any more"
    link.broken("cut")
    assert link.acknowledged(1, 2, 0.0) == 0, "until the position is known nothing counts"


def test_ends_of_rounds(link: LaneLink) -> None:
    _open(link)
    _send(link, 4)
    assert link.round_out == 0
    _send(link, 1)
    assert link.round_out == 1
    link.broken("cut")
    assert link.round_out == 0, "it has to come again"


def test_the_final_batch(link: LaneLink) -> None:
    _open(link)
    link.sent(SentBatch(Kind.FINAL, 1, 1, 2, 3, 100, None), 0.0)
    assert not link.final_acknowledged
    link.acknowledged(1, 1, 0.0)
    assert link.final_acknowledged
    link.broken("the pause was given up")
    assert not link.final_acknowledged


def test_batches_of_a_broken_connection_are_not_counted(link: LaneLink) -> None:
    _open(link)
    sent = _send(link, 1)
    link.broken("cut")
    link.sent(sent[0], 0.0)
    assert link.in_flight_bytes == 0


def test_the_first_reason_stands(link: LaneLink) -> None:
    _open(link)
    link.broken("checksum")
    link.broken("reset by peer")
    assert link.reason == "checksum"


def test_settled(link: LaneLink) -> None:
    assert not link.settled(0.0)
    _open(link)
    assert not link.settled(0.0), "nothing is known of the connection yet"
    _send(link, 3)
    link.acknowledged(1, 1, 1.0)
    assert not link.settled(1.0), "only the batch that opens it came through"
    link.acknowledged(1, 2, 2.0)
    assert link.settled(3.0)
    assert not link.settled(3.1), "no answer for more than a second"
    link.acknowledged(1, 3, 9.0)
    assert link.settled(99.0), "nothing is waited for"
    link.broken("cut")
    assert not link.settled(9.0)


def test_stalled(link: LaneLink) -> None:
    _open(link, 5.0)
    assert not link.stalled(100.0, 10.0), "nothing is in flight"
    _send(link, 2, now=100.0)
    assert not link.stalled(110.0, 10.0)
    assert link.stalled(110.1, 10.0)
    link.acknowledged(1, 1, 105.0)
    assert not link.stalled(115.0, 10.0)
    assert link.stalled(115.1, 10.0)
    link.broken("it stalls")
    assert not link.stalled(999.0, 10.0)


def test_fruitless_resets_wait_longer_each_time(link: LaneLink) -> None:
    waits = []
    for number in range(1, 9):
        _open(link)
        _send(link, 2)
        owed = _break_and_reset(link, (link.lane.epoch, 1), now=100.0)
        assert owed == 1, "the same page each time"
        assert link.fruitless_resets == number
        waits.append(round(max(link.open_not_before - 100.0, 0.0), 3))
    assert waits == [0, 0.1, 0.2, 0.4, 0.8, 1.6, 3.0, 3.0]


@pytest.mark.parametrize("by", ["acknowledgement", "position"])
def test_progress_ends_the_series(link: LaneLink, by: str) -> None:
    for _ in range(3):
        _open(link)
        _send(link, 1)
        _break_and_reset(link, (link.lane.epoch, 1))
    _open(link)
    _send(link, 2)
    if by == "acknowledgement":
        link.acknowledged(link.lane.epoch, 2, 0.0)
        assert link.fruitless_resets == 0
    _break_and_reset(link, (link.lane.epoch, 2))
    assert link.fruitless_resets == 1
    _open(link)
    _send(link, 1)
    _break_and_reset(link, (link.lane.epoch - 1, 2))
    assert link.fruitless_resets == 2, "what an older epoch applied is no news"


def test_the_pause_waits_for_a_cache_that_changes_its_size(link: LaneLink) -> None:
    _open(link)
    for batch in _send(link, 5):
        link.acknowledged(link.lane.epoch, batch.sequence, 0.0)
    assert link.settled(0.0)
    link.lane.resize(1, 0, None)
    link.resizing = True
    assert not link.settled(0.0), "it copies what it holds"
    (change,) = _send(link, 1)
    assert change.kind is Kind.CACHE_RESIZE
    link.acknowledged(link.lane.epoch, change.sequence - 1, 0.0)
    assert not link.settled(0.0)
    link.acknowledged(link.lane.epoch, change.sequence, 0.0)
    assert link.settled(0.0) and not link.resizing

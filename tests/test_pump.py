"""The pumps of the benchmarks move everything and say when iperf3 is not there; no speed is judged."""

from __future__ import annotations

import random
from itertools import repeat
from pathlib import Path

import pytest

from bench import pump


def test_the_pump_moves_everything() -> None:
    assert pump.pump_rate(1 / 64) > 0


def test_the_ram_pump_fills_the_other_file(tmp_path: Path) -> None:
    source, destination = tmp_path / "source", tmp_path / "destination"
    source.write_bytes(random.Random(7).randbytes(3 * pump.PIECE))
    destination.write_bytes(bytes(3 * pump.PIECE))
    assert pump.ram_pump_rate(source, destination) > 0
    assert destination.read_bytes() == source.read_bytes()


def test_a_loss_is_noticed() -> None:
    with pytest.raises(RuntimeError, match="16777216 bytes, 15728640 arrived"):
        pump.rate_of(16, repeat(bytes(pump.PIECE), 15), [])


def test_a_missing_iperf3_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pump, "IPERF3", "iperf3-that-is-not-installed")
    assert pump.iperf3_rate(1) is None

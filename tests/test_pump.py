"""The bare pump of the benchmarks moves everything and says when iperf3 is not there; no speed is judged."""

from __future__ import annotations

import pytest

from bench import pump


def test_the_pump_moves_everything() -> None:
    assert pump.pump_rate(1 / 64) > 0


def test_a_loss_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = pump._send
    monkeypatch.setattr(pump, "_send", lambda sock, pieces: whole(sock, pieces - 1))
    with pytest.raises(RuntimeError, match="16777216 bytes, 15728640 arrived"):
        pump.pump_rate(1 / 64)


def test_a_missing_iperf3_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pump, "IPERF3", "iperf3-that-is-not-installed")
    assert pump.iperf3_rate(1) is None

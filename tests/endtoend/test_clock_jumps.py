"""The clock on the wall is nobody's business: all times are monotonic."""

from __future__ import annotations

from pathlib import Path

import pytest
from lying_library import LyingLab
from test_failures import port_of

from tests.failure_table import FailureRow


@pytest.mark.failure_row("clock jumps")
def test_a_clock_that_jumps_by_days(shm_dir: Path, row: FailureRow) -> None:
    """At both daemons, at each look at it, in either direction."""
    with LyingLab(shm_dir, (("pc.ram", "16M"),)) as lab:
        guest = lab.start_guest()
        lab.variables["CLOCK_JUMPS"] = "1"
        destination = lab.start_destination("--once", "--keepalive-timeout=2")
        source = lab.start_source(
            port_of(destination),
            guest,
            "--keepalive-timeout=2",
            "--max-bandwidth=8M",
            "--downtime-limit=1000",
        )
        source.wait()
        row.check(lab, guest, source, destination)
        assert destination.wait() == 0, destination.story()
        summary = source.summary
        assert summary["lane-resets"] == summary["reconnects"] == 0
        assert len(source.found("paused")) == 1 and 0 < summary["downtime"] < 60_000
        lab.end_arrived_guest()
        lab.check_witness()

"""Three lanes through a proxy that cuts one of them."""

from __future__ import annotations

import pytest

from tests.containers import guest
from tests.containers.hosts import Hosts


@pytest.mark.parametrize("lane", [1, 2, 3])
def test_each_lane_cut_alone(lane: int) -> None:
    with Hosts(
        MIGRATE_RAM_SIZE="64M",
        MIGRATE_TO="proxy:4400",
        MIGRATE_SOURCE_OPTIONS="--lanes 3 --max-bandwidth 32M",
    ) as hosts:
        guest.start(hosts)
        hosts.also_run(
            "proxy",
            *("migrate-faults", "--listen", "0.0.0.0:4400", "--target", "destination:4444"),
            *("--toxic", f"limit_data:bytes=3M,connections={lane}", "--json"),
        ).wait("listening")
        hosts.up("source")
        source = hosts.log("source")
        assert hosts.wait("source") == 0
        summary = source.wait("summary")
        assert summary["lane-resets"] >= 1
        assert summary["reconnects"] == 0
        assert len(source.events("paused")) == 1
        guest.finish(hosts)

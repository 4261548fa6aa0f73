"""A daemon's host loses power in precopy: the guest is not stopped, and the next attempt moves it."""

from __future__ import annotations

import pytest

from tests.containers import guest
from tests.containers.hosts import Hosts

SLOW = "--max-bandwidth 8M --keepalive-timeout 2 --reconnect-timeout 4"


@pytest.mark.parametrize("lost", ["source", "destination"])
def test_killed_and_started_again(lost: str) -> None:
    with Hosts(
        MIGRATE_RAM_SIZE="64M",
        MIGRATE_SOURCE_OPTIONS=SLOW,
        MIGRATE_DESTINATION_OPTIONS="--keepalive-timeout 2 --reconnect-timeout 4",
    ) as hosts:
        guest.start(hosts)
        hosts.up("source")
        first = hosts.log("source")
        first.wait("progress", lambda event: event["ram"]["normal"] > 0)
        hosts.kill(lost)
        if lost == "destination":
            assert hosts.wait("source") == 4
            assert "source" in first.wait("error")["guest"]
        assert not first.events("paused")
        guest.wait_for_beats(hosts, "host-a", 1000)

        if lost == "destination":
            hosts.start_again("destination")
        else:
            hosts.log("destination").wait("error")  # it has given the lost source up
        hosts.start_again("source")
        assert hosts.wait("source") == 0
        before, _ = guest.finish(hosts)["runs"]
        assert before["longest-pause-ns"] < 2e9

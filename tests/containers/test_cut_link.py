"""The network between the hosts goes away in the middle of precopy and comes back."""

from __future__ import annotations

from tests.containers import guest
from tests.containers.hosts import Hosts

KEEPALIVE_SECONDS = 3


def test_a_cut_link_costs_a_lane_reset_and_the_guest_never_stops() -> None:
    with Hosts(
        MIGRATE_RAM_SIZE="128M",
        MIGRATE_SOURCE_OPTIONS=f"--max-bandwidth 16M --keepalive-timeout {KEEPALIVE_SECONDS}",
        MIGRATE_DESTINATION_OPTIONS=f"--keepalive-timeout {KEEPALIVE_SECONDS}",
    ) as hosts:
        guest.start(hosts)
        hosts.up("source")
        source = hosts.log("source")
        source.wait("progress", lambda event: event["ram"]["normal"] > 0)

        hosts.cut("source")
        source.wait("reconnecting")
        guest.wait_for_beats(hosts, "host-a", 1000)
        assert not source.events("paused")
        hosts.mend("source")
        source.wait("reconnected")
        source.wait("lane-reset")

        summary = source.wait("summary")
        assert hosts.wait("source") == 0
        assert (summary["outcome"], summary["status"]) == ("completed", "completed")
        assert summary["lane-resets"] >= 1
        assert summary["reconnects"] >= 1

        hosts.log("guest").wait("guest-ended")
        guest.wait_for_beats(hosts, "host-b", 1000)
        guest.stop(hosts)
        before, _ = guest.check(hosts)["runs"]
        # Had the guest been held until the break was noticed, or until the link was mended, there would be a
        # pause of KEEPALIVE_SECONDS or more.
        assert before["longest-pause-ns"] < KEEPALIVE_SECONDS * 1e9 / 2

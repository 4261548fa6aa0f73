"""The network between the hosts goes away, in each phase of a move, and comes back."""

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

        before, _ = guest.finish(hosts)["runs"]
        # Had the guest been held until the break was noticed, or until the link was mended, there would be a
        # pause of KEEPALIVE_SECONDS or more.
        assert before["longest-pause-ns"] < KEEPALIVE_SECONDS * 1e9 / 2


def test_no_link_at_the_start() -> None:
    with Hosts(MIGRATE_RAM_SIZE="64M") as hosts:
        guest.start(hosts)
        hosts.cut("destination")
        hosts.up("source")
        assert hosts.wait("source") == 4
        error = hosts.log("source").wait("error")
        assert "source" in error["guest"]
        guest.wait_for_beats(hosts, "host-a", 100)

        hosts.mend("destination")
        hosts.start_again("source")
        assert hosts.wait("source") == 0
        guest.finish(hosts)


def test_a_link_cut_in_the_pause_gives_the_guest_back_and_a_later_pause_succeeds() -> None:
    with Hosts(
        MIGRATE_RAM_SIZE="64M",
        MIGRATE_ON_PREPARE="test -e /tmp/prepared || { touch /tmp/prepared; sleep 60; }",
        MIGRATE_SOURCE_OPTIONS=f"--keepalive-timeout {KEEPALIVE_SECONDS}",
        MIGRATE_DESTINATION_OPTIONS=f"--keepalive-timeout {KEEPALIVE_SECONDS}",
    ) as hosts:
        guest.start(hosts)
        hosts.up("source")
        source = hosts.log("source")
        source.wait("paused")
        hosts.execute("destination", "sh", "-c", "until test -e /tmp/prepared; do sleep 0.05; done")
        hosts.cut("source")
        source.wait("resumed")
        guest.wait_for_beats(hosts, "host-a", 100)
        hosts.mend("source")
        assert hosts.wait("source") == 0
        assert len(source.events("paused")) == 2
        guest.finish(hosts)

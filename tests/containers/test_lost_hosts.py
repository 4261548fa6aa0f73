"""A daemon's host loses power in precopy: the guest is not stopped, and what has come is not sent again."""

from __future__ import annotations

from tests.containers import guest
from tests.containers.events import EventLog
from tests.containers.hosts import Hosts

PAGES = (64 << 20) // 4096


def _start(hosts: Hosts) -> EventLog:
    """A move that has sent some pages, and lasts for some seconds yet; returns the source's log."""
    hosts.up("source")
    source = hosts.log("source")
    source.wait("progress", lambda event: event["ram"]["normal"] > PAGES // 4)
    return source


def _finish(hosts: Hosts) -> None:
    """The guest goes on at the destination, and was not stopped for the lost host."""
    before, _ = guest.finish(hosts)["runs"]
    assert before["longest-pause-ns"] < 2e9


def test_the_destination_is_killed_and_started_again() -> None:
    with Hosts(
        MIGRATE_RAM_SIZE="64M",
        MIGRATE_WORKLOAD="idle",
        MIGRATE_SOURCE_OPTIONS="--max-bandwidth 8M --keepalive-timeout 3",
    ) as hosts:
        # A tmpfs volume loses its content with the last container that has it; the RAM of a host does not.
        guest.start(hosts)
        hosts.also_run("keeper", "sleep", "infinity", options=(f"--volume={hosts.volume('ram-b')}:/ram",))
        source = _start(hosts)
        hosts.kill("destination")
        source.wait("reconnecting")
        guest.wait_for_beats(hosts, "host-a", 1000)
        assert not source.events("paused")

        hosts.start_again("destination")
        source.wait("begun-anew")
        assert hosts.wait("source") == 0
        assert source.wait("summary")["ram"]["normal"] < PAGES * 1.2
        _finish(hosts)


def test_the_source_is_killed_and_started_again() -> None:
    with Hosts(
        MIGRATE_RAM_SIZE="64M",
        MIGRATE_WORKLOAD="idle",
        MIGRATE_SOURCE_OPTIONS="--max-bandwidth 8M --warm",
        MIGRATE_DESTINATION_OPTIONS="--reconnect-timeout 0",
    ) as hosts:
        guest.start(hosts)
        source = _start(hosts)
        hosts.kill("source")
        assert not source.events("paused")
        guest.wait_for_beats(hosts, "host-a", 1000)
        hosts.log("destination").wait("error")  # it has given the lost source up

        hosts.start_again("source")
        assert hosts.wait("source") == 0
        assert hosts.log("source").wait("summary")["ram"]["normal"] < PAGES * 0.9
        _finish(hosts)

"""A guest that writes all the time moves from one host to the other."""

from __future__ import annotations

from tests.containers import guest
from tests.containers.hosts import Hosts


def test_a_writing_guest_moves_and_goes_on() -> None:
    with Hosts(MIGRATE_RAM_SIZE="128M", MIGRATE_SOURCE_OPTIONS="--max-bandwidth 64M") as hosts:
        guest.start(hosts)
        hosts.up("source")
        source = hosts.log("source")
        summary = source.wait("summary")

        assert hosts.wait("source") == 0
        assert (summary["outcome"], summary["status"]) == ("completed", "completed")
        assert summary["verify"] == "ram"
        assert summary["ram"]["dirty-sync-count"] >= 2
        assert summary["xbzrle-cache"]["encoded-pages"] > 0
        assert summary["lane-resets"] == 0

        guest.finish(hosts)

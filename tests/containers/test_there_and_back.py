"""A guest moves to the other host and home again."""

from __future__ import annotations

import json

from tests.containers import guest
from tests.containers.hosts import Hosts

RESUME = (
    "migrate-guest --resume --ram /ram/guest.ram --host host-a --witness /witness/log"
    " --pidfile /run/migrate/guest.pid --json </dev/null >/proc/1/fd/1 2>&1 &"
)


def test_there_and_back_again() -> None:
    with Hosts(MIGRATE_RAM_SIZE="64M") as hosts:
        guest.start(hosts)
        hosts.up("source")
        assert hosts.wait("source") == 0
        hosts.log("guest").wait("guest-ended")
        guest.wait_for_beats(hosts, "host-b", 1000)

        home = hosts.also_run(
            "home",
            *("migrate-dst", "--listen", "0.0.0.0:4444", "--insecure", "--ram", guest.RAM, "--json"),
            *("--on-commit", RESUME),
            options=(
                f"--pid=container:{hosts.container('guest')}",
                f"--volume={hosts.volume('ram-a')}:/ram",
                f"--volume={hosts.volume('run-a')}:/run/migrate",
                f"--volume={hosts.volume('witness')}:/witness",
            ),
        )
        home.wait("listening")
        said = hosts.execute(
            "destination",
            *("sh", "-c"),
            f"exec migrate-src --to home:4444 --ram {guest.RAM} --source-after kill --json"
            f' --guest-pid "$(cat {guest.PIDFILE})"',
        )
        summary = json.loads(said.splitlines()[-1])
        assert (summary["event"], summary["outcome"]) == ("summary", "completed")
        home.wait("summary")
        guest.wait_for_beats(hosts, "host-a", 1000)
        guest.stop(hosts, at="guest")
        guest.check(hosts, "host-a", "host-b", "host-a", at="guest")

"""What the practice guest of a pair of hosts does, told by its log, its witness log and its own checks."""

from __future__ import annotations

import json
from typing import Any

from tests.containers.hosts import Hosts

RAM = "/ram/guest.ram"
WITNESS = "/witness/log"
PIDFILE = "/run/migrate/guest.pid"


def start(hosts: Hosts) -> None:
    """Start both hosts; return when the guest has filled its RAM and writes, on host-a."""
    hosts.up("guest", "destination")
    hosts.log("guest").wait("ready")


def wait_for_beats(hosts: Hosts, host: str, count: int) -> None:
    """Return once the guest has lived for so many more beats (of a millisecond or more) on this host."""
    # With its output in /dev/null grep would not count: it answers at the first line and then reads on.
    follow = f"tail --lines=0 --follow {WITNESS} | grep --max-count={count} ' {host} ' | tail --lines=1"
    hosts.execute("guest" if host == "host-a" else "destination", "sh", "-c", follow)


def stop(hosts: Hosts, at: str = "destination") -> None:
    """End the guest, which runs in that service's container, between two writes; return when it has ended."""
    pid = hosts.execute(at, "cat", PIDFILE).strip()
    hosts.execute(at, "sh", "-c", f"kill -TERM {pid} && tail --pid={pid} --follow /dev/null")


def finish(hosts: Hosts) -> dict[str, Any]:
    """The guest goes on at host-b; end it there and `check`."""
    hosts.log("guest").wait("guest-ended")  # --source-after kill
    wait_for_beats(hosts, "host-b", 1000)
    stop(hosts)
    return check(hosts)


def check(hosts: Hosts, *path: str, at: str = "destination") -> dict[str, Any]:
    """Assert that no write was lost and that there was one owner at all times; returns the witness report.

    Args:
        path: the hosts that it has lived on; host-a and then host-b, if none are given.
        at: the service that has its RAM now.
    """
    pages = _check(hosts, at, "check", "--check", "--ram", RAM)
    assert pages["clean"], pages
    witness = _check(hosts, at, "check-witness", "--check-witness", WITNESS)
    assert witness["clean"], witness
    assert [run["host"] for run in witness["runs"]] == list(path or ("host-a", "host-b"))
    return witness


def _check(hosts: Hosts, at: str, event: str, *arguments: str) -> dict[str, Any]:
    report = json.loads(hosts.execute(at, "migrate-guest", *arguments, "--json"))
    assert report["event"] == event
    return dict(report)

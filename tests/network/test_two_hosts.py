"""A guest moves between two hosts whose network is slow, goes away, or loses what it likes."""

from __future__ import annotations

import pytest

from bench.lab import Event, Program
from bench.two_hosts import ADDRESS, ADDRESS_6, TwoHosts

KEEPALIVE_SECONDS = 2
BOTH = (f"--keepalive-timeout={KEEPALIVE_SECONDS}",)
SOURCE = (*BOTH, "--downtime-limit=2000", "--reconnect-timeout=30", "--max-bandwidth=6M")
"""Precopy of 16 MiB lasts some seconds."""


def start(hosts: TwoHosts, *options: str, address: str = ADDRESS) -> tuple[Program, Program, Program]:
    """A guest under load, a destination that takes one move, and the source, which has begun."""
    guest = hosts.start_guest("--workload=mixed", "--rate=2000")
    destination = hosts.listen("--once", *BOTH, address=address)
    source = hosts.move(guest, *SOURCE, *options, address=address)
    source.wait_event("status", lambda event: event["new"] == "active")
    return guest, destination, source


def until_pages_are_sent(source: Program) -> None:
    """Wait for the first pages."""
    source.wait_event("progress", lambda event: event["ram"]["normal"] > 0)


def finish(hosts: TwoHosts, destination: Program, source: Program) -> Event:
    """A good end: nothing lost, one owner, one pause; returns the source's summary."""
    assert source.wait() == 0, source.story() + destination.story()
    assert destination.wait() == 0, destination.story()
    hosts.end_arrived_guest(0.05)
    hosts.check_arrived()
    hosts.check_witness()
    assert len(source.found("paused")) == 1, "the guest was stopped more often than once"
    return source.summary


@pytest.mark.parametrize("address", [ADDRESS, ADDRESS_6])
def test_a_move(hosts: TwoHosts, address: str) -> None:
    _, destination, source = start(hosts, "--max-bandwidth=0", address=address)
    summary = finish(hosts, destination, source)
    assert summary["reconnects"] == summary["lane-resets"] == 0


def test_a_slow_link_with_a_deep_queue_is_no_fault(hosts: TwoHosts) -> None:
    """Keepalives wait behind the pages for most of the time that they may take."""
    hosts.throttle("60mbit", "1200ms")
    _, destination, source = start(hosts, "--max-bandwidth=0", "--lanes=2")
    summary = finish(hosts, destination, source)
    assert summary["reconnects"] == summary["lane-resets"] == 0


def test_the_cable_is_pulled_and_put_back(hosts: TwoHosts) -> None:
    _, destination, source = start(hosts)
    until_pages_are_sent(source)
    hosts.unplug()
    source.wait_event("reconnecting")
    hosts.plug()
    summary = finish(hosts, destination, source)
    assert summary["reconnects"] >= 1
    assert summary["lane-resets"] >= 1


def test_the_cable_stays_pulled(hosts: TwoHosts) -> None:
    guest, destination, source = start(hosts, "--reconnect-timeout=1")
    until_pages_are_sent(source)
    hosts.unplug()
    assert source.wait() == 4, source.story()
    assert not hosts.is_stopped(guest)
    assert not source.found("paused")
    assert "did not come back" in source.wait_event("error")["message"]
    hosts.plug()
    destination.kill()


@pytest.mark.parametrize("deaf", ["source", "destination"])
def test_one_side_hears_nothing(hosts: TwoHosts, deaf: str) -> None:
    """The other direction works: whoever still hears must not take that for a working connection."""
    _, destination, source = start(hosts)
    until_pages_are_sent(source)
    host = hosts.source_host if deaf == "source" else hosts.destination_host
    hosts.drop(host, "")
    source.wait_event("reconnecting")
    hosts.deliver(host)
    summary = finish(hosts, destination, source)
    assert summary["reconnects"] >= 1


@pytest.mark.parametrize("number", [0, 1, 2, 3])
def test_one_connection_of_four_falls_silent(hosts: TwoHosts, number: int) -> None:
    """Control (0) or a lane; the others go on."""
    _, destination, source = start(hosts, "--lanes=3", "--max-bandwidth=3M")
    until_pages_are_sent(source)
    ports = hosts.connection_ports(4)
    hosts.drop(hosts.destination_host, f"tcp sport {ports[number]}")
    summary = finish(hosts, destination, source)
    if number == 0:
        assert summary["reconnects"] >= 1
    assert summary["lane-resets"] >= 1


def test_a_cut_in_the_pause_resumes_the_guest(hosts: TwoHosts) -> None:
    guest = hosts.start_guest("--workload=mixed", "--rate=1000")
    destination = hosts.listen("--once", "--on-prepare=sleep 60", *BOTH)
    source = hosts.move(guest, *BOTH, "--reconnect-timeout=1")
    source.wait_event("paused")
    hosts.unplug()
    source.wait_event("resumed")
    assert source.wait() == 4, source.story()
    assert not hosts.is_stopped(guest)
    destination.kill()

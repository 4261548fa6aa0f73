"""`--report` at both ends of real moves, and what the events say while one is under way."""

from __future__ import annotations

import asyncio
import json
import signal
from pathlib import Path
from typing import Any

from bench.lab import Event, Lab
from migrate.daemon.fault_proxy import FaultProxy

REMAINS = {"outlook", "lane-reset"}
LASTS = {"outlook", "pausing", "resumed"}
"""Events after which more may remain, and it may take longer."""


def read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def steps_back(events: list[Event]) -> list[tuple[Event, Event]]:
    """Progress that ran backwards, from one event `progress` to the next, without an event that says why."""
    found: list[tuple[Event, Event]] = []
    before: Event | None = None
    said: set[str] = set()
    for event in events:
        said.add(event["event"])
        if event["event"] != "progress" or event["ram"]["dirty-sync-count"] < 1:
            continue
        if before is not None:
            more = event["ram"]["remaining"] > before["ram"]["remaining"] and not said & REMAINS
            if more or (_longer(before, event) and not said & LASTS):
                found.append((before, event))
        before, said = event, set()
    return found


def _longer(before: Event, after: Event) -> bool:
    if "time-left" not in before:
        return False
    if "time-left" not in after:
        return True
    pairs = zip(before["time-left"], after["time-left"], strict=True)
    return any(then is not None and (now is None or now > then + 1) for then, now in pairs)


def test_both_ends_report_the_same_migration(lab: Lab, tmp_path: Path) -> None:
    guest = lab.start_guest("--workload=mixed", "--rate=3000", "--fill=random")
    destination = lab.start_destination("--once", f"--report={tmp_path}")
    port = destination.wait_event("listening")["port"]
    source = lab.start_source(port, guest, "--max-bandwidth=16M", f"--report={tmp_path / 'source.json'}")
    assert source.wait() == destination.wait() == 0, source.story() + destination.story()
    here = read(tmp_path / "source.json")
    there = read(tmp_path / f"{here['migration']}-destination.json")
    assert (here["migration"], here["attempt"]) == (there["migration"], there["attempt"])
    assert here["blocks"] == there["blocks"] == [{"name": "pc.ram", "length": 16 << 20}]
    assert here["outcome"] == there["outcome"] == "completed"
    assert here["agreed"].items() >= {"lanes": 1, "cache-size": 64 << 20}.items()
    assert there["agreed"].items() >= {"lanes": 1, "cache-size": 64 << 20}.items()
    summary = source.summary
    assert here["statistics"]["ram"] == summary["ram"]
    assert here["statistics"]["downtime-parts"] == summary["downtime-parts"]
    assert here["tracker"]["name"] == summary["dirty-tracker"] == "wp"
    assert there["statistics"]["ram"]["transferred"] == destination.summary["ram"]["transferred"]
    assert len(here["timeline"]["rows"]) >= 3
    assert abs(here["started-at"] - there["started-at"]) < 60
    assert not steps_back(source.events)
    lab.end_arrived_guest()


def test_a_destination_that_goes_away_and_a_cancel_are_reported(lab: Lab, tmp_path: Path) -> None:
    guest = lab.start_guest()
    destination = lab.start_destination(f"--report={tmp_path}")
    port = destination.wait_event("listening")["port"]
    source = lab.start_source(port, guest, "--max-bandwidth=1M", f"--report={tmp_path / 'source.json'}")
    source.wait_event("progress", lambda event: event["ram"]["transferred"] > 0)
    source.signal(signal.SIGINT)
    assert source.wait() == 130
    here = read(tmp_path / "source.json")
    there = tmp_path / f"{here['migration']}-destination.json"
    destination.wait_event("error")
    assert here["outcome"] == read(there)["outcome"] == "cancelled"
    assert here["guest"] == "the guest runs at the source as before"
    assert (here["error"]["class"], here["error"]["exit-code"]) == ("CancelledMigration", 130)
    assert here["statistics"]["ram"]["transferred"] > 0
    destination.kill()


async def test_a_cut_link_explains_what_it_costs(lab: Lab, tmp_path: Path) -> None:
    guest = lab.start_guest("--workload=mixed", "--rate=5000", "--fill=random")
    destination = lab.start_destination("--once")
    async with (
        asyncio.timeout(60),
        FaultProxy("127.0.0.1", destination.wait_event("listening")["port"]) as proxy,
    ):
        source = lab.start_source(
            proxy.port, guest, "--max-bandwidth=8M", f"--report={tmp_path / 'source.json'}"
        )
        await proxy.wait_for(lambda: proxy.connections[1].upstream.delivered > 12 << 20)
        await proxy.cut("reset")
        await asyncio.to_thread(source.wait_event, "reconnecting")
        await proxy.restore()
        assert await asyncio.to_thread(source.wait) == 0, source.story()
    await asyncio.to_thread(destination.wait)
    assert not steps_back(source.events)
    report = read(tmp_path / "source.json")
    events = [event["event"] for event in report["events"]]
    assert events.index("reconnecting") < events.index("reconnected") < events.index("lane-reset")
    assert report["attempt"] == 2
    assert report["statistics"]["reconnects"] == 1
    await asyncio.to_thread(lab.end_arrived_guest)

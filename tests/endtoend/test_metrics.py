"""What Prometheus scrapes at both ends."""

from __future__ import annotations

import urllib.error
import urllib.request

import pytest
from prometheus_client.parser import text_string_to_metric_families
from test_control import port_of

from bench.lab import Lab, Program
from migrate.daemon.metrics import METRICS


def scrape(program: Program, path: str = "/metrics") -> dict[str, float]:
    """Samples by name; of `migrate_status` the one that is 1."""
    port = program.wait_event("metrics")["port"]
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=20) as answer:
        families = list(text_string_to_metric_families(answer.read().decode()))
    samples = [sample for family in families for sample in family.samples]
    found = {sample.name: sample.value for sample in samples if not sample.labels}
    return found | {sample.labels["status"]: 1.0 for sample in samples if sample.labels and sample.value}


def test_both_ends_are_scraped(lab: Lab) -> None:
    guest = lab.start_guest()
    destination = lab.start_destination("--metrics=127.0.0.1:0")
    assert scrape(destination) == {"none": 1.0}
    source = lab.start_source(port_of(destination), guest, "--max-bandwidth=4M", "--metrics=127.0.0.1:0")
    source.wait_event("progress", lambda event: event["ram"]["transferred"] > 0)
    destination.wait_event("progress", lambda event: event["ram"]["transferred"] > 0)
    there = scrape(destination)
    # What a lane has sent is counted once its thread has said so: the destination may know of it first.
    received = there["migrate_transferred_bytes_total"]
    source.wait_event("progress", lambda event: event["ram"]["transferred"] >= received)
    here = scrape(source)
    assert here["active"] == there["active"] == 1.0
    assert here["migrate_ram_bytes"] == there["migrate_ram_bytes"] == 16 << 20
    assert 0 < received <= here["migrate_transferred_bytes_total"]
    assert here["migrate_rounds_total"] == 1.0 and here["migrate_remaining_bytes"] > 0
    known = {each.name + ("_total" if each.kind == "counter" else "") for each in METRICS}
    assert known - here.keys() == {"migrate_downtime_seconds", "migrate_throttle_ratio"}
    with pytest.raises(urllib.error.HTTPError, match="404"):
        scrape(source, "/")
    source.kill()
    destination.kill()

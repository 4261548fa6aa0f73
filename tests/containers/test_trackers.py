"""What the seccomp profile is worth: with ours `wp` is possible, with Docker's own it is not."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.containers import guest
from tests.containers.hosts import COMPOSE_FILE, Hosts

PROFILE_LINE = "    - seccomp:migrate/guest/seccomp.json\n"


@pytest.mark.parametrize(("profile", "tracker"), [("ours", "wp"), ("docker's", "scan")])
def test_tracker(profile: str, tracker: str, tmp_path: Path) -> None:
    text = COMPOSE_FILE.read_text()
    assert PROFILE_LINE in text
    if profile != "ours":
        text = text.replace(PROFILE_LINE, "")
    compose_file = tmp_path / COMPOSE_FILE.name
    compose_file.write_text(text)
    with Hosts(compose_file, MIGRATE_RAM_SIZE="64M", MIGRATE_SOURCE_OPTIONS="--max-bandwidth 32M") as hosts:
        guest.start(hosts)
        hosts.up("source")
        source = hosts.log("source")
        assert hosts.wait("source") == 0
        assert source.wait("summary")["dirty-tracker"] == tracker
        guest.finish(hosts)

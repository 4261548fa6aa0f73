"""The small clients of the control socket, from another terminal."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from test_control import idle_source, port_of

from bench.lab import WAIT_SECONDS, Lab, program


def client(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [program("migrate-src"), *arguments],
        capture_output=True,
        text=True,
        timeout=WAIT_SECONDS,
        check=False,
    )


def test_an_operator_in_another_terminal(lab: Lab, shm_dir: Path) -> None:
    """Start, watch, change, cancel and retry, by nothing but the small clients."""
    control = f"--control={shm_dir / 'src'}"
    guest = lab.start_guest()
    destination = lab.start_destination()
    to = f"--to=127.0.0.1:{port_of(destination)}"
    source = idle_source(lab, guest, shm_dir / "src", "--max-bandwidth=4M")
    assert client("query", control).stdout == "none\n"
    assert client("migrate", control, to).returncode == 0
    source.wait_event("status", lambda event: event["new"] == "active")
    assert client("query", control).stdout.startswith("active, round 1, ")
    assert json.loads(client("query", control, "--json").stdout)["ram"]["total"] == 16 << 20
    twice = client("migrate", control, to)
    assert twice.returncode == 1 and "under way already" in twice.stderr
    refused = client("set", control, "--max-rounds=0")
    assert refused.returncode == 1 and "--max-rounds 0: at least 1" in refused.stderr

    assert client("cancel", control).returncode == 0
    watched = client("watch", control)
    assert watched.returncode == 1 and "cancelled" in watched.stdout.splitlines()[-1]
    assert client("query", control).stdout.startswith("cancelled")
    assert not lab.is_stopped(guest)
    destination.wait_event("status", lambda event: event["new"] == "cancelled")

    assert client("migrate", control, to).returncode == 0
    assert client("set", control, "--max-bandwidth=0", "--downtime-limit=2000").returncode == 0
    watched = client("watch", control)
    assert watched.returncode == 0 and "completed" in watched.stdout.splitlines()[-1]
    late = client("migrate", control, "--to=127.0.0.1:1")
    assert late.returncode == 1 and "handed over" in late.stderr
    assert client("quit", control).returncode == 0
    assert source.wait() == 0
    lab.end_arrived_guest()
    lab.check_guest(lab.destination_ram)
    lab.check_witness()


def test_qemus_own_shell(lab: Lab, shm_dir: Path) -> None:
    """qmp-shell of the package qemu.qmp, as it is: every command of a session, typed at it."""
    guest = lab.start_guest()
    destination = lab.start_destination("--once")
    source = idle_source(lab, guest, shm_dir / "src", "--max-bandwidth=4M")

    def typed(*lines: str) -> str:
        done = subprocess.run(
            [program("qmp-shell"), str(shm_dir / "src")],
            input="".join(f"{line}\n" for line in lines),
            capture_output=True,
            text=True,
            timeout=WAIT_SECONDS,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    said = typed(
        "query-status",
        "query-version",
        "migrate-set-parameters downtime-limit=2000 xbzrle-cache-size=1048576",
        "query-migrate-parameters",
        f"migrate uri=tcp:127.0.0.1:{port_of(destination)}",
        "migrate uri=tcp:127.0.0.1:1",
        "migrate-start-postcopy",
    )
    assert "Connected to QEMU" in said
    assert '{"return": {"running": true, "status": "running"}}' in said
    assert '"downtime-limit": 2000' in said and '"xbzrle-cache-size": 1048576' in said
    assert said.count('"return": {}') == 2
    assert "there is a migration under way already" in said
    assert '"class": "CommandNotFound"' in said, "there is no postcopy to start"
    source.wait_event("status", lambda event: event["new"] == "active")
    said = typed("query-migrate", "migrate_cancel")
    assert '"status": "active"' in said
    source.wait_event("status", lambda event: event["new"] == "cancelled")
    assert '"status": "cancelled"' in typed("query-migrate")
    assert client("quit", f"--control={shm_dir / 'src'}").returncode == 0  # the shell trips over the end
    assert source.wait() == 0
    assert not lab.is_stopped(guest)


def test_cancel_and_the_watch_of_it(lab: Lab, shm_dir: Path) -> None:
    control = f"--control={shm_dir / 'src'}"
    guest = lab.start_guest()
    destination = lab.start_destination("--once")
    source = lab.start_source(port_of(destination), guest, "--max-bandwidth=4M", control)
    source.wait_event("status", lambda event: event["new"] == "active")
    assert client("cancel", control).returncode == 0
    assert source.wait() == 130
    assert not lab.is_stopped(guest)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["query"], 2, ["--control", "required"]),
        (["query", "--control=/nowhere/qmp"], 4, ["/nowhere/qmp", "No such file", "does migrate-src run"]),
        (["set", "--control=x", "--max-bandwidth=fast"], 2, ["--max-bandwidth", "100Mbit"]),
        (["migrate", "--control=x"], 2, ["--to", "required"]),
    ],
)
def test_what_a_client_says(arguments: list[str], code: int, words: list[str]) -> None:
    done = client(*arguments)
    assert done.returncode == code
    for word in words:
        assert word in done.stderr

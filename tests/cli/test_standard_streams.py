"""Programs whose standard streams are closed: real processes, since it is about their descriptors."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from migrate.errors import NetworkError, UsageError

ALL = "<&- >&- 2>&-"


def run_closed(command: str, *arguments: str, closed: str = ALL) -> int:
    """The command with those streams closed; its exit code."""
    line = ["/bin/sh", "-c", f'exec "$@" {closed}', "sh", sys.executable, "-m", f"migrate.cli.{command}"]
    return subprocess.run([*line, *arguments], check=False, timeout=60).returncode


@pytest.mark.parametrize("closed", [ALL, ">&-", "2>&-"])
def test_a_daemon_ends_as_it_would_otherwise(tmp_path: Path, closed: str) -> None:
    ram = tmp_path / "ram"
    ram.write_bytes(bytes(1 << 20))
    with socket.socket() as unheard:  # bound, nobody listens
        unheard.bind(("127.0.0.1", 0))
        done = run_closed(
            "src",
            *("--to", f"127.0.0.1:{unheard.getsockname()[1]}", "--ram", str(ram)),
            *("--state-dir", str(tmp_path / "state"), "--reconnect-timeout", "0"),
            closed=closed,
        )
    assert done == NetworkError("").exit_code
    assert ram.read_bytes() == bytes(1 << 20)


@pytest.mark.parametrize("command", ["src", "dst", "guest", "faults", "inspect"])
def test_usage_errors_need_no_stream(command: str) -> None:
    done = run_closed(command, "--no-such-option")
    assert done == UsageError("").exit_code


def test_what_stands_in_is_inherited() -> None:
    code = (
        "import subprocess\n"
        "from migrate.cli.standard_streams import hold_standard_streams\n"
        "hold_standard_streams()\n"
        "print('nobody reads this')\n"
        "subprocess.run(['/bin/sh', '-c', 'test -e /dev/fd/0 -a -e /dev/fd/1 -a -e /dev/fd/2'], check=True)\n"
    )
    line = ["/bin/sh", "-c", f'exec "$@" {ALL}', "sh", sys.executable, "-c", code]
    assert subprocess.run(line, check=False, timeout=60).returncode == 0

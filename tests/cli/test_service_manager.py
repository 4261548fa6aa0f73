"""The service manager is told what it has to know; the units that ask for it are sound."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from configparser import ConfigParser
from pathlib import Path

import pytest

from bench.lab import program

UNITS = sorted((Path(__file__).parents[2] / "migrate" / "systemd").glob("*.service"))


class Manager:
    """The end of NOTIFY_SOCKET at which systemd is."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._socket.settimeout(60)
        self.heard: list[str] = []

    def until(self, wanted: Callable[[str], bool]) -> str:
        """Listen until something that is wanted was said; past words count too."""
        seen = 0
        while True:
            for line in self.heard[seen:]:
                if wanted(line):
                    return line
            seen = len(self.heard)
            self.heard += self._socket.recv(1 << 16).decode().splitlines()

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    made = Manager(tmp_path / "notify")
    yield made
    made.close()


def test_ready_status_watchdog_and_stopping(manager: Manager, tmp_path: Path) -> None:
    environment = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "100000"}
    destination = subprocess.Popen(
        [program("migrate-dst"), "--listen=127.0.0.1:0", f"--ram={tmp_path / 'ram'}"],
        env={**os.environ, **environment},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        manager.until("READY=1".__eq__)
        assert "listening on 127.0.0.1:" in manager.until(lambda line: line.startswith("STATUS="))
        for _ in range(3):
            manager.heard.clear()
            manager.until("WATCHDOG=1".__eq__)
        destination.send_signal(signal.SIGTERM)
        manager.until("STOPPING=1".__eq__)
        assert destination.wait(60) == 130
    finally:
        destination.kill()
        destination.wait()


def test_a_loop_that_hangs_falls_silent(manager: Manager, tmp_path: Path) -> None:
    """What stops the program stops its signs of life: they are no thread's."""
    environment = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "20000"}
    code = (
        "import asyncio, time\n"
        "from migrate.cli.service_manager import ServiceManager, with_watchdog\n"
        "manager = ServiceManager()\n"
        "async def hang():\n"
        "    await asyncio.sleep(0.1)\n"
        "    manager.tell('HANGS=1')\n"
        "    time.sleep(0.5)\n"
        "    manager.tell('HUNG=1')\n"
        "asyncio.run(with_watchdog(hang, manager)())\n"
        "import os; assert not {'NOTIFY_SOCKET', 'WATCHDOG_USEC'} & set(os.environ)\n"
    )
    with subprocess.Popen([program("python"), "-c", code], env={**os.environ, **environment}) as hanging:
        manager.until("HUNG=1".__eq__)
        assert hanging.wait(60) == 0
    between = manager.heard[manager.heard.index("HANGS=1") + 1 : manager.heard.index("HUNG=1")]
    assert manager.heard.count("WATCHDOG=1") > 1 and not between


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_the_units_are_sound(unit: Path, tmp_path: Path) -> None:
    """Read here everywhere; where systemd is, its own verdict counts too."""
    parser = ConfigParser(strict=True, interpolation=None)
    parser.optionxform = str  # type: ignore[method-assign, assignment]
    parser.read(unit)
    service = parser["Service"]
    assert service["Type"] == "notify" and int(service["WatchdogSec"]) >= 10
    assert service["NoNewPrivileges"] == "yes" and service["ProtectSystem"] == "strict"
    assert service["KillMode"] == "process", "a guest, and the supervisor, outlive the daemon"
    assert service["UMask"] == "0077" and service["StateDirectoryMode"] == "0700"
    command = service["ExecStart"].split()[0]
    assert Path(command).name in {"migrate-src", "migrate-dst"}
    if shutil.which("systemd-analyze") is None:
        return
    copy = tmp_path / unit.name.replace("@", "@x")
    copy.write_text(unit.read_text().replace(command, "/bin/true"))
    verified = subprocess.run(
        ["systemd-analyze", "verify", str(copy)], capture_output=True, text=True, check=False, timeout=60
    )
    assert verified.returncode == 0 and not verified.stderr.strip(), verified.stderr
    shown = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--threshold=30", str(copy)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert shown.returncode == 0, shown.stdout[-500:]


def test_there_is_a_unit_for_each_daemon() -> None:
    assert [unit.name for unit in UNITS] == ["migrate-dst.service", "migrate-src@.service"]

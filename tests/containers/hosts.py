"""The compose file as an object: two hosts, one guest, a network that can be cut."""

from __future__ import annotations

import contextlib
import os
import secrets
import shlex
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.containers.events import EventLog

ROOT = Path(__file__).parents[2]
COMPOSE_FILE = ROOT / "docker-compose.yml"
COMPOSE_VARIABLE = "MIGRATE_TEST_COMPOSE"
"""The compose command, as `bin/test-containers` found it."""
PROJECT_VARIABLE = "MIGRATE_TEST_PROJECT"
"""What all project names of the run begin with."""
COMMAND_SECONDS = 120.0


class Hosts:
    """One project of containers, networks and volumes under a name of its own; all gone at the end."""

    def __init__(self, compose_file: Path = COMPOSE_FILE, **options: str) -> None:
        """Nothing is started yet.

        Args:
            compose_file: the project's own, or a changed copy of it.
            **options: variables of the compose file.
        """
        self.project = f"{os.environ[PROJECT_VARIABLE]}-{secrets.token_hex(4)}"
        self._compose = [
            *shlex.split(os.environ[COMPOSE_VARIABLE]),
            *("--project-name", self.project),
            *("--file", str(compose_file), "--project-directory", str(ROOT)),
        ]
        self._environment = {**os.environ, **options}
        self._logs: list[EventLog] = []
        self._extra: list[str] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._report()
        for log in self._logs:
            log.close()
        for container in self._extra:
            _run(["docker", "rm", "--force", container])
        self.compose("down", "--volumes", "--timeout", "1")

    def compose(self, *arguments: str) -> str:
        """Run a compose command on this project; returns its standard output."""
        return _run([*self._compose, *arguments], self._environment)

    def up(self, *services: str) -> None:
        """Start services and what they depend on, and return."""
        self.compose("up", "--detach", "--no-build", *services)

    def container(self, service: str) -> str:
        """Id of the container of a service."""
        identity = self.compose("ps", "--all", "--quiet", service)
        assert identity.strip(), f"service {service} has no container"
        return identity.strip()

    def log(self, service: str) -> EventLog:
        """The log of a service, from its beginning on."""
        log = EventLog(service, ["docker", "logs", "--follow", self.container(service)])
        self._logs.append(log)
        return log

    def also_run(self, name: str, *command: str, options: tuple[str, ...] = ()) -> EventLog:
        """One more container on the network, under that name; returns its log.

        Args:
            options: for `docker run`.
        """
        container = f"{self.project}-{name}"
        network = ["--network", f"{self.project}_migration", "--network-alias", name]
        self._extra.append(container)
        image = self._environment["MIGRATE_IMAGE"]
        _run(["docker", "run", "--detach", "--name", container, *network, *options, image, *command])
        log = EventLog(name, ["docker", "logs", "--follow", container])
        self._logs.append(log)
        return log

    def volume(self, name: str) -> str:
        """The engine's name for a volume of the compose file."""
        return f"{self.project}_{name}"

    def kill(self, service: str) -> None:
        """SIGKILL to everything in the container of a service, as when a host loses power."""
        _run(["docker", "kill", self.container(service)])

    def start_again(self, service: str) -> None:
        """Start the container of a service once more; its volumes are as they were."""
        _run(["docker", "start", self.container(service)])

    def execute(self, service: str, *command: str) -> str:
        """Run a command inside the container of a service; returns its output.

        Raises AssertionError if it ends with anything but 0.
        """
        return _run(["docker", "exec", self.container(service), *command])

    def wait(self, service: str) -> int:
        """Wait until the first process of a service has ended; returns its exit code."""
        return int(_run(["docker", "wait", self.container(service)]))

    def cut(self, service: str) -> None:
        """Take a host off the network: what it sends goes nowhere, nobody tells the peer."""
        _run(["docker", "network", "disconnect", f"{self.project}_migration", self.container(service)])

    def mend(self, service: str) -> None:
        """Put it back, under its name."""
        network = f"{self.project}_migration"
        _run(["docker", "network", "connect", "--alias", service, network, self.container(service)])

    def _report(self) -> None:
        for log in self._logs:
            print(f"--- {log.name}", *log.lines[-60:], sep="\n")
        with contextlib.suppress(AssertionError):  # the failure that is being reported matters more
            print(
                "--- all containers",
                self.compose("ps", "--all"),
                self.compose("logs", "--tail", "50"),
                sep="\n",
            )


def _run(command: list[str], environment: dict[str, str] | None = None) -> str:
    """Standard output of a command that must succeed."""
    done = subprocess.run(
        command,
        check=False,
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment,
        stdin=subprocess.DEVNULL,
        timeout=COMMAND_SECONDS,
    )
    assert done.returncode == 0, (
        f"{shlex.join(command)} ended with {done.returncode}:\n{done.stdout}{done.stderr}"
    )
    return done.stdout

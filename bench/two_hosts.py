"""Two network namespaces and one cable between them: hosts whose network can be slow, broken or one-sided.

    namespace a: guest, migrate-src            namespace b: migrate-dst
        cable 10.99.0.1, fd99::1   ── veth ──   cable 10.99.0.2, fd99::2

Needs root, iproute2 and nftables; no netem, which not every kernel has. Namespaces have names of their own:
several runs do not meet.
"""

from __future__ import annotations

import contextlib
import re
import secrets
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from bench.lab import WAIT_SECONDS, Lab, Program, program

CABLE = "cable"
SOURCE_ADDRESS = "10.99.0.1"
ADDRESS = "10.99.0.2"
ADDRESS_6 = "fd99::2"
COMMAND_SECONDS = 20.0


class TwoHosts(Lab):
    """One guest that moves between two hosts. A context manager: all is gone at its end.

    Args:
        directory: of the RAM files of both sides, and of the witness log.
        size: of the guest's RAM, as --size takes it.
    """

    def __init__(self, directory: Path, size: str = "16M") -> None:
        super().__init__(directory, directory, [("pc.ram", size)])
        run = secrets.token_hex(3)
        self.source_host = f"migrate-test-{run}-a"
        self.destination_host = f"migrate-test-{run}-b"

    def __enter__(self) -> Self:
        try:
            self._lay_cable()
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        self._remove()

    def command(self, name: str) -> list[str]:
        """The destination's program on its host, all others on the source's."""
        host = self.destination_host if name == "migrate-dst" else self.source_host
        return ["ip", "netns", "exec", host, program(name)]

    def listen(self, *options: str, address: str = ADDRESS) -> Program:
        """migrate-dst on its host, listening when this returns."""
        return self.start_destination("--insecure", *options, listen=f"{bracketed(address)}:4444")

    def move(self, guest: Program, *options: str, address: str = ADDRESS) -> Program:
        """migrate-src on its host, on its way to the destination."""
        return self.run(
            "migrate-src",
            f"--to={bracketed(address)}:4444",
            f"--ram=pc.ram={self.source_ram['pc.ram']}",
            f"--guest-pid={guest.pid}",
            f"--state-dir={self.source_state}",
            *options,
        )

    def on(self, host: str, *command: str, text: str | None = None) -> str:
        """Output of a command that must succeed, run on a host."""
        return _run("ip", "netns", "exec", host, *command, text=text)

    def unplug(self) -> None:
        """Both ends lose the link; addresses stay."""
        self.on(self.source_host, "ip", "link", "set", CABLE, "down")

    def plug(self) -> None:
        """The link is back."""
        self.on(self.source_host, "ip", "link", "set", CABLE, "up")

    def throttle(self, rate: str, queue: str) -> None:
        """A token bucket in the source's direction.

        Args:
            rate: as tc takes it, `80mbit`.
            queue: how long a packet may wait at most, `400ms`: what a slow link with a deep buffer does.
        """
        words = f"tc qdisc add dev {CABLE} root tbf rate {rate} burst 256kb latency {queue}"
        self.on(self.source_host, *words.split())

    def drop(self, host: str, rule: str) -> None:
        """What comes in at a host and matches is lost without a word, until `deliver`.

        Args:
            rule: an nftables match, such as `tcp sport 40000`; empty: everything.
        """
        rules = (
            "add table inet loss",
            "add chain inet loss in { type filter hook input priority 0; }",
            f"add rule inet loss in {rule} drop",
        )
        self.on(host, "nft", "-f", "-", text="\n".join(rules) + "\n")

    def deliver(self, host: str) -> None:
        """Nothing is dropped any more at a host."""
        self.on(host, "nft", "delete", "table", "inet", "loss")

    def connection_ports(self, count: int) -> list[int]:
        """Ports, at the source, of its connections to the destination, in the order in which they were made.

        Waits until there are so many.
        """
        end = time.monotonic() + WAIT_SECONDS
        while True:
            listing = self.on(self.source_host, "ss", "-tnH", "state", "established", "dport", "=", ":4444")
            ports = [int(port) for port in re.findall(rf"{SOURCE_ADDRESS}:(\d+)", listing)]
            if len(ports) >= count:
                return ports
            assert time.monotonic() < end, f"only {len(ports)} connections:\n{listing}"
            time.sleep(0.02)

    def _lay_cable(self) -> None:
        here, there = self.source_host, self.destination_host
        for host in (here, there):
            _run("ip", "netns", "add", host)
        _run(*f"ip link add {CABLE} netns {here} type veth peer name {CABLE} netns {there}".split())
        for host, address, address_6 in ((here, SOURCE_ADDRESS, "fd99::1"), (there, ADDRESS, ADDRESS_6)):
            self.on(host, "ip", "address", "add", f"{address}/24", "dev", CABLE)
            self.on(host, "ip", "address", "add", f"{address_6}/64", "dev", CABLE, "nodad")
            self.on(host, "ip", "link", "set", CABLE, "up")
            self.on(host, "ip", "link", "set", "lo", "up")

    def _remove(self) -> None:
        for host in (self.source_host, self.destination_host):
            with contextlib.suppress(AssertionError):  # it was never made
                _run("ip", "netns", "delete", host)


def bracketed(address: str) -> str:
    """As it stands before a port."""
    return f"[{address}]" if ":" in address else address


def _run(*command: str, text: str | None = None) -> str:
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, input=text, timeout=COMMAND_SECONDS
    )
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr.strip()}"
    return done.stdout

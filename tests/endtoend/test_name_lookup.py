"""A resolver that does not answer: getaddrinfo(3) of the C library itself is replaced by one that hangs."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.lab import Lab, Program

HANGS = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <netdb.h>
#include <string.h>
#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

int getaddrinfo(const char *node, const char *service, const struct addrinfo *hints, struct addrinfo **found)
{
    if (node != NULL && strcmp(node, "hangs.example") == 0) {
        close(open(getenv("HANGS_SINCE"), O_CREAT | O_WRONLY, 0600));
        for (;;)
            pause();
    }
    int (*real)(const char *, const char *, const struct addrinfo *, struct addrinfo **) =
        dlsym(RTLD_NEXT, "getaddrinfo");
    return real(node, service, hints, found);
}
"""


class Hanging(Lab):
    """A lab whose programs wait for ever when they look up `hangs.example`."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, directory, [("pc.ram", "1M")])
        self._library = directory / "hangs.so"
        self.since = directory / "hangs-since"
        """Exists once a lookup hangs."""
        source = directory / "hangs.c"
        source.write_text(HANGS)
        compiler = os.environ.get("CC", "cc").split()
        subprocess.run([*compiler, "-shared", "-fPIC", "-o", self._library, source, "-ldl"], check=True)

    def command(self, name: str) -> list[str]:
        """With the C library's getaddrinfo replaced."""
        return ["env", f"LD_PRELOAD={self._library}", f"HANGS_SINCE={self.since}", *super().command(name)]


@pytest.fixture
def hanging(shm_dir: Path) -> Iterator[Hanging]:
    with Hanging(shm_dir) as made:
        yield made


def _interrupt(lab: Hanging, program: Program) -> None:
    """Ctrl-C in the midst of the lookup ends it: the lookup does not end at all."""
    lab.wait_for_file(lab.since)
    program.signal(signal.SIGINT)
    assert program.wait(20) == 130, program.story()


def test_a_source_is_not_held_by_it(hanging: Hanging) -> None:
    ram = hanging.source_ram["pc.ram"]
    ram.write_bytes(bytes(1 << 20))
    state = f"--state-dir={hanging.source_state}"
    _interrupt(hanging, hanging.run("migrate-src", "--to=hangs.example:4444", state, f"--ram={ram}"))


def test_a_source_gives_it_up_in_time(hanging: Hanging) -> None:
    guest = hanging.start_guest("--rate=100")
    source = hanging.run(
        "migrate-src",
        "--to=hangs.example:4444",
        f"--state-dir={hanging.source_state}",
        f"--ram={hanging.source_ram['pc.ram']}",
        f"--guest-pid={guest.pid}",
        "--keepalive-timeout=0.5",
        "--reconnect-timeout=0.5",
    )
    assert source.wait(20) == 4, source.story()
    assert "could not be opened in time" in source.wait_event("error")["message"]
    assert hanging.since.exists() and not hanging.is_stopped(guest)


@pytest.mark.parametrize("option", ["--listen", "--metrics"])
def test_a_destination_is_not_held_by_it(hanging: Hanging, option: str) -> None:
    hangs = "hangs.example:4444"
    listen = "127.0.0.1:0" if option == "--metrics" else hangs
    more = [f"--metrics={hangs}"] if option == "--metrics" else ["--insecure"]
    ram = f"--ram={hanging.destination_ram['pc.ram']}"
    _interrupt(hanging, hanging.run("migrate-dst", f"--listen={listen}", ram, *more))


def test_a_plan_is_not_held_by_it(hanging: Hanging) -> None:
    guest = hanging.start_guest("--rate=100")
    ram = f"--ram={hanging.source_ram['pc.ram']}"
    _interrupt(
        hanging,
        hanging.run("migrate-src", "plan", ram, f"--guest-pid={guest.pid}", "--to=hangs.example:4444"),
    )

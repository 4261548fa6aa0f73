"""A million generated pages through the C encoder and back; ten thousand through an independent decoder too.

And every delta that real QEMUs sent, encoded by ours: never longer.
"""

from __future__ import annotations

import random
import subprocess
from pathlib import Path
from typing import IO

import pytest
from qemu_oracle import apply_delta, decode
from qemu_support import PRECOPY, meta, stream

from migrate import kernel

ROOT = Path(__file__).parents[2]
P = 4096
GAP = 1
"""As the product has it; of two it would be longer now and then."""
PAGES, STEP = 1_000_000, 95
"""Some pages overflow, so that a little more than every hundredth is looked at."""


@pytest.fixture(scope="module")
def generator(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The C program, with the kernel in it."""
    made = tmp_path_factory.mktemp("xbzrle") / "xbzrle_pages"
    sources = [path for path in (ROOT / "migrate/kernel").glob("*.c") if path.name != "_native.c"]
    subprocess.run(
        [
            *("cc", "-O2", "-std=gnu11", "-Wall", "-Wextra", "-Werror"),
            *(f"-I{ROOT / 'migrate/kernel'}", f"-I{ROOT / 'tests/fuzz'}"),
            *(str(Path(__file__).with_name("xbzrle_pages.c")), *map(str, sources)),
            *("-o", str(made)),
        ],
        check=True,
    )
    return made


def exactly(file: IO[bytes], count: int) -> bytes:
    data = file.read(count)
    assert len(data) == count
    return data


def test_a_million_pages_there_and_back(generator: Path, rng: random.Random) -> None:
    checked = 0
    command = [generator, str(rng.getrandbits(63)), str(PAGES), str(STEP)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        assert running.stdout is not None and running.stderr is not None
        while old := running.stdout.read(P):
            new = exactly(running.stdout, P)
            delta = exactly(running.stdout, int.from_bytes(exactly(running.stdout, 2), "big"))
            assert apply_delta(delta, old) == new
            checked += 1
        said = running.stderr.read().decode()
    assert running.returncode == 0, said
    assert checked >= 10_000


@pytest.mark.parametrize("name", [name for name in PRECOPY if meta(name)["records"].get("xbzrle")])
def test_no_delta_of_ours_is_longer_than_qemus(name: str) -> None:
    found: list[tuple[int, int]] = []

    def compare(old: bytes, delta: bytes, new: bytes) -> None:
        ours = kernel.xbzrle_encode(old, new, P, GAP)
        assert ours is not None and len(ours) <= len(delta)
        assert apply_delta(ours, old) == new
        assert kernel.xbzrle_encode(old, new, P, 0) == delta, "QEMU's own form, byte for byte"
        found.append((len(ours), len(delta)))

    decode(stream(name), on_delta=compare)
    assert len(found) == meta(name)["records"]["xbzrle"]
    assert sum(ours for ours, _ in found) < sum(theirs for _, theirs in found)

"""The C part without Python, under the address and undefined-behaviour sanitizers, fuzzed for a moment.

The long form is `bin/fuzz-kernel SECONDS`. A failure prints the seed that repeats it.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
SECONDS = 6


def test_the_kernel_survives_hostile_bytes_under_the_sanitizers() -> None:
    fuzzed = subprocess.run(
        [ROOT / "bin/fuzz-kernel", str(SECONDS)], capture_output=True, text=True, timeout=300, check=False
    )
    report = fuzzed.stdout + fuzzed.stderr
    assert fuzzed.returncode == 0, report
    assert fuzzed.stdout.startswith("seed "), report
    assert int(fuzzed.stdout.splitlines()[-1].removesuffix(" iterations, no fault")) > 0, report

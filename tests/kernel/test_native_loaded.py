"""Which kernel runs: the native one unless asked otherwise by name; never a silent fallback."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

import migrate.kernel
import migrate.kernel._native
import migrate.kernel.reference

PRINT = "from migrate import kernel; print(kernel.IMPLEMENTATION)"


def run(code: str, kernel: str | None) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "MIGRATE_KERNEL"}
    if kernel is not None:
        environment["MIGRATE_KERNEL"] = kernel
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.skipif("MIGRATE_KERNEL" in os.environ, reason="a kernel was asked for by name")
def test_this_suite_runs_on_the_native_kernel() -> None:
    assert migrate.kernel.IMPLEMENTATION == "native"
    assert migrate.kernel.fill is migrate.kernel._native.fill


@pytest.mark.parametrize(
    ("asked", "expected"), [(None, "native"), ("native", "native"), ("reference", "reference")]
)
def test_the_kernel_asked_for_is_the_one_that_runs(asked: str | None, expected: str) -> None:
    done = run(PRINT, asked)
    assert (done.returncode, done.stdout.strip()) == (0, expected), done.stderr


@pytest.mark.parametrize("asked", ["", "Native", "python", "auto"])
def test_any_other_name_is_an_error_that_names_the_choices(asked: str) -> None:
    done = run(PRINT, asked)
    assert done.returncode != 0
    assert done.stdout == ""
    assert f"MIGRATE_KERNEL={asked} names no kernel" in done.stderr


def test_a_native_kernel_that_cannot_be_loaded_is_an_error() -> None:
    blocked = "import sys; sys.modules['migrate.kernel._native'] = None\n" + PRINT
    done = run(blocked, None)
    assert done.returncode != 0
    assert done.stdout == ""
    assert "UsageError: the native kernel cannot be loaded" in done.stderr


def test_both_kernels_have_every_public_name() -> None:
    results = {"STAGE_BULK", "STAGE_LAST", "STAGE_ROUND"}
    results |= {"ApplyResult", "FillResult", "RamBlock", "WalkResult"}
    for name in set(migrate.kernel.__all__) - results:
        assert hasattr(migrate.kernel._native, name), name
        assert hasattr(migrate.kernel.reference, name), name

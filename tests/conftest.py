"""What every test shares: both event loops, a seed that can be repeated, and nothing left behind.

* A coroutine test runs twice, on asyncio's own loop and on uvloop.
* `rng` is a `random.Random` whose seed stands in the report of a failure; `MIGRATE_TEST_SEED=…` repeats it.
* `shm_dir` is a private directory in /dev/shm: RAM files on tmpfs, gone after the test.
* `lab` has guests and daemons as real processes, none of which outlives the test.
* `row` is the row of the README's table of failures that `@pytest.mark.failure_row("name")` names; the test
  must compare it with what happened (failure_table.py).
* Journals that a test gives no place go to a directory of its own, gone after the run.
* No test may leave a child process or a file of its own in /dev/shm; processes that outlived their own parent
  are found at the end of the run by a mark in their environment, which also names the test.
* `bin/test` runs the tests in several workers (pytest-xdist). They share the seed and the run's mark; what is
  made in /dev/shm carries the worker's own name.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import secrets
import shutil
import signal
import tempfile
from collections.abc import Callable, Generator, Iterator, Mapping
from pathlib import Path

import hypothesis
import pytest
import uvloop

from bench.lab import Lab
from tests.failure_table import FailureRow, read_table

SHM = Path("/dev/shm")
SHM_PREFIX = "migrate"
RUN_MARK = "MIGRATE_TEST_RUN"
WORKER = os.environ.get("PYTEST_XDIST_WORKER", "main")
"""Name of this worker; "main" without workers, and in the process that hands the tests out."""
RUN_ID = (os.environ.get(RUN_MARK) if WORKER != "main" else None) or secrets.token_hex(8)
"""Inherited by every process that the run starts, workers included."""
OWN_ID = f"{RUN_ID}-{WORKER}"
STATE = Path(tempfile.gettempdir()) / f"migrate-test-state-{OWN_ID}"
SEED = int(os.environ.get("MIGRATE_TEST_SEED") or secrets.randbits(32))

# Speed is measured by bin/bench; here a slow machine must never be a failure.
hypothesis.settings.register_profile("migrate", deadline=None, print_blob=True)
hypothesis.settings.load_profile("migrate")


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Both loops the daemons may run on (the hook exists since pytest-asyncio 1.4)."""
    del config, item
    return {"asyncio": asyncio.SelectorEventLoop, "uvloop": uvloop.new_event_loop}


def pytest_report_header(config: pytest.Config) -> str:
    del config
    return f"random tests: MIGRATE_TEST_SEED={SEED}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    del call
    report = yield
    if report.failed and "rng" in getattr(item, "fixturenames", ()):
        report.sections.append(("random seed", f"repeat with MIGRATE_TEST_SEED={SEED}"))
    return report


def pytest_sessionstart(session: pytest.Session) -> None:
    del session
    os.environ[RUN_MARK] = RUN_ID
    if WORKER == "main":
        os.environ["MIGRATE_TEST_SEED"] = str(SEED)  # every worker's
    STATE.mkdir(mode=0o700)
    # So is what is ignored: under nohup, or in the background of a script, no daemon would obey its signals.
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(trylast=True)  # once the workers have ended
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Find what outlived its parent, name the test that began it, end it, and let the run fail."""
    shutil.rmtree(STATE)
    if WORKER != "main":
        return
    orphans = _marked_processes()
    terminal = session.config.get_terminal_writer()
    for pid, test in orphans.items():
        terminal.line(f"\nleft behind: {_describe(pid)}, begun by {test}", red=True)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    if orphans:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture
def rng() -> random.Random:
    """Random numbers that `MIGRATE_TEST_SEED` repeats."""
    return random.Random(SEED)


@pytest.fixture
def shm_dir() -> Iterator[Path]:
    """A private directory on tmpfs, removed after the test."""
    path = Path(tempfile.mkdtemp(prefix=f"{SHM_PREFIX}-test-{OWN_ID}-", dir=SHM))
    yield path
    shutil.rmtree(path)


@pytest.fixture
def lab(shm_dir: Path) -> Iterator[Lab]:
    """Real guests, daemons and sockets on loopback: one block of 16 MiB on tmpfs at both sides."""
    with Lab(shm_dir, shm_dir) as made:
        yield made


@pytest.fixture
def row(request: pytest.FixtureRequest) -> Iterator[FailureRow]:
    """A row of the README's table of failures; a test that does not compare it fails."""
    mark = request.node.get_closest_marker("failure_row")
    assert mark is not None, "a test that takes `row` says which: @pytest.mark.failure_row"
    found = read_table()[mark.args[0]]
    failed_before = request.session.testsfailed
    yield found
    assert found.compared or request.session.testsfailed > failed_before, "the row was not compared"


@pytest.fixture(autouse=True)
def journals_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """A place for the journals that a test gives none."""
    monkeypatch.setenv("STATE_DIRECTORY", str(STATE / secrets.token_hex(4)))


@pytest.fixture(autouse=True)
def signals_as_before() -> Iterator[None]:
    """A daemon run in this process ends with its signals ignored; children would inherit that."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


@pytest.fixture(autouse=True)
def nothing_left_behind() -> Iterator[None]:
    """Fail a test that leaves a child process or a file of ours in /dev/shm."""
    children, files = _children(), _shm_files()
    yield
    left = [_describe(pid) for pid in sorted(_children() - children)]
    left += [str(SHM / name) for name in sorted(_shm_files() - files)]
    assert not left, f"left behind by the test: {', '.join(left)}"


def _children() -> set[int]:
    """Children of this process, zombies included; Python's own helper processes are not counted."""
    found: set[int] = set()
    for listing in Path("/proc/self/task").glob("*/children"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # a thread ended meanwhile
            found.update(map(int, listing.read_text().split()))
    return {pid for pid in found if "multiprocessing." not in _describe(pid)}


def _shm_files() -> set[str]:
    """What this worker has made in /dev/shm; others may be at work on this machine."""
    return {path.name for path in SHM.glob(f"{SHM_PREFIX}-test-{OWN_ID}-*")}


def _describe(pid: int) -> str:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except (FileNotFoundError, ProcessLookupError):
        words = []
    return f"process {pid} ({b' '.join(words).decode(errors='replace').strip() or 'already a zombie'})"


def _marked_processes() -> dict[int, str]:
    """Living processes begun by this run, other than itself: pid → the test that was running."""
    mark = f"{RUN_MARK}={RUN_ID}".encode()
    found: dict[int, str] = {}
    for path in Path("/proc").glob("[0-9]*/environ"):
        pid = int(path.parent.name)
        try:
            variables = path.read_bytes().split(b"\0")
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue  # ended, or somebody else's
        if mark in variables and pid != os.getpid():
            test = next((v for v in variables if v.startswith(b"PYTEST_CURRENT_TEST=")), b"=an unknown test")
            found[pid] = test.partition(b"=")[2].decode(errors="replace")
    return found

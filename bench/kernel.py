"""Speed of the kernel, each number beside what it is to be compared with in the same run.

    python -m bench.kernel [--json] [--rounds N] [--pairs N]

* XBZRLE encode and decode of 4096-byte pages, as fractions of the speed of memcmp over equal pages: loops in
  C (`kernel_loops.c`, compiled for the occasion), medians of the ratios of N interleaved rounds.
* fill, apply (with read-back) and scan of random pages in warm memory files, in GB/s and as fractions of bare
  pread, and of pwrite followed by pread, of 256 KiB.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from migrate import kernel

ROOT = Path(__file__).parents[1]
PAGE_BYTES = 4096
RAM_BYTES = 128 << 20
BATCH_BYTES = 1 << 20
CHUNK_BYTES = 256 << 10
DELTA_CHANGES = 8  # changed bytes a page in the round that is sent as deltas


class NoCompilerError(RuntimeError):
    """The C loops cannot be built here."""


def kernel_table(rounds: int = 15, pairs: int = 512) -> dict[str, Any]:
    """All numbers of this module.

    Args:
        rounds: interleaved repetitions; medians are taken over them.
        pairs: pages of each kind in the C loops. 512 are 4 MiB a measurement, which no second-level cache
            holds, as none holds a migration's page cache; 64 stay in one of 1 MiB, where memcmp is twice as
            fast.

    Returns:
        `xbzrle`: per number of changed bytes `encode` and `decode` as fractions of memcmp, and nanoseconds a
        page; `loops`: GB/s of memcmp, digest, crc32c, is_zero and memcpy; `batches`: GB/s and fractions of
        fill, apply and scan.
    """
    return {**_loops(rounds, pairs), "batches": _batches(rounds)}


def _loops(rounds: int, pairs: int) -> dict[str, Any]:
    times: dict[tuple[str, str], list[float]] = {}
    with tempfile.TemporaryDirectory() as directory:
        program = _compile(Path(directory))
        done = subprocess.run([program, str(pairs), str(rounds)], capture_output=True, text=True, check=True)
    for line in done.stdout.splitlines():
        kind, name, *columns = line.split("\t")
        times[kind, name] = [float(column) for column in columns]
    memcmp = times["other", "memcmp"]
    xbzrle: dict[str, dict[str, float]] = {}
    for (kind, name), nanoseconds in times.items():
        if kind != "other":
            row = xbzrle.setdefault(name, {})
            row[kind] = median(base / own for base, own in zip(memcmp, nanoseconds, strict=True))
            row[f"{kind}-ns"] = median(nanoseconds)
    loops = {name: PAGE_BYTES / median(own) for (kind, name), own in times.items() if kind == "other"}
    return {"xbzrle": xbzrle, "loops": loops}


def _compile(directory: Path) -> Path:
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise NoCompilerError("no C compiler: install gcc, or set CC")
    sources = [path for path in (ROOT / "migrate/kernel").glob("*.c") if path.name != "_native.c"]
    program = directory / "kernel_loops"
    command: list[str | Path] = [compiler, "-std=gnu11", "-O3", "-I", ROOT / "migrate/kernel", "-o", program]
    subprocess.run([*command, ROOT / "bench/kernel_loops.c", *sources], check=True)
    return program


@contextlib.contextmanager
def _memory_file(content: bytes) -> Iterator[int]:
    fd = os.memfd_create("bench-kernel", os.MFD_CLOEXEC)
    try:
        while os.lseek(fd, 0, os.SEEK_CUR) < RAM_BYTES:
            os.write(fd, content)
        yield fd
    finally:
        os.close(fd)


def _timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _batches(rounds: int) -> dict[str, Any]:
    noise = random.Random(1).randbytes(16 << 20)
    with _memory_file(noise) as source, _memory_file(noise[::-1]) as target:
        bench = _Batches(source, target)
        seconds: dict[str, list[float]] = {}
        for _ in range(rounds):
            for name, took in bench.run_round().items():
                seconds.setdefault(name, []).append(took)
    base = {
        "fill": "pread",
        "scan": "pread",
        "fill-deltas": "pread",
        "apply": "pwrite-pread",
        "apply-deltas": "pwrite-pread",
        "apply-stream": "pwrite",
    }
    table: dict[str, Any] = {}
    for name, own in seconds.items():
        table[name] = {"GB/s": RAM_BYTES / median(own) / 1e9}
        if name in base:
            pairs = zip(seconds[base[name]], own, strict=True)
            table[name][f"of {base[name]}"] = median(bare / took for bare, took in pairs)
    return table


class _Batches:
    """Two memory files and all that fill and apply need between them."""

    def __init__(self, source: int, target: int) -> None:
        pages = RAM_BYTES // PAGE_BYTES
        self._pages = pages
        self._fds = (source, target)
        self._keys = kernel.Keys(bytes(32), PAGE_BYTES)
        self._rams = [
            kernel.Ram(PAGE_BYTES, 256, [kernel.RamBlock(b"pc.ram", fd, 0, pages)]) for fd in (source, target)
        ]
        self._digests = [bytearray(16 * pages) for _ in range(2)]
        self._caches = [kernel.PageCache(self._keys, 2 * RAM_BYTES, "default") for _ in range(2)]
        self._pending = bytearray(kernel.bitmap_bytes(pages))
        self._owed = bytearray(kernel.bitmap_bytes(pages))
        self._out = bytearray(BATCH_BYTES)
        self._sent = bytearray(8 * kernel.max_records(PAGE_BYTES))
        self._chunk = bytearray(CHUNK_BYTES)
        self._round = 1

    def run_round(self) -> dict[str, float]:
        """Seconds of everything, each over the whole RAM."""
        seconds: dict[str, float] = {}
        seconds["pread"] = _timed(self._pread)
        seconds["pwrite"] = _timed(self._pwrite)
        seconds["pwrite-pread"] = _timed(self._pwrite_pread)
        seconds["fill"], seconds["apply"] = self._move(cached=False, readback=True)
        _, seconds["apply-stream"] = self._move(cached=False, readback=False)
        self._move(cached=True, readback=False)  # what the deltas build on
        self._change_all()
        seconds["fill-deltas"], seconds["apply-deltas"] = self._move(cached=True, readback=True)
        seconds["scan"] = _timed(self._scan)
        return seconds

    def _pread(self) -> None:
        for offset in range(0, RAM_BYTES, CHUNK_BYTES):
            os.preadv(self._fds[0], [self._chunk], offset)

    def _pwrite(self) -> None:
        for offset in range(0, RAM_BYTES, CHUNK_BYTES):
            os.pwritev(self._fds[1], [self._chunk], offset)

    def _pwrite_pread(self) -> None:
        for offset in range(0, RAM_BYTES, CHUNK_BYTES):
            os.pwritev(self._fds[1], [self._chunk], offset)
            os.preadv(self._fds[1], [self._chunk], offset)

    def _change_all(self) -> None:
        content = bytearray(1 << 20)
        for offset in range(0, RAM_BYTES, len(content)):
            os.preadv(self._fds[0], [content], offset)
            for page in range(0, len(content), PAGE_BYTES):
                for change in range(DELTA_CHANGES):
                    at = page + change * 509 + self._round % 64
                    content[at] = content[at] + 1 & 0xFF
            os.pwritev(self._fds[0], [content], offset)

    def _move(self, *, cached: bool, readback: bool) -> tuple[float, float]:
        """Send everything once; seconds in fill and in apply. Both ends see each batch while it is warm."""
        caches = self._caches if cached else (None, None)
        (source, target), (sent, held), stage = self._rams, self._digests, kernel.STAGE_ROUND
        fill = partial(kernel.fill, source, self._keys, sent, caches[0], self._pending, self._owed)
        apply = partial(kernel.apply, target, self._keys, held, caches[1])
        kernel.bitmap_set_range(self._owed, 0, self._pages)
        filling = applying = 0.0
        start, finished = 0, False
        self._round += 1
        while not finished:
            began = time.perf_counter()
            made = fill(start, self._out, BATCH_BYTES, self._sent, self._round, stage)
            filled = time.perf_counter()
            body = memoryview(self._out)[: made.length]
            apply(body, made.records, made.digest_sum, 0, 1, self._round, stage, readback)
            applying += time.perf_counter() - filled
            filling += filled - began
            start, finished = made.next_page, made.finished
        return filling, applying

    def _scan(self) -> None:
        kernel.scan(self._rams[0], self._keys, self._digests[0], 0, self._pages, self._pending)


def _print(table: dict[str, Any]) -> None:
    print("XBZRLE, pages of 4096 bytes, as fractions of memcmp")
    print(f"{'changed bytes':>16} {'encode':>8} {'decode':>8} {'encode ns':>10} {'decode ns':>10}")
    for name, row in table["xbzrle"].items():
        ratios = f"{row['encode']:8.2f} {row['decode']:8.2f}"
        print(f"{name:>16} {ratios} {row['encode-ns']:10.0f} {row['decode-ns']:10.0f}")
    print("\nloops, GB/s: " + ", ".join(f"{name} {speed:.1f}" for name, speed in table["loops"].items()))
    print(f"\nbatches, {RAM_BYTES >> 20} MiB in warm memory files")
    for name, row in table["batches"].items():
        ratio = ", ".join(f"{value:.2f} {key}" for key, value in row.items() if key != "GB/s")
        print(f"{name:>16} {row['GB/s']:6.2f} GB/s  {ratio}")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.kernel", description=__doc__.split("\n")[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--rounds", type=int, default=15, help="interleaved rounds (default 15)")
    parser.add_argument("--pairs", type=int, default=512, help="pages of each kind in the C loops (512)")
    options = parser.parse_args()
    table = kernel_table(options.rounds, options.pairs)
    if options.json:
        print(json.dumps(table))
    else:
        _print(table)


if __name__ == "__main__":
    main()

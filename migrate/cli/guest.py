"""`migrate-guest`: run, resume or check a practice guest, and read its witness log."""

from __future__ import annotations

import argparse
import contextlib
import os
import secrets
import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from migrate.cli.arguments import ArgumentParser, add_output_options, seconds, typed, whole_number
from migrate.cli.error_text import error_block
from migrate.cli.json_reporter import JsonReporter
from migrate.cli.plain_text import printable
from migrate.cli.standard_streams import hold_standard_streams
from migrate.config import RamSpec
from migrate.errors import MigrateError, RefusedError, UsageError
from migrate.guest import checker, witness
from migrate.guest.layout import (
    FILLS,
    HIGHEST_RATE,
    MAX_BLOCKS,
    PAGE,
    SMALLEST_BLOCK,
    SMALLEST_WORKING_SET,
    WORKLOADS,
    Layout,
)
from migrate.guest.ram_files import RamFiles
from migrate.guest.runner import RunOptions, RunSummary, run_guest
from migrate.units import format_count, format_duration, format_size, parse_size

DEFAULT_RATE = 10_000
CLEAN, FAULTY = 0, 8

DESCRIPTION = """A practice guest: a process that writes to its RAM, a file, all the time.

Its whole state is in there, so it can be stopped at any instruction, its RAM
moved, and the guest continued with --resume. Every page carries what detects a
torn, lost, stale or damaged page."""

EPILOG = """units:
  SIZE   bytes, whole pages of 4096; K M G are binary: 64M = 64 * 2^20
  PAGES  page writes a second

workloads:
  idle    only the beat: two pages a millisecond
  sparse  one to three 8-byte words in a random page
  kv      values of 64 to 512 bytes in place, hot and cold keys; a small append log
  log     whole pages one after the other, round and round
  thrash  random whole pages of random words
  zero    random pages become zeros, then are filled again
  mixed   some of each

exit codes:
    0  ended as asked; nothing wrong found
    1  unexpected; a witness, pid or ready file cannot be written
    2  options that cannot work
    3  refused: marked as an unfinished copy, or a guest runs on this RAM
    8  --check, --check-witness: faults; a running guest: a page is not as it left it
    9  a RAM file or witness log is missing, unfit, unreadable or truncated

examples:
  migrate-guest --ram /dev/shm/vm --size 1G --workload kv --witness vm.log --pidfile vm.pid
  migrate-guest --resume --ram /dev/shm/vm --witness vm.log --host other
  migrate-guest --check --ram /dev/shm/vm
  migrate-guest --check-witness vm.log"""


def main(argv: Sequence[str] | None = None) -> int:
    """Console script. Returns the exit code; only --help and --version end the process themselves."""
    hold_standard_streams()
    arguments = sys.argv[1:] if argv is None else list(argv)
    reporter = JsonReporter(_StandardOutput()) if "--json" in arguments else None
    try:
        options = build_parser().parse_args(arguments)
        if options.check_witness:
            return _check_witness(options, reporter)
        if not options.ram:
            raise UsageError("--ram is missing: the file that is, or becomes, the guest's RAM")
        if len(options.ram) > MAX_BLOCKS:
            raise UsageError(f"--ram: at most {MAX_BLOCKS} blocks")
        return _check(options, reporter) if options.check else _run(options, reporter)
    except MigrateError as error:
        if reporter is not None:
            reporter.error(error)
        sys.stderr.write(error_block("migrate-guest", error))
        return error.exit_code


def build_parser() -> ArgumentParser:
    """The parser of `migrate-guest`."""
    parser = ArgumentParser("migrate-guest", DESCRIPTION)
    parser.epilog = EPILOG
    what = parser.add_argument_group(
        "what to do (default: make a new guest and run it)"
    ).add_mutually_exclusive_group()
    what.add_argument("--resume", action="store_true", help="go on from the RAM files as they are")
    what.add_argument(
        "--check", action="store_true", help="verify the RAM of a guest that is stopped or dead"
    )
    what.add_argument(
        "--check-witness",
        metavar="FILE",
        type=Path,
        nargs="+",
        help="read witness logs: two owners, lost beats, gaps (the downtime as the guest felt it)",
    )
    guest = parser.add_argument_group(
        "guest", "With --resume these are in RAM already; those given again must agree, except --rate."
    )
    guest.add_argument(
        "--ram",
        metavar="[NAME=]PATH",
        type=typed(RamSpec.parse),
        action="append",
        default=[],
        help="RAM file; repeat it for several RAM blocks (their order counts; the names mean nothing here)",
    )
    guest.add_argument(
        "--size",
        metavar="SIZE",
        type=typed(_pages),
        action="append",
        help=f"of each RAM file, at least {SMALLEST_BLOCK // 1024}K; repeat it to give every --ram its own",
    )
    guest.add_argument("--workload", choices=WORKLOADS, help="what it writes, see below (default: sparse)")
    guest.add_argument(
        "--rate",
        metavar="PAGES",
        type=typed(_rate),
        help=f"page writes a second; 0: as fast as it can (default: {DEFAULT_RATE}; thrash: 0)",
    )
    guest.add_argument(
        "--working-set",
        metavar="SIZE",
        type=typed(_pages),
        help="the workload writes to this much of RAM only, spread over all files (default: all)",
    )
    guest.add_argument(
        "--fill",
        choices=FILLS,
        help="what RAM holds before the workload begins; none: holes; working-set: random there, and holes"
        " elsewhere (default: random)",
    )
    guest.add_argument(
        "--seed", metavar="N", type=typed(_seed), help="of all that is random in it (default: random)"
    )
    run = parser.add_argument_group("run")
    run.add_argument(
        "--witness", metavar="FILE", type=Path, help="append a line every millisecond to this log"
    )
    run.add_argument(
        "--host", metavar="NAME", help="where it runs, for the witness log (default: the host's name)"
    )
    run.add_argument(
        "--dirty-log",
        metavar="FILE",
        type=Path,
        action="append",
        default=[],
        help="set the bit of each page written in this file, for migrate-src --dirty-log; one for each --ram",
    )
    run.add_argument("--pidfile", metavar="FILE", type=Path, help="holds the process id while it runs")
    run.add_argument("--ready-file", metavar="FILE", type=Path, help="made when RAM is filled and it beats")
    run.add_argument(
        "--duration", metavar="S", type=typed(seconds), help="seconds after which it ends by itself"
    )
    add_output_options(parser, ending="")
    return parser


def _run(options: argparse.Namespace, reporter: JsonReporter | None) -> int:
    if options.duration is not None and not 0 < options.duration < 1e9:
        raise UsageError("--duration: a number of seconds above 0")
    paths = [spec.path for spec in options.ram]
    if len(options.dirty_log) not in (0, len(paths)):
        raise UsageError("--dirty-log: one for each --ram, or none")
    host = socket.gethostname() if options.host is None else options.host
    run_options = RunOptions(
        host,
        options.rate,
        options.witness,
        options.pidfile,
        options.ready_file,
        options.dirty_log,
        options.duration,
    )
    with RamFiles.resume(paths) if options.resume else RamFiles.create(paths, _new_layout(options)) as files:
        layout = files.layout
        if options.resume:
            _require_agreement(options, layout)

        def on_ready(beat: int) -> None:
            if reporter is not None:
                reporter.event("ready", pid=os.getpid(), beat=beat, host=host, **_about(layout))
                return
            size = format_size(sum(layout.block_pages) * PAGE)
            _StandardOutput().write(
                f"ready: process {os.getpid()} on {printable(host)}, workload {layout.workload},"
                f" {size} of RAM in {', '.join(printable(path) for path in paths)}, beat {beat}\n"
            )

        summary = run_guest(files, run_options, on_ready)
    if reporter is not None:
        reporter.event("ended", **asdict(summary))
    else:
        _StandardOutput().write(_summary_text(summary))
    return CLEAN


def _check(options: argparse.Namespace, reporter: JsonReporter | None) -> int:
    report = checker.check([spec.path for spec in options.ram])
    code = CLEAN if report.clean else FAULTY
    if reporter is not None:
        reporter.event("check", **report.as_json())
        return code
    lines = [
        f"{'clean' if report.clean else 'FAULTY'}: {format_count(report.pages_checked)} pages checked",
        f"torn {report.torn}, lost {report.lost}, stale {report.stale}, damaged {report.damaged},"
        f" lost writes {report.lost_writes}",
        f"beat {report.beat}, {report.writes} page writes in its life"
        + (", stopped in the middle of one" if report.in_flight else ""),
        *(f"  {fault.kind}: {printable(fault.text)}" for fault in report.faults),
    ]
    _StandardOutput().write("\n".join(lines) + "\n")
    return code


def _check_witness(options: argparse.Namespace, reporter: JsonReporter | None) -> int:
    report = witness.analyse(options.check_witness)
    code = CLEAN if report.clean else FAULTY
    if reporter is not None:
        reporter.event("check-witness", **report.as_json())
        return code
    faults = [
        *(f"TWO OWNERS: {text}" for text in report.overlaps),
        *(f"BACKWARDS: {text}" for text in report.backwards),
        *(f"MISSING: {text}" for text in report.missing),
    ]
    if report.damaged_lines:
        faults.append(f"DAMAGED: {report.damaged_lines} lines are no witness lines")
    lines = [
        f"{'clean' if report.clean else 'FAULTY'}: {report.lines} lines, {len(report.runs)} runs",
        *faults,
    ]
    for run in report.runs:
        begin, end = (_local_time(ns) for ns in (run.first_realtime_ns, run.last_realtime_ns))
        lines.append(
            f"  run {run.run} on {run.host}: beats {run.first_beat} to {run.last_beat}, {begin} to {end}"
        )
    for gap in report.gaps:
        what = f"{gap.from_host} -> {gap.to_host}" if gap.hand_over else f"pause on {gap.from_host}"
        lines.append(f"  gap {format_duration(gap.ms / 1000)} after beat {gap.after_beat}: {what}")
    _StandardOutput().write("".join(f"{printable(line)}\n" for line in lines))
    return code


def _new_layout(options: argparse.Namespace) -> Layout:
    if not options.size:
        raise UsageError("--size is missing: how large each RAM file is to be", hint="for instance --size 1G")
    sizes: list[int] = options.size * len(options.ram) if len(options.size) == 1 else options.size
    if len(sizes) != len(options.ram):
        raise UsageError(
            f"--size is given {len(sizes)} times for {len(options.ram)} times --ram; once, or for each"
        )
    if min(sizes) * PAGE < SMALLEST_BLOCK:
        raise UsageError(f"--size: a RAM file has at least {SMALLEST_BLOCK // 1024}K")
    workload = options.workload or "sparse"
    default_rate = 0 if workload == "thrash" else DEFAULT_RATE
    layout = Layout(
        guest_id=secrets.randbits(64) | 1,
        seed=secrets.randbits(64) if options.seed is None else options.seed,
        workload=workload,
        fill=options.fill or "random",
        rate=default_rate if options.rate is None else options.rate,
        working_set_pages=0,
        block_pages=tuple(sizes),
    )
    largest, working_set = layout.data_pages, options.working_set
    if working_set is not None and not SMALLEST_WORKING_SET <= working_set * PAGE <= largest * PAGE:
        raise UsageError(
            f"--working-set: {SMALLEST_WORKING_SET // 1024}K to {largest * PAGE // 1024}K in RAM of this size"
        )
    return Layout(**asdict(layout) | {"working_set_pages": working_set or largest})


def _require_agreement(options: argparse.Namespace, layout: Layout) -> None:
    size = options.size * len(layout.block_pages) if options.size and len(options.size) == 1 else options.size
    for option, given, held in (
        ("--size", size and tuple(size), layout.block_pages),
        ("--workload", options.workload, layout.workload),
        ("--working-set", options.working_set, layout.working_set_pages),
        ("--fill", options.fill, layout.fill),
        ("--seed", options.seed, layout.seed),
    ):
        if given is not None and given != held:
            in_pages = " pages" if option in {"--size", "--working-set"} else ""
            raise RefusedError(
                f"{option}: {given}{in_pages} was asked for, but the guest in this RAM has {held}{in_pages}",
                guest="it was not resumed",
                hint=f"leave {option} out: a resumed guest has it in its RAM",
            )


def _about(layout: Layout) -> dict[str, object]:
    return {
        "guest-id": f"{layout.guest_id:016x}",
        "seed": layout.seed,
        "workload": layout.workload,
        "fill": layout.fill,
        "rate": layout.rate,
        "working-set": layout.working_set_pages * PAGE,
        "sizes": [pages * PAGE for pages in layout.block_pages],
    }


def _summary_text(summary: RunSummary) -> str:
    rate = format_count(summary.writes_this_run / summary.seconds if summary.seconds else 0)
    return (
        f"ended by {summary.ended_by}: beat {summary.beat}, {summary.writes_this_run} page writes"
        f" in {format_duration(summary.seconds)} ({rate} a second), {summary.writes} in its life\n"
    )


def _local_time(realtime_ns: int) -> str:
    whole, rest = divmod(realtime_ns, 10**9)
    return f"{time.strftime('%H:%M:%S', time.localtime(whole))}.{rest // 10**6:03}"


def _pages(text: str) -> int:
    size = parse_size(text)
    if size % PAGE or not size:
        raise ValueError(f"{text!r} is not a whole number of pages of {PAGE} bytes")
    return size // PAGE


def _rate(text: str) -> int:
    rate = whole_number(text)
    if not 0 <= rate <= HIGHEST_RATE:
        raise ValueError(f"{text!r} is not within 0 and {HIGHEST_RATE} pages a second")
    return rate


def _seed(text: str) -> int:
    seed = whole_number(text)
    if not 0 <= seed < 1 << 64:
        raise ValueError(f"{text!r} is not within 0 and 2^64 - 1")
    return seed


class _StandardOutput:
    """Unbuffered; a closed pipe must not end a guest."""

    def write(self, text: str) -> None:
        with contextlib.suppress(OSError):
            os.write(1, text.encode("utf-8", "backslashreplace"))


if __name__ == "__main__":
    sys.exit(main())

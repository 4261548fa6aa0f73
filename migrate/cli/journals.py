"""`status` and `recover` of both programs: what the journals say, and settling what a crash left open.

Exit codes of `status`: 0 nothing to do, 10 something waits for `recover` or for a person. `recover` ends with
0 once everything is settled, else with the code of the first error; it may be run as often as one likes.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from migrate.cli.arguments import (
    ArgumentParser,
    add_source_tls_options,
    add_state_option,
    seconds,
    typed,
)
from migrate.cli.choose_reporter import report_usage_error
from migrate.cli.error_text import error_block
from migrate.cli.journal_text import meaning, status_json
from migrate.config import Address, DestinationConfig, RamSpec, SourceConfig
from migrate.daemon.journal import FoundJournal, Journal, default_state_dir, find_journals
from migrate.errors import JournalError, MigrateError, UndecidedError, UsageError
from migrate.protocol.journal_record import Step


def run_journal_command(side: str, name: str, argv: Sequence[str]) -> int:
    """`status` or `recover` of a side; returns the exit code."""
    program = f"{'migrate-src' if side == 'source' else 'migrate-dst'} {name}"
    parser = _status_parser(program) if name == "status" else _recover_parser(program, side)
    as_json = "--json" in argv
    try:
        arguments = parser.parse_args(argv)
        directory = arguments.state_dir or default_state_dir()
        found = [one for one in find_journals(directory, side) if _wanted(one, arguments.migration)]
        if name == "status":
            return _status(found, directory, as_json)
        return _recover(side, found, arguments, program)
    except UsageError as error:
        report_usage_error(error, program, json=as_json)
        return error.exit_code
    except MigrateError as error:
        sys.stderr.write(error_block(program, error))
        return error.exit_code


def _wanted(found: FoundJournal, migration: str | None) -> bool:
    return migration is None or found.path.stem.endswith(migration)


def _add_common(parser: argparse.ArgumentParser) -> None:
    add_state_option(parser)
    parser.add_argument("--migration", metavar="ID", help="only this one (default: every journal found)")
    parser.add_argument("--json", action="store_true", help="one JSON object a journal")


def _status_parser(program: str) -> ArgumentParser:
    parser = ArgumentParser(program, "Say whose each guest is by the journals here, and what to type.")
    _add_common(parser)
    return parser


def _recover_parser(program: str, side: str) -> ArgumentParser:
    if side == "source":
        text = """Settle what a killed migrate-src left open: resume a guest that was left paused;
ask the destination about one that was handed over, then finish, or take it back."""
    else:
        text = """Settle what a killed migrate-dst left open, without the source: a guest that was
being started is looked at (--is-running) and let go (--on-commit); one that was
only ready is given back to the source for ever. Where the source can be reached,
`migrate-src recover` there is better: it finishes the handover."""
    parser = ArgumentParser(program, text)
    _add_common(parser)
    force = parser.add_argument_group("by force, of one --migration").add_mutually_exclusive_group()
    if side == "source":
        parser.add_argument(
            "--to",
            type=typed(Address.parse),
            metavar="HOST:PORT",
            help="where migrate-dst listens now (default: where it did)",
        )
        parser.add_argument(
            "--answer-timeout",
            type=typed(seconds),
            default="120",
            metavar="S",
            help="seconds the destination has for its answer, its hooks included (default: %(default)s)",
        )
        add_source_tls_options(parser)
        _add_force(
            force,
            "--force-resume",
            Step.TAKEN_BACK,
            "resume the guest here without the destination's word. If it runs there, or is started there "
            "later, it runs twice: only when that host is gone for ever",
        )
        _add_force(
            force,
            "--force-done",
            Step.DONE,
            "the guest runs at the destination, you have seen it. If it does not, it runs nowhere",
        )
    else:
        parser.add_argument("--is-running", metavar="CMD", help="status 0: the guest runs here")
        parser.add_argument("--on-commit", metavar="CMD", help="lets the guest go, if it does not run")
        _add_force(
            force,
            "--force-start",
            Step.STARTING,
            "let the guest go without the source's word. If the source resumes it, it runs twice: only when "
            "that host is gone for ever",
        )
        _add_force(
            force,
            "--force-running",
            Step.RUNNING,
            "the guest runs here, you have seen it. If it does not, it runs nowhere",
        )
        _add_force(
            force,
            "--force-declined",
            Step.DECLINED,
            "the guest does not run here and never will. If it does, the source runs it as well",
        )
    return parser


def _add_force(group: argparse._MutuallyExclusiveGroup, option: str, step: Step, text: str) -> None:
    group.add_argument(option, dest="force", action="store_const", const=step, help=text)


def _status(found: list[FoundJournal], directory: Path, as_json: bool) -> int:
    if not found and not as_json:
        print(f"nothing is open: there is no journal in {directory}")
    waits = False
    for one in found:
        words = meaning(one)
        waits = waits or bool(words.next)
        if as_json:
            print(json.dumps(status_json(one)))
        else:
            name = one.record.migration if one.record is not None else one.path.name
            print(f"migration {name}: {words.sentence}" + (f"\n  next: {words.next}" if words.next else ""))
    return UndecidedError.exit_code if waits else 0


def _recover(side: str, found: list[FoundJournal], arguments: argparse.Namespace, program: str) -> int:
    if arguments.force is not None and arguments.migration is None:
        raise UsageError("what is forced needs --migration ID: `status` names it")
    settle = _settle_source if side == "source" else _settle_destination
    first = 0
    for one in found:
        name = one.record.migration if one.record is not None else one.path.name
        try:
            place = asyncio.run(settle(arguments, one.path))
            if arguments.json:
                print(json.dumps({"migration": name, "guest": place}))
            else:
                print(f"migration {name}: {place}")
        except MigrateError as error:
            first = first or error.exit_code
            if arguments.json:
                shown = {"migration": name, "error": error.message, "guest": error.guest, "hint": error.hint}
                print(json.dumps(shown | {"exit-code": error.exit_code}))
            else:
                sys.stderr.write(error_block(program, error))
    if not found and not arguments.json:
        print("nothing is open")
    return first


async def _settle_source(arguments: argparse.Namespace, path: Path) -> str:
    from migrate.daemon.source_recovery import SourceRecovery
    from migrate.daemon.tls_client import TlsClient

    journal = Journal.open(path)
    try:
        to = arguments.to or Address.parse(journal.record.peer)
        config = SourceConfig(
            to,
            tuple(RamSpec(place.name, Path(place.path)) for place in journal.record.ram),
            tls_dir=arguments.tls_dir,
            tls_fingerprint=arguments.tls_fingerprint,
            tls_hostname=arguments.tls_hostname,
            token_file=arguments.token_file,
        )
        tls = TlsClient(config) if config.tls else None
    except BaseException:
        journal.close()
        raise
    return await SourceRecovery(journal, to, tls, arguments.answer_timeout).run(arguments.force)


async def _settle_destination(arguments: argparse.Namespace, path: Path) -> str:
    from migrate.daemon.reporter import SilentReporter
    from migrate.daemon.settlement import Settlement

    config = DestinationConfig(
        Address("localhost", 0), on_commit=arguments.on_commit, is_running=arguments.is_running
    )
    journal = Journal.open(path)
    if journal.record.step is Step.RECEIVING:
        journal.remove()
        return "the guest is the source's; there was nothing to settle"
    settlement = Settlement(config, SilentReporter(), journal)
    try:
        await settlement.recover(arguments.force)
    finally:
        await settlement.close()
    step, reason = settlement.handover.step, settlement.handover.reason
    if step is Step.RUNNING:
        return "the guest runs here"
    if step is Step.DECLINED:
        return "the guest is the source's and never starts here"
    if step is Step.PREPARED:
        raise JournalError("the journal could not be written", side="destination")
    raise UndecidedError(
        f"the guest is this host's, but whether it runs is not known: {reason}",
        side="destination",
        guest="the guest is stopped at the source and may run here",
        hint="give --is-running CMD and --on-commit CMD; or look yourself, then --force-running or"
        " --force-declined",
    )

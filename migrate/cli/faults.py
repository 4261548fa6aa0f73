"""`migrate-faults`: a TCP proxy between two daemons that breaks the network on purpose, repeatably."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import signal
import sys
import time
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import TYPE_CHECKING, NoReturn

from migrate.cli.arguments import typed, whole_number
from migrate.cli.choose_reporter import report_usage_error
from migrate.cli.json_reporter import json_line
from migrate.cli.standard_streams import hold_standard_streams
from migrate.cli.toxic_spec import (
    Partition,
    StepCommand,
    parse_partition,
    parse_step_command,
    parse_toxic,
    toxic_help,
)
from migrate.config import Address
from migrate.errors import MigrateError, NetworkError, UsageError

if TYPE_CHECKING:
    from migrate.daemon.fault_proxy import Connection, FaultProxy

PROGRAM = "migrate-faults"
DESCRIPTION = """Pass TCP connections on to a target, and break them as told.

Connections are numbered in the order of their coming: with a migration 0 is the
control connection, the lanes follow, and reconnecting goes on counting. Put it
between the daemons: migrate-src --to the address that it listens on."""
EPILOG = f"""toxics, NAME[:KEY=VALUE,...], named and meant as toxiproxy's:
{toxic_help()}
  each also   direction (upstream, the default, is towards the target; downstream,
              both), connections (all, lanes, or numbers as 0+2), after (bytes of a
              direction of a connection that pass untouched)
  values: times 20ms 1.5s 2m; sizes 64M (binary); rates 50M or 100Mbit; offsets 10+2K

partitions, AFTER+FOR[:HOW]: AFTER the first connection came all connections end,
  and none is let in FOR that long. HOW: reset (default; both sides are told),
  silent (nobody is: only a deadline helps), close.

examples:
  {PROGRAM} --listen 127.0.0.1:4400 --target 127.0.0.1:4444 --partition 2s+5s
  {PROGRAM} --listen 127.0.0.1:4400 --target 127.0.0.1:4444 --seed 7 \\
      --toxic bandwidth:rate=50M,shared=yes,direction=both --toxic corrupt:probability=1e-8
  {PROGRAM} --listen 127.0.0.1:4400 --target 127.0.0.1:4444 --at 'commit:kill -9 4711'

exit codes: 0 ended by Ctrl-C or SIGTERM, 2 usage, 4 cannot listen"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Raise UsageError, as the daemons' parsers do."""
        raise UsageError(message.removeprefix("argument "), hint=f"{PROGRAM} --help lists all options")


def build_parser() -> argparse.ArgumentParser:
    """The parser of `migrate-faults`."""
    parser = _Parser(
        prog=PROGRAM,
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    address = typed(Address.parse)
    parser.add_argument(
        "--listen", type=address, required=True, metavar="HOST:PORT", help="IPv4; port 0 takes any free one"
    )
    parser.add_argument("--target", type=address, required=True, metavar="HOST:PORT", help="migrate-dst")
    parser.add_argument(
        "--toxic", type=typed(parse_toxic), action="append", default=[], metavar="SPEC", help="repeatable"
    )
    parser.add_argument(
        "--partition",
        type=typed(parse_partition),
        action="append",
        default=[],
        metavar="SPEC",
        help="repeatable, in the order of their times",
    )
    parser.add_argument(
        "--at",
        type=typed(parse_step_command),
        action="append",
        default=[],
        metavar="MESSAGE:COMMAND",
        help="run a shell command once, when this control message was sent and has not arrived (without TLS)",
    )
    parser.add_argument(
        "--seed",
        type=typed(whole_number),
        metavar="N",
        help="what toxics draw at random; same seed and traffic: same faults (default: any; it is told)",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object an event")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code. `--help` raises SystemExit(0)."""
    hold_standard_streams()
    arguments = sys.argv[1:] if argv is None else list(argv)
    try:
        options = build_parser().parse_args(arguments)
        _check_partitions(options.partition)
        asyncio.run(_run(options))
    except UsageError as error:
        report_usage_error(error, PROGRAM, json="--json" in arguments)
        return error.exit_code
    except MigrateError as error:
        print(f"{PROGRAM}: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def _check_partitions(partitions: Sequence[Partition]) -> None:
    ended = 0.0
    for partition in partitions:
        if partition.after < ended:
            raise UsageError("--partition: one begins before the one given before it has ended")
        ended = partition.after + partition.length


Tell = Callable[[str, dict[str, object]], None]


async def _run(options: argparse.Namespace) -> None:
    from migrate.daemon.fault_proxy import FaultProxy

    seed = random.SystemRandom().getrandbits(32) if options.seed is None else options.seed
    tell = _tell_json if options.json else _tell_text
    async with contextlib.AsyncExitStack() as stack:
        listen: Address = options.listen
        proxy = FaultProxy(
            options.target.host,
            options.target.port,
            seed=seed,
            listen_host=listen.host,
            listen_port=listen.port,
        )
        try:
            await stack.enter_async_context(proxy)
        except OSError as error:
            raise NetworkError(f"cannot listen on {listen}: {error.strerror}") from error
        for toxic in options.toxic:
            proxy.add(toxic)
        for step in options.at:
            proxy.at(step.message, partial(_run_command, step, tell))
        tell("listening", {"host": listen.host, "port": proxy.port, "seed": seed})
        await _until_signal(_watch(proxy, tell), _partition(proxy, options.partition, tell))


async def _run_command(step: StepCommand, tell: Tell) -> None:
    process = await asyncio.create_subprocess_shell(step.command, stdin=asyncio.subprocess.DEVNULL)
    status = await process.wait()
    tell("step", {"message": step.message, "command": step.command, "status": status})


async def _until_signal(*work: Coroutine[object, object, None]) -> None:
    """Do the work until SIGINT or SIGTERM; raises what it raises."""
    stopped: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def stop() -> None:
        if not stopped.done():
            stopped.set_result(None)

    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop)
    tasks = [asyncio.ensure_future(part) for part in work]
    working = asyncio.gather(*tasks)
    try:
        await asyncio.wait((working, stopped), return_when=asyncio.FIRST_COMPLETED)
    finally:
        working.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await working


async def _watch(proxy: FaultProxy, tell: Tell) -> None:
    """Tell of every connection that comes and ends."""
    told = 0
    open_ones: list[Connection] = []
    while True:
        await proxy.wait_for(partial(_news, proxy, told, open_ones))
        for connection in proxy.connections[told:]:
            tell("connection", {"connection": connection.index})
            open_ones.append(connection)
        told = len(proxy.connections)
        for connection in [one for one in open_ones if one.ended]:
            open_ones.remove(connection)
            tell(
                "ended",
                {
                    "connection": connection.index,
                    "how": connection.ended,
                    "upstream-bytes": connection.upstream.delivered,
                    "downstream-bytes": connection.downstream.delivered,
                },
            )


def _news(proxy: FaultProxy, told: int, open_ones: Sequence[Connection]) -> bool:
    return len(proxy.connections) > told or any(connection.ended for connection in open_ones)


async def _partition(proxy: FaultProxy, partitions: Sequence[Partition], tell: Tell) -> None:
    """Cut and restore the network, when its times come; then nothing more, for ever."""
    await proxy.wait_for(lambda: proxy.connections)
    began = time.monotonic()
    for partition in partitions:
        await asyncio.sleep(began + partition.after - time.monotonic())
        await proxy.cut(partition.how)
        tell("partition", {"how": partition.how, "seconds": partition.length})
        await asyncio.sleep(partition.length)
        await proxy.restore()
        tell("restored", {})
    await asyncio.Event().wait()


def _tell_json(name: str, fields: dict[str, object]) -> None:
    print(json_line(name, fields, time.time()), end="", flush=True)


def _tell_text(name: str, fields: dict[str, object]) -> None:
    details = " ".join(f"{key}={value}" for key, value in fields.items())
    print(f"{time.strftime('%H:%M:%S')} {name:<10} {details}".rstrip(), flush=True)


if __name__ == "__main__":
    sys.exit(main())

"""The options of both commands: names, defaults, values, and what a wrong one answers."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import migrate
from migrate.cli import dst, src
from migrate.config import Address, DestinationConfig, RamSpec, SourceConfig

SOURCE = ["--to", "192.0.2.7:4444", "--ram", "/dev/shm/vm"]
DESTINATION = ["--listen", "0.0.0.0:4444"]
RAM = (RamSpec("pc.ram", Path("/dev/shm/vm")),)


def source_config(*options: str) -> SourceConfig:
    return src.make_config(src.build_parser().parse_args([*SOURCE, *options]))


def destination_config(*options: str) -> DestinationConfig:
    return dst.make_config(dst.build_parser().parse_args([*DESTINATION, *options]))


def test_the_option_names_are_the_contract() -> None:
    def options(parser: object) -> set[str]:
        return set(parser._option_string_actions)  # type: ignore[attr-defined]

    both = {"-h", "--help", "--version", "--ram", "--json", "--control", "--metrics", "--report", "--receipt"}
    both |= {
        "--keepalive-timeout",
        "--reconnect-timeout",
        "--state-dir",
        "--arbiter",
        "--tls-dir",
        "--token-file",
    }
    both |= {"--guest-socket"}
    assert options(src.build_parser()) == both | {
        "--to", "--xbzrle-cache-size", "--xbzrle-cache-rule", "--guest-pid", "--pause-cmd", "--resume-cmd",
        "--state-cmd", "--dirty-tracker", "--downtime-limit", "--max-bandwidth", "--switchover-bandwidth",
        "--max-rounds", "--timeout", "--timeout-action", "--source-after", "--verify", "--check",
        "--compression", "--lanes", "--dirty-log", "--guest-qmp", "--warm", "--format", "--checkpoint",
        "--tls-fingerprint", "--tls-hostname", "--throttle",
    }  # fmt: skip
    assert options(dst.build_parser()) == both | {
        "--listen", "--xbzrle-cache-limit", "--on-prepare", "--on-commit", "--once", "--output-dir",
        "--guest-qmp", "--multifd-channels", "--switchover-ack", "--is-running",
        "--tls-allow", "--allow-qemu", "--insecure",
    }  # fmt: skip


def test_the_defaults_of_the_command_line_are_those_of_the_configuration() -> None:
    assert source_config() == SourceConfig(Address("192.0.2.7", 4444), RAM)
    assert destination_config() == DestinationConfig(Address("0.0.0.0", 4444))


@pytest.mark.parametrize(
    ("options", "field", "value"),
    [
        (["--xbzrle-cache-size", "1G"], "xbzrle_cache_size", 1 << 30),
        (["--xbzrle-cache-size", "0"], "xbzrle_cache_size", 0),
        (["--xbzrle-cache-rule", "qemu"], "xbzrle_cache_rule", "qemu"),
        (["--guest-pid", "77"], "guest_pid", 77),
        (["--guest-qmp", "/run/vm.qmp"], "guest_qmp", Path("/run/vm.qmp")),
        (["--pause-cmd", "p", "--resume-cmd", "r"], "pause_cmd", "p"),
        (["--pause-cmd", "p", "--resume-cmd", "r"], "resume_cmd", "r"),
        (["--state-cmd", "s"], "state_cmd", "s"),
        (["--guest-socket", "/s"], "guest_socket", Path("/s")),
        (["--dirty-tracker", "scan"], "dirty_tracker", "scan"),
        (["--downtime-limit", "50"], "downtime_limit_ms", 50),
        (["--max-bandwidth", "100Mbit"], "max_bandwidth", 12_500_000),
        (["--switchover-bandwidth", "200M"], "switchover_bandwidth", 200 << 20),
        (["--max-rounds", "5"], "max_rounds", 5),
        (["--timeout", "1.5"], "timeout", 1.5),
        (["--timeout-action", "pause"], "timeout_action", "pause"),
        (["--guest-pid", "77", "--source-after", "kill"], "source_after", "kill"),
        (["--verify", "full"], "verify", "full"),
        (["--compression", "zlib"], "compression", "zlib"),
        (["--lanes", "16"], "lanes", 16),
        (["--check"], "check", True),
        (["--json"], "json", True),
        (["--keepalive-timeout", "3"], "keepalive_timeout", 3.0),
        (["--reconnect-timeout", "0"], "reconnect_timeout", 0.0),
    ],
)
def test_each_option_of_the_source_sets_its_field(options: list[str], field: str, value: Any) -> None:
    assert getattr(source_config(*options), field) == value


@pytest.mark.parametrize(
    ("options", "field", "value"),
    [
        (["--ram", "/dev/shm/vm"], "ram", RAM),
        (["--ram", "a=/x", "--ram", "b=/y"], "ram", (RamSpec("a", Path("/x")), RamSpec("b", Path("/y")))),
        (["--xbzrle-cache-limit", "0"], "xbzrle_cache_limit", 0),
        (["--on-prepare", "p"], "on_prepare", "p"),
        (["--guest-socket", "/s"], "guest_socket", Path("/s")),
        (["--on-commit", "c"], "on_commit", "c"),
        (["--output-dir", "/d", "--multifd-channels", "8"], "multifd_channels", 8),
        (["--output-dir", "/d", "--switchover-ack"], "switchover_ack", True),
        (["--once"], "once", True),
        (["--json"], "json", True),
        (["--keepalive-timeout", "3"], "keepalive_timeout", 3.0),
        (["--reconnect-timeout", "5"], "reconnect_timeout", 5.0),
    ],
)
def test_each_option_of_the_destination_sets_its_field(options: list[str], field: str, value: Any) -> None:
    assert getattr(destination_config(*options), field) == value


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["--to", "required"]),
        (["--ram", "x"], ["--to", "required", "--control"]),
        (["--ram", "x", "--control", "/x", "--check"], ["--check", "--to"]),
        (["--to", "192.0.2.7:4444"], ["--ram", "required", "--guest-socket"]),
        ([*SOURCE, "--guest-socket", "s", "--guest-pid", "1"], ["--guest-socket", "--guest-pid"]),
        (["--to", "192.0.2.7", "--ram", "x"], ["--to", "HOST:PORT"]),
        ([*SOURCE, "--ram", "b="], ["--ram", "no path"]),
        ([*SOURCE, "--ram", "/other"], ["--ram", "NAME=PATH"]),
        ([*SOURCE, "--xbzrle-cache-size", "lots"], ["--xbzrle-cache-size", "lots", "64M"]),
        ([*SOURCE, "--xbzrle-cache-size", "64"], ["--xbzrle-cache-size", "64M"]),
        ([*SOURCE, "--xbzrle-cache-rule", "lru"], ["--xbzrle-cache-rule", "qemu"]),
        ([*SOURCE, "--guest-pid", "vm"], ["--guest-pid", "'vm'"]),
        ([*SOURCE, "--pause-cmd", "p"], ["--pause-cmd", "--resume-cmd"]),
        (
            [*SOURCE, "--guest-pid", "1", "--pause-cmd", "p", "--resume-cmd", "r"],
            ["--guest-pid", "--pause-cmd"],
        ),
        ([*SOURCE, "--dirty-tracker", "magic"], ["--dirty-tracker", "scan"]),
        ([*SOURCE, "--downtime-limit", "1.5"], ["--downtime-limit", "1.5"]),
        ([*SOURCE, "--max-bandwidth", "fast"], ["--max-bandwidth", "100Mbit"]),
        ([*SOURCE, "--switchover-bandwidth", "-1"], ["--switchover-bandwidth"]),
        ([*SOURCE, "--max-rounds", "0"], ["--max-rounds"]),
        ([*SOURCE, "--timeout", "soon"], ["--timeout", "seconds"]),
        ([*SOURCE, "--timeout", "nan"], ["--timeout"]),
        ([*SOURCE, "--timeout-action", "x"], ["--timeout-action", "pause"]),
        ([*SOURCE, "--source-after", "kill"], ["--source-after", "--guest-pid"]),
        ([*SOURCE, "--verify", "x"], ["--verify", "stream"]),
        ([*SOURCE, "--compression", "x"], ["--compression", "zlib"]),
        ([*SOURCE, "--json", "--lanes", "17"], ["--lanes", "16"]),
        ([*SOURCE, "--json", "--cpus", "2"], ["--cpus"]),
        ([*SOURCE, "--downtime", "5"], ["--downtime 5"]),  # no abbreviations
    ],
)
def test_what_cannot_work_ends_with_2_and_names_the_option(
    arguments: list[str], words: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    assert src.main(arguments) == 2
    out, err = capfd.readouterr()
    text = json.loads(out)["message"] if "--json" in arguments else err
    assert [word for word in words if word not in text] == []


def test_a_usage_error_is_short_and_says_where_help_is(capfd: pytest.CaptureFixture[str]) -> None:
    assert dst.main(["--listen", "::1:4444"]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert err == (
        "migrate-dst: error: --listen: '::1:4444': an IPv6 address goes into brackets, as in [::1]:4444\n"
        "  next: migrate-dst --help lists all options\n"
        "  exit code: 2 (usage)\n"
    )


def test_a_usage_error_is_json_where_json_was_asked_for(capfd: pytest.CaptureFixture[str]) -> None:
    assert src.main([*SOURCE, "--json", "--source-after", "kill"]) == 2
    out, err = capfd.readouterr()
    assert err == ""
    event = json.loads(out)
    assert (event["event"], event["class"], event["exit-code"]) == ("error", "UsageError", 2)
    assert "--source-after" in event["message"]


@pytest.mark.parametrize("program", [src, dst])
def test_help_states_units_and_every_default(program: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        program.main(["--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert "64 MiB" in text
    assert "100Mbit" in text
    for action in program.build_parser()._actions:
        if action.default not in (None, False, [], "==SUPPRESS=="):
            assert f"(default: {action.default})" in re.sub(r"\s+", " ", text), action.option_strings
    assert max(len(line) for line in text.splitlines()) <= 100


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        src.main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"migrate-src {migrate.__version__}\n"


def test_help_loads_nothing_heavy() -> None:
    """So it is quick, and works where the kernel is not built."""
    code = (
        "import sys\nfrom migrate.cli import src, dst\n"
        "src.build_parser().format_help(), dst.build_parser().format_help()\n"
        "print(*(m for m in ('asyncio', 'rich', 'uvloop', 'msgpack', 'migrate.kernel') if m in sys.modules))"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(migrate.__file__).parents[1])}
    output = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert output.stdout == "\n"


def test_every_usage_error_says_what_to_type_next(capsys: pytest.CaptureFixture[str]) -> None:
    assert src.main([*SOURCE, "--lanes", "17"]) == 2
    assert "next: migrate-src --help lists all options" in capsys.readouterr().err


def test_only_a_seldom_meant_command_line_is_warned_about() -> None:
    assert any("--guest-pid" in text for text in src.warnings(source_config()))
    assert src.warnings(source_config("--guest-pid", "1")) == [src.NO_TLS]
    assert src.warnings(source_config("--check", "--tls-dir", "x")) == []
    assert src.warnings(source_config("--check", "--tls-fingerprint", "ab" * 32)) == []
    assert any("--ram" in text for text in dst.warnings(destination_config()))
    assert any("--on-commit" in text for text in dst.warnings(destination_config("--ram", "x")))
    complete = ("--ram", "x", "--on-commit", "true")
    assert dst.warnings(destination_config(*complete)) == [dst.NO_TLS]
    assert dst.warnings(destination_config(*complete, "--tls-dir", "x")) == []

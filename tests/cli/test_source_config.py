"""Configurations: what cannot work is refused when it is made, with the name of the option."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from migrate.config import Address, DestinationConfig, RamSpec, SourceConfig
from migrate.errors import UsageError

TO = Address("192.0.2.7", 4444)
RAM = (RamSpec("pc.ram", Path("/dev/shm/vm")),)


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("192.0.2.7:4444", "192.0.2.7", 4444),
        ("host.example:1", "host.example", 1),
        ("[::1]:65535", "::1", 65535),
        ("[fe80::1%eth0]:4444", "fe80::1%eth0", 4444),
        ("0.0.0.0:0", "0.0.0.0", 0),
    ],
)
def test_an_address_reads_and_writes_itself(text: str, host: str, port: int) -> None:
    address = Address.parse(text)
    assert (address.host, address.port) == (host, port)
    assert str(address) == text


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "is not HOST:PORT"),
        ("host", "is not HOST:PORT"),
        (":4444", "is not HOST:PORT"),
        ("host:", "is not HOST:PORT"),
        ("host:http", "is not HOST:PORT"),
        ("host:-1", "is not HOST:PORT"),
        ("ho st:1", "is not HOST:PORT"),
        ("host:65536", "at most 65535"),
        ("::1:4444", "brackets"),
        ("[::1]", "is not HOST:PORT"),
    ],
)
def test_what_is_no_address_is_refused(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        Address.parse(text)


@pytest.mark.parametrize(
    ("text", "name", "path"),
    [
        ("/dev/shm/vm", "pc.ram", "/dev/shm/vm"),
        ("vm", "pc.ram", "vm"),
        ("dimm0=/dev/shm/vm", "dimm0", "/dev/shm/vm"),
        ("dimm0=a=b", "dimm0", "a=b"),
        ("/dev/shm/a=b", "pc.ram", "/dev/shm/a=b"),
        ("./a=b", "pc.ram", "a=b"),
        ("0000:00:02.0/vga.vram=/dev/shm/vga", "0000:00:02.0/vga.vram", "/dev/shm/vga"),
        ("a/b=../x", "a/b", "../x"),
    ],
)
def test_a_ram_block_is_a_path_or_a_named_path(text: str, name: str, path: str) -> None:
    assert RamSpec.parse(text) == RamSpec(name, Path(path))


@pytest.mark.parametrize("text", ["", "=x", "a="])
def test_an_incomplete_ram_block_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=re.escape(repr(text))):
        RamSpec.parse(text)


def test_the_defaults_are_a_working_configuration() -> None:
    config = SourceConfig(TO, RAM)
    assert config.xbzrle_cache_size == 64 << 20
    assert (config.downtime_limit_ms, config.max_rounds, config.timeout) == (300, 30, 0)
    assert (config.source_after, config.timeout_action, config.verify) == ("keep", "cancel", "ram")
    assert DestinationConfig(TO, RAM).xbzrle_cache_limit == 256 << 20


@pytest.mark.parametrize(
    "fields",
    [
        {"guest_pid": 1234},
        {"guest_pid": 1234, "source_after": "kill"},
        {"guest_qmp": Path("/run/vm.qmp"), "source_after": "kill"},
        {"pause_cmd": "virsh suspend vm", "resume_cmd": "virsh resume vm"},
        {"timeout_action": "pause"},  # without --timeout it acts after --max-rounds
        {"xbzrle_cache_size": 0},
        {"downtime_limit_ms": 0},
        {"reconnect_timeout": 0.0},
        {"ram": (RamSpec("a", Path("/x")), RamSpec("b", Path("/y")))},
        {"page_size": 65536, "lanes": 8},
        {"ram": (), "guest_socket": Path("/s"), "dirty_tracker": "log", "source_after": "kill"},
    ],
)
def test_sources_that_can_work(fields: dict[str, Any]) -> None:
    config = SourceConfig(**{"to": TO, "ram": RAM, **fields})
    assert {name: getattr(config, name) for name in fields} == fields


@pytest.mark.parametrize(
    ("fields", "options"),
    [
        ({"to": Address("host", 0)}, ["--to"]),
        ({"ram": ()}, ["--ram", "--guest-socket"]),
        ({"guest_socket": Path("/s"), "state_cmd": "s"}, ["--guest-socket", "--state-cmd"]),
        ({"guest_socket": Path("/s"), "guest_pid": 1}, ["--guest-socket", "--guest-pid"]),
        ({"ram": (RamSpec("a", Path("/x")), RamSpec("a", Path("/y")))}, ["--ram", "'a'", "2 times"]),
        ({"ram": (RamSpec("a", Path("/x")), RamSpec("b", Path("/x")))}, ["--ram", "/x"]),
        ({"ram": (RamSpec("x" * 256, Path("/x")),)}, ["--ram", "255"]),
        ({"ram": (RamSpec("a\n", Path("/x")),)}, ["--ram", "printable"]),
        ({"guest_pid": 1, "pause_cmd": "p", "resume_cmd": "r"}, ["--guest-pid", "--pause-cmd"]),
        ({"guest_pid": 1, "resume_cmd": "r"}, ["--guest-pid", "--resume-cmd"]),
        ({"guest_pid": 0}, ["--guest-pid"]),
        ({"guest_qmp": Path("q"), "guest_pid": 1}, ["--guest-qmp", "--guest-pid"]),
        ({"guest_qmp": Path("q"), "pause_cmd": "p", "resume_cmd": "r"}, ["--guest-qmp", "--pause-cmd"]),
        ({"guest_qmp": Path("q"), "state_cmd": "s"}, ["--guest-qmp", "--state-cmd"]),
        ({"pause_cmd": "p"}, ["--pause-cmd", "--resume-cmd"]),
        ({"resume_cmd": "r"}, ["--resume-cmd", "--pause-cmd"]),
        ({"pause_cmd": " ", "resume_cmd": "r"}, ["--pause-cmd", "empty"]),
        ({"state_cmd": "a\0b"}, ["--state-cmd", "NUL"]),
        ({"source_after": "kill"}, ["--source-after", "--guest-pid"]),
        ({"source_after": "kill", "pause_cmd": "p", "resume_cmd": "r"}, ["--source-after", "--guest-pid"]),
        ({"source_after": "destroy"}, ["--source-after", "keep, kill"]),
        ({"dirty_tracker": "magic"}, ["--dirty-tracker", "auto, log, wp, wp-inject, scan, stop"]),
        ({"dirty_tracker": "wp-inject"}, ["--dirty-tracker wp-inject", "--guest-pid", "--guest-qmp"]),
        ({"timeout_action": "pray"}, ["--timeout-action"]),
        ({"verify": "none"}, ["--verify"]),
        ({"xbzrle_cache_rule": "lru"}, ["--xbzrle-cache-rule"]),
        ({"compression": "lz77"}, ["--compression", "none, zlib"]),
        ({"xbzrle_cache_size": 64}, ["--xbzrle-cache-size", "64M"]),
        ({"xbzrle_cache_size": -1}, ["--xbzrle-cache-size"]),
        ({"downtime_limit_ms": -1}, ["--downtime-limit"]),
        ({"downtime_limit_ms": 2_000_001}, ["--downtime-limit", "2000000"]),
        ({"max_bandwidth": 100}, ["--max-bandwidth", "100M"]),
        ({"max_bandwidth": -1}, ["--max-bandwidth"]),
        ({"switchover_bandwidth": 1}, ["--switchover-bandwidth"]),
        ({"max_rounds": 0}, ["--max-rounds"]),
        ({"timeout": -1.0}, ["--timeout"]),
        ({"timeout": float("nan")}, ["--timeout"]),
        ({"timeout": float("inf")}, ["--timeout"]),
        ({"keepalive_timeout": 0.0}, ["--keepalive-timeout"]),
        ({"reconnect_timeout": -1.0}, ["--reconnect-timeout"]),
        ({"page_size": 4095}, ["page size"]),
        ({"page_size": 512}, ["page size"]),
        ({"lanes": 0}, ["--lanes", "16"]),
        ({"lanes": 17}, ["--lanes", "16"]),
    ],
)
def test_sources_that_cannot_work_name_their_options(fields: dict[str, Any], options: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        SourceConfig(**{"to": TO, "ram": RAM, **fields})
    assert [option for option in options if option not in caught.value.message] == []


@pytest.mark.parametrize(
    ("fields", "options"),
    [
        ({"ram": (RamSpec("a", Path("/x")), RamSpec("a", Path("/y")))}, ["--ram"]),
        ({"xbzrle_cache_limit": 256}, ["--xbzrle-cache-limit"]),
        ({"ram": (), "guest_qmp": Path("q")}, ["--guest-qmp", "--ram"]),
        ({"output_dir": Path("d"), "guest_qmp": Path("q")}, ["--guest-qmp", "--output-dir"]),
        ({"multifd_channels": 2}, ["--multifd-channels", "--output-dir"]),
        ({"switchover_ack": True}, ["--switchover-ack", "--output-dir"]),
        ({"multifd_channels": 17, "output_dir": Path("/d")}, ["--multifd-channels", "16"]),
        ({"on_prepare": ""}, ["--on-prepare"]),
        ({"on_commit": "\0"}, ["--on-commit"]),
        ({"keepalive_timeout": -1.0}, ["--keepalive-timeout"]),
        ({"reconnect_timeout": float("nan")}, ["--reconnect-timeout"]),
        ({"hook_timeout": 0.0}, ["hook timeout"]),
    ],
)
def test_destinations_that_cannot_work_name_their_options(fields: dict[str, Any], options: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        DestinationConfig(**{"listen": TO, "ram": RAM, **fields})
    assert [option for option in options if option not in caught.value.message] == []


def test_a_log_for_each_block(tmp_path: Path) -> None:
    ram = (*RAM, RamSpec("vga", Path("/dev/shm/vga")))
    logs = tuple(RamSpec(spec.name, tmp_path / spec.name) for spec in reversed(ram))
    for tracker in ("auto", "log"):
        config = SourceConfig(to=TO, ram=ram, dirty_log=logs, dirty_tracker=tracker)
        assert config.dirty_log == logs


@pytest.mark.parametrize(
    ("tracker", "names", "why"),
    [
        ("log", (), "--dirty-tracker log needs --dirty-log"),
        ("wp", ("pc.ram",), "--dirty-log and --dirty-tracker wp exclude each other"),
        ("scan", ("pc.ram",), "--dirty-log and --dirty-tracker scan exclude each other"),
        ("stop", ("pc.ram",), "--dirty-log and --dirty-tracker stop exclude each other"),
        ("auto", ("vga",), "--dirty-log is given for 'vga', --ram for 'pc.ram'"),
        ("log", ("pc.ram", "vga"), "each block needs one log"),
        ("log", ("pc.ram", "pc.ram"), "each block needs one log"),
    ],
)
def test_logs_that_do_not_fit(tracker: Any, names: tuple[str, ...], why: str) -> None:
    logs = tuple(RamSpec(name, Path("/dev/shm/log")) for name in names)
    with pytest.raises(UsageError, match=re.escape(why)):
        SourceConfig(to=TO, ram=RAM, dirty_log=logs, dirty_tracker=tracker)

"""What a migration is asked to do: one frozen record a side, checked when it is made.

Sizes are bytes, rates bytes a second, times seconds unless the name ends in `_ms`. A configuration that
exists has been checked: the constructors raise `UsageError`, which names the option of the command line.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

from migrate.errors import UsageError

DEFAULT_BLOCK_NAME = "pc.ram"
MIB = 1 << 20

CacheRule = Literal["default", "qemu"]
DirtyTrackerName = Literal["auto", "log", "wp", "wp-inject", "scan", "stop"]
TimeoutAction = Literal["cancel", "pause"]
SourceAfter = Literal["keep", "kill"]
VerifyLevel = Literal["stream", "ram", "full"]
Compression = Literal["none", "zlib"]
StreamFormat = Literal["native", "qemu"]

Throttle = int | Literal["auto"]
"""Per cent of the guest's time, 0 for none; or as much as it takes."""

CACHE_RULES: tuple[CacheRule, ...] = ("default", "qemu")
DIRTY_TRACKERS: tuple[DirtyTrackerName, ...] = ("auto", "log", "wp", "wp-inject", "scan", "stop")
TIMEOUT_ACTIONS: tuple[TimeoutAction, ...] = ("cancel", "pause")
SOURCE_AFTERS: tuple[SourceAfter, ...] = ("keep", "kill")
STREAM_FORMATS: tuple[StreamFormat, ...] = ("native", "qemu")
COMPRESSIONS: tuple[Compression, ...] = ("none", "zlib")
VERIFY_LEVELS: tuple[VerifyLevel, ...] = ("stream", "ram", "full")

MOST_LANES = 16
MOST_MULTIFD_CHANNELS = 16
MOST_THROTTLE = 99
LONGEST_DOWNTIME_LIMIT_MS = 2_000_000  # QEMU's range, qemu-ram-stream.md 10.4


@dataclass(frozen=True, slots=True)
class Address:
    """Host name or numeric address, and TCP port."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `HOST:PORT` or `[IPV6]:PORT`. Raises ValueError."""
        match = re.fullmatch(r"(?:\[([0-9A-Za-z:.%_-]+)\]|([^\[\]:\s]+)):(\d{1,5})", text, re.ASCII)
        if match is None:
            if text.count(":") > 1 and "[" not in text:
                raise ValueError(f"{text!r}: an IPv6 address goes into brackets, as in [::1]:4444")
            raise ValueError(f"{text!r} is not HOST:PORT, as in 192.0.2.7:4444 or [2001:db8::7]:4444")
        port = int(match[3])
        if port > 65535:
            raise ValueError(f"{text!r}: a TCP port is at most 65535")
        return cls(match[1] or match[2], port)

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class RamSpec:
    """One RAM block: its name on the wire and the file it lives in here."""

    name: str
    path: Path
    held: bool = False
    """A guest of this library or on a guest socket keeps the file open: it needs no name, nor a mark."""

    @classmethod
    def of_descriptor(cls, name: str, fd: int) -> Self:
        """A block whose file is open in this process, as a memfd; it stays open until the migration ends."""
        return cls(name, Path(f"/proc/self/fd/{fd}"), held=True)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `PATH` (block `pc.ram`) or `NAME=PATH`.

        QEMU's names may hold slashes (`0000:00:02.0/vga.vram`): where a `=` is followed by `/` or `./`, a
        name stands before it; otherwise what begins with `/` or `./` is a path, even with a `=` in it.

        Raises ValueError.
        """
        match = re.fullmatch(r"(.*?)=(\.{0,2}/.*)", text, re.DOTALL)
        if match is not None:
            name, path = match[1], match[2]
        elif "=" in text and not text.startswith(("/", "./", "../")):
            name, _, path = text.partition("=")
        else:
            name, path = DEFAULT_BLOCK_NAME, text
        if not name:
            raise ValueError(f"{text!r}: the block name before '=' is empty")
        if not path:
            raise ValueError(f"{text!r} has no path")
        return cls(name, Path(path))


@dataclass(frozen=True, slots=True)
class SourceConfig:
    """What `migrate-src` is asked to do.

    Raises UsageError when made of values that cannot work (`validate_source`).
    """

    to: Address | None
    """None: the migration is begun over `control`."""
    ram: tuple[RamSpec, ...]
    format: StreamFormat = "native"
    """Of the stream; qemu: a QEMU waits at `to`, not a migrate-dst."""
    checkpoint: Path | None = None
    """A folder that `migrate-dst --output-dir` has written: what is sent, instead of a running guest."""
    xbzrle_cache_size: int = 64 * MIB
    """Data and index of all lanes together; 0: no XBZRLE."""
    xbzrle_cache_rule: CacheRule = "default"
    guest_pid: int | None = None
    guest_socket: Path | None = None
    """Where the guest itself listens (migrate/guest/contract.md); it may offer its RAM, instead of `ram`."""
    pause_cmd: str | None = None
    resume_cmd: str | None = None
    guest_qmp: Path | None = None
    """Unix socket of the monitor of the QEMU whose guest it is."""
    state_cmd: str | None = None
    dirty_tracker: DirtyTrackerName = "auto"
    dirty_log: tuple[RamSpec, ...] = ()
    """For each block the bitmap in which the emulator marks what it wrote; empty: it does not."""
    downtime_limit_ms: int = 300
    max_bandwidth: int = 0
    """0: unlimited."""
    switchover_bandwidth: int = 0
    """The limit while the guest is paused; 0: unlimited."""
    max_rounds: int = 30
    timeout: float = 0.0
    """0: none."""
    timeout_action: TimeoutAction = "cancel"
    """At the timeout or after the last round: give up, or pause the guest and send whatever is left."""
    throttle: Throttle = 0
    """What the guest process loses of its time while the rounds are under way."""
    cpu_throttle_initial: int = 20
    """Of throttle `auto`: the first step, the further ones, and where they end; per cent."""
    cpu_throttle_increment: int = 10
    max_cpu_throttle: int = MOST_THROTTLE
    source_after: SourceAfter = "keep"
    verify: VerifyLevel = "ram"
    warm: bool = False
    """Keep what the destination's RAM files hold, and send only what differs from it."""
    compression: Compression = "none"
    """Of what is left after zero pages and XBZRLE; costs CPU, for slow links."""
    check: bool = False
    json: bool = False
    lanes: int = 1
    page_size: int = 4096
    keepalive_timeout: float = 10.0
    reconnect_timeout: float = 60.0
    """0: a broken connection ends the migration at once."""
    control: Path | None = None
    """Unix socket on which the daemon takes commands."""
    metrics: Address | None = None
    """Where Prometheus may scrape."""
    report: Path | None = None
    """File, or directory, for the report of each run; the commands write it."""
    receipt: Path | None = None
    """File, or directory, for the receipt of each completed move."""
    state_dir: Path | None = None
    """Of the journals; None: the usual one of this user (`migrate.daemon.journal.default_state_dir`)."""
    arbiter: Path | None = None
    """Folder on storage that both hosts see, where it is decided once whose the guest is; None: nowhere."""
    tls_dir: Path | None = None
    """The CA, and our certificate and key; TLS is on with this or `tls_fingerprint`."""
    tls_fingerprint: bytes | None = None
    """SHA-256 of the one certificate that the destination may have; replaces CA and name."""
    tls_hostname: str | None = None
    """The name that the destination's certificate must have, where that is not the host of `to`."""
    token_file: Path | None = None
    """The secret that replaces our certificate."""

    def __post_init__(self) -> None:
        validate_source(self)

    @property
    def tls(self) -> bool:
        """Every connection is made over TLS."""
        return self.tls_dir is not None or self.tls_fingerprint is not None


@dataclass(frozen=True, slots=True)
class DestinationConfig:
    """What `migrate-dst` is asked to do.

    Raises UsageError when made of values that cannot work (`validate_destination`).
    """

    listen: Address
    ram: tuple[RamSpec, ...] = ()
    xbzrle_cache_limit: int = 256 * MIB
    """What a source may ask for at most; 0: no XBZRLE."""
    output_dir: Path | None = None
    """Of a QEMU's stream: RAM blocks without a file in `ram`, device state, statistics."""
    multifd_channels: int = 0
    """Of a QEMU: how many page channels its source has; 0: no multifd."""
    switchover_ack: bool = False
    """Of a QEMU: its source waits for our consent to the switchover."""
    guest_socket: Path | None = None
    """Where the guest to be listens, which takes its state and is let go by the commit."""
    on_prepare: str | None = None
    on_commit: str | None = None
    guest_qmp: Path | None = None
    """Unix socket of the monitor of the QEMU that waits for the guest."""
    once: bool = False
    json: bool = False
    keepalive_timeout: float = 10.0
    reconnect_timeout: float = 60.0
    hook_timeout: float = 60.0
    control: Path | None = None
    """Unix socket on which the daemon takes commands."""
    metrics: Address | None = None
    """Where Prometheus may scrape."""
    report: Path | None = None
    """File, or directory, for the report of each run; the commands write it."""
    receipt: Path | None = None
    """File, or directory, for the receipt of each completed move."""
    state_dir: Path | None = None
    """Of the journals; None: the usual one of this user (`migrate.daemon.journal.default_state_dir`)."""
    arbiter: Path | None = None
    """Folder on storage that both hosts see, where it is decided once whose the guest is; None: nowhere."""
    is_running: str | None = None
    """Status 0: the guest that `on_commit` let go runs. Asked after a crash in the middle of that."""
    tls_dir: Path | None = None
    """Our certificate and key, and the CA of the sources; TLS is on with this."""
    tls_allow: tuple[str, ...] = ()
    """Names, of which a source's certificate must have one; empty: every certificate of the CA will do."""
    token_file: Path | None = None
    """The secret that a source shows instead of a certificate."""
    allow_qemu: bool = False
    """With TLS: take the stream of a QEMU that shows no certificate."""
    insecure: bool = False
    """Without TLS: listen on more than loopback."""

    def __post_init__(self) -> None:
        validate_destination(self)


def validate_source(config: SourceConfig) -> None:
    """Raise UsageError, naming the option, if the values or their combination cannot work."""
    if config.to is None:
        if config.control is None:
            raise UsageError("--to: required, unless --control is there to name the destination later")
        if config.check:
            raise UsageError("--check needs --to: the pre-flight looks at the destination")
    elif config.to.port == 0:
        raise UsageError("--to: port 0 is not a port one can connect to")
    _check_format(config)
    if not config.ram and config.guest_socket is None and config.checkpoint is None:
        raise UsageError("--ram: required, unless the guest offers its RAM itself on --guest-socket")
    _check_blocks(config.ram)
    _check_member("--dirty-tracker", config.dirty_tracker, DIRTY_TRACKERS)
    _check_dirty_log(config)
    _check_member("--timeout-action", config.timeout_action, TIMEOUT_ACTIONS)
    _check_member("--source-after", config.source_after, SOURCE_AFTERS)
    _check_member("--verify", config.verify, VERIFY_LEVELS)
    _check_member("--xbzrle-cache-rule", config.xbzrle_cache_rule, CACHE_RULES)
    _check_member("--compression", config.compression, COMPRESSIONS)
    if not (1024 <= config.page_size <= 65536 and config.page_size.bit_count() == 1):
        raise UsageError(f"page size {config.page_size}: a power of two from 1024 to 65536")
    if not 1 <= config.lanes <= MOST_LANES:
        raise UsageError(f"--lanes {config.lanes}: 1 to {MOST_LANES} are possible")
    _check_cache("--xbzrle-cache-size", config.xbzrle_cache_size, config.page_size)
    _check_guest_control(config)
    if not 0 <= config.downtime_limit_ms <= LONGEST_DOWNTIME_LIMIT_MS:
        raise UsageError(f"--downtime-limit {config.downtime_limit_ms}: 0 to {LONGEST_DOWNTIME_LIMIT_MS} ms")
    _check_bandwidth("--max-bandwidth", config.max_bandwidth, config.page_size)
    _check_bandwidth("--switchover-bandwidth", config.switchover_bandwidth, config.page_size)
    if config.max_rounds < 1:
        raise UsageError(f"--max-rounds {config.max_rounds}: at least 1")
    _check_throttle(config)
    _check_seconds("--timeout", config.timeout, zero_allowed=True)
    _check_seconds("--keepalive-timeout", config.keepalive_timeout)
    _check_seconds("--reconnect-timeout", config.reconnect_timeout, zero_allowed=True)
    _check_source_tls(config)


def validate_destination(config: DestinationConfig) -> None:
    """Raise UsageError, naming the option, if the values or their combination cannot work."""
    _check_blocks(config.ram)
    _check_cache("--xbzrle-cache-limit", config.xbzrle_cache_limit, page_size=1024)
    if config.guest_qmp is not None:
        if not config.ram:
            raise UsageError("--guest-qmp needs --ram: the file that is the waiting QEMU's memory")
        if config.output_dir is not None:
            raise UsageError("--guest-qmp and --output-dir exclude each other: the guest runs, or is stored")
    if not 0 <= config.multifd_channels <= MOST_MULTIFD_CHANNELS:
        raise UsageError(
            f"--multifd-channels {config.multifd_channels}: 0 to {MOST_MULTIFD_CHANNELS} are possible"
        )
    for option, value in (
        ("--multifd-channels", config.multifd_channels),
        ("--switchover-ack", config.switchover_ack),
    ):
        if value and config.output_dir is None:
            raise UsageError(f"{option} needs --output-dir: it is for a QEMU's stream")
    _check_command("--on-prepare", config.on_prepare)
    _check_command("--on-commit", config.on_commit)
    _check_command("--is-running", config.is_running)
    others = (
        ("--guest-qmp", config.guest_qmp),
        ("--on-prepare", config.on_prepare),
        ("--on-commit", config.on_commit),
        ("--output-dir", config.output_dir),
    )
    _check_guest_socket(config.guest_socket, others)
    _check_seconds("--keepalive-timeout", config.keepalive_timeout)
    _check_seconds("--reconnect-timeout", config.reconnect_timeout, zero_allowed=True)
    _check_seconds("hook timeout", config.hook_timeout)
    _check_destination_tls(config)


def _check_blocks(ram: tuple[RamSpec, ...]) -> None:
    for spec in ram:
        if not 1 <= len(spec.name.encode()) <= 255 or not spec.name.isprintable():
            raise UsageError(f"--ram: block name {spec.name!r} must be 1 to 255 printable bytes")
    name, count = Counter(spec.name for spec in ram).most_common(1)[0] if ram else ("", 0)
    if count > 1:
        raise UsageError(
            f"--ram: block {name!r} is given {count} times; several blocks are --ram NAME=PATH each"
        )
    path, count = Counter(spec.path for spec in ram).most_common(1)[0] if ram else (Path(), 0)
    if count > 1:
        raise UsageError(f"--ram: {path} is given for {count} blocks; every block has a file of its own")


def _check_format(config: SourceConfig) -> None:
    """A QEMU knows nothing of what our own protocol has; a checkpoint is no guest."""
    _check_member("--format", config.format, STREAM_FORMATS)
    if config.checkpoint is not None and config.format != "qemu":
        raise UsageError("--checkpoint needs --format qemu: only a QEMU can load the devices in it")
    if config.format == "native":
        return
    if config.checkpoint is None:
        raise UsageError(
            "--format qemu needs --checkpoint: a folder that migrate-dst --output-dir has written"
        )
    not_there: tuple[tuple[str, object], ...] = (
        ("--check", config.check),
        ("--control", config.control),
        ("--receipt", config.receipt),
        ("--warm", config.warm),
        ("--lanes", config.lanes > 1),
        ("--compression", config.compression != "none"),
        ("--tls-dir", config.tls_dir),
        ("--tls-fingerprint", config.tls_fingerprint),
        ("--arbiter", config.arbiter),
    )
    no_guest: tuple[tuple[str, object], ...] = (
        ("--guest-pid", config.guest_pid),
        ("--guest-qmp", config.guest_qmp),
        ("--guest-socket", config.guest_socket),
        ("--pause-cmd", config.pause_cmd),
        ("--state-cmd", config.state_cmd),
        ("--dirty-log", config.dirty_log),
    )
    for option, value in not_there:
        if value:
            raise UsageError(
                f"{option} and --format qemu exclude each other: QEMU's protocol has no such thing"
            )
    for option, value in no_guest:
        if value:
            raise UsageError(f"{option} and --checkpoint exclude each other: a checkpoint does not run")


def _check_dirty_log(config: SourceConfig) -> None:
    logs, blocks = sorted(spec.name for spec in config.dirty_log), sorted(spec.name for spec in config.ram)
    if not logs:
        if config.dirty_tracker == "log" and config.guest_socket is None:
            raise UsageError("--dirty-tracker log needs --dirty-log: the bitmap that the emulator sets")
        return
    if config.dirty_tracker not in ("auto", "log"):
        raise UsageError(f"--dirty-log and --dirty-tracker {config.dirty_tracker} exclude each other")
    if logs != blocks:
        raise UsageError(
            f"--dirty-log is given for {', '.join(map(repr, logs))}, --ram for"
            f" {', '.join(map(repr, blocks))}: each block needs one log, --dirty-log NAME=PATH"
        )


def parse_throttle(text: str) -> Throttle:
    """Read `auto`, `off` or `30%`. Raises ValueError."""
    if text == "auto":
        return "auto"
    if text == "off":
        return 0
    match = re.fullmatch(r"(\d{1,3})%?", text, re.ASCII)
    if match is None:
        raise ValueError(f"{text!r} is not auto, off or a percentage, as in 30%")
    return int(match[1])


def format_throttle(throttle: Throttle) -> str:
    """The text that `parse_throttle` reads."""
    if throttle == "auto":
        return "auto"
    return f"{throttle}%" if throttle else "off"


def _check_throttle(config: SourceConfig) -> None:
    if config.throttle != "auto" and not 0 <= config.throttle <= MOST_THROTTLE:
        raise UsageError(f"--throttle {config.throttle}%: at most {MOST_THROTTLE}%")
    if config.throttle and config.guest_pid is None:
        raise UsageError("--throttle needs --guest-pid: it says which process to hold back")
    steps = (config.cpu_throttle_initial, config.cpu_throttle_increment, config.max_cpu_throttle)
    if not all(1 <= step <= MOST_THROTTLE for step in steps) or steps[0] > steps[2]:
        raise UsageError(
            f"cpu-throttle-initial {steps[0]}, cpu-throttle-increment {steps[1]}, max-cpu-throttle"
            f" {steps[2]}: 1 to {MOST_THROTTLE} per cent each, and the first not above the last"
        )


def _check_guest_control(config: SourceConfig) -> None:
    for option, command in (
        ("--pause-cmd", config.pause_cmd),
        ("--resume-cmd", config.resume_cmd),
        ("--state-cmd", config.state_cmd),
    ):
        _check_command(option, command)
    if config.guest_qmp is not None:
        for option, value in (
            ("--guest-pid", config.guest_pid),
            ("--pause-cmd", config.pause_cmd),
            ("--resume-cmd", config.resume_cmd),
            ("--state-cmd", config.state_cmd),
        ):
            if value is not None:
                raise UsageError(f"--guest-qmp and {option} exclude each other: QEMU does that by itself")
    if config.guest_pid is not None:
        if config.guest_pid < 1:
            raise UsageError(f"--guest-pid {config.guest_pid} is not a process id")
        if config.pause_cmd is not None or config.resume_cmd is not None:
            option = "--pause-cmd" if config.pause_cmd is not None else "--resume-cmd"
            raise UsageError(
                f"--guest-pid and {option} exclude each other: choose one way to pause the guest"
            )
    others = (
        ("--guest-pid", config.guest_pid),
        ("--guest-qmp", config.guest_qmp),
        ("--pause-cmd", config.pause_cmd),
        ("--resume-cmd", config.resume_cmd),
        ("--state-cmd", config.state_cmd),
    )
    _check_guest_socket(config.guest_socket, others)
    if config.pause_cmd is not None and config.resume_cmd is None:
        raise UsageError(
            "--pause-cmd needs --resume-cmd: a failed migration must be able to resume the guest"
        )
    if config.resume_cmd is not None and config.pause_cmd is None:
        raise UsageError("--resume-cmd needs --pause-cmd")
    known = (config.guest_pid, config.guest_qmp, config.guest_socket)
    if config.dirty_tracker == "wp-inject" and all(way is None for way in known):
        raise UsageError(
            "--dirty-tracker wp-inject needs --guest-pid, --guest-qmp or --guest-socket: whose writes to find"
        )
    if config.source_after == "kill" and all(way is None for way in known):
        raise UsageError(
            "--source-after kill needs --guest-pid, --guest-qmp or --guest-socket: they say whom to end"
        )


def _check_guest_socket(path: Path | None, others: tuple[tuple[str, object], ...]) -> None:
    for option, value in others:
        if path is not None and value is not None:
            raise UsageError(f"--guest-socket and {option} exclude each other: the guest does that by itself")


def parse_fingerprint(text: str) -> bytes:
    """Read a SHA-256 in hex, as `openssl x509 -fingerprint -sha256` prints it. Raises ValueError."""
    digits = text.rpartition("=")[2].replace(":", "").strip()
    if not re.fullmatch(r"[0-9A-Fa-f]{64}", digits, re.ASCII):
        raise ValueError(f"{text!r} is not a SHA-256 fingerprint: 64 hex digits, with or without colons")
    return bytes.fromhex(digits)


def _check_source_tls(config: SourceConfig) -> None:
    if config.token_file is not None and not config.tls:
        raise UsageError(
            "--token-file needs --tls-dir (with ca-cert.pem) or --tls-fingerprint: a token is shown only to a"
            " destination whose certificate was verified"
        )
    if config.tls_hostname is not None:
        if config.tls_dir is None:
            raise UsageError("--tls-hostname needs --tls-dir: it is compared with a certificate of that CA")
        if config.tls_fingerprint is not None:
            raise UsageError("--tls-hostname and --tls-fingerprint exclude each other: the latter is exact")


def _check_destination_tls(config: DestinationConfig) -> None:
    if config.tls_dir is None:
        for option, given in (
            ("--tls-allow", config.tls_allow),
            ("--token-file", config.token_file is not None),
            ("--allow-qemu", config.allow_qemu),
        ):
            if given:
                raise UsageError(f"{option} needs --tls-dir, with server-cert.pem and server-key.pem")
    elif config.insecure:
        raise UsageError("--insecure and --tls-dir exclude each other: with TLS nothing else is taken")
    if config.tls_allow and config.token_file is not None:
        raise UsageError("--tls-allow and --token-file exclude each other: a token replaces certificates")
    if not all(name.strip() for name in config.tls_allow):
        raise UsageError("--tls-allow: the name is empty")


def _check_command(option: str, command: str | None) -> None:
    if command is not None and not command.strip():
        raise UsageError(f"{option}: the command is empty")
    if command is not None and "\0" in command:
        raise UsageError(f"{option}: the command has a NUL byte in it")


def _check_member(option: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise UsageError(f"{option} {value}: choose one of {', '.join(allowed)}")


def _check_cache(option: str, size: int, page_size: int) -> None:
    if size < 0:
        raise UsageError(f"{option} {size}: 0 (no XBZRLE) or more")
    if 0 < size < 2 * page_size:  # `64` typed for `64M`
        raise UsageError(f"{option}: {size} bytes cannot hold a page; 64M is 64 MiB, 0 turns XBZRLE off")


def _check_bandwidth(option: str, rate: int, page_size: int) -> None:
    if rate < 0:
        raise UsageError(f"{option} {rate}: 0 (unlimited) or more")
    if 0 < rate < page_size:  # `100` typed for `100M`
        raise UsageError(
            f"{option}: {rate} bytes a second is less than a page; 100M is 100 MiB/s, 0 is unlimited"
        )


def _check_seconds(option: str, value: float, *, zero_allowed: bool = False) -> None:
    if not math.isfinite(value) or value < 0 or (value == 0 and not zero_allowed):
        least = "0 or more" if zero_allowed else "more than 0"
        raise UsageError(f"{option} {value:g}: seconds, {least}")

"""Every message on the control connection, and when it is said (how it is framed: frames.py).

source                                        destination
                            ←──────────────── welcome (over TLS only; see token.py)
token-proof ───────────────────────────────→  if it asks for one
hello ─────────────────────────────────────→
                            ←──────────────── accept | reject
                            ←──────────────── digests …, of what the destination holds, if that was wished for
(lane) lane-open ──────────────────────────→
(lane) batches ════════════════════════════→
                            ←──────────────── ack, per batch, once it is in RAM
lane-broken ───────────────────────────────→  either side found a lane unusable;
                            ←──────────────── lane-reset names the last sequence applied
cache-resize ──────────────────────────────→  another size for the page caches, while it runs
                            ←──────────────── cache-agreed | cache-refused; each lane announces it by a batch
state-blob … prepare ──────────────────────→
                            ←──────────────── prepared | refused | unequal, digests …
resumed ───────────────────────────────────→  (the pause was given up, precopy goes on)
commit ────────────────────────────────────→
                            ←──────────────── running | start-failed | verdict: declined
settled ───────────────────────────────────→  the outcome is in the source's journal
                            ←──────────────── forgotten: the destination's journal is gone

question ──────────────────────────────────→  instead of a hello, after a break in the handover
                            ←──────────────── verdict: what the journal says | running | start-failed
(then commit or settled as above)

ping ⇄ pong, cancel, failed: either side, at any time
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from migrate.config import MOST_LANES
from migrate.protocol.schema import (
    U8,
    U16,
    U32,
    U64,
    Id16,
    Message,
    Name,
    Range,
    Secret,
    Text,
    message,
)

PROTOCOL_VERSION = 1
MAX_BLOCKS = 64
MAX_LANES = MOST_LANES
MAX_BLOB_BYTES = 64 << 20
MAX_BLOBS = 64
MAX_STATE_BYTES = 256 << 20
CHUNK_BYTES = 512 << 10

Sum = Annotated[bytes, Range(16, 16)]
Word = Annotated[str, Range(1, 32)]
PageSize = Annotated[int, Range(1024, 65536)]


@dataclass(frozen=True)
class Block:
    """A RAM block of the source."""

    name: Name
    length: U64


@dataclass(frozen=True)
class LanePosition:
    """How far a lane was applied: (epoch, sequence)."""

    epoch: U32
    sequence: U64


@dataclass(frozen=True)
class Blob:
    """A piece of opaque device state; its bytes came in state-blob messages before."""

    name: Annotated[str, Range(1, 64)]
    length: Annotated[int, Range(0, MAX_BLOB_BYTES)]
    sha256: Annotated[bytes, Range(32, 32)]


@dataclass(frozen=True)
class QemuMachine:
    """What two QEMUs must have in common for one to load the other's devices."""

    machine: Name
    """Machine type, with its version where it has one: pc-i440fx-7.2."""
    accelerator: Word


@message("welcome")
@dataclass(frozen=True)
class Welcome(Message):
    """First word over TLS, control connection: the destination is content with the certificate, if any."""

    nonce: Secret
    token: bool
    """It wants a proof of the token next."""


@message("token-proof")
@dataclass(frozen=True)
class TokenProof(Message):
    """The source knows the token (token.py)."""

    nonce: Secret
    proof: Secret


@message("hello")
@dataclass(frozen=True)
class Hello(Message):
    """What the source has and wants. Attempt n+1 of a migration ends its attempt n."""

    versions: Annotated[list[U8], Range(1, 16)]
    migration: Id16
    attempt: U32
    resume: bool
    check: bool
    software: Annotated[str, Range(0, 64)]
    page_size: PageSize
    blocks: Annotated[list[Block], Range(1, MAX_BLOCKS)]
    data_bytes: U64
    """Bytes of RAM that are not holes: what the destination needs room for."""
    cache_bytes: U64
    cache_rule: Word
    lanes: Annotated[int, Range(1, MAX_LANES)]
    codec: Word
    verify: Word
    digest_seed: Secret
    warm: bool = False
    """Keep what the RAM files hold, and send its digests: only what differs is to be sent."""
    qemu: Annotated[list[QemuMachine], Range(0, 1)] = field(default_factory=list)
    """The QEMU whose guest this is and whose devices come with `prepare`; none for other guests."""
    arbiter: bool = False
    """Nobody starts the guest, or takes it back undecided, without the arbiter's word."""


@message("accept")
@dataclass(frozen=True)
class Accept(Message):
    """The agreed values; on a resumed attempt also how far each lane came."""

    version: U8
    software: Annotated[str, Range(0, 64)]
    cache_bytes: U64
    cache_rule: Word
    lanes: Annotated[int, Range(1, MAX_LANES)]
    codec: Word
    verify: Word
    secret: Secret
    positions: Annotated[list[LanePosition], Range(0, MAX_LANES)]
    free_bytes: U64
    warm: bool = False
    """The digests of what the RAM files hold follow, numbered with the attempt; otherwise they hold zeros."""


@message("reject")
@dataclass(frozen=True)
class Reject(Message):
    """Why not, and which option to change on which side."""

    reason: Text
    option: Text
    side: Word
    anew: bool = False
    """There is nothing to resume here, since this daemon is another one: a hello that begins would do."""


@message("lane-open")
@dataclass(frozen=True)
class LaneOpen(Message):
    """First and only frame of a lane connection."""

    migration: Id16
    attempt: U32
    lane: U16
    epoch: U32
    secret: Secret


@message("ack")
@dataclass(frozen=True)
class Ack(Message):
    """Everything up to this batch is in RAM, its digests recorded."""

    lane: U16
    epoch: U32
    sequence: U64


@message("lane-broken")
@dataclass(frozen=True)
class LaneBroken(Message):
    """The source cannot use this epoch of the lane any more; it waits for lane-reset."""

    lane: U16
    epoch: U32
    reason: Text


@message("lane-reset")
@dataclass(frozen=True)
class LaneReset(Message):
    """The destination has ended this epoch; batches after `sequence` were not applied."""

    lane: U16
    epoch: U32
    sequence: U64
    reason: Text


@message("cache-resize")
@dataclass(frozen=True)
class CacheResize(Message):
    """The source wants page caches of this size, all lanes together. Asked again after a reconnect."""

    number: U32
    cache_bytes: U64


@message("cache-agreed")
@dataclass(frozen=True)
class CacheAgreed(Message):
    """The destination has the memory; each lane goes over when its batch of kind cache-resize comes."""

    number: U32


@message("cache-refused")
@dataclass(frozen=True)
class CacheRefused(Message):
    """The caches stay as they are; why, and which option to change on which side."""

    number: U32
    reason: Text
    option: Text
    side: Word


@message("state-blob")
@dataclass(frozen=True)
class StateBlob(Message):
    """A chunk of device state, in order."""

    name: Annotated[str, Range(1, 64)]
    data: Annotated[bytes, Range(0, CHUNK_BYTES)]


@message("prepare")
@dataclass(frozen=True)
class Prepare(Message):
    """The guest is stopped; this is all. `number` counts the pauses of this migration."""

    number: U32
    root: Sum
    positions: Annotated[list[LanePosition], Range(1, MAX_LANES)]
    blobs: Annotated[list[Blob], Range(0, MAX_BLOBS)]


@message("prepared")
@dataclass(frozen=True)
class Prepared(Message):
    """RAM is equal to the root, the hook was content; the guest may be committed."""

    number: U32
    root: Sum
    verify_seconds_us: U64
    """Time for verification at the destination, microseconds."""
    command_us: U64


@message("refused")
@dataclass(frozen=True)
class Refused(Message):
    """The destination cannot take the guest; the source resumes it."""

    number: U32
    reason: Text


@message("unequal")
@dataclass(frozen=True)
class Unequal(Message):
    """The roots differ; the digests of the whole page space follow in `digests` messages."""

    number: U32
    root: Sum


@message("digests")
@dataclass(frozen=True)
class Digests(Message):
    """16 bytes a page, from page `first` on, in order."""

    number: U32
    """Of the pause that they answer, or of the attempt at whose beginning they stand."""
    first: U64
    data: Annotated[bytes, Range(16, CHUNK_BYTES)]
    last: bool


@message("resumed")
@dataclass(frozen=True)
class Resumed(Message):
    """The source runs the guest again; the destination forgets pause `number` and waits for lanes."""

    number: U32
    repair: bool
    """The source has the digests of that pause and sends again what differs."""
    reason: Text


@message("commit")
@dataclass(frozen=True)
class Commit(Message):
    """From its first byte on, the source does not resume the guest."""

    migration: Id16
    attempt: U32
    root: Sum


@message("running")
@dataclass(frozen=True)
class Running(Message):
    """The guest is the destination's. The on-commit command ended well."""

    command_us: U64


@message("start-failed")
@dataclass(frozen=True)
class StartFailed(Message):
    """The on-commit command failed; nobody knows whether the guest runs."""

    reason: Text


@message("question")
@dataclass(frozen=True)
class Question(Message):
    """How far is the handover of that pause? Opens a connection instead of a hello."""

    migration: Id16
    number: U32
    root: Sum


@message("verdict")
@dataclass(frozen=True)
class Verdict(Message):
    """What the destination's journal says of the pause of that number."""

    number: U32
    step: Word
    """`prepared`, `declined` or `starting` (journal_record.Step); `unknown`: there is no journal of it;
    `busy`: another program has it open, ask again."""
    reason: Text


@message("settled")
@dataclass(frozen=True)
class Settled(Message):
    """The source's journal says where the guest runs: the destination's is not needed any more."""

    migration: Id16
    runs_there: bool
    """At the source, that is."""


@message("forgotten")
@dataclass(frozen=True)
class Forgotten(Message):
    """The destination's journal of that migration is removed."""

    migration: Id16


@message("ping")
@dataclass(frozen=True)
class Ping(Message):
    """Asks for a pong; keeps the connection visibly alive."""

    number: U32


@message("pong")
@dataclass(frozen=True)
class Pong(Message):
    """Answer to the ping of that number."""

    number: U32


@message("cancel")
@dataclass(frozen=True)
class Cancel(Message):
    """The sender ends the migration on purpose."""

    reason: Text


@message("failed")
@dataclass(frozen=True)
class Failed(Message):
    """The sender cannot go on. `exit_code` is that of its error class (errors.py)."""

    exit_code: U8
    reason: Text

"""What a journal means, for a person: whose the guest is, and what to type."""

from __future__ import annotations

from dataclasses import dataclass

from migrate.cli.plain_text import printable
from migrate.daemon.journal import FoundJournal
from migrate.protocol.journal_record import JournalRecord, Step


@dataclass(frozen=True, slots=True)
class Meaning:
    """One journal in words."""

    owner: str
    """`source`, `destination`, or `undecided`."""
    sentence: str
    next: str
    """What to type; empty: nothing."""


_SOURCE = "migrate-src recover"
_THERE = "with migrate-dst listening here: `migrate-src recover` at the source"

_BUSY: dict[Step, tuple[str, str]] = {
    Step.MOVING: ("source", "the guest runs here; its migration to {peer} is under way"),
    Step.PAUSING: (
        "source",
        "the guest is this host's, paused by its migration to {peer}, which is under way",
    ),
    Step.COMMITTED: ("undecided", "the guest is just being handed over to {peer}"),
    Step.TAKEN_BACK: ("source", "{peer} has declined the guest; it is just being resumed here"),
    Step.RECEIVING: ("source", "the guest is the source's; its RAM is just being received"),
    Step.PREPARED: ("undecided", "the guest is ready here; its source is just deciding"),
    Step.STARTING: ("destination", "the guest is this host's, and is just being started"),
}
_LEFT: dict[Step, tuple[str, str, str]] = {
    Step.MOVING: (
        "source",
        "the guest runs here; its migration to {peer} was killed before any pause",
        _SOURCE,
    ),
    Step.PAUSING: (
        "source",
        "the guest is this host's, and stands still: its migration to {peer} was killed in the pause",
        _SOURCE,
    ),
    Step.COMMITTED: (
        "undecided",
        "the guest was given to {peer}, which has not confirmed it: it is stopped here and may run there",
        _SOURCE,
    ),
    Step.TAKEN_BACK: (
        "source",
        "{peer} has declined the guest: it is this host's, and may still stand still",
        _SOURCE,
    ),
    Step.RESUMED: (
        "source",
        "the guest runs here, as {peer} has declined it, which is still to be told that this is known",
        _SOURCE,
    ),
    Step.DONE: (
        "destination",
        "the guest runs at {peer}, which is still to be told that this is known; what stands here is a copy",
        _SOURCE,
    ),
    Step.RECEIVING: (
        "source",
        "the guest is the source's; receiving its RAM was broken off, and the next migration tidies up",
        "",
    ),
    Step.PREPARED: (
        "undecided",
        "the guest is ready here and was never started; its source ({peer}) may have given it away, or not",
        f"{_THERE}; or `migrate-dst recover` here, which gives it back to the source for ever",
    ),
    Step.DECLINED: (
        "source",
        "the guest is the source's and never starts here; kept for the source, which may still ask",
        "",
    ),
    Step.STARTING: (
        "destination",
        "the guest is this host's; whether it was started is not known",
        "migrate-dst recover --is-running CMD --on-commit CMD",
    ),
    Step.RUNNING: (
        "destination",
        "the guest runs here; its source ({peer}) has not said yet that it knows",
        _THERE,
    ),
}


def meaning(found: FoundJournal) -> Meaning:
    """Whose the guest is by this journal."""
    record = found.record
    if record is None:
        return Meaning(
            "undecided", f"{found.path}: {printable(found.problem)}", "ask the other side's status"
        )
    if found.in_use and record.step in _BUSY:
        owner, text = _BUSY[record.step]
        return Meaning(owner, _fill(text, record), "")
    owner, text, action = _LEFT[record.step]
    if found.in_use:
        action = ""
    elif action.endswith("recover"):
        action = f"{action} --state-dir {found.path.parent}"
    return Meaning(owner, _fill(text, record), action)


def _fill(text: str, record: JournalRecord) -> str:
    return text.format(peer=printable(record.peer or "the other side"))


def status_json(found: FoundJournal) -> dict[str, object]:
    """The journal and what it means, as JSON."""
    words = meaning(found)
    shown: dict[str, object] = {
        "path": str(found.path),
        "in-use": found.in_use,
        "owner": words.owner,
        "sentence": words.sentence,
        "next": words.next,
    }
    record = found.record
    if record is not None:
        shown |= {
            "side": record.side,
            "migration": record.migration,
            "step": record.step.value,
            "peer": record.peer,
            "pause": record.number,
            "ram": [place.path or place.name for place in record.ram],
        }
        if record.guest is not None and record.guest.pid:
            shown["guest-pid"] = record.guest.pid
    return shown

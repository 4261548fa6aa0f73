"""The handover at the source: what its journal says before each step, and what may be done then.

    moving ──pause──→ pausing ──commit──→ committed ──running──→ done ──forgotten──→ (no journal)
      ↑                  │                    │ declined
      └────release───────┘                    └→ taken-back ──resumed──→ resumed ──forgotten──→ (no journal)

The rules (design 4, Handover): `pausing` is on disk before the guest is stopped, so that whoever finds the
journal resumes it. Up to there a release is always allowed. `committed` is on disk before the first byte of
the commit leaves; from then on only a destination that says `declined` gives the guest back, and that is on
disk before it is resumed. Where there is an arbiter its word does instead, if the destination cannot be
asked: it gives the guest to one side only, and the destination starts nothing without it. A write that fails
leaves the question to the next reader of the journal.

One machine for the daemon while it lives and for `recover` after it: the latter makes it from the record.
Inputs are the methods; outputs are orders, in the order in which they are to be carried out: a `Step` is to
be written to the journal (→ `journalled`), an `Order` is to be done.
"""

from __future__ import annotations

from enum import Enum

from migrate.errors import UsageError
from migrate.protocol.journal_record import Step


class Order(Enum):
    """What the owner of a source's handover has to do."""

    PAUSE = "stop the guest"
    PAUSE_FAILED = "give the pause up: it could not be journalled"
    RESUME = "let the guest run"
    COMMIT = "send the commit"
    ASK = "send the question how far the destination is"
    CLAIM = "ask the arbiter for the guest (→ claimed)"
    HANDED_OVER = "the guest runs at the destination"
    LET_GO = "nothing more is to be written about the guest here: it may be ended"
    UNDECIDED = "end; the guest stays stopped"
    SETTLE = "tell the destination that the outcome is on disk here"
    UNSETTLED = "end; the journal stays for `recover`"
    FORGET = "remove the journal: both sides know"


class SourceHandover:
    """The handover of one migration at the source; see the module's text.

    Args:
        step: what the journal says; after `moving` somebody else's work is taken up.
    """

    def __init__(self, step: Step = Step.MOVING) -> None:
        self.step = step
        """What the journal says, as far as is known."""
        self.reason = ""
        """Why it is undecided, or was taken back."""
        self._writing: tuple[Step, ...] = ()
        self._wants_pause = False
        self._linked = step is Step.MOVING
        self._greeted = step is Step.MOVING
        """The connection began with a hello, so that a commit is understood on it."""
        self._asked = False
        """On this connection: an answer may come."""
        self._declined = False
        """The destination has said so while `committed` was still being written."""
        self._orders: list[Step | Order] = []

    def take_orders(self) -> list[Step | Order]:
        """What is to be done now, in order."""
        taken, self._orders = self._orders, []
        return taken

    @property
    def may_release(self) -> bool:
        """The guest may be let run without asking anybody."""
        return self.step in (Step.MOVING, Step.PAUSING) and Step.COMMITTED not in self._writing

    # --- the guest --------------------------------------------------------------------------------

    def pause(self) -> None:
        """The guest is to be stopped."""
        if not self.may_release:
            raise AssertionError(f"a pause after {self.step.value}")
        self._wants_pause = True
        self._write(Step.PAUSING)

    def release(self) -> None:
        """The pause is given up, or somebody left the guest paused: it runs on here."""
        if not self.may_release:
            raise AssertionError(f"the guest may not be resumed after {self.step.value}")
        self._wants_pause = False
        self._orders.append(Order.RESUME)

    def resumed(self) -> None:
        """The guest runs here again."""
        if self.step is Step.TAKEN_BACK:
            self._write(Step.RESUMED)
        elif self.step is Step.PAUSING or Step.PAUSING in self._writing:
            self._write(Step.MOVING)

    def commit(self) -> None:
        """Everything is proved and prepared: the guest becomes the destination's."""
        if self.step is not Step.PAUSING or self._writing:
            raise AssertionError(f"a commit after {self.step.value}")
        self._write(Step.COMMITTED)

    def recover(self) -> None:
        """Take up what a journal says whose writer is gone; questions follow once there is a `link`."""
        if self.step is Step.PAUSING:
            self.release()
        elif self.step is Step.TAKEN_BACK:
            self._orders.append(Order.RESUME)

    def force(self, step: Step) -> None:
        """A person knows better than the rules: `taken-back` or `done` follow `committed`.

        Raises UsageError: the journal says something else.
        """
        if self.step is not Step.COMMITTED or step not in (Step.TAKEN_BACK, Step.DONE):
            raise UsageError(f"the journal says {self.step.value!r}: that needs no force")
        self._write(step)

    # --- the journal ------------------------------------------------------------------------------

    def journalled(self, step: Step, ok: bool) -> None:
        """That step is on disk, or could not be written: then either record may be there."""
        first, *rest = self._writing
        if first is not step:
            raise AssertionError(f"{step.value} was journalled before {first.value}")
        self._writing = tuple(rest)
        if ok:
            self.step = step
        match step:
            case Step.PAUSING:
                if self._wants_pause:
                    self._orders.append(Order.PAUSE if ok else Order.PAUSE_FAILED)
            case Step.COMMITTED:
                if self._declined:
                    self._write(Step.TAKEN_BACK)
                elif ok:
                    self._decided()
                else:
                    self.step = step  # perhaps: it is never resumed on the strength of what is in memory
                    self._undecided("the journal could not be written")
            case Step.TAKEN_BACK:
                if ok:
                    self._orders.append(Order.RESUME)
                else:
                    self._undecided("the journal could not be written")
            case Step.DONE:
                self._orders.append(Order.LET_GO)
                self._tell(ok)
            case Step.RESUMED:
                self._tell(ok)

    def _decided(self) -> None:
        if self._linked and self._greeted:
            self._asked = True
            self._orders.append(Order.COMMIT)
        else:
            self._ask()

    def _tell(self, ok: bool) -> None:
        if not ok or not self._linked:
            self._orders.append(Order.UNSETTLED)
        elif self._asked:
            self._orders.append(Order.SETTLE)
        else:
            self._ask()

    # --- the connection ---------------------------------------------------------------------------

    def link(self) -> None:
        """There is a new connection, on which nothing was said yet."""
        self._linked, self._greeted, self._asked = True, False, False
        if not self._writing:
            self._ask()

    def unlink(self) -> None:
        """The connection is gone."""
        self._linked = self._asked = False

    def _ask(self) -> None:
        if self._linked and self.step in (Step.COMMITTED, Step.DONE, Step.RESUMED):
            self._asked = True
            self._orders.append(Order.ASK)

    # --- answers; False: no such answer may come now ------------------------------------------------

    def running(self) -> bool:
        """The guest runs at the destination."""
        if not self._asked:
            return False
        if self.step is Step.COMMITTED and not self._writing:
            self._orders.append(Order.HANDED_OVER)
            self._write(Step.DONE)
        elif self.step is Step.DONE:
            self._orders.append(Order.SETTLE)
        elif self.step is Step.RESUMED:
            self._undecided("it runs at both sides")
        return True

    def start_failed(self, reason: str) -> bool:
        """The destination tried, and does not know."""
        if not self._asked:
            return False
        if self.step is Step.COMMITTED and not self._writing:
            self._undecided(reason)
        return True

    def verdict(self, step: Step | None, reason: str) -> bool:
        """What the destination's journal says; None: it has none of this migration."""
        if Step.COMMITTED in self._writing and step is Step.DECLINED:
            self._declined, self.reason = True, reason  # unasked: it does not know yet that it is too late
            return True
        if not self._asked:
            return False
        if self._writing:
            return True
        if self.step is Step.COMMITTED:
            self._verdict_of_commit(step, reason)
        elif step is None:
            self._orders.append(Order.FORGET)  # it knew that this side knew
        elif self.step is Step.RESUMED and step in (Step.DECLINED, Step.PREPARED):
            self._orders.append(Order.SETTLE)
        elif self.step is Step.DONE and step is Step.STARTING:
            pass  # it could not write `running`, looks again, and says so then
        else:
            self._undecided(f"the journal here says {self.step.value}, there it says {step.value}")
        return True

    def _verdict_of_commit(self, step: Step | None, reason: str) -> None:
        match step:
            case Step.PREPARED:
                self._orders.append(Order.COMMIT)
            case Step.STARTING:
                pass  # it says later what came of it
            case Step.DECLINED:
                self.reason = reason
                self._write(Step.TAKEN_BACK)
            case _:
                self._undecided(reason)

    def forgotten(self) -> bool:
        """The destination has removed its journal."""
        if not self._asked or self.step not in (Step.DONE, Step.RESUMED):
            return False
        self._orders.append(Order.FORGET)
        return True

    # --- the arbiter ------------------------------------------------------------------------------

    def unanswered(self) -> None:
        """The destination cannot be asked, or does not know; there is an arbiter."""
        self.unlink()
        if self.step is Step.COMMITTED and not self._writing:
            self._orders.append(Order.CLAIM)

    def claimed(self, won: bool | None, reason: str) -> None:
        """What the arbiter says; None: nothing."""
        if won:
            self.reason = "the arbiter gave the guest to the source"
            self._write(Step.TAKEN_BACK)
        elif won is None:
            self._undecided(reason)
        else:
            self._undecided(
                "the arbiter gave the guest to the destination, which does not say whether it runs"
            )

    def _undecided(self, reason: str) -> None:
        self.reason = reason
        self._orders.append(Order.UNDECIDED)

    def _write(self, step: Step) -> None:
        self._writing += (step,)
        self._orders.append(step)

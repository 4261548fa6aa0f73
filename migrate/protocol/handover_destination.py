"""The handover at the destination: what its journal says before each step, and what may be done then.

    receiving ──prepare──→ prepared ──commit──→ starting ──started──→ running ──settled──→ (no journal)
                    ↑         │ void
                    └─ declined ──settled──→ (no journal)

The rules (design 4, Handover): `prepared` is on disk before the source hears of it; from then on the source
may have committed. `declined` and `starting` are both final for a pause and both on disk before anything is
done on their strength: nobody is told of `declined` before, and no command runs before `starting`. It never
starts by itself: `prepared` becomes `starting` by a commit only, and where there is an arbiter only if that,
asked before, says that the guest is this side's. A record of another boot starts nothing: with the boot went
the guest that was prepared, and what of its RAM was in memory.

One machine for the daemon while it lives and for whoever finds its journal afterwards. Inputs are the
methods; outputs are orders in their order: a `Step` is to be written (→ `journalled`), an `Order` to be done.
"""

from __future__ import annotations

from enum import Enum

from migrate.errors import UsageError
from migrate.protocol.journal_record import Step

_FORCED = {Step.PREPARED: (Step.STARTING,), Step.STARTING: (Step.RUNNING, Step.DECLINED)}


class Order(Enum):
    """What the owner of a destination's handover has to do."""

    PREPARED = "the source may commit: tell it"
    REFUSE = "refuse the pause: it could not be journalled"
    DECLINED = "the pause is declined for ever"
    DECLINE_FAILED = "nobody knows whether it is declined: say nothing"
    CLAIM = "ask the arbiter for the guest (→ claimed)"
    START = "let the guest go (→ started)"
    LOOK = "find out whether the guest runs (→ looked)"
    SAY_STEP = "answer with what the journal says"
    SAY_RUNNING = "say that the guest runs"
    SAY_START_FAILED = "say that nobody knows whether it runs"
    FORGET = "remove the journal, then say so"


class DestinationHandover:
    """The handover of one migration at the destination; see the module's text.

    Args:
        step: what the journal says; after `receiving` somebody else's work is taken up.
        same_boot: the journal was written in this boot of the host.
        arbiter: nothing is started without its word.
    """

    def __init__(self, step: Step = Step.RECEIVING, same_boot: bool = True, *, arbiter: bool = False) -> None:
        self.step = step
        """What the journal says, as far as is known."""
        self.reason = ""
        """Why it is declined, or could not be started."""
        self._same_boot = same_boot
        self._arbiter = arbiter
        self._claiming = False
        self._writing: tuple[Step, ...] = ()
        self._owes_answer = False
        self._settles = False
        self._in_work = False
        """Somebody looks, or starts the guest."""
        self._orders: list[Step | Order] = []

    def take_orders(self) -> list[Step | Order]:
        """What is to be done now, in order."""
        taken, self._orders = self._orders, []
        return taken

    @property
    def promised(self) -> bool:
        """The source may have been told that this side is prepared, and has not heard otherwise."""
        return (self.step, *self._writing)[-1] is Step.PREPARED

    # --- the pause --------------------------------------------------------------------------------

    def prepare(self) -> None:
        """RAM is proved, the guest built: promise to start it on a commit."""
        if (self.step, *self._writing)[-1] not in (Step.RECEIVING, Step.DECLINED):
            raise AssertionError(f"prepared after {self.step.value}")
        self._write(Step.PREPARED)

    def void(self, reason: str) -> None:
        """Take a promise back, if there is one."""
        if self.promised:
            self.reason = reason
            self._write(Step.DECLINED)

    def commit(self) -> bool:
        """The source has decided. False: there is nothing here that it could commit."""
        if self._writing or self._claiming:
            self._owes_answer = True
        elif self.step is Step.PREPARED and self._same_boot:
            self._claiming = self._arbiter
            if self._arbiter:
                self._orders.append(Order.CLAIM)
            else:
                self._write(Step.STARTING)
        elif self.step is Step.RECEIVING:
            return False
        else:
            self._answer()
        return True

    def claimed(self, won: bool | None, reason: str) -> None:
        """What the arbiter says; None: nothing, so nobody starts, and the next commit asks again."""
        self._claiming = False
        if not self.promised:
            return  # it was given up meanwhile
        if won:
            self._write(Step.STARTING)
        elif won is None:
            self.reason = reason
            self._orders.append(Order.SAY_START_FAILED)
        else:
            self._owes_answer = True
            self.void("the source has taken the guest back by the arbiter's word")

    def started(self, reason: str | None) -> None:
        """The guest was let go, or why not."""
        self._in_work = False
        if reason is None:
            self._write(Step.RUNNING)
        else:
            self.reason = reason
            self._orders.append(Order.SAY_START_FAILED)

    def force(self, step: Step) -> None:
        """A person knows better than the rules.

        `starting` from `prepared`: the source is gone for ever; `running` or `declined` from `starting`:
        somebody has looked.

        Raises UsageError: the journal says something else.
        """
        if step not in _FORCED.get(self.step, ()):
            raise UsageError(f"the journal says {self.step.value!r}: that cannot be forced from there")
        self._write(step)

    # --- the journal ------------------------------------------------------------------------------

    def journalled(self, step: Step, ok: bool) -> None:
        """That step is on disk, or could not be written: then either record may be there."""
        first, *rest = self._writing
        if first is not step:
            raise AssertionError(f"{step.value} was journalled before {first.value}")
        self._writing = tuple(rest)
        if ok or step in (Step.STARTING, Step.RUNNING):
            self.step = step
        match step:
            case Step.PREPARED:
                if not self._writing:  # not voided meanwhile
                    self._orders.append(Order.PREPARED if ok else Order.REFUSE)
            case Step.STARTING:
                if ok:
                    self._in_work = True
                    self._orders.append(Order.START)
                else:
                    self.reason = "the journal could not be written"
                    self._orders.append(Order.SAY_START_FAILED)
            case Step.RUNNING:  # it runs, whatever the disk says
                self._orders.append(Order.SAY_RUNNING)
            case Step.DECLINED:
                self._orders.append(Order.DECLINED if ok else Order.DECLINE_FAILED)
                if ok and self._settles:
                    self._orders.append(Order.FORGET)
        if self._owes_answer and not self._writing and not self._settles:
            self._owes_answer = False
            if ok and step is not Step.RUNNING:  # that was said
                self._orders.append(Order.SAY_STEP)

    # --- questions --------------------------------------------------------------------------------

    def asked(self) -> None:
        """The source asks how far this side is."""
        if self._writing:
            self._owes_answer = True
        else:
            self._answer()

    def recover(self) -> None:
        """Take up what a journal says whose writer is gone, without the source: decline, or look."""
        if self.step is Step.STARTING:
            self._look()
        else:
            self.void("a person gave it back with `migrate-dst recover`")

    def looked(self, running: bool | None) -> None:
        """What was found; None: there is no way to find out."""
        self._in_work = False
        if running:
            self._write(Step.RUNNING)
        elif running is False and self._same_boot:
            self._in_work = True
            self._orders.append(Order.START)
        else:
            self.reason = (
                "what was prepared has gone: the host or the guest's program was started anew"
                if running is False
                else "there is no way to find out whether the guest runs, such as --is-running"
            )
            self._orders.append(Order.SAY_START_FAILED)

    def settled(self, runs_there: bool) -> bool:
        """The source has on disk where the guest runs. False: that cannot be."""
        if self._writing or self._in_work:
            return False
        if self.step is (Step.DECLINED if runs_there else Step.RUNNING):
            self._orders.append(Order.FORGET)
        elif runs_there and self.step is Step.PREPARED:
            self._settles = True
            self.void("the source has taken the guest back by force")
        else:
            return False
        return True

    def _answer(self) -> None:
        if self.step is Step.RUNNING:
            self._orders.append(Order.SAY_RUNNING)
        elif self.step is Step.STARTING:
            self._orders.append(Order.SAY_STEP)
            self._look()
        elif self.step is Step.PREPARED and not self._same_boot:
            self._owes_answer = True
            self.void("what was prepared has gone: the host or the guest's program was started anew")
        else:
            self._orders.append(Order.SAY_STEP)

    def _look(self) -> None:
        if not self._in_work:
            self._in_work = True
            self._orders.append(Order.LOOK)

    def _write(self, step: Step) -> None:
        self._writing += (step,)
        self._orders.append(step)

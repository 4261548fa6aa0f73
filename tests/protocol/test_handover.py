"""Single steps of the two handovers that the model reaches but does not look at one by one (tests/model)."""

from __future__ import annotations

from migrate.protocol.handover_destination import DestinationHandover
from migrate.protocol.handover_destination import Order as There
from migrate.protocol.handover_source import Order as Here
from migrate.protocol.handover_source import SourceHandover
from migrate.protocol.journal_record import Step


def test_what_another_boot_prepared_is_never_started() -> None:
    """Not even if it could not be declined, and the source commits all the same."""
    handover = DestinationHandover(Step.PREPARED, same_boot=False)
    handover.asked()
    assert handover.take_orders() == [Step.DECLINED]
    handover.journalled(Step.DECLINED, ok=False)
    assert handover.take_orders() == [There.DECLINE_FAILED]
    assert handover.commit()
    assert handover.take_orders() == [Step.DECLINED]
    handover.journalled(Step.DECLINED, ok=True)
    assert handover.take_orders() == [There.DECLINED, There.SAY_STEP]


def test_a_source_that_is_done_waits_for_a_destination_that_looks_again() -> None:
    """It could not write `running` and was killed: its journal says `starting` still."""
    handover = SourceHandover(Step.DONE)
    handover.recover()
    handover.link()
    assert handover.take_orders() == [Here.ASK]
    assert handover.verdict(Step.STARTING, "")
    assert handover.take_orders() == []
    assert handover.running()
    assert handover.take_orders() == [Here.SETTLE]

"""Claims: what an agent is told when it asks whether it may run a task."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from coditect import Retry
from coditect.agent.suspects import killed_its_process
from dispatcher.store.memory import MemoryDatabase
from tests.unit.dispatcher.ledger import Ledger, completed, failed
from tests.unit.dispatcher.test_turn import claim_of, one_node


@pytest.fixture
async def ledger() -> AsyncIterator[Ledger]:
    async with MemoryDatabase() as database:
        yield await Ledger.open(database)


async def test_claim_that_is_asked_twice_is_granted_alike(ledger: Ledger) -> None:
    await ledger.start(one_node())
    (publication,) = ledger.published
    await claim_of(ledger, publication, "a-1")
    granted = await claim_of(ledger, publication, "b-2")

    again = await claim_of(ledger, publication, "b-2")
    await ledger.turn(ledger.finished(publication, completed("late")))

    assert (again, granted.attempt, granted.fence) == (granted, 2, 3)
    assert ledger.seen[-1].late == 1


async def test_suspect_that_is_tried_again_is_published_as_one(ledger: Ledger) -> None:
    await ledger.start(one_node(retry=Retry(max_attempts=3, first="1s", cap="1s")))
    (publication,) = ledger.published
    await claim_of(ledger, publication, "a-1")
    claim = await claim_of(ledger, publication, "b-2")
    died = replace(failed(retryable=True), attempt=claim.attempt)
    await ledger.turn(replace(ledger.finished(publication, died), fence=claim.fence))
    await ledger.pass_time(10)

    again = ledger.published[-1].task

    assert (publication.task.errors, again.attempt, killed_its_process(again)) == ((), 3, True)

"""What ends by a limit of time says by whose clock the limit passed."""

from __future__ import annotations

import pytest

from dispatcher.ledger.nodes.inputs import FAILURE, value_of
from tests.unit.dispatcher.ledger.nodes.test_limits import PLACE, expired, start
from tests.unit.dispatcher.lone_ledger import Ledger


@pytest.mark.parametrize("limit", ["start_within", "deadline"])
@pytest.mark.parametrize("doubt", ["", "this machine's clock is 3600 s ahead of the registry's"])
async def test_what_ends_by_a_limit_says_by_whose_clock(ledger: Ledger, limit: str, doubt: str) -> None:
    ledger.doubt = doubt
    await start(ledger, **{limit: "10s"})
    await ledger.pass_time(12)

    said = (await ledger.database.read(lambda tr: value_of(tr, PLACE, FAILURE)))["message"]

    assert said.endswith(f" by its dispatcher's clock; {doubt}" if doubt else " by its dispatcher's clock")


@pytest.mark.parametrize("limit", ["start_within", "deadline"])
async def test_what_an_agent_ends_by_a_limit_says_what_the_agent_said(ledger: Ledger, limit: str) -> None:
    publication = await start(ledger, **{limit: "10s"})

    await ledger.batch(ledger.finished(publication, expired()))

    said = (await ledger.database.read(lambda tr: value_of(tr, PLACE, FAILURE)))["message"]
    assert said.endswith(f"{limit}: too late")

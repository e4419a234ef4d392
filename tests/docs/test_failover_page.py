"""The numbers of the failover page are those of the code."""

from __future__ import annotations

from types import ModuleType

import pytest

from coditect.agent import heartbeat
from coditect.broker.rabbitmq import connection as link
from coditect.registry import port
from dispatcher.liveness import eviction, monitor, ping
from tests.docs.pages import section, table_rows
from tests.servers import ROOT

PAGE = ROOT / "docs" / "failover.md"
MODULES: dict[str, ModuleType] = {
    module.__name__.rpartition(".")[2]: module for module in (port, heartbeat, monitor, ping, eviction)
}
ROWS = [row for row in table_rows(section(PAGE, "The monitor")) if row[0].startswith("`")]


@pytest.mark.parametrize(("name", "seconds"), [(row[0].strip("`"), float(row[1])) for row in ROWS])
def test_a_constant_is_that_of_the_code(name: str, seconds: float) -> None:
    module, _, constant = name.partition(".")

    assert getattr(MODULES[module], constant) == seconds


def test_the_promise_follows_from_the_constants() -> None:
    looked_at = port.LEASE_SECONDS - monitor.EARLY_PING_SECONDS + monitor.FLEET_CHECK_SECONDS
    proven = max(port.LEASE_SECONDS, looked_at + ping.PONG_SECONDS)

    assert len(ROWS) == 12
    assert proven < 5 - 1, "a second is left for eviction and delivery"


def test_the_promise_for_who_is_cut_off_from_the_broker_alone_follows_from_them() -> None:
    told = link.CONNECTION_CHECK_SECONDS + link.QUIET_SECONDS + link.PROBE_ANSWER_SECONDS + port.BEAT_SECONDS

    assert told + monitor.FLEET_CHECK_SECONDS + monitor.RELIEF_SECONDS < 5 - 0.9, (
        "the rest is left for eviction and delivery"
    )

"""A broker whose Raft has failed is told from one that works, and from one that is gone."""

from __future__ import annotations

from pathlib import Path
from uuid import uuid4

import pytest

from coditect.local import PrivateServers
from tests.broken_broker import Watched, raft_is_broken
from tests.servers import Broker

pytestmark = [pytest.mark.servers, pytest.mark.proof]
FAILED = "supervisor:terminate_child(ra_systems_sup, quorum_queues)."
STARTED_WITHOUT_ITS_QUEUES = "supervisor:restart_child(ra_systems_sup, quorum_queues)."
NO_DEAD_LETTERS = "supervisor:terminate_child(rabbit_sup, rabbit_fifo_dlx_sup)."


async def test_raft_that_failed_is_told_from_a_broker_that_works_or_is_gone(
    breakable: Broker, own_servers: PrivateServers
) -> None:
    broker = Watched("", own_servers.amqp_url, Path("rabbitmq.log"), f"probe-{uuid4().hex}")
    try:
        assert not await raft_is_broken(broker)
        await breakable.evaluate(FAILED)
        assert await raft_is_broken(broker)
        await breakable.evaluate(STARTED_WITHOUT_ITS_QUEUES)
        assert await raft_is_broken(broker)
    finally:
        await own_servers.kill_broker()
    assert not await raft_is_broken(broker), "it is gone"


async def test_broker_that_no_longer_dead_letters_is_told_from_one_that_works(
    breakable: Broker, own_servers: PrivateServers
) -> None:
    broker = Watched("", own_servers.amqp_url, Path("rabbitmq.log"), f"probe-{uuid4().hex}")
    try:
        assert not await raft_is_broken(broker)
        await breakable.evaluate(NO_DEAD_LETTERS)
        assert await raft_is_broken(broker)
    finally:
        await own_servers.kill_broker()

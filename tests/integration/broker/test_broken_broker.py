"""A broker that has failed by itself is told from one that works, and from one that is gone or stopped."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import pytest

from coditect.local import PrivateServers
from tests import broken_broker
from tests.broken_broker import Watched, is_broken
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
        assert not await is_broken(broker)
        await breakable.evaluate(FAILED)
        assert await is_broken(broker)
        await breakable.evaluate(STARTED_WITHOUT_ITS_QUEUES)
        assert await is_broken(broker)
    finally:
        await own_servers.kill_broker()
    assert not await is_broken(broker), "it is gone"


async def test_broker_that_no_longer_dead_letters_is_told_from_one_that_works(
    breakable: Broker, own_servers: PrivateServers
) -> None:
    broker = Watched("", own_servers.amqp_url, Path("rabbitmq.log"), f"probe-{uuid4().hex}")
    try:
        assert not await is_broken(broker)
        await breakable.evaluate(NO_DEAD_LETTERS)
        assert await is_broken(broker)
    finally:
        await own_servers.kill_broker()


async def test_broker_that_hangs_is_broken_unless_a_test_may_have_stopped_it(
    breakable: Broker, own_servers: PrivateServers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(broken_broker, "PROBE_SECONDS", 0.5)
    broker = Watched("", own_servers.amqp_url, Path("rabbitmq.log"), f"probe-{uuid4().hex}")
    os.kill(breakable.pid, signal.SIGSTOP)
    try:
        assert await is_broken(broker)
        assert not await is_broken(replace(broker, queue=None))
    finally:
        os.kill(breakable.pid, signal.SIGCONT)

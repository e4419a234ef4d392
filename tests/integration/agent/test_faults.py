"""Processes and servers killed with -9 in the middle of work: nothing is lost, little is repeated."""

from __future__ import annotations

import asyncio
import os
import signal
from collections import Counter

import pytest

from coditect.model.capability import Priority
from coditect.registry.port import Search
from coditect.registry.redis import RedisRegistry
from coditect.wire import routing
from tests.integration.agent.fleet import Fleet, client_of, submitted, unanswered
from tests.support import eventually

pytestmark = [pytest.mark.servers, pytest.mark.slow]


async def test_agent_killed_amid_work_loses_nothing(fleet: Fleet, wire: str) -> None:
    doomed = await fleet.start(CODITECT_WIRE=wire)
    await fleet.start(CODITECT_WIRE=wire)
    async with client_of(fleet.servers, wire=wire) as client:
        handles = await submitted(client, 600)
        await eventually(lambda: len(fleet.noted("end")) > 150)

        doomed.kill()
        unanswered_then = set(fleet.noted("start")) - {str(one.task_id) for one in handles if one.done}
        missing = await unanswered(handles)

        assert missing == []
        repeated = {task for task, times in Counter(fleet.noted("start")).items() if times > 1} - unanswered_then
        assert len(repeated) <= client._requests.strays.value, "a stray had ended and was not acked"
        assert client._requests.strays.value <= 16, "slots of the killed agent"
        assert set(fleet.noted("end")) == {str(one.task_id) for one in handles}


async def test_agents_that_ask_each_other_survive_the_death_of_one(fleet: Fleet) -> None:
    doomed = await fleet.start(CODITECT_SLOTS="4")
    await fleet.start(CODITECT_SLOTS="4")
    async with client_of(fleet.servers) as client:
        handles = await submitted(client, 120, capability="work.ask")
        await eventually(lambda: len(fleet.noted("end")) > 60)

        doomed.kill()

        assert await unanswered(handles) == []


async def test_broker_killed_amid_work_loses_nothing(fleet: Fleet) -> None:
    await fleet.start()
    await fleet.start()
    async with client_of(fleet.servers) as client:
        handles = await submitted(client, 600)
        await eventually(lambda: len(fleet.noted("end")) > 150)

        await fleet.servers.kill_broker()
        in_flight = fleet.in_flight()
        await fleet.servers.start_broker()
        missing = await unanswered(handles)

        assert missing == []
        assert fleet.repeated() <= in_flight + 32, "what had ended and was not acked is answered from memory"
        more = await submitted(client, 50)
        assert await unanswered(more) == [], "consumers and publishers work again"


async def test_redis_killed_and_wiped_holds_up_nothing(fleet: Fleet) -> None:
    await fleet.start()
    async with client_of(fleet.servers) as client, RedisRegistry(fleet.servers.redis_url) as registry:
        handles = await submitted(client, 300)
        await eventually(lambda: len(fleet.noted("end")) > 50)

        await fleet.servers.kill_redis()
        during = await submitted(client, 50)
        assert await unanswered(handles + during) == []
        await fleet.servers.start_redis()
        await registry._redis.flushall()  # wiped: its disk was lost, too

        async def back() -> bool:
            return len(await registry.find(Search())) == 1

        await eventually(back)
        assert fleet.repeated() == 0


async def test_queue_deleted_under_its_consumer_is_consumed_again(fleet: Fleet) -> None:
    await fleet.start()
    async with client_of(fleet.servers) as client:
        assert await unanswered(await submitted(client, 5)) == []

        await client._broker.delete_queue(routing.task_queue("work.do", Priority.P1))

        async def answers() -> bool:
            try:
                return await unanswered(await submitted(client, 1), seconds=2) == []
            except Exception:  # noqa: BLE001 - unroutable until the agent declared it again
                return False

        await eventually(answers)


async def test_frozen_broker_is_waited_for(fleet: Fleet) -> None:
    await fleet.start()
    broker = fleet.servers.processes["rabbitmq"].pid
    async with client_of(fleet.servers) as client:
        handles = await submitted(client, 400)
        await eventually(lambda: len(fleet.noted("end")) > 50)

        os.kill(broker, signal.SIGSTOP)
        await asyncio.sleep(10)  # the fault itself: two heartbeats long
        os.kill(broker, signal.SIGCONT)

        assert await unanswered(handles) == []
        assert await unanswered(await submitted(client, 20)) == []


async def test_sigterm_finishes_what_runs_and_returns_the_rest(fleet: Fleet) -> None:
    leaving, _ = await fleet.start(), await fleet.start()
    async with client_of(fleet.servers) as client:
        handles = await submitted(client, 400)
        await eventually(lambda: len(fleet.noted("end")) > 30 and fleet.running(leaving) > 0)

        leaving.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(leaving.wait, 20) == 0

        assert await unanswered(handles) == []
        assert fleet.repeated() == 0

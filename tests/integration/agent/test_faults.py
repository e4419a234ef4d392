"""Processes and servers killed with -9 in the middle of work: nothing is lost, little is repeated."""

from __future__ import annotations

from collections import Counter

import pytest

from coditect.registry.port import Search
from coditect.registry.redis import RedisRegistry
from tests.integration.agent.fleet import Fleet, client_of, submitted, unanswered
from tests.support import eventually

pytestmark = [pytest.mark.servers, pytest.mark.proof]


async def test_agent_killed_amid_work_loses_nothing(fleet: Fleet) -> None:
    doomed = await fleet.start()
    await fleet.start()
    async with client_of(fleet.servers) as client:
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

"""Locks of handlers and clients of a whole fleet."""

from __future__ import annotations

import asyncio
from typing import Any, Unpack, cast

import pytest

from coditect import Agent, Context, Retry
from coditect.broker.port import Delivery
from coditect.broker.topology import Binding, Queue, Topology
from coditect.collaboration.locks import Lock, LockTerms
from coditect.errors import ControlPlaneRequired, Deadlock, InputError, LockLost, LockTaken, SetupError
from coditect.model.message import Message
from coditect.testing import TestFleet
from coditect.wire import routing
from coditect.wire.control import ANY, VERB, Verb
from dispatcher.shards import publishing
from tests.unit.dispatcher.test_restarted_broker import LastingFleet

worker = Agent("worker", slots=1)
held: dict[str, asyncio.Event] = {}


@worker.capability("cross", retry=1)
async def cross(order: list[str], ctx: Context) -> list[str]:
    first, second = order
    async with ctx.lock(first):
        held[first].set()
        await held[second].wait()
        async with ctx.lock(second):
            return order


@worker.capability("write", retry=1)
async def write(seconds: float, ctx: Context) -> int:
    async with ctx.lock("repo:x") as lock:
        await asyncio.sleep(seconds)
        return lock.fence


@worker.capability("busy")
async def busy(seconds: float) -> None:
    await asyncio.sleep(seconds)


@worker.capability("free")
async def free(_: None) -> str:
    return "ran"


@worker.capability("stall")
async def stall(_: None, ctx: Context) -> str:
    try:
        async with ctx.lock("repo:x"):
            await asyncio.sleep(3600)
    except LockLost as error:
        return str(error.facts["reason"])
    return "kept"


@worker.capability("hoard")
async def hoard(_: None, ctx: Context) -> None:
    async with ctx.lock("repo:x", ttl="1h"):
        await asyncio.sleep(3600)


async def test_locks_in_opposite_order_end_with_a_deadlock_for_the_youngest_while_the_other_finishes() -> None:
    async with TestFleet(agents=[worker], replicas=2) as fleet:
        held.update(x=asyncio.Event(), y=asyncio.Event())
        handles = [await fleet.submit("cross", order) for order in (["x", "y"], ["y", "x"])]

        begun = fleet.elapsed_seconds
        outcomes = [await handle.outcome(timeout="1m") for handle in handles]

    failed = [one.failure for one in outcomes if one.failure is not None]
    assert [failure.type for failure in failed] == ["Deadlock"]
    assert "waits for x" in failed[0].message
    assert "waits for y" in failed[0].message
    assert fleet.elapsed_seconds - begun < 1


async def test_a_handler_that_waits_for_a_lock_holds_no_slot() -> None:
    async with TestFleet(agents=[worker]) as fleet:
        async with fleet.client.lock("repo:x") as lock:
            waiting = await fleet.submit("write", 0)
            await fleet.advance("1s")
            assert await fleet.request("free", timeout="1s") == "ran"

        assert await waiting.result(int) > lock.fence


async def test_writers_take_turns_in_order_and_their_fences_grow() -> None:
    async with TestFleet(agents=[worker], replicas=3) as fleet:
        handles = [await fleet.submit("write", 5) for _ in range(3)]
        fences = [await handle.result(int) for handle in handles]
        took = fleet.elapsed_seconds

    assert len(set(fences)) == 3
    assert 15 <= took < 16


async def test_a_killed_holder_is_followed_and_one_that_is_released_by_force_is_told_why() -> None:
    async with TestFleet(agents=[worker], replicas=2) as fleet:
        stalled = await fleet.submit("stall")
        await fleet.advance("1s")
        (row,) = [row async for row in fleet.client.locks.list("repo:x")]

        assert await fleet.client.locks.release_all("repo:x", reason="it hangs") == 1
        reason = await stalled.result(str)
        again = await fleet.submit("stall")
        await fleet.advance("1s")
        (second,) = [row async for row in fleet.client.locks.list("repo:x")]
        fleet.kill(second.agent)
        async with fleet.client.lock("repo:x", timeout="30s") as lock:
            waited = fleet.elapsed_seconds

        assert reason == "it hangs"
        assert lock.fence > second.fence > row.fence
        assert waited < 20
        await again.cancel()


async def test_the_locks_of_an_agent_that_is_gone_are_released_with_its_eviction_before_their_time() -> None:
    async with TestFleet(agents=[worker]) as fleet:
        await fleet.submit("hoard")
        await fleet.advance("1s")
        (row,) = [row async for row in fleet.client.locks.list("repo:x")]

        fleet.kill(row.agent)
        begun = fleet.elapsed_seconds
        async with fleet.client.lock("repo:x"):
            assert fleet.elapsed_seconds - begun < 10


async def test_client_that_does_not_wait_or_waits_in_vain_is_told_and_leaves_nothing() -> None:
    async with TestFleet(agents=[worker]) as fleet, fleet.client.lock("a", "b"):
        for more in ({"wait": False}, {"timeout": "5s"}):
            with pytest.raises(LockTaken):
                await asyncio.create_task(fleet.client.lock("b", **more).__aenter__())

        with pytest.raises(Deadlock):
            await fleet.client.lock("b").__aenter__()

        rows = [(row.resource, row.state) async for row in fleet.client.locks.list()]

    assert rows == [("a", "held"), ("b", "held")]


async def test_readers_share_a_lock_and_asyncio_tasks_of_one_client_are_flows_of_their_own() -> None:
    async with TestFleet(agents=[worker]) as fleet:

        async def turn(mode: str) -> float:
            async with fleet.client.lock("x", mode=mode):
                await asyncio.sleep(10)
            return fleet.elapsed_seconds

        readers = await asyncio.gather(*(turn("shared") for _ in range(5)))
        writers = await asyncio.gather(*(turn("exclusive") for _ in range(3)))

    assert max(readers) < 11
    assert 40 <= max(writers) < 42


async def test_a_lock_is_kept_over_a_restart_of_the_dispatcher_and_over_many_ttls() -> None:
    async with LastingFleet(agents=[worker]) as fleet, fleet.client.lock("x", ttl="20s") as lock:
        await fleet.advance("1m")
        fleet.kill("dispatcher")
        await fleet.restart("dispatcher")
        await fleet.advance("1m")
        rows = [row.fence async for row in fleet.client.locks.list("x")]

    assert rows == [lock.fence]


@pytest.mark.parametrize(("ttl", "seconds"), [("9s", 3), ("1m", 5), ("1h", 5)])
async def test_a_grant_whose_message_is_lost_is_found_by_the_next_renewal(
    monkeypatch: pytest.MonkeyPatch, ttl: str, seconds: float
) -> None:
    async def lost(*_: object) -> None:
        return None

    monkeypatch.setattr(publishing, "send_message", lost)
    async with TestFleet(agents=[worker]) as fleet:
        async with fleet.client.lock("x"):
            waiting = asyncio.create_task(fleet.client.lock("x", ttl=ttl).__aenter__())
            await fleet.advance("4s")
        released = fleet.elapsed_seconds
        lock = await waiting

        assert 0 < fleet.elapsed_seconds - released <= seconds
        await lock.__aexit__(None, None, None)


async def test_leaders_follow_one_another_with_growing_terms() -> None:
    terms: list[int] = []
    async with TestFleet(agents=[worker]) as fleet:

        async def lead() -> None:
            async with fleet.client.elect("billing") as term:
                (row,) = [row async for row in fleet.client.locks.list("leader:billing") if row.state == "held"]
                assert row.fence == term.fence
                terms.append(term.fence)
                await asyncio.sleep(1)

        await asyncio.gather(*(lead() for _ in range(4)))

    assert terms == sorted(set(terms))
    assert len(terms) == 4


@pytest.mark.parametrize(
    ("resources", "more"),
    [((), {}), (("",), {}), (("x",), {"mode": "odd"}), (("x",), {"ttl": "1ms"}), (("x",), {"wait": 1})],
)
async def test_what_is_no_lock_is_refused_by_name(resources: tuple[str, ...], more: dict[str, Any]) -> None:
    async with TestFleet() as fleet:
        with pytest.raises(InputError) as caught:
            fleet.client.lock(*resources, **more)

    assert caught.value.facts["parameter"]


async def test_a_fence_is_known_only_of_a_held_lock_and_a_lock_needs_a_control_plane() -> None:
    async with TestFleet() as fleet:
        with pytest.raises(SetupError):
            _ = fleet.client.lock("x").fence
        for process in fleet.processes:
            fleet.kill(process.id)
        with pytest.raises(ControlPlaneRequired):
            await fleet.client.lock("x").__aenter__()


async def test_attempt_that_finds_no_dispatcher_is_tried_again_and_completes_when_one_is_there() -> None:
    patient, attempts = Agent("patient"), list[int]()

    @patient.capability("under.lock", retry=Retry(max_attempts=5, first="5s"))
    async def under_lock(_: None, ctx: Context) -> int:
        attempts.append(ctx.attempt)
        async with ctx.lock("repo:x"):
            return ctx.attempt

    async with TestFleet(agents=[patient]) as fleet:
        fleet.kill("dispatcher")
        handle = await fleet.submit("under.lock")
        while len(attempts) < 2:
            await fleet.advance("1s")
        await fleet.restart("dispatcher")

        assert await handle.result(int, timeout="2m") == attempts[-1] > 1


class LosingPort:
    """A control plane that grants each lock, and has lost it when it is to be renewed."""

    def __init__(self) -> None:
        self.released: list[str] = []

    async def acquire_lock(self, resources: list[str], **terms: Unpack[LockTerms]) -> dict[str, Any]:
        return {"ticket": resources[0], "fence": 1, "valid_until": asyncio.get_running_loop().time() + 60}

    async def keep_lock(self, ticket: str, *, after_seconds: float) -> dict[str, Any]:
        return {"state": "gone", "reason": "by force"}

    async def release_lock(self, ticket: str) -> None:
        self.released.append(ticket)


async def test_lock_that_was_lost_is_given_back_so_that_nothing_of_it_is_kept() -> None:
    port = LosingPort()

    with pytest.raises(LockLost, match="by force"):
        async with Lock(port, ("x",), mode="exclusive", wait=True, timeout_seconds=None, ttl_seconds=60):
            await asyncio.Event().wait()

    assert port.released == ["x"]


async def test_renewal_of_a_lock_that_is_released_meanwhile_says_that_it_is_gone_and_keeps_nothing() -> None:
    async with TestFleet() as fleet:
        port = fleet.client._lock_port
        terms = fleet.client.lock("repo:x", ttl="60s").terms("")
        ticket = (await port.acquire_lock(["repo:x"], **terms))["ticket"]
        renewal = asyncio.create_task(port.keep_lock(ticket, after_seconds=20))
        await fleet.advance("1s")
        await port.release_lock(ticket)

        state = await renewal

        assert (state["state"], state["reason"]) == ("gone", "it was released")
        assert ticket not in port._wanted


async def test_lock_that_is_lost_while_its_task_waits_for_a_slot_is_not_entered() -> None:
    async with TestFleet(agents=[worker]) as fleet:
        async with fleet.client.lock("repo:x"):
            late = await fleet.submit("write", 0.0)
            await fleet.advance("1s")
            await fleet.submit("busy", 60.0)
            await fleet.advance("1s")
        await fleet.advance("30s")
        assert await fleet.client.locks.release_all("repo:x", reason="it hangs") == 1
        outcome = await late.outcome(timeout="5m")

    assert outcome.failure is not None
    assert outcome.failure.type == "LockLost"
    assert "it hangs" in outcome.failure.message


async def test_a_lock_whose_requester_has_given_up_is_not_taken_when_the_dispatcher_is_back() -> None:
    async with LastingFleet(agents=[worker]) as fleet:
        async with fleet.client.lock("x"):
            pass
        await fleet.advance("1s")
        fleet.kill("dispatcher")

        with pytest.raises(ControlPlaneRequired):
            await fleet.client.lock("x", timeout="2s", ttl="1h").__aenter__()
        await fleet.restart("dispatcher")
        await fleet.advance("1s")
        rows = [row async for row in fleet.client.locks.list()]

    assert rows == []


async def test_requests_for_a_lock_that_the_broker_delivers_again_take_it_for_nobody() -> None:
    async with TestFleet(agents=[worker]) as fleet:
        seen = await _copies(fleet)
        async with fleet.client.lock("x") as first:
            pass
        await fleet.advance("1s")
        again = [one for one in seen if one.headers[VERB] == Verb.LOCK_ACQUIRE]
        for message in again:
            await fleet.client._broker.publish(message, exchange=routing.CONTROL, routing_key=ANY, timeout_seconds=1)
        await fleet.advance("100ms")
        rows = [row async for row in fleet.client.locks.list()]

        async with fleet.client.lock("x", wait=False) as second:
            assert second.fence > first.fence

    assert (len(again), rows) == (1, [])


async def _copies(fleet: TestFleet) -> list[Message]:
    """A list that gets a copy of every request to the control plane from now on."""
    seen, broker, tap = list[Message](), fleet.client._broker, Queue("tap", expires_ms=60_000)
    await broker.declare(Topology((), (tap,), (Binding(routing.CONTROL, tap.name, ANY),)))

    def arrived(delivery: Delivery) -> None:
        seen.append(delivery.message)
        delivery.ack()

    await broker.consume(tap.name, arrived, prefetch=100, group="tap")
    return seen


async def test_a_flow_locks_again_although_its_release_was_not_heard_for_a_while() -> None:
    async with LastingFleet(agents=[worker]) as fleet:
        async with fleet.client.lock("x", ttl="30s") as first:
            fleet.kill("dispatcher")
        await fleet.advance("10s")
        begun = fleet.elapsed_seconds
        await fleet.restart("dispatcher")

        async with fleet.client.lock("x", timeout="10s") as second:
            took = fleet.elapsed_seconds - begun

    assert second.fence > first.fence
    assert took < 10


async def test_a_lock_that_was_lost_before_the_answer_is_asked_for_under_another_ticket() -> None:
    asked = list[dict[str, Any]]()

    class Losing:
        async def ask(self, verb: Verb, body: dict[str, Any], **_: object) -> dict[str, Any]:
            asked.append(body)
            return {"state": "gone"} if len(asked) == 1 else {"state": "held", "fence": 7, "expires_in_ms": 10_000}

    async with TestFleet() as fleet:
        port = fleet.client._lock_port
        port._control = cast("Any", Losing())
        async with Lock(port, ("x",), mode="exclusive", wait=True, timeout_seconds=None, ttl_seconds=10) as lock:
            assert lock.fence == 7

    first, second = asked[:2]
    assert first["ticket"] != second["ticket"]
    assert first["resources"] == second["resources"]


@pytest.mark.parametrize("metadata", [[], "text", {"x": "x" * 5_000}])
async def test_metadata_that_are_no_small_object_are_refused_before_anything_is_asked(metadata: Any) -> None:
    async with TestFleet([worker]) as fleet:
        with pytest.raises(InputError) as refused:
            await fleet.client.locks.acquire("repo:x", metadata=metadata)

    assert refused.value.facts["parameter"] == "metadata"

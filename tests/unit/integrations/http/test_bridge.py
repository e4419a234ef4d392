"""Agents that speak only HTTP do tasks as any agent does, and leave them to others when they are gone."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from coditect import Agent, TaskFailed, TaskRejected
from coditect.agent.mailbox import ANSWERED_LATER
from coditect.aio.supervisor import Supervisor
from coditect.broker.memory import MemoryBroker
from coditect.errors import InvalidTask, NotFound, Overloaded, Retryable
from coditect.integrations.http import program
from coditect.integrations.http import registration as bridge_link
from coditect.integrations.http.addresses import AnswerBroken
from coditect.integrations.http.calls import AgentCalls, HttpAnswer
from coditect.integrations.http.messages import TOPIC, AnswerForwarding, Callbacks, heard
from coditect.integrations.http.registration import AgentLink, http_agent
from coditect.model.capability import Priority
from coditect.model.ids import AgentId
from coditect.model.registration import AgentRecord
from coditect.registry.memory import MemoryRegistry
from coditect.registry.port import Search
from coditect.settings.settings import HttpAgentSettings, Settings
from coditect.telemetry.metrics import MemoryMetrics
from coditect.wire.workflow_tasks import HandoffOffer
from tests.support import eventually
from tests.unit.integrations.http.stage import (
    Given,
    Stage,
    answer_of,
    answered,
    later,
    open_bridge,
    stub_agent,
    success,
    token_of,
)


def another_agent() -> Agent:
    agent = Agent("other")

    @agent.capability("words.count")
    async def count(task: Any) -> str:
        return "by the other"

    return agent


@pytest.fixture
def held_posts(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> tuple[asyncio.Event, asyncio.Event]:
    """Whether a request is about to be posted, and what lets it go; meanwhile no refusal is waited for."""
    post, posted, let = stage.calls.post, asyncio.Event(), asyncio.Event()

    async def slow(*given: Any) -> HttpAnswer:
        posted.set()
        await let.wait()
        return await post(*given)

    monkeypatch.setattr(bridge_link, "REFUSAL_SECONDS", 60.0)
    monkeypatch.setattr(AgentCalls, "post", lambda _, *given: slow(*given))
    return posted, let


async def test_a_task_is_posted_with_all_its_facts_and_its_answer_is_the_result(stage: Stage) -> None:
    with stub_agent(lambda event: success(event, {"words": 2})) as agent:
        agent_id = await stage.register(agent.url, "words.count")
        client = await stage.scene.client()

        handle = await client.submit("words.count", {"text": "a b"}, priority=Priority.P0, timeout="20s")
        value = await handle.result(timeout="10s")

    (event,) = agent.events
    assert value == {"words": 2}
    assert event["event_type"] == "agent_request"
    assert event["action"] == "words.count"
    assert event["parameters"] == {"text": "a b"}
    assert event["priority"] == "critical"
    assert event["source_agent"] == client.name
    assert event["target_agent"] == agent_id
    assert event["correlation_id"] == handle.task_id
    assert 15 < event["timeout_seconds"] <= 20
    assert isinstance(event["timeout_seconds"], int)
    assert event["callback_url"].startswith("http://127.0.0.1:9/agent-response/")


async def test_the_registry_shows_an_http_agent_as_an_agent_of_its_own(stage: Stage) -> None:
    schema = {"type": "object", "properties": {"text": {"type": "string"}}}
    with stub_agent() as agent:
        given = {"name": "words.count", "input_schema": schema, "description": "Counts words"}
        agent_id = await stage.register(agent.url, given, slots=3, tags=["remote"], metadata={"team": "blue"})

        record = await stage.scene.registry.get(agent_id)

    assert record is not None
    registration = record.registration
    assert registration.agent_id == agent_id
    assert (registration.slots, registration.tags) == (3, frozenset({"remote"}))
    assert registration.metadata == {"base_url": agent.url, "team": "blue"}
    assert registration.capabilities[0].input_schema == schema
    assert registration.capabilities[0].description == "Counts words"


async def test_an_input_that_does_not_fit_the_schema_is_refused_and_not_posted(stage: Stage) -> None:
    schema = {"type": "object", "required": ["text"], "properties": {"text": {"type": "string"}}}
    with stub_agent() as agent:
        await stage.register(agent.url, {"name": "words.count", "input_schema": schema})
        client = await stage.scene.client()

        with pytest.raises(TaskRejected, match=r"text.*is a required property"):
            await client.request("words.count", {"txt": "a"}, timeout="10s")
        with pytest.raises(TaskRejected, match=r"\$\.text: 7 is not of type"):
            await client.request("words.count", {"text": 7}, timeout="10s")
        assert await client.request("words.count", {"text": "a"}, timeout="10s") == "done"

    assert [event["parameters"] for event in agent.events] == [{"text": "a"}]


async def test_an_answer_by_callback_is_the_result_once_and_the_attempt_waits_on_after_wrong_ones(stage: Stage) -> None:
    with stub_agent(later) as agent:
        _, handle = await stage.task(agent.url)
        await eventually(lambda: agent.events)
        (event,) = agent.events

        with pytest.raises(AnswerBroken):
            stage.callbacks.take(token_of(event), answered({"event_id": "another"}, result=8))
        with pytest.raises(NotFound):
            stage.callbacks.take("guessed", answered(event, result=8))
        stage.callbacks.take(token_of(event), answered(event, result=7))

        assert await handle.result(timeout="10s") == 7
        assert len(stage.callbacks) == 0
        with pytest.raises(NotFound):
            stage.callbacks.take(token_of(event), answered(event, result=8))


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (lambda event: Given(200, b"no JSON"), "AgentResponseEvent"),
        (lambda event: Given(200, answer_of({"event_id": "another"})), "another request"),
        (lambda event: Given(200, answer_of(event, result="x" * 200_000)), "too large"),
        (lambda event: Given(200, answer_of(event), {"content-encoding": "gzip"}), "compressed"),
        (lambda event: Given(302, b"", {"location": "http://127.0.0.1:1/"}), "another status"),
        (lambda event: Given(500, b"broken"), "broken"),
        (lambda event: Given(204), "another status"),
    ],
)  # fmt: skip
async def test_a_hostile_answer_is_a_failed_attempt_that_says_why(stage: Stage, answer: Any, said: str) -> None:
    with stub_agent(answer) as agent:
        _, handle = await stage.task(agent.url, max_attempts=1)

        with pytest.raises(TaskFailed) as failed:
            await handle.result(timeout="10s")

    assert failed.value.facts["reason"] == "handler_error"
    assert said in str(failed.value.facts["message"])
    assert len(agent.events) == 1


async def test_an_answer_that_drips_is_cut_by_the_time_limit_of_the_task(stage: Stage) -> None:
    with stub_agent(lambda event: Given(200, b"{", {"content-length": "1000"}, drips=True)) as agent:
        _, handle = await stage.task(agent.url, timeout="300ms", max_attempts=1)

        with pytest.raises(TaskFailed) as failed:
            await handle.result(timeout="10s")

    assert failed.value.facts["reason"] == "timeout"


@pytest.mark.parametrize(("status", "attempts"), [(422, 1), (400, 1), (500, 3)])
async def test_a_refused_input_is_not_tried_again_and_any_other_failure_is(
    stage: Stage, status: int, attempts: int
) -> None:
    with stub_agent(lambda event: Given(status, b"why")) as agent:
        _, handle = await stage.task(agent.url)

        with pytest.raises(TaskFailed, match="why"):
            await handle.result(timeout="30s")

    assert len(agent.events) == attempts
    assert len({event["event_id"] for event in agent.events}) == attempts
    assert len({event["correlation_id"] for event in agent.events}) == 1


async def test_retry_after_is_waited_for(stage: Stage) -> None:
    loop = asyncio.get_running_loop()
    with stub_agent() as agent:
        agent.answer = lambda event: success(event) if agent.events[1:] else Given(503, b"", {"retry-after": "1"})
        await stage.register(agent.url, "words.count")
        began = loop.time()
        handle = await (await stage.scene.client()).submit("words.count")

        assert await handle.result(timeout="10s") == "done"

    assert loop.time() - began >= 1.0
    assert len(agent.events) == 2


async def test_an_error_and_a_timeout_of_the_agent_are_failures_with_its_words(stage: Stage) -> None:
    def fails(event: dict[str, Any]) -> Given:
        return Given(body=answer_of(event, status=event["parameters"], error="no such page"))

    with stub_agent(fails) as agent:
        await stage.register(agent.url, "words.count")
        client = await stage.scene.client()

        for status in ("error", "timeout"):
            handle = await client.submit("words.count", status, max_attempts=1)
            with pytest.raises(TaskFailed, match="no such page"):
                await handle.result(timeout="10s")


@pytest.mark.parametrize(
    ("error", "attempts"),
    [
        ("Unknown action: words.count", 1),
        ("Action 'words.count' is not supported", 1),
        ("Error: action words.count not found", 1),
        ("action not implemented: words.count", 1),
        ("Unsupported action 'words.count' (known: words.sum)", 1),
        ({"code": "unknown_action", "message": "no words.count"}, 1),
        ({"code": "ACTION_NOT_FOUND"}, 1),
        ("the action failed: page not found", 2),
        ("Plan failed: unknown action type in step 3", 2),
        ("unknown action type in step 3", 2),
        ({"plan": ["Unknown action: words.count"]}, 2),
    ],
)  # fmt: skip
async def test_an_action_that_the_agent_does_not_know_is_not_tried_again(
    stage: Stage, error: Any, attempts: int
) -> None:
    with stub_agent(lambda event: Given(body=answer_of(event, status="error", error=error))) as agent:
        _, handle = await stage.task(agent.url, max_attempts=2)

        with pytest.raises(TaskFailed):
            await handle.result(timeout="10s")

    assert len({event["event_id"] for event in agent.events}) == len(agent.events) == attempts


async def test_a_url_that_refuses_costs_no_attempt_and_another_agent_does_the_task(stage: Stage) -> None:
    with stub_agent() as agent:
        agent_id = await stage.register(agent.url, "words.count")
        agent.kill()
        handle = await (await stage.scene.client()).submit("words.count", max_attempts=1)
        await stage.stopped(agent_id)
        await stage.scene.start(another_agent())
        assert await handle.result(timeout="20s") == "by the other"


async def test_a_post_that_is_refused_after_its_agent_was_found_gone_costs_no_attempt(
    stage: Stage, held_posts: tuple[asyncio.Event, asyncio.Event]
) -> None:
    posted, let = held_posts
    with stub_agent() as agent:
        link = stage.bridge._served[await stage.register(agent.url, "words.count")].link
        handle = await (await stage.scene.client()).submit("words.count", max_attempts=1)
        await posted.wait()
        agent.kill()
        link.doubt()
        await eventually(lambda: link._gone)
        let.set()
        await stage.scene.start(another_agent())
        assert await handle.result(timeout="20s") == "by the other"


async def test_an_answer_that_comes_just_after_its_agent_was_found_gone_counts(
    stage: Stage, held_posts: tuple[asyncio.Event, asyncio.Event]
) -> None:
    posted, let = held_posts
    with stub_agent() as agent:
        link = stage.bridge._served[await stage.register(agent.url, "words.count")].link
        handle = await (await stage.scene.client()).submit("words.count", max_attempts=1)
        await posted.wait()
        link.end("its heartbeats stopped")
        let.set()

        assert await handle.result(timeout="20s") == "done"


async def test_an_agent_that_comes_back_at_its_url_is_served_again(stage: Stage) -> None:
    with stub_agent() as first:
        agent_id = await stage.register(first.url, "words.count")
        port = first.server_port
        first.kill()
        handle = await (await stage.scene.client()).submit("words.count", max_attempts=1)
        await stage.stopped(agent_id)

    with stub_agent(port=port):
        assert await handle.result(timeout="20s") == "done"
        assert stage.bridge.serving == {agent_id}


async def test_an_agent_that_dies_amid_a_deferred_task_loses_it_to_another(stage: Stage) -> None:
    with stub_agent(later) as agent:
        agent_id, handle = await stage.task(agent.url)
        await eventually(lambda: agent.events)

        agent.kill()
        await stage.stopped(agent_id)
        await stage.scene.start(another_agent())
        assert await handle.result(timeout="20s") == "by the other"


async def test_heartbeats_that_stop_end_the_agent_and_fail_what_it_had(stage: Stage) -> None:
    with stub_agent(later) as agent:
        agent_id = await stage.register(agent.url, "words.count", lease_seconds=2.0)
        handle = await (await stage.scene.client()).submit("words.count", max_attempts=1)
        await eventually(lambda: agent.events)

        await stage.stopped(agent_id)

        with pytest.raises(TaskFailed, match="heartbeats stopped"):
            await handle.result(timeout="10s")
        await eventually(lambda: stage.bridge.serving == frozenset())


async def test_a_registry_that_forgot_an_agent_is_told_again(stage: Stage) -> None:
    with stub_agent() as agent:
        agent_id = await stage.register(agent.url, "words.count")

        stage.registrations.wipe()

        await eventually(lambda: stage.registrations.get(agent_id))
        assert stage.bridge.serving == {agent_id}


async def test_a_registry_that_does_not_answer_ends_nothing(stage: Stage) -> None:
    with stub_agent() as agent:
        agent_id = await stage.register(agent.url, "words.count", lease_seconds=1.0)

        stage.registrations.failing = True
        await asyncio.sleep(1.5)  # longer than the lease, whose renewal nobody could note
        handle = await (await stage.scene.client()).submit("words.count")
        assert await handle.result(timeout="10s") == "done"
        before = stage.bridge._served[agent_id].work
        stage.registrations.failing = False
        stage.bridge.hurry()

        await eventually(lambda: stage.registrations.get(agent_id))
        assert stage.bridge.serving == {agent_id}
        assert stage.bridge._served[agent_id].work is before, "it was never stopped"


async def test_an_agent_that_is_drained_leaves_both_registries(stage: Stage) -> None:
    with stub_agent() as agent:
        agent_id = await stage.register(agent.url, "words.count")

        stage.bridge._served[agent_id].stop.set()  # as the mailbox does
        await stage.stopped(agent_id)

        async def unknown() -> bool:
            return await stage.registrations.get(agent_id) is None

        await eventually(unknown)


async def test_an_agent_that_registers_again_with_others_is_served_with_these(stage: Stage) -> None:
    with stub_agent() as agent:
        agent_id = await stage.register(agent.url, "words.count")

        again = await stage.enter(agent.url, "words.sort")

        async def offers() -> bool:
            record = await stage.scene.registry.get(agent_id)
            return record is not None and [offer.name for offer in record.registration.capabilities] == ["words.sort"]

        await eventually(offers)
        assert again == agent_id


async def test_one_of_two_bridges_serves_an_agent_and_the_other_follows(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    claims = Counter[str]()
    mark_start = stage.registrations.mark_start

    async def counted(task: str, agent_id: AgentId, **more: Any) -> AgentId | None:
        claims[agent_id] += 1
        return await mark_start(task, agent_id, **more)

    monkeypatch.setattr(stage.registrations, "mark_start", counted)
    with stub_agent() as agent:
        async with open_bridge(stage.scene, stage.registrations, name="bridge-2") as second:
            agent_id = await stage.register(agent.url, "words.count")
            await eventually(lambda: claims["bridge-1"] > 2 and claims["bridge-2"] > 2)
            assert stage.bridge.serving | second.bridge.serving == {agent_id}
            assert not stage.bridge.serving & second.bridge.serving
            first, other = (stage, second) if stage.bridge.serving else (second, stage)

            await first.end()

            await eventually(lambda: other.bridge.serving == {agent_id})


async def test_a_bridge_that_ends_leaves_the_registration(stage: Stage) -> None:
    registrations = MemoryRegistry()
    with stub_agent() as agent:
        async with open_bridge(stage.scene, registrations, name="bridge-2") as second:
            agent_id = await second.register(agent.url, "words.sort")

        assert await registrations.get(agent_id) is not None
        assert await stage.scene.registry.get(agent_id) is None


async def test_why_an_agent_cannot_be_served_is_told_and_it_is_tried_again_later(stage: Stage) -> None:
    bounded = Agent("bounded")

    @bounded.capability("words.bounded", max_queued=10)
    async def count(task: Any) -> None: ...

    await stage.scene.start(bounded)
    with stub_agent() as agent:
        agent_id = await stage.enter(agent.url, "words.bounded")

        await eventually(lambda: "arguments" in stage.bridge.trouble(agent_id))
        assert stage.bridge.serving == frozenset()
        given = {"name": "words.bounded", "max_queued": 10}
        await stage.register(agent.url, given)

    assert stage.bridge.trouble(agent_id) == ""


async def test_http_agents_answer_a_request_to_several_agents_each_for_itself(stage: Stage) -> None:
    def named(event: dict[str, Any]) -> Given:
        return success(event, event["target_agent"])

    with stub_agent(named) as one, stub_agent(named) as other:
        ids = {await stage.register(agent.url, "words.count", name=name) for name, agent in (("a", one), ("b", other))}
        client = await stage.scene.client()
        answers = [answer async for answer in client.ask_all("words.count", agents=["a", "b"], timeout="60s")]

    assert {answer.value for answer in answers} == {answer.agent_id for answer in answers} == ids


@pytest.mark.parametrize("topics", ["news, plans", ["news", "plans", 7, {"other": 1}, ""]])
async def test_an_agent_hears_the_broadcasts_that_it_names(stage: Stage, topics: Any) -> None:
    with stub_agent() as agent:
        await stage.register(agent.url, "words.count", metadata={"broadcasts": topics})
        client = await stage.scene.client()
        for topic in ("other", "plans", "news"):
            await client.broadcast(topic, {"about": topic})
        await eventually(lambda: len(agent.events) == 2)

    assert {event["action"]: event["parameters"] for event in agent.events} == {
        "plans": {"about": "plans"},
        "news": {"about": "news"},
    }


OFFER = HandoffOffer("w:one.1", "w:one", "words.count", "owner-1", "too long", {"pages": 9}, 1, "text")


async def decided(stage: Stage, answer: Any) -> tuple[Any, dict[str, Any]]:
    """What an HTTP agent decides about an offer by an answer, and the request that it got."""
    with stub_agent(answer) as stub:
        agent_id = await stage.enter(stub.url, "words.count", metadata={"handoffs": "ask"})
        record = await stage.registrations.get(agent_id)
        assert record is not None
        async with Supervisor() as background:
            link = AgentLink(stub.url, stage.calls, stage.callbacks, background, callback_url="", doubt=lambda: None)
            decide = http_agent(record.registration, link).handoff_policy
            assert decide is not None
            return await decide(OFFER), stub.events[0]


@pytest.mark.parametrize(("answer", "decision"), [(True, True), ("no paper", "no paper"), (None, ANSWERED_LATER)])
async def test_an_agent_that_wants_to_be_asked_decides_about_offers_or_answers_later(
    stage: Stage, answer: Any, decision: Any
) -> None:
    decided_on, event = await decided(stage, lambda event: success(event, answer))

    assert decided_on == decision
    assert (event["action"], event["parameters"], event["source_agent"]) == (
        "coditect.handoff",
        OFFER.as_json(),
        "owner-1",
    )
    assert event["correlation_id"] is None


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (lambda event: Given(500), "another status"),
        (lambda event: Given(body=answer_of(event, status="error", error="no space")), "no space"),
        (lambda event: Given(200, b"{", {"content-length": "1000"}, drips=True), "did not answer in time"),
    ],
)  # fmt: skip
async def test_an_offer_about_which_the_agent_cannot_be_asked_is_declined(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, answer: Any, why: str
) -> None:
    monkeypatch.setattr(bridge_link, "HEAR_SECONDS", 1)

    reason, _ = await decided(stage, answer)

    assert reason.startswith("it could not be asked: ")
    assert why in reason


async def test_a_broadcast_that_the_agent_does_not_take_is_logged_and_forgotten(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    with stub_agent(lambda event: Given(500)) as agent:
        await stage.register(agent.url, "words.count", metadata={"broadcasts": "news"})
        await (await stage.scene.client()).broadcast("news")
        await eventually(lambda: "did not take what was sent to it" in caplog.text)
        assert len(agent.events) == 1


async def test_an_answer_that_arrives_at_another_process_ends_the_task(stage: Stage) -> None:
    with stub_agent(later) as agent:
        await stage.register(agent.url, "words.count")
        async with (
            open_bridge(stage.scene, stage.registrations, name="bridge-2") as second,
            MemoryBroker(stage.scene.server, name="api-2") as broker,
        ):
            handle = await (await stage.scene.client()).submit("words.count")
            await eventually(lambda: agent.events)
            (event,) = agent.events
            other = second.agents

            with pytest.raises(InvalidTask, match="another request"):
                await other.answer(token_of(event), answered({"event_id": "another"}), broker)
            await other.answer(token_of(event), answered(event, result=7), broker)

            assert await handle.result(timeout="10s") == 7
            with pytest.raises(NotFound, match="the attempt is over"):
                await other.answer(token_of(event), answered(event, result=8), broker)


async def test_an_answer_for_an_agent_that_is_gone_or_speaks_no_http_is_late_and_few_are_passed_on_at_once(
    stage: Stage,
) -> None:
    running = await stage.scene.start(Agent("native"))
    answer, forwarding = answered({"event_id": "x"}), AnswerForwarding(limit=1)
    async with MemoryBroker(stage.scene.server, name="api-2") as broker:
        with pytest.raises(NotFound, match="the attempt is over"):
            await stage.agents.answer(f"{running.agent_id}.guessed", answered({"event_id": "x"}), broker)

        with pytest.raises(NotFound, match="the attempt is over"):
            await stage.agents.answer("words-00000000.guessed", answered({"event_id": "x"}), broker)

        with pytest.raises(Overloaded):
            await AnswerForwarding(limit=0).send(broker, "words-00000000.a", answer)
        for _ in range(2):
            with pytest.raises(Retryable, match="post it again"):
                await forwarding.send(broker, "words-00000000.a", answer)


@pytest.mark.parametrize("content", [None, 7, {"token": "x"}, {"token": "x", "answer": {"status": "fine"}}])
def test_what_is_no_answer_is_taken_by_no_attempt(content: object) -> None:
    assert heard(Callbacks(), content)["taken"] is False
    assert TOPIC.startswith("coditect.")


class FailsAtFirst(MemoryRegistry):
    """Fails at the first look for agents, as no registry should."""

    looks = 0

    async def find(self, search: Search) -> tuple[AgentRecord, ...]:
        self.looks += 1
        if self.looks == 1:
            raise RuntimeError("the fault that was asked for")
        return await super().find(search)


async def test_loop_that_looks_for_agents_and_dies_is_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    registrations = FailsAtFirst()

    @asynccontextmanager
    async def registry(url: str, *, prefix: str = "") -> AsyncIterator[MemoryRegistry]:
        yield registrations if prefix else MemoryRegistry()

    monkeypatch.setattr(program, "RedisRegistry", registry)

    given = {"callback_url": "http://127.0.0.1:9"}
    async with program.open_bridge(Settings(), HttpAgentSettings(hosts="*"), **given, metrics=MemoryMetrics()):
        await eventually(lambda: registrations.looks > 1)

"""A fleet as an A2A agent, by the SDK's own client: card, messages, tasks, streams, and errors that say what to do."""

from __future__ import annotations

import logging
from itertools import product
from pathlib import Path
from typing import Literal

import pytest
from a2a.client.errors import A2AClientError
from a2a.types import a2a_pb2 as a2a
from a2a.types.a2a_pb2 import TaskState as A2aState
from a2a.utils.errors import (
    ContentTypeNotSupportedError,
    InternalError,
    InvalidParamsError,
    InvalidRequestError,
    PushNotificationNotSupportedError,
    TaskNotCancelableError,
    TaskNotFoundError,
    UnsupportedOperationError,
)
from pydantic import BaseModel

from coditect import Agent
from coditect.api.access import KeyFile, Role
from coditect.api.bearer import BearerAccess
from coditect.api.guard import AUDIT_LOGGER
from coditect.integrations.a2a.messages import plain
from coditect.integrations.a2a.remote import RemoteAgent, RemoteRejected, a2a_agent
from coditect.integrations.a2a.serving import told
from coditect.settings.settings import A2aSettings, ApiSettings
from tests.unit.integrations.a2a.fleet_agent import at_once, connected, message, sent, value
from tests.unit.integrations.workers import Workers

MADE = "2026-01-01T00:00:00+00:00"


class Tree(BaseModel):
    below: list[Tree] = []


async def test_each_capability_is_a_skill_of_the_card_with_its_modes_and_schemas() -> None:
    async with connected([Workers().agent]) as fleet:
        card = fleet.card

    skills = {skill.id: skill for skill in card.skills}
    assert set(skills) == {"text.count", "code.review", "site.wait", "site.build"}
    assert skills["text.count"].description == "Count letters."
    assert list(skills["text.count"].tags) == ["quick", "text"]
    assert list(skills["text.count"].input_modes) == ["text/plain"]
    assert list(skills["code.review"].input_modes) == ["application/json"]
    (interface,) = card.supported_interfaces
    assert (interface.url, interface.protocol_version) == ("http://127.0.0.1:8009/a2a", "1.0")
    (schemas,) = card.capabilities.extensions
    assert plain(schemas.params)["code.review"]["input"]["required"] == ["repo", "number"]


async def test_a_task_ends_with_its_value_as_an_artifact_or_its_failure_as_the_message_of_its_state() -> None:
    async with connected([Workers().agent]) as fleet:
        counted = await sent(fleet.client, message("hello", "text.count"))
        reviewed = await sent(fleet.client, message({"repo": "x", "number": 3}, "code.review"))
        found = await fleet.client.get_task(a2a.GetTaskRequest(id=counted.id))

        assert counted.status.state == A2aState.TASK_STATE_COMPLETED
        assert value(counted) == 5
        assert value(reviewed) == {"repo": "x", "number": 3}
        assert found == counted

        read = await sent(fleet.client, message('{"repo": "x", "number": 3}', "code.review"))
        unread = await sent(fleet.client, message("please", "code.review"))

        assert value(read) == {"repo": "x", "number": 3}
        assert unread.status.state == A2aState.TASK_STATE_REJECTED
        assert "object" in unread.status.message.parts[0].text, unread

        failed = await sent(fleet.client, message({"repo": "x", "number": -1}, "code.review"))
        wrong = await sent(fleet.client, message({"repo": "x"}, "code.review"))

    assert failed.status.state == A2aState.TASK_STATE_FAILED
    assert failed.status.message.parts[0].text == "there is no such pull request"
    assert wrong.status.state == A2aState.TASK_STATE_REJECTED
    assert "number" in wrong.status.message.parts[0].text
    assert not failed.artifacts


async def test_a_text_is_json_where_the_schema_says_so_by_a_reference_a_union_or_an_enum() -> None:
    agent = Agent("typed")

    @agent.capability("tree.depth")
    async def depth(tree: Tree) -> int:
        return 1 + max([await depth(below) for below in tree.below], default=0)

    @agent.capability("either.kind")
    async def kind(given: int | list[int]) -> str:
        return type(given).__name__

    @agent.capability("level.next")
    async def next_level(given: Literal[1, 2]) -> int:
        return given + 1

    @agent.capability("word.or.number")
    async def word(given: int | str) -> str:
        return type(given).__name__

    texts = {
        "tree.depth": '{"below": [{"below": []}]}',
        "either.kind": "[1, 2]",
        "level.next": "2",
        "word.or.number": "12",
    }
    async with connected([agent]) as fleet:
        values = [value(await sent(fleet.client, message(text, skill))) for skill, text in texts.items()]

    assert values == [2, "list", 3, "str"]


async def test_another_version_is_refused_by_its_code_whatever_the_method() -> None:
    async with connected([Workers().agent]) as fleet:
        fleet.http.headers.pop("a2a-version", None)
        for version, method in product([None, "", "0.3", "2.0", "one"], ["SendMessage", "message/send", "nothing"]):
            headers = {} if version is None else {"a2a-version": version}
            answer = await fleet.http.post("/a2a", headers=headers, json={"jsonrpc": "2.0", "id": 7, "method": method})

            refused = answer.json()
            assert (refused["id"], refused["error"]["code"]) == (7, -32009), (version, method)
            assert "A2A-Version: 1.0" in refused["error"]["message"]


async def test_a_message_that_is_sent_again_is_the_same_task_and_with_another_input_refused() -> None:
    workers = Workers()
    async with connected([workers.agent]) as fleet:
        first = await sent(fleet.client, message("hello", "text.count", message_id="once"))
        again = await sent(fleet.client, message("hello", "text.count", message_id="once"))

        assert first == again
        assert workers.ran == 1

        with pytest.raises(InvalidParamsError, match="key"):
            await sent(fleet.client, message("other", "text.count", message_id="once"))

    assert workers.ran == 1


async def test_without_a_wait_the_task_is_asked_for_later_and_can_be_canceled() -> None:
    workers = Workers()
    async with connected([workers.agent]) as fleet:
        begun = await sent(fleet.client, at_once(message(None, "site.wait")))
        await workers.begun.wait()
        canceled = await fleet.client.cancel_task(a2a.CancelTaskRequest(id=begun.id))
        with pytest.raises(TaskNotCancelableError, match="GetTask"):
            await fleet.client.cancel_task(a2a.CancelTaskRequest(id=begun.id))

    assert begun.status.state in (A2aState.TASK_STATE_SUBMITTED, A2aState.TASK_STATE_WORKING)
    assert canceled.status.state == A2aState.TASK_STATE_CANCELED
    assert workers.canceled


async def test_tasks_of_one_context_are_listed_page_by_page() -> None:
    async with connected([Workers().agent]) as fleet:
        first = await sent(fleet.client, message("hello", "text.count"))
        mine = {(await sent(fleet.client, message("ab", "text.count", context_id="mine"))).id for _ in range(3)}
        page = await fleet.client.list_tasks(
            a2a.ListTasksRequest(context_id="mine", page_size=2, include_artifacts=True)
        )
        token = page.next_page_token
        rest = await fleet.client.list_tasks(a2a.ListTasksRequest(context_id="mine", page_size=2, page_token=token))
        both = await fleet.client.list_tasks(a2a.ListTasksRequest())
        failed = await fleet.client.list_tasks(a2a.ListTasksRequest(status=A2aState.TASK_STATE_FAILED))
        with pytest.raises(InvalidParamsError, match="1 to 100"):
            await fleet.client.list_tasks(a2a.ListTasksRequest(page_size=1_000))

    assert first.context_id not in ("", "mine")
    assert {task.id for task in (*page.tasks, *rest.tasks)} == mine
    assert [value(task) for task in page.tasks] == [2, 2]
    assert not rest.next_page_token
    assert {task.id for task in both.tasks} == mine | {first.id}
    assert not failed.tasks


async def test_a_listing_has_values_until_they_are_large() -> None:
    large = {"repo": "x" * 600_000, "number": 1}
    async with connected([Workers().agent]) as fleet:
        for _ in range(3):
            await sent(fleet.client, message(large, "code.review"))
        page = await fleet.client.list_tasks(a2a.ListTasksRequest(include_artifacts=True))

    assert [len(task.artifacts) for task in page.tasks] == [1, 1, 0]


async def test_a_stream_has_the_task_its_progress_its_value_and_its_end_and_none_has_a_task_that_ended() -> None:
    workers = Workers()
    async with connected([workers.agent], streaming=True) as fleet:
        seen = list[a2a.StreamResponse]()
        async for part in fleet.client.send_message(message(None, "site.wait")):
            seen.append(part)
            workers.go_on.set()

        assert seen[0].HasField("task")
        notes = [part.status_update for part in seen if part.status_update.metadata]
        assert [(note.metadata["share"], note.status.message.parts[0].text) for note in notes] == [(0.5, "half")]
        (result,) = (part.artifact_update.artifact for part in seen if part.HasField("artifact_update"))
        assert result.parts[0].text == "done"
        assert seen[-1].status_update.status.state == A2aState.TASK_STATE_COMPLETED

        (begun, *_) = [part async for part in fleet.client.send_message(message("hello", "text.count"))]
        with pytest.raises(UnsupportedOperationError, match="GetTask"):
            _ = [part async for part in fleet.client.subscribe(a2a.SubscribeToTaskRequest(id=begun.task.id))]


async def test_a_mistake_is_an_error_that_says_what_to_do() -> None:
    mistakes: tuple[tuple[a2a.SendMessageRequest, type[Exception], str], ...] = (
        (message("x", "text.cuont"), InvalidParamsError, "text.count"),
        (message("x"), InvalidParamsError, "skillId"),
        (message("x", "text.count", task_id="0:task"), TaskNotFoundError, "0"),
        (message("x", "text.count", task_id="nothing"), TaskNotFoundError, "SendMessage"),
        (message("x", "text.count", context_id="c" * 201), InvalidParamsError, "200"),
        (message("x", "text.count", message_id="m" * 1_001), InvalidParamsError, "1000"),
        (message("x", "text.count", message_id=""), InvalidParamsError, "Validation failed"),
    )
    file = message("x", "text.count")
    file.message.parts.append(a2a.Part(raw=b"x", media_type="image/png"))
    picture = message("x", "text.count")
    picture.configuration.accepted_output_modes.append("image/*")
    pushed = message("x", "text.count")
    pushed.configuration.task_push_notification_config.url = "http://127.0.0.1/"
    async with connected([Workers().agent]) as fleet:
        for request, error, match in mistakes:
            with pytest.raises(error, match=match):
                await sent(fleet.client, request)

        with pytest.raises(InvalidParamsError, match="text or data"):
            await sent(fleet.client, file)
        with pytest.raises(ContentTypeNotSupportedError, match="application/json"):
            await sent(fleet.client, picture)
        with pytest.raises(PushNotificationNotSupportedError, match="webhook"):
            await sent(fleet.client, pushed)

        for body in (b"", b"{", b'{"id": "\xff"}', b"[" * 5_000, b'{"id": NaN}'):
            answer = await fleet.http.post("/a2a", headers={"a2a-version": "1.0"}, content=body)

            assert (answer.json()["id"], answer.json()["error"]["code"]) == (None, -32700), body


async def test_a_range_of_media_types_is_that_of_http_and_no_pattern_of_a_shell() -> None:
    async with connected([Workers().agent]) as fleet:
        for accepted in ("application/json", "application/*", "*/*", "Application/JSON; charset=utf-8"):
            fitting = message("x", "text.count")
            fitting.configuration.accepted_output_modes.append(accepted)
            assert value(await sent(fleet.client, fitting)) == 1
        pattern = message("x", "text.count")
        pattern.configuration.accepted_output_modes.append("[a-z]*")  # as a shell's, a long one takes minutes to read
        with pytest.raises(ContentTypeNotSupportedError):
            await sent(fleet.client, pattern)


@pytest.mark.parametrize(
    ("most", "size", "named"),
    [(1_024, 2_000, "CODITECT_API_BODY_BYTES"), (4_000_000, 1_050_000, "at most 1048576 bytes")],
)
async def test_a_body_that_is_too_large_names_the_bound(most: int, size: int, named: str) -> None:
    async with connected([Workers().agent], settings=ApiSettings(body_bytes=most)) as fleet:
        with pytest.raises(InvalidRequestError, match=named):
            await sent(fleet.client, message("x" * size, "text.count"))


async def test_the_audit_line_of_a_request_says_its_method(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, AUDIT_LOGGER)
    async with connected([Workers().agent]) as fleet:
        await fleet.client.list_tasks(a2a.ListTasksRequest())
        await fleet.http.post("/a2a", content=b"{")

    lines = [vars(record) for record in caplog.records if record.name == AUDIT_LOGGER]
    assert [(line["action"], line["path"]) for line in lines] == [("ListTasks", "/a2a"), (None, "/a2a")]


async def test_a_caller_may_do_what_its_role_may_and_a_stranger_sees_no_skills(tmp_path: Path) -> None:
    keys = KeyFile(tmp_path / "keys")
    viewer, operator = (keys.create(role.value, role, made_at=MADE) for role in (Role.VIEWER, Role.OPERATOR))
    other = keys.create("other", Role.OPERATOR, made_at=MADE)
    settings = ApiSettings(keys=str(tmp_path / "keys"), oidc_issuer="https://issuer.example.com")
    async with connected([Workers().agent], access=BearerAccess([keys]), settings=settings) as fleet:
        with pytest.raises(A2AClientError, match="401"):
            await sent(fleet.client, message("hello", "text.count"))
        fleet.http.headers["authorization"] = f"Bearer {operator}"
        whole = await fleet.client.get_extended_agent_card(a2a.GetExtendedAgentCardRequest())
        counted = await sent(fleet.client, message("hello", "text.count", message_id="mine"))
        fleet.http.headers["authorization"] = f"Bearer {other}"
        others = await sent(fleet.client, message("hello", "text.count", message_id="mine"))
        fleet.http.headers["authorization"] = f"Bearer {viewer}"
        found = await fleet.client.get_task(a2a.GetTaskRequest(id=counted.id))
        with pytest.raises(A2AClientError, match="403"):
            await sent(fleet.client, message("hello", "text.count"))
        with pytest.raises(A2AClientError, match="403"):
            await fleet.client.cancel_task(a2a.CancelTaskRequest(id=counted.id))

    assert not fleet.card.skills
    assert set(fleet.card.security_schemes) == {"key", "oidc"}
    assert len(fleet.card.security_requirements) == 2
    assert len(whole.skills) == 4
    assert found == counted
    assert others.id != counted.id, "each caller has messages of its own"


async def test_a_fleet_can_be_the_remote_agent_of_another_one_with_its_schemas() -> None:
    settings = A2aSettings(private=True)

    async def heard(share: float, note: str) -> None:
        """Leave progress out."""

    workers = Workers()
    workers.go_on.set()
    async with connected([workers.agent], streaming=True) as fleet:
        address = str(fleet.http.base_url).rstrip("/")
        agent = await a2a_agent("far", address, settings=settings)
        remote = RemoteAgent(address, settings=settings)
        async with remote.open(await remote.card()):
            reviewed = await remote.call("code.review", {"repo": "x", "number": 3}, "m1", heard)
            waited = await remote.call("site.wait", None, "m2", heard)
            with pytest.raises(RemoteRejected, match="number"):
                await remote.call("code.review", {"repo": "x"}, "m3", heard)
            with pytest.raises(RemoteRejected, match="skill"):
                await remote.call("no.such", 1, "m4", heard)

    specs = {capability.name: capability.spec for capability in agent.capabilities}
    assert set(specs) == {"far.text.count", "far.code.review", "far.site.wait", "far.site.build"}
    assert specs["far.code.review"].input_schema["required"] == ["repo", "number"]
    assert (reviewed, waited) == ({"repo": "x", "number": 3}, "done")


def test_an_unexpected_error_is_logged_and_its_text_kept_from_the_caller(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(InternalError, match="its log has the reason") as failed, told():
        raise RuntimeError("a secret of the program")

    assert "secret" not in str(failed.value)
    assert "a secret of the program" in caplog.text

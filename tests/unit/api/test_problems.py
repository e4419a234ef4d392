"""Errors are answered with problem documents (RFC 9457)."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator

import pytest
from httpx2 import AsyncClient

from coditect import errors
from coditect.api.problems import STATUSES, error_answer, status_of
from coditect.errors import CoditectError
from coditect.settings.settings import ApiSettings
from coditect.testing import TestFleet
from tests.api import api_of
from tests.docs.pages import section, table_rows
from tests.servers import ROOT


@pytest.fixture
async def api() -> AsyncIterator[AsyncClient]:
    async with TestFleet() as fleet, api_of(fleet, settings=ApiSettings(body_bytes=2_000)) as http:
        yield http


async def test_a_missing_thing_is_a_problem_that_says_what_to_do(api: AsyncClient) -> None:
    answer = await api.get("/v1/tasks/01890a5d-ac96-774b-bcce-b302099a8057")

    assert answer.status_code == 404
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["type"] == "urn:coditect:problem:not-found"
    assert "durable" in answer.json()["fix"]


async def test_every_mistake_of_a_request_is_named_without_the_input(api: AsyncClient) -> None:
    answer = await api.post("/v1/tasks", json={"capability": 7, "priority": "secret", "unknown": 1})

    assert answer.status_code == 422
    assert {one["at"] for one in answer.json()["mistakes"]} == {"body.capability", "body.priority", "body.unknown"}
    assert "secret" not in answer.text


async def test_an_unknown_path_is_a_problem(api: AsyncClient) -> None:
    answer = await api.get("/v1/nothing")

    assert (answer.status_code, answer.headers["content-type"]) == (404, "application/problem+json")


async def test_a_body_over_the_limit_is_refused(api: AsyncClient) -> None:
    answer = await api.post("/v1/tasks", json={"capability": "text.count", "input": "x" * 3_000})

    assert (answer.status_code, answer.headers["content-type"]) == (413, "application/problem+json")


async def test_an_unexpected_error_does_not_tell_its_text() -> None:
    async with TestFleet() as fleet, api_of(fleet) as http:
        fleet.registry.find = None  # type: ignore[method-assign, assignment]
        answer = await http.get("/v1/agents")
        (crash,) = fleet.forgive_crashes()

    assert isinstance(crash, TypeError)
    assert answer.status_code == 500
    assert "NoneType" not in answer.text


def test_an_error_that_knows_how_long_to_wait_says_so() -> None:
    answer = error_answer(errors.Overloaded("The queue is full", retry_after=2.4))

    assert (answer.status_code, answer.headers["retry-after"]) == (503, "2")


def test_a_problem_has_no_password() -> None:
    answer = error_answer(errors.BrokerUnavailable("No connection", url="amqp://me:secret@host/"))

    assert b"secret" not in answer.body
    assert b"amqp://me:***@host/" in answer.body


@pytest.mark.parametrize(
    "kind", [one for one in vars(errors).values() if isinstance(one, type) and issubclass(one, CoditectError)]
)
def test_every_error_has_a_status(kind: type[CoditectError]) -> None:
    assert 400 <= status_of(kind("It is so")) < 600
    assert CoditectError in STATUSES


def test_the_page_has_the_status_of_every_error() -> None:
    rows = {int(row[0]): row[1] for row in table_rows(section(ROOT / "docs" / "api.md", "Errors"))}
    named = {name: status for status, text in rows.items() for name in re.findall(r"[A-Z]\w+", text.split(";")[0])}

    assert named == {kind.__name__: status for kind, status in STATUSES.items()}

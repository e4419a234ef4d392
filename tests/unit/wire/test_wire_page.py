"""docs/wire.md names whatever the schemas and the code know."""

from __future__ import annotations

import re
from typing import Any

import pytest

from coditect.model.result import ENDINGS
from coditect.wire import control_messages
from coditect.workflow.states import WorkflowState
from dispatcher.shards.publishing import TYPES
from tests.docs.pages import section, table_rows
from tests.integration.wire.schemas import names, schema
from tests.servers import ROOT

PAGE = (ROOT / "docs" / "wire.md").read_text(encoding="utf-8")
TOLD = set(re.findall(r"`([^`\n]+)`", PAGE))


def _described(part: dict[str, Any]) -> set[str]:
    parts = part["properties"]
    return {name for where in ("properties", "headers") for name in parts.get(where, {}).get("properties", {})}


@pytest.mark.parametrize("name", ["task", "result", "dead-letter", "event"])
def test_every_property_and_header_of_a_schema_is_on_the_page(name: str) -> None:
    assert _described(schema(name)) - TOLD <= ({"content_type", "message_id"} if name in ("event", "result") else set())


def test_every_field_of_a_failure_and_every_reason_is_on_the_page() -> None:
    fields = schema("failure")["properties"]

    assert set(fields) <= TOLD
    assert set(fields["reason"]["examples"]) <= TOLD


def test_every_reason_that_the_code_gives_is_in_the_schema() -> None:
    sources = [path.read_text(encoding="utf-8") for room in ("coditect", "dispatcher") for path in _python(room)]
    given = {reason for text in sources for reason in re.findall(r"Failure\(\s*\"([a-z_]+)\"", text)}

    assert given
    assert given <= set(schema("failure")["properties"]["reason"]["examples"])


@pytest.mark.parametrize("page", ["wire.md", "operations.md"])
def test_every_event_that_the_code_sends_is_in_the_table_and_no_other(page: str) -> None:
    files = [path for room in ("coditect", "dispatcher") for path in _python(room)]
    files = [path for path in files if "integrations" not in path.parts]  # what is posted to HTTP agents
    sources = [path.read_text(encoding="utf-8") for path in files]
    named = r"\"((?:task|agent)\.[a-z]+)\"|say\(\"(workflow\.[a-z]+)\""
    sent = {kind for text in sources for pair in re.findall(named, text) for kind in pair if kind}
    sent |= {*ENDINGS, *TYPES.values(), *(f"workflow.{state}" for state in WorkflowState if state.terminal)}
    rows = table_rows(section(ROOT / "docs" / page, "Events"))

    assert sent >= {"task.started", "task.dead", "agent.online", "workflow.accepted", "node.started"}
    assert {kind for row in rows for kind in re.findall(r"`((?:task|agent|workflow|node)\.[a-z_]+)`", row[0])} == sent


def test_every_kind_of_control_message_is_on_the_page_and_in_the_schema() -> None:
    constants = {name: str(value) for name, value in vars(control_messages).items() if name.isupper()}
    kinds = {value for value in constants.values() if value.startswith("coditect.")}
    described = {
        one["properties"]["properties"]["properties"]["type"]["const"] for one in schema("letter")["$defs"].values()
    }

    assert kinds <= described
    assert described <= TOLD


@pytest.mark.parametrize("name", names())
def test_every_schema_is_linked(name: str) -> None:
    assert f"](wire/{name}.schema.json)" in PAGE


def _python(room: str) -> list[Any]:
    return sorted((ROOT / room).rglob("*.py"))

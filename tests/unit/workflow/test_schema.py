"""The JSON schema of workflow documents says what the reader takes."""

from __future__ import annotations

import json

import jsonschema
import pytest
from hypothesis import given

from coditect.errors import InvalidWorkflow
from coditect.workflow.builder import TaskOptions
from coditect.workflow.definition import Definition
from coditect.workflow.documents.document import to_document
from coditect.workflow.documents.reader import from_document
from coditect.workflow.documents.schema import KINDS, EdgeFields, RetryFields, TaskFields, WorkflowFields
from tests.unit.workflow.graphs import definitions

SCHEMA = WorkflowFields.model_json_schema()
LONE = "\ud800"
"""Half of a surrogate pair: JSON can write it, UTF-8 cannot."""


@given(definitions(most=4))
def test_what_is_written_fits_the_schema(definition: Definition) -> None:
    jsonschema.validate(json.loads(json.dumps(to_document(definition))), SCHEMA)


def test_a_task_has_the_same_fields_in_python_as_in_a_file() -> None:
    elsewhere = {"name", "on_failure"}  # in a file the node's key, and a field of its edges
    arguments = {"task", "input"}

    assert TaskOptions.__optional_keys__ - elsewhere == {*TaskFields.model_fields} - arguments


@pytest.mark.parametrize("fields", [{"task": "a.b", "speed": 1}, {"approval": 1}, {"map": "a.b", "over": "input"}, {}])
def test_what_is_refused_does_not_fit_the_schema(fields: object) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"name": "flow", "nodes": {"a": fields}}, SCHEMA)


@pytest.mark.parametrize(
    ("node", "place"),
    [
        ({"task": "a.b", LONE: 1}, "nodes.a"),
        ({"task": "a.b", "retry": {LONE: 1}}, "nodes.a.retry"),
        ({"task": "a.b", "after": [{LONE: 1}]}, "nodes.a.after[0]"),
    ],
    ids=["field", "retry", "edge"],
)
def test_name_that_is_no_text_is_told_with_its_place(node: object, place: str) -> None:
    with pytest.raises(InvalidWorkflow, match="no text in UTF-8") as told:
        from_document({"name": "flow", "nodes": {"a": node}})

    assert told.value.problems[0].place == place


@pytest.mark.parametrize("model", [*KINDS.values(), EdgeFields, RetryFields, WorkflowFields])
def test_every_field_is_described_in_the_schema(model: type[WorkflowFields]) -> None:
    schema = model.model_json_schema()

    assert all(field.get("description") for field in schema["properties"].values())

"""The JSON schema of workflow documents says what the reader takes."""

from __future__ import annotations

import json

import jsonschema
import pytest
from hypothesis import given

from coditect.workflow.definition import Definition
from coditect.workflow.document import to_document
from coditect.workflow.schema import KINDS, EdgeFields, RetryFields, WorkflowFields
from tests.unit.workflow.graphs import definitions

SCHEMA = WorkflowFields.model_json_schema()


@given(definitions(most=4))
def test_what_is_written_fits_the_schema(definition: Definition) -> None:
    jsonschema.validate(json.loads(json.dumps(to_document(definition))), SCHEMA)


@pytest.mark.parametrize("fields", [{"task": "a.b", "speed": 1}, {"approval": 1}, {"map": "a.b", "over": "input"}, {}])
def test_what_is_refused_does_not_fit_the_schema(fields: object) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"name": "flow", "nodes": {"a": fields}}, SCHEMA)


@pytest.mark.parametrize("model", [*KINDS.values(), EdgeFields, RetryFields, WorkflowFields])
def test_every_field_is_described_in_the_schema(model: type[WorkflowFields]) -> None:
    schema = model.model_json_schema()

    assert all(field.get("description") for field in schema["properties"].values())

"""The tables of the workflows' page are what the model has."""

from __future__ import annotations

from coditect.client import workflows
from coditect.workflow import definition, fields, graph
from coditect.workflow import expressions as expression
from coditect.workflow.documents.file import DOCUMENT_BYTES_LIMIT, MOST_LEVELS, load_workflow
from coditect.workflow.documents.schema import KINDS
from coditect.workflow.states import TaskState, WorkflowState
from dispatcher.ledger.nodes.inputs import MOST_SEEN_BYTES
from dispatcher.ledger.values import LARGEST_BYTES
from tests.docs.pages import section, table_rows
from tests.servers import ROOT

PAGE = ROOT / "docs" / "workflows.md"
OF_ALL = frozenset(KINDS)


def test_every_field_is_documented_with_the_kinds_that_have_it() -> None:
    rows = [row for row in table_rows(section(PAGE, "Fields")) if "`" in row[0]]
    documented = {row[0].strip("`"): OF_ALL if row[1] == "all" else frozenset(row[1].split(", ")) for row in rows}
    names = {name for fields_ in KINDS.values() for name in fields_.model_fields}

    assert documented == {
        name: frozenset(kind for kind, fields_ in KINDS.items() if name in fields_.model_fields) for name in names
    }


def test_the_bounds_are_those_that_hold() -> None:
    page = " ".join(PAGE.read_text(encoding="utf-8").split())

    megabytes = DOCUMENT_BYTES_LIMIT // 1_000_000
    assert f"At most {definition.MAX_WORKFLOW_NODES:,} nodes, {megabytes} MB, {MOST_LEVELS} levels." in page
    assert f"1 to {definition.MOST_ELEMENTS:,} |" in page
    assert f"at most {definition.MOST_PREDECESSORS:,} |" in page
    assert (
        f"at most {workflows.MOST_NODES_OF_A_CHUNK:,} nodes, {workflows.MOST_EDGES_OF_A_CHUNK:,} edges and 1 MiB"
        in page
    )
    assert f"{fields.MOST_EXPRESSION_CHARACTERS:,} characters, {expression.MOST_DEPTH} levels and" in page
    assert f"{expression.MAX_EXPRESSION_STEPS:,} steps for all expressions" in page
    assert f"at most {MOST_SEEN_BYTES // 1024**2} MiB;" in page
    assert LARGEST_BYTES == 1024**2


def test_the_bounds_of_sub_workflows_are_those_that_hold() -> None:
    page = " ".join(section(PAGE, "Sub-workflows").split())

    assert f"A child has at most {graph.MOST_CHILD_NODES:,} nodes" in page
    assert f"at most {workflows.MOST_CHILDREN_BYTES // 1024} KiB" in page
    assert f"at most {graph.MOST_DEPTH} workflows deep, and {graph.MOST_CHILDREN:,} children" in page


def test_every_state_and_policy_is_documented() -> None:
    text = section(PAGE, "States")
    policies = [row[0].strip("`") for row in table_rows(section(PAGE, "When something fails"))]

    assert [row[0].strip("`") for row in table_rows(text)] == list(TaskState)
    assert all(f"`{state}`" in text.rpartition("A workflow is")[2] for state in WorkflowState)
    assert policies == list(definition.OnFailure)


def test_every_example_is_a_workflow() -> None:
    sizes = {path.stem: len(load_workflow(path).nodes) for path in (ROOT / "examples").glob("*.yaml")}

    assert sizes == {
        "layered": 100,
        "parallel_docs": 5,
        "pr_deployment": 10,
        "release": 6,
        "repository": 6,
        "volumes": 2,
    }

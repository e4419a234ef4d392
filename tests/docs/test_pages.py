"""The numbers, names and tables of pages are those of the code."""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import fields as dataclass_fields
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from redis import Redis

from chaos.checks.invariants import judge
from chaos.faults.schedule import KINDS, STORE_KINDS
from chaos.mutants.table import MUTANTS
from chaos.recorder import POINTS
from coditect.agent import heartbeat
from coditect.broker.rabbitmq import connection as link
from coditect.client import workflows
from coditect.errors import CoditectError
from coditect.model.result import ENDINGS
from coditect.registry import port
from coditect.testing import TestFleet
from coditect.wire import control_messages
from coditect.workflow import definition, fields, graph
from coditect.workflow import expressions as expression
from coditect.workflow.documents.file import DOCUMENT_BYTES_LIMIT, MOST_LEVELS, load_workflow
from coditect.workflow.documents.schema import KINDS as NODE_KINDS
from coditect.workflow.states import TaskState, WorkflowState
from dispatcher import ledger
from dispatcher.ledger import errors as ledger_errors
from dispatcher.ledger import idempotency, values
from dispatcher.ledger.nodes.inputs import MOST_SEEN_BYTES
from dispatcher.ledger.ownership import leases, shards
from dispatcher.ledger.ownership.leases import LOOKS_PER_TTL, TTL_MS
from dispatcher.ledger.ownership.shards import STEP_MS
from dispatcher.ledger.values import LARGEST_BYTES
from dispatcher.liveness import eviction, monitor, ping
from dispatcher.scheduling.reconciler import ROUND_SECONDS
from dispatcher.shards.publishing import TYPES
from dispatcher.store import errors as store_errors
from dispatcher.store import limits
from dispatcher.store.fdb import FdbSettings
from dispatcher.store.sqlite import SqliteDatabase
from dispatcher.store.sqlite.database import WAIT_SECONDS
from dispatcher.taskgraph import redis
from dispatcher.taskgraph.port import BATCH, MOST_RESULT_BYTES, JobState, job_state
from dispatcher.taskgraph.projector import MOST_WITH_OUTCOMES
from dispatcher.taskgraph.redis import RedisTaskGraph
from tests.contract.graph.scene import Scene
from tests.docs.pages import Mark, blocks, section, table_rows
from tests.integration.graph.stock import Stock
from tests.integration.registry.private_redis import run_private_redis
from tests.integration.wire.schemas import names, schema
from tests.servers import ROOT

FAILOVER, LAYERS, STORE, TASK_GRAPH, WORKFLOWS, TESTING, CHAOS = (
    ROOT / "docs" / f"{name}.md"
    for name in ("failover", "layers", "store", "task-graph", "workflows", "testing", "chaos")
)
MODULES: dict[str, ModuleType] = {
    module.__name__.rpartition(".")[2]: module for module in (port, heartbeat, monitor, ping, eviction)
}
CONSTANTS = [row for row in table_rows(section(FAILOVER, "The monitor")) if row[0].startswith("`")]


@pytest.mark.parametrize(("name", "seconds"), [(row[0].strip("`"), float(row[1])) for row in CONSTANTS])
def test_a_constant_is_that_of_the_code(name: str, seconds: float) -> None:
    module, _, constant = name.partition(".")

    assert getattr(MODULES[module], constant) == seconds


def test_the_promise_follows_from_the_constants() -> None:
    looked_at = port.LEASE_SECONDS - monitor.EARLY_PING_SECONDS + monitor.FLEET_CHECK_SECONDS
    proven = max(port.LEASE_SECONDS, looked_at + ping.PONG_SECONDS)

    assert len(CONSTANTS) == 12
    assert proven < 5 - 1, "a second is left for eviction and delivery"


def test_the_promise_for_who_is_cut_off_from_the_broker_alone_follows_from_them() -> None:
    told = link.CONNECTION_CHECK_SECONDS + link.QUIET_SECONDS + link.PROBE_ANSWER_SECONDS + port.BEAT_SECONDS

    assert told + monitor.FLEET_CHECK_SECONDS + monitor.RELIEF_SECONDS < 5 - 0.9, (
        "the rest is left for eviction and delivery"
    )


BEHIND_MS = -(-TTL_MS // STEP_MS) * STEP_MS
"""The first step that is not before the TTL."""


def test_the_times_follow_from_the_pace_and_the_ttl() -> None:
    rows = table_rows(section(LAYERS, "Shards"))[-4:]

    assert [int(re.sub(r"\D", "", row[1])) for row in rows] == [STEP_MS, TTL_MS, STEP_MS + BEHIND_MS, STEP_MS]
    assert 5 * STEP_MS < TTL_MS
    assert TTL_MS // LOOKS_PER_TTL >= STEP_MS, "steps at their pace count in full"


def test_the_table_names_the_layers_that_there_are() -> None:
    named = re.findall(r"^\| `(\w+)` \|", LAYERS.read_text(encoding="utf-8"), re.MULTILINE)
    there = {path.stem for path in (ROOT / "dispatcher" / "ledger").glob("*.py")}
    there |= {path.stem for path in (ROOT / "dispatcher" / "ledger" / "ownership").glob("*.py")}

    assert ledger.__doc__
    assert set(named) == there - {
        "__init__", "unit_of_work", "commands", "definitions", "effects", "errors", "keyspace", "policy", "rows",
        "versions",
    }  # fmt: skip


def test_a_key_is_remembered_for_seven_days() -> None:
    assert idempotency.KEY_RETENTION_MS == 7 * 24 * 60 * 60 * 1000
    assert leases.LOOKS_PER_TTL == 3, "a third of the TTL"


def test_the_limits_are_those_that_are_enforced() -> None:
    rows = table_rows(section(STORE, "Limits"))[-4:]
    numbers = [int(re.sub(r"\D", "", row[1])) for row in rows]
    named = [re.findall(r"`([A-Z]\w+)`", row[2])[0] for row in rows]

    assert numbers == [limits.TRANSACTION_SECONDS, limits.TRANSACTION_BYTES, limits.KEY_BYTES, limits.VALUE_BYTES]
    assert all(issubclass(getattr(store_errors, name), CoditectError) for name in named)


def test_the_parameters_are_those_that_the_backends_take() -> None:
    rows = [row for row in table_rows(section(STORE, "Settings")) if "`" in row[0]]
    documented = {name for row in rows for name in re.findall(r"`(\w+)`", row[0])}
    defaults = {row[0].strip("`"): row[2] for row in rows}
    of_sqlite = set(inspect.signature(SqliteDatabase).parameters) - {"path", "on_wait"}

    assert documented == of_sqlite | {field.name for field in dataclass_fields(FdbSettings)}
    assert float(defaults["run_seconds"]) == limits.RUN_SECONDS == FdbSettings().run_seconds
    assert float(defaults["wait_seconds"]) == WAIT_SECONDS
    assert int(defaults["threads"]) == FdbSettings().threads


@pytest.mark.parametrize("module", [store_errors, ledger_errors], ids=lambda module: module.__name__)
def test_every_error_is_in_the_tree_of_its_module(module: ModuleType) -> None:
    tree = inspect.getdoc(module) or ""
    own = [name for name, kind in inspect.getmembers(module, inspect.isclass) if kind.__module__ == module.__name__]

    assert [name for name in own if f"── {name} " not in tree] == []


STATES = [[cell.strip("`") for cell in row] for row in table_rows(section(TASK_GRAPH, "Where a node is"))]
COUNTED = {"queued": "the queue's number", "started": "executing", "finished": "finished", "failed": "failed"}
"""By `rq info`, and by which word of its output."""


def test_the_table_has_every_state_of_a_node_once() -> None:
    assert [row[0] for row in STATES] == [state.value for state in TaskState]


@pytest.mark.parametrize("row", STATES, ids=lambda row: row[0])
def test_a_row_of_the_table_is_what_the_code_does(row: list[str]) -> None:
    state = job_state(TaskState(row[0]))
    key = {JobState.QUEUED: "rq:queue:<queue>", JobState.STARTED: "rq:wip:<queue>"}

    assert row[1] == state.value
    assert row[2] == key.get(state, f"rq:{state.value}:<queue>")
    assert row[3] == (f"rq info`: {COUNTED[state.value]}" if state.value in COUNTED else f"rq-dashboard: {state.value}")


@pytest.fixture
async def scene(tmp_path: Path) -> AsyncIterator[tuple[Scene, Stock]]:
    with run_private_redis(tmp_path) as server, Redis.from_url(server.url) as client:
        async with RedisTaskGraph(server.url, worker="dispatcher-1", timeout_seconds=10) as graph:
            scene = Scene(graph)
            yield scene, Stock(client, scene)


@pytest.mark.servers
async def test_stock_rq_counts_what_the_ledger_counts(scene: tuple[Scene, Stock]) -> None:
    """As many nodes of each state as no sum of others has: 1, 2, 4..."""
    ours, stock = scene
    ledger = {state: 2**number for number, state in enumerate(TaskState)}
    for state, number in ledger.items():
        await ours.create(*[ours.job(f"{state.value}_{at}", state=JobState.QUEUED) for at in range(number)])
        await ours.tell(job_state(state), *[f"{state.value}_{at}" for at in range(number)])

    expected: Counter[str] = Counter()
    for row in STATES:
        expected[row[1]] += ledger[TaskState(row[0])]
    assert await ours.counts() == stock.counts() == expected
    assert stock.info()[stock.name] == {
        "queued": expected["queued"],
        "executing": expected["started"],
        "finished": expected["finished"],
        "failed": expected["failed"],
    }


@pytest.mark.parametrize(
    ("page", "sentence", "number"),
    [
        (LAYERS, r"fixed when the store is made, ([\d,]+) by default", shards.DEFAULT_SHARDS),
        (LAYERS, r"are 1 to ([\d,]+) bytes", idempotency.LONGEST_IDEMPOTENCY_KEY_BYTES),
        (LAYERS, r"at most ([\d,]+) bytes, in pieces", values.LARGEST_BYTES),
        (LAYERS, r"in pieces of ([\d,]+);", values.VALUE_PIECE_BYTES),
        (TASK_GRAPH, r"every ([\d,]+) s the live workflows", ROUND_SECONDS),
        (TASK_GRAPH, r"every ([\d,]+) s such workflows are looked for", ROUND_SECONDS),
        (TASK_GRAPH, r"in batches of up to ([\d,]+) by Lua", BATCH),
        (TASK_GRAPH, r"fan-out of more than ([\d,]+) is released", redis.MOST_DEPENDENTS),
        (TASK_GRAPH, r"at most ([\d,]+) bytes of JSON", MOST_RESULT_BYTES),
        (TASK_GRAPH, r"more than ([\d,]+) changes wait\sfor Redis", MOST_WITH_OUTCOMES),
    ],
)
def test_a_number_in_the_text_is_that_of_the_code(page: Path, sentence: str, number: float) -> None:
    found = re.search(sentence, page.read_text(encoding="utf-8"))

    assert found
    assert int(found[1].replace(",", "")) == number


OF_ALL = frozenset(NODE_KINDS)


def test_every_field_is_documented_with_the_kinds_that_have_it() -> None:
    rows = [row for row in table_rows(section(WORKFLOWS, "Fields")) if "`" in row[0]]
    documented = {row[0].strip("`"): OF_ALL if row[1] == "all" else frozenset(row[1].split(", ")) for row in rows}
    names = {name for fields_ in NODE_KINDS.values() for name in fields_.model_fields}

    assert documented == {
        name: frozenset(kind for kind, fields_ in NODE_KINDS.items() if name in fields_.model_fields) for name in names
    }


def test_the_bounds_are_those_that_hold() -> None:
    page = " ".join(WORKFLOWS.read_text(encoding="utf-8").split())

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
    page = " ".join(section(WORKFLOWS, "Sub-workflows").split())

    assert f"A child has at most {graph.MOST_CHILD_NODES:,} nodes" in page
    assert f"at most {workflows.MOST_CHILDREN_BYTES // 1024} KiB" in page
    assert f"at most {graph.MOST_DEPTH} workflows deep, and {graph.MOST_CHILDREN:,} children" in page


def test_every_state_and_policy_is_documented() -> None:
    text = section(WORKFLOWS, "States")
    policies = [row[0].strip("`") for row in table_rows(section(WORKFLOWS, "When something fails"))]

    assert [row[0].strip("`") for row in table_rows(text)] == list(TaskState)
    assert all(f"`{state}`" in text.rpartition("A workflow is")[2] for state in WorkflowState)
    assert policies == list(definition.OnFailure)


def test_every_example_is_a_workflow() -> None:
    sizes = {path.stem: len(load_workflow(path).nodes) for path in (ROOT / "examples").glob("*.yaml")}

    assert sizes == {
        "layered": 100, "parallel_docs": 5, "pr_deployment": 10, "release": 6, "repository": 6, "volumes": 2,
    }  # fmt: skip


def test_copied_test_runs_as_it_stands(tmp_path: Path) -> None:
    [block] = [one for one in blocks(TESTING) if one.mark is Mark.FILE and one.remark == "examples/test_courier.py"]
    (tmp_path / "test_courier.py").write_text(block.text, encoding="utf-8")
    unset = ("CODITECT_", "PYTEST_", "PYTHONPATH")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(unset)}

    done = subprocess.run(
        [sys.executable, "-I", "-m", "pytest", "test_courier.py"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^=+ \d+ passed in ", done.stdout, re.MULTILINE), done.stdout


def test_every_public_name_of_the_fleet_is_in_the_table() -> None:
    told = {name for row in table_rows(section(TESTING, "What it can do")) for name in re.findall(r"`(\w+)", row[0])}
    assigned = {"client", "server", "registry"}

    assert told == {name for name in vars(TestFleet) if not name.startswith("_")} | assigned


def rows(title: str) -> dict[str, str]:
    return {row[0].strip("`"): row[1] for row in table_rows(section(CHAOS, title))}


def test_every_fault_is_documented_as_it_is() -> None:
    assert rows("What is broken") == {**KINDS, **STORE_KINDS}


def test_every_invariant_is_documented_as_it_is() -> None:
    assert rows("What is checked") == {one.invariant: one.sentence for one in judge([])}


def test_every_mutant_is_documented_with_what_catches_it() -> None:
    table = table_rows(section(CHAOS, "Mutants"))

    written = {row[0].strip("`"): (row[1], row[2]) for row in table}
    assert written == {one.name: (one.breaks, f"{one.caught_by}, seed {one.seed}") for one in MUTANTS.values()}


def test_every_failpoint_is_documented_as_it_is() -> None:
    assert rows("Failpoints") == dict(POINTS)


WIRE = (ROOT / "docs" / "wire.md").read_text(encoding="utf-8")
NAMED_ON_THE_WIRE_PAGE = set(re.findall(r"`([^`\n]+)`", WIRE))


def names_described(part: dict[str, Any]) -> set[str]:
    parts = part["properties"]
    return {name for where in ("properties", "headers") for name in parts.get(where, {}).get("properties", {})}


@pytest.mark.parametrize("name", ["task", "result", "dead-letter", "event"])
def test_every_property_and_header_of_a_schema_is_on_the_page(name: str) -> None:
    assert names_described(schema(name)) - NAMED_ON_THE_WIRE_PAGE <= (
        {"content_type", "message_id"} if name in ("event", "result") else set()
    )


def test_every_field_of_a_failure_and_every_reason_is_on_the_page() -> None:
    fields = schema("failure")["properties"]

    assert set(fields) <= NAMED_ON_THE_WIRE_PAGE
    assert set(fields["reason"]["examples"]) <= NAMED_ON_THE_WIRE_PAGE


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
    assert described <= NAMED_ON_THE_WIRE_PAGE


@pytest.mark.parametrize("name", names())
def test_every_schema_is_linked(name: str) -> None:
    assert f"](wire/{name}.schema.json)" in WIRE


def _python(room: str) -> list[Any]:
    return sorted((ROOT / room).rglob("*.py"))

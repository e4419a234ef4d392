from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from pydantic import BaseModel

from coditect import After, From, Priority, Retry, Workflow
from coditect.errors import InputError, InvalidWorkflow
from coditect.workflow.definition import (
    Approval,
    AwaitSignal,
    Call,
    Definition,
    Each,
    Node,
    OnFailure,
    SubWorkflow,
    WaitFor,
    WaitUntil,
)
from coditect.workflow.documents.document import to_document
from coditect.workflow.documents.file import read_workflow, write_json, write_yaml
from coditect.workflow.documents.reader import from_document
from coditect.workflow.expressions import Scope, check_expressions, element_inputs, node_input
from coditect.workflow.graph import graph_of
from coditect.workflow.template import Literal
from tests.unit.workflow.graphs import definitions


@dataclass
class Order:
    sku: str
    of: Any = None


class Scan(BaseModel):
    repo: str


def test_a_workflow_is_put_together_node_by_node() -> None:
    flow = Workflow("release")
    a = flow.task("code.review", Scan(repo="x"))
    b = flow.task("tests.run", after=[a], timeout="5m", retry=Retry(max_attempts=2, cap="60s"), priority="p0")
    gate = flow.approval("Ship it?", after=[b], timeout="2d")
    flow.task("deploy.release", {"of": From("results.ship_it")}, after=[gate], compensate="deploy.rollback")

    assert flow.definition() == Definition(
        "release",
        (
            Node("code_review", Call("code.review", {"repo": "x"})),
            Node(
                "tests_run",
                Call("tests.run", priority=Priority.P0, timeout_ms=300_000, retry=Retry(2, "1s", "1m")),
                (After("code_review"),),
            ),
            Node("ship_it", Approval("Ship it?", 172_800_000), (After("tests_run"),)),
            Node(
                "deploy_release",
                Call("deploy.release", {"of": {"$from": "results.ship_it"}}, compensate="deploy.rollback"),
                (After("ship_it"),),
            ),
        ),
    )


def test_a_map_goes_over_an_expression_or_a_list_with_its_limit() -> None:
    flow = Workflow("many")
    node = flow.map("code.review", From("input.paths"), Order("1", of=From("item")), limit=5, name="each")

    assert node == Node("each", Each(Call("code.review", {"sku": "1", "of": {"$from": "item"}}), "input.paths", 5))

    flow = Workflow("data")
    first = flow.task("one", name="first")
    many = flow.map("two", [1, {"of": first.result}], flow.item, name="many")

    made = flow.definition()

    assert many.work == Each(Call("two", {"$from": "item"}), [1, {"of": {"$from": "results.first"}}], 2)
    assert from_document(to_document(made)) == made
    scope = Scope(None, {"first": 7}, {"first": "completed"})
    assert list(element_inputs(many, scope)) == [1, {"of": 7}]


def test_an_edge_has_the_policy_of_its_node_unless_it_says_another() -> None:
    flow = Workflow("edges")
    a, b = flow.task("a.a"), flow.task("b.b")

    c = flow.task("c.c", after=[a, After(b.name, OnFailure.ALLOW), "later"], on_failure="skip", join=2)
    flow.task("d.d", name="later")

    assert c.after == (After("a_a", OnFailure.SKIP), After("b_b", OnFailure.ALLOW), After("later", OnFailure.SKIP))
    assert graph_of(flow.definition()).order[-1] == c.name

    flow = Workflow("data")
    first = flow.task("one")
    second = flow.task("two", first.result, after=[After(first.name, OnFailure.ALLOW)])

    assert second.after == (After(first.name, OnFailure.ALLOW),)


def test_names_of_the_same_kind_are_numbered() -> None:
    flow = Workflow("same")

    names = [flow.task(name).name for name in ("a.b", "a_b", "a-b", "1.x")] + [flow.approval("¿?").name]

    assert names == ["a_b", "a_b_2", "a_b_3", "n1_x", "node"]


def test_the_input_is_a_copy_and_a_literal_stays_as_it_stands() -> None:
    given_: dict[str, list[int]] = {"list": [1]}
    flow = Workflow("copy")
    node = flow.task("a.b", given_)

    given_["list"].append(2)

    assert node.call is not None
    assert node.call.input == {"list": [1]}

    flow = Workflow("literal")
    node = flow.task("a.b", Literal({"$from": 1}))

    assert node.call is not None
    assert node.call.input == {"$literal": {"$from": 1}}


@pytest.mark.parametrize(
    "make",
    [
        lambda flow: Workflow("no spaces"),
        lambda flow: flow.task("No Capability"),
        lambda flow: flow.task("a.b", object()),
        lambda flow: flow.task("a.b", {"$from": "x", "more": 1}),
        lambda flow: flow.task("a.b", {"$from": 1}),
        lambda flow: flow.task("a.b", name="no-word"),
        lambda flow: flow.task("a.b", name="taken"),
        lambda flow: flow.task("a.b", priority="p3"),
        lambda flow: flow.task("a.b", timeout="0ms"),
        lambda flow: flow.task("a.b", timeout=timedelta(days=10_000)),
        lambda flow: flow.task("a.b", retry=Retry(on=(ValueError,))),
        lambda flow: flow.task("a.b", retry={"tries": 3}),
        lambda flow: flow.task("a.b", retry={"on": Exception}),
        lambda flow: flow.task("a.b", join="most"),
        lambda flow: flow.task("a.b", when=""),
        lambda flow: flow.task("a.b", when="x" * 1_001),
        lambda flow: flow.task("a.b", after=[Workflow("other").task("a.b")]),
        lambda flow: flow.task("a.b", after=["taken"], on_failure="retry"),
        lambda flow: flow.task("a.b", after=[5]),
        lambda flow: flow.task("a.b", after=[After(node=5)]),  # type: ignore[arg-type]  # what is tested
        lambda flow: flow.task("a.b", after="taken"),
        lambda flow: flow.task("a.b", after=Workflow("other").task("a.b")),
        lambda flow: flow.map("a.b", "input", limit=0),
        lambda flow: flow.map("a.b", "input", limit=10_001),
        lambda flow: flow.approval(" "),
        lambda flow: flow.approval("?", on_timeout="wait"),
        lambda flow: flow.wait("soon"),
        lambda flow: flow.wait("5s", timeout="1s"),
        lambda flow: flow.wait_until("2026-12-24"),
        lambda flow: flow.wait_until({"at": "2026-12-24T08:00:00Z"}),
        lambda flow: flow.signal("not a name"),
    ],
)
def test_what_cannot_be_is_refused_at_the_call(make: Any) -> None:
    flow = Workflow("refusing")
    flow.task("a.b", name="taken")

    with pytest.raises(InputError):
        make(flow)

    assert len(flow.definition().nodes) == 1


@pytest.mark.parametrize(
    ("options", "fix"),
    [({"prio": "p0"}, "did you mean priority?"), ({"retries": 3}, "did you mean retry?"), ({"x": 1}, "one of name")],
)
def test_an_option_that_there_is_not_is_refused_with_the_nearest_one(options: dict[str, Any], fix: str) -> None:
    with pytest.raises(InputError) as refused:
        Workflow("x").task("a.b", **options)

    assert str(refused.value.facts["fix"]).startswith(fix)


def test_a_circle_of_names_is_refused_in_the_end() -> None:
    flow = Workflow("circle")
    flow.task("a.b", name="a", after=["b"])
    flow.task("a.b", name="b", after=["a"])

    with pytest.raises(InvalidWorkflow, match="circle"):
        flow.definition()


# To files and back


def built_again(definition: Definition) -> Definition:
    """The same, through the builder."""
    flow = Workflow(definition.name, description=definition.description)
    for node in definition.nodes:
        place: Any = {"name": node.name, "after": node.after, "join": node.join}
        place |= {} if node.when is None else {"when": node.when}
        match node.work:
            case Call() as call:
                flow.task(call.capability, call.input, **place, **_options(call))
            case Each(call, over, limit):
                flow.map(call.capability, over, call.input, limit=limit, **place, **_options(call))
            case Approval(question, timeout_ms, on_timeout):
                waits = None if timeout_ms is None else timedelta(milliseconds=timeout_ms)
                flow.approval(question, timeout=waits, on_timeout=on_timeout, **place)
            case WaitFor(period_ms):
                flow.wait(timedelta(milliseconds=period_ms), **place)
            case WaitUntil(instant):
                flow.wait_until(instant if isinstance(instant, str) else From(instant["$from"]), **place)
            case AwaitSignal(signal, timeout_ms):
                waits = None if timeout_ms is None else timedelta(milliseconds=timeout_ms)
                flow.signal(signal, timeout=waits, **place)
            case SubWorkflow(workflow, given, retry, compensate):
                flow.workflow(workflow, given, retry=retry, compensate=compensate, **place)
    return flow.definition()


def _options(call: Call) -> Any:
    limits = {"timeout": call.timeout_ms, "start_within": call.start_within_ms, "deadline": call.deadline_ms}
    limits["heartbeat"] = call.heartbeat_ms
    periods = {name: None if limit_ms is None else f"{limit_ms}ms" for name, limit_ms in limits.items()}
    return periods | {"priority": call.priority, "retry": call.retry, "compensate": call.compensate}


@given(definitions(most=4))
def test_yaml_json_document_and_builder_say_the_same(definition: Definition) -> None:
    assert from_document(to_document(definition)) == definition
    assert built_again(definition) == definition
    assert read_workflow(write_json(definition).encode(), is_json=True) == definition
    assert read_workflow(write_yaml(definition).encode()) == definition


def test_result_that_is_used_as_a_value_makes_the_edge() -> None:
    flow = Workflow("data")
    first = flow.task("one", flow.input["place"], name="first")
    second = flow.task("two", {"deep": [first.result["found here"][0]["x"]]}, name="second", when=first.result["ok"])
    last = flow.map("three", second.result["list"], {"n": flow.item, "of": first.result}, limit=9, name="last")

    made = flow.definition()

    assert first.call is not None and first.call.input == {"$from": "input.place"}
    assert second.call is not None and second.call.input == {"deep": [{"$from": 'results.first."found here"[0].x'}]}
    assert second.when == "results.first.ok"
    assert [edge.node for edge in second.after] == ["first"]
    assert {edge.node for edge in last.after} == {"first", "second"}
    assert check_expressions(made) == ()


def test_a_result_is_an_expression_of_its_own_workflow_and_no_list() -> None:
    assert From("a || b")["c"].expression == "(a || b).c"

    first = Workflow("data").task("one")

    with pytest.raises(InputError, match=r"flow\.map"):
        list(first.result)

    other = Workflow("other").task("one")

    with pytest.raises(InputError, match="another workflow"):
        Workflow("data").task("two", other.result)


@pytest.mark.parametrize(
    ("given", "reason", "fix"),
    [
        ({"name": ["Ada"]}, "not null", "start the workflow with an input that has 'names'; this one has only 'name'"),
        ({}, "not null", "start the workflow with an input that has 'names'; this one is empty"),
        (None, "not null", "start the workflow with an object that has 'names' as its input, which is null now"),
        (["Ada"], "not null", "an object that has 'names' as its input, which is a list now"),
        ({"names": "Ada"}, "not a text", "start the workflow with a list as 'names' of its input"),
    ],
)
def test_wrong_input_of_the_workflow_is_refused_with_the_input_that_it_needs(
    given: object, reason: str, fix: str
) -> None:
    flow = Workflow("greetings")
    flow.map("hello.greet", From("input.names"), limit=9, name="each")
    (node,) = flow.definition().nodes

    with pytest.raises(InvalidWorkflow) as refused:
        element_inputs(node, Scope(given, {}, {}))

    assert reason in str(refused.value.facts["reason"])
    assert fix in str(refused.value.facts["fix"])


def test_function_that_gets_nothing_of_the_input_names_what_is_missing() -> None:
    flow = Workflow("greetings")
    flow.task("hello.greet", From("length(input.names)"), name="one")
    (node,) = flow.definition().nodes

    with pytest.raises(InvalidWorkflow) as refused:
        node_input(node, Scope({"name": 1}, {}, {}))

    assert "an input that has 'names'" in str(refused.value.facts["fix"])

"""Workflow documents: what the reader takes, what it refuses and where, and their JSON schema."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coditect.errors import InputError, InvalidWorkflow, NotFound
from coditect.workflow.builder import TaskOptions
from coditect.workflow.definition import MOST_PREDECESSORS, Call, Definition
from coditect.workflow.documents.document import to_document
from coditect.workflow.documents.file import DOCUMENT_BYTES_LIMIT, load_workflow, read_values, read_workflow, write_yaml
from coditect.workflow.documents.reader import from_document
from coditect.workflow.documents.schema import KINDS, EdgeFields, MapFields, RetryFields, TaskFields, WorkflowFields
from tests.unit.model.strategies import json_values
from tests.unit.workflow.graphs import definitions, flow, node

KNOWN = "task, map, approval, wait, wait_until, await_signal, workflow"
HEAD = "name: flow\nnodes:\n"
ONE = HEAD + "  a:\n    task: some.work\n"


def problems(text: str, *, is_json: bool = False, known: tuple[str, ...] | None = None) -> list[str]:
    with pytest.raises(InvalidWorkflow) as refused:
        read_workflow(text.encode(), is_json=is_json, capabilities=known)
    return [str(problem) for problem in refused.value.problems]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (HEAD + "  a: {task: some.work}\n  a: {task: some.work}\n", "line 4: The key 'a' stands twice"),
        (HEAD + "  a:\n    task: [\n", "line 5: This is not YAML: "),
        (HEAD + "  a: &x {task: some.work}\n", "line 3: Anchors and aliases are not taken"),
        (HEAD + "  a: *x\n", "line 3: Anchors and aliases are not taken"),
        (HEAD + "  a: !!python/object:os.system {}\n", "line 3: The tag 'tag:yaml.org,2002:python/object:os.system'"),
        (HEAD + "  1: {task: some.work}\n", "line 3: A key is text"),
        (HEAD + "  ? {a: b}\n  : x\n", "line 3: A key is text"),
        (ONE + "---\nname: other\n", "line 5: There is more than one document"),
        (ONE + "    input: " + "1" * 50 + "\n", "line 5: The number is too long"),
        (ONE + "    input: .nan\n", "line 5: JSON has no number .nan"),
        (ONE + "    input: [-.Inf]\n", "line 5: JSON has no number -.Inf"),
        (ONE + "    input: " + "[" * 300 + "]" * 300 + "\n", "line 5: The document is nested over 200 levels"),
        ("", "line 1: A workflow is an object of fields, not NoneType"),
        ("- a\n", "line 1: A workflow is an object of fields, not list"),
        ("name: x\n", "line 1: The field 'nodes' is missing"),
        ("name: x\nnodes: []\n", "line 2: nodes: `nodes` is an object of fields, not list"),
        ("name: x\nnodes: {}\n", "line 2: nodes: A workflow has at least one node"),
        ("name: a b\n" + ONE[11:], "line 1: name: A workflow's name is letters, digits, dots, hyphens and _"),
        (HEAD + "  a b: {task: some.work}\n", "line 3: nodes.a b: A node's name is a word of letters"),
        (HEAD + "  a: some.work\n", "line 3: nodes.a: A node is an object of fields, not str"),
        (HEAD + "  a: {}\n", f"line 3: nodes.a: A node is one of {KNOWN}; this one is none"),
        (HEAD + "  a: {after: []}\n", f"line 3: nodes.a: A node is one of {KNOWN}; this one is none"),
        (ONE + "    approval: x\n", f"line 3: nodes.a: A node is one of {KNOWN}; this one is task and"),
        (ONE + "    timeuot: 5m\n", "line 5: nodes.a.timeuot: There is no field 'timeuot' here"),
        (ONE + "    timeout: 5 parsecs\n", "line 5: nodes.a.timeout: A duration needs a number and a unit"),
        (ONE + "    start_within: soon\n", "line 5: nodes.a.start_within: A duration needs a number and a unit"),
        (ONE + "    deadline: 0s\n", "line 5: nodes.a.deadline: A duration "),
        (HEAD + "  a: {approval: ok?, deadline: 1h}\n", "line 3: nodes.a.deadline: There is no field 'deadline' here"),
        (ONE + "    heartbeat: 5s\n", "line 5: nodes.a.heartbeat: A heartbeat is at least 45s"),
        (ONE + "    timeout: [1]\n", "line 5: nodes.a.timeout: A duration needs a number and a unit"),
        (ONE + "    priority: high\n", "line 5: nodes.a.priority: One of p0, p1, p2 is expected"),
        (ONE + "    retry: {tries: 3}\n", "line 5: nodes.a.retry.tries: There is no field 'tries' here"),
        (ONE + "    retry: {max_attempts: 0}\n", "line 5: nodes.a.retry.max_attempts: A whole number from 1 to"),
        (ONE + "    retry: {cap: 2h}\n", "line 5: nodes.a.retry.cap: A retry's cap is at most 1h"),
        (ONE + "    retry: 3\n", "line 5: nodes.a.retry: A retry policy is an object of max_attempts, first, cap"),
        (ONE + "    join: yes\n", "line 5: nodes.a.join: `join` is all, any or a number"),
        (ONE + "    join: 1\n", "line 5: nodes.a.join: `join` wants 1 of 0 predecessors"),
        (ONE + "    timeout: null\n", "line 5: nodes.a.timeout: A duration needs a number and a unit"),
        (ONE + "    after: null\n", "line 5: nodes.a.after: `after` is a list of nodes"),
        (ONE + "    after: [1]\n", "line 5: nodes.a.after[0]: An edge is a node's name or an object"),
        (ONE + "    after: b\n", "line 5: nodes.a.after: `after` is a list of nodes"),
        (ONE + "    after: [b]\n", "line 5: nodes.a.after[0]: There is no node 'b'"),
        (ONE + "    after:\n      - {node: a, on_failure: retry}\n", "line 6: nodes.a.after[0].on_failure: One of"),
        (ONE + "    after:\n      - {on_failure: fail}\n", "line 6: nodes.a.after[0]: The field 'node' is missing"),
        (ONE + "    input:\n      a: {$from: x, b: 1}\n", "line 5: nodes.a.input: $from and $literal stand alone"),
        (ONE + "    input:\n      a:\n        $from: results.b\n", "line 7: nodes.a.input.a.$from: 'results.b' looks"),
        (ONE + "    when: 'a b'\n", "line 5: nodes.a.when: 'a b': This is no JMESPath expression"),
        (HEAD + "  a: {map: some.work, over: input}\n", "line 3: nodes.a: The field 'limit' is missing"),
        (HEAD + "  a: {map: some.work, over: input, limit: 0}\n", "line 3: nodes.a.limit: A whole number from 1 to"),
        (HEAD + "  a: {approval: '?', retry: {}}\n", "line 3: nodes.a.retry: There is no field 'retry' here"),
        (
            HEAD + "  a:\n    task: x.y\n    after: [b]\n  b:\n    task: x.y\n    after:\n      - a\n",
            "line 9: nodes.b.after[0]: The nodes come after each other in a circle: a → b → a",
        ),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told_with_its_line_and_place(text: str, told: str) -> None:
    found = problems(text)

    assert len(found) == 1
    assert found[0].startswith(told)


@pytest.mark.parametrize("character", ["\x85", "\u2028", "\u2029"])
@pytest.mark.parametrize("written", ["one{}two", '"one{}two"', "|-\n  one{}two"], ids=["plain", "quoted", "block"])
def test_line_ends_of_yaml_1_1_are_characters_of_a_text(character: str, written: str) -> None:
    document = f"description: {written.format(character)}\n" + ONE.replace("some.work", "some work")
    before = document[: document.index("some work")].count("\n") + 1

    assert problems(document)[0].startswith(f"line {before}: ")
    assert read_values(document)["description"] == f"one{character}two"


def test_every_problem_is_told_in_the_order_of_the_lines() -> None:
    text = HEAD + "  a:\n    task: Some Work\n    prio: p0\n  b:\n    approval: ''\n    after: x\nmore: 1\n"

    lines = [told.split(":")[0] for told in problems(text)]

    assert lines == ["line 4", "line 5", "line 7", "line 8", "line 9"]


def test_the_place_of_a_node_is_checked_where_its_kind_is_not_known() -> None:
    text = HEAD + "  a:\n    task: some.work\n    approval: x\n    after: [{nod: b}]\n    join: most\n"

    assert [told.split(": ", 2)[1] for told in problems(text)] == [
        "nodes.a", "nodes.a.after[0]", "nodes.a.after[0].nod", "nodes.a.join",
    ]  # fmt: skip


def test_faults_of_the_graph_and_of_expressions_are_told_at_once() -> None:
    text = b"""name: two
nodes:
  a:
    task: code.review
    after: [nowhere]
  b:
    task: code.review
    when: "input.["
"""

    with pytest.raises(InvalidWorkflow) as raised:
        read_workflow(text)

    assert [problem.path[1] for problem in raised.value.problems] == ["a", "b"]
    assert all(problem.line for problem in raised.value.problems)


@pytest.mark.parametrize(
    ("text", "is_json"), [(ONE, False), ('{"name": "flow", "nodes": {"a": {"wait": "1s"}}}', True)]
)
def test_byte_order_marks_are_ignored(text: str, is_json: bool) -> None:
    for marks in ("\ufeff", "\ufeff\ufeff"):
        assert read_workflow((marks + text).encode(), is_json=is_json).name == "flow"


def test_json_has_lines_too() -> None:
    text = (
        '{\n  "name": "flow",\n  "nodes": {\n    "a": {"task": "x.y", "input": "{[,\\"\\n"},\n    "b":\n {"tsak": 1}}}'
    )

    assert problems(text, is_json=True) == [f"line 5: nodes.b: A node is one of {KNOWN}; this one is none of them"]
    assert problems('{"name": "a",\n"name": "b"}', is_json=True) == ["line 2: The key 'name' stands twice"]
    assert problems('{"name": "a",\n\n"nodes": NaN}', is_json=True) == ["This is not JSON: NaN is no number of JSON"]
    assert problems('{"name":\n\n}', is_json=True)[0].startswith("line 3: This is not JSON: ")
    assert "This is not JSON" in problems("[" * 100_000, is_json=True)[0]


def test_an_unknown_capability_or_kind_of_node_is_refused_with_the_nearest() -> None:
    with pytest.raises(InvalidWorkflow) as refused:
        read_workflow(ONE.replace("some", "smoe").encode(), capabilities=["some.work"])

    assert str(refused.value.problems[0]) == "line 4: nodes.a.task: No agent offers the capability 'smoe.work'"
    assert refused.value.facts["fix"] == "did you mean some.work?"
    assert refused.value.facts["line"] == 4

    with pytest.raises(InvalidWorkflow) as refused:
        read_workflow((HEAD + "  a: {inputs: 3, tsak: some.work}\n").encode())

    assert refused.value.facts["fix"] == "did you mean task?"


def test_a_plain_word_is_what_yaml_1_2_says() -> None:
    words = "[yes, on, NO, 2026-01-01, 1:30, 0x10, 1_000, ~, null, true, 12, -1.5e3, .5, '12', =, <<]"

    definition = read_workflow((ONE + f"    input: {words}\n").encode())

    call = definition.nodes[0].call
    assert call is not None
    assert call.input == [
        "yes", "on", "NO", "2026-01-01", "1:30", "0x10", "1_000", None, None, True, 12, -1500.0, 0.5, "12", "=", "<<",
    ]  # fmt: skip


def test_too_much_and_what_is_no_text_is_refused() -> None:
    assert "8,000,000 bytes" in problems("#" * (DOCUMENT_BYTES_LIMIT + 1))[0]
    with pytest.raises(InvalidWorkflow, match="not UTF-8") as refused:
        read_workflow(b"name: x\nnodes: \xff\n")
    assert refused.value.facts["line"] == 2


def test_a_file_is_read_by_its_name(tmp_path: Path) -> None:
    definition = flow(node("a"), node("b", "a"))
    (tmp_path / "flow.yaml").write_text(write_yaml(definition), encoding="utf-8-sig")
    (tmp_path / "flow.json").write_text(json.dumps({"name": "flow", "nodes": {"a": {"task": "x.y"}}}))

    assert load_workflow(tmp_path / "flow.yaml") == load_workflow(str(tmp_path / "flow.yaml")) == definition
    assert load_workflow(tmp_path / "flow.json") == Definition("flow", (node("a", work=Call("x.y")),))
    with pytest.raises(NotFound):
        load_workflow(tmp_path / "none.yaml")
    with pytest.raises(NotFound):
        load_workflow(Path("no\0path.yaml"))


DOCUMENTS = st.fixed_dictionaries(
    {"name": st.just("flow") | json_values, "nodes": st.dictionaries(st.sampled_from("abc"), json_values, max_size=3)}
) | st.fixed_dictionaries(
    {
        "name": st.just("flow"),
        "nodes": st.dictionaries(
            st.sampled_from("abc"),
            st.dictionaries(
                st.sampled_from([*KINDS, *MapFields.model_fields]),
                json_values | st.sampled_from([["a"], "a.b", 1, {"$from": "input"}]),
                max_size=4,
            ),
            max_size=3,
        ),
    }
)  # fmt: skip


@given(DOCUMENTS)
def test_any_json_is_a_workflow_or_refused_with_lines(document: object) -> None:
    try:
        read_workflow(json.dumps(document, indent=1).encode(), is_json=True)
    except InvalidWorkflow as error:
        assert all(problem.line is not None for problem in error.problems)


@given(st.text(alphabet="a:-{}[]\"'\n #&*!|>?%,1$", max_size=40))
def test_any_text_is_a_workflow_or_refused(text: str) -> None:
    with pytest.raises(InputError):
        read_workflow(text.encode())


def test_too_many_predecessors_are_told_with_the_line_of_after() -> None:
    names = [f"n{number}" for number in range(MOST_PREDECESSORS + 1)]
    nodes = {name: {"task": "some.work"} for name in names} | {"sum": {"task": "some.work", "after": names}}

    (told,) = problems('{"name": "wide",\n"nodes":\n' + json.dumps(nodes)[:-2] + "}\n}}", is_json=True)

    assert told == "line 3: nodes.sum.after: A node comes after at most 10,000 others, 'sum' after 10,001"


SCHEMA = WorkflowFields.model_json_schema()
LONE = "\ud800"
"""Half of a surrogate pair: JSON can write it, UTF-8 cannot."""


@pytest.mark.parametrize(
    "fields",
    [
        {"description": LONE, "nodes": {"a": {"task": "a.b"}}},
        {"description": "", "nodes": {"a": {"task": "a.b", "input": {"x": [LONE]}}}},
        {"description": "", "nodes": {"a": {"task": "a.b", "input": {LONE: 1}}}},
    ],
    ids=["field", "value", "key"],
)
def test_lone_surrogate_is_refused_as_the_file_is_read(fields: dict[str, object]) -> None:
    (told,) = problems('{"name": "flow",\n' + json.dumps(fields)[1:], is_json=True)

    assert told == "line 2: A text has a lone surrogate, which UTF-8 cannot express"


def test_surrogate_pair_is_one_character() -> None:
    definition = read_workflow(
        json.dumps({"name": "flow", "description": "🚀", "nodes": {"a": {"task": "a.b"}}}).encode(), is_json=True
    )

    assert definition.description == "🚀"


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

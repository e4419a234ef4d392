from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coditect.errors import InvalidWorkflow
from coditect.workflow.definition import Call, Each, Node
from coditect.workflow.expressions import Account, Scope, check_expressions, condition_holds, element_inputs, node_input
from tests.unit.model.strategies import json_values
from tests.unit.workflow.graphs import flow, node

SCOPE = Scope(
    {"paths": ["a.py", "b.py"], "text": "x" * 100_000, "numbers": list(range(50_000))},
    {"review": {"findings": 3}, "lint": None},
    {"review": "completed", "lint": "skipped"},
)


def given_input(template: Any) -> Node:
    return node("deploy", "review", "lint", work=Call("deploy.release", template))


def found(expression: str) -> Any:
    return node_input(given_input({"$from": expression}), SCOPE)


def refused(expression: str) -> str:
    with pytest.raises(InvalidWorkflow) as error:
        found(expression)
    assert (error.value.facts["node"], error.value.facts["expression"]) == ("deploy", expression)
    return str(error.value.facts["reason"])


def test_an_input_is_filled_with_what_its_expressions_find() -> None:
    template = {
        "count": {"$from": "results.review.findings"},
        "first": [{"$from": "input.paths[0]"}, "as it is", {"$from": "results.lint"}],
        "how": {"$from": "states.lint"},
        "literal": {"$literal": {"$from": "input"}},
    }

    assert node_input(given_input(template), SCOPE) == {
        "count": 3,
        "first": ["a.py", "as it is", None],
        "how": "skipped",
        "literal": {"$from": "input"},
    }


@given(json_values.filter(lambda value: "$" not in repr(value)))
def test_an_input_without_expressions_stays_as_it_is(value: Any) -> None:
    assert node_input(given_input(value), SCOPE) == ({} if value is None else value)


@pytest.mark.parametrize(
    ("when", "holds"),
    [
        (None, True),
        ("results.review.findings > `2`", True),
        ("results.review.findings > `3`", False),
        ("results.lint", False),
        ("`0`", True),
        ("`[]`", False),
        ("''", False),
        ("states.lint == 'skipped'", True),
        ("`\"a\\`b\"` == 'a`b'", True),
    ],
)
def test_a_condition_holds_when_it_finds_something(when: str | None, holds: bool) -> None:
    assert condition_holds(node("a", "review", "lint", when=when), SCOPE) is holds


def test_a_map_has_an_input_for_each_element_in_order() -> None:
    work = Each(Call("code.review", {"path": {"$from": "item"}, "nth": {"$from": "index"}}), "input.paths", 2)

    assert [*element_inputs(node("each", work=work), SCOPE)] == [{"path": "a.py", "nth": 0}, {"path": "b.py", "nth": 1}]


@pytest.mark.parametrize(("over", "reason"), [("input.paths", "limit of 1"), ("input.text", "a list is expected")])
def test_a_map_over_too_much_or_nothing_is_refused_before_its_first_element(over: str, reason: str) -> None:
    with pytest.raises(InvalidWorkflow) as error:
        element_inputs(node("each", work=Each(Call("code.review"), over, 1)), SCOPE)

    assert reason in str(error.value)
    assert "each" in str(error.value)


@pytest.mark.parametrize(
    ("expression", "reason"),
    [
        ("a..b", "Parse error"),
        ("'open", "Unclosed"),
        ("input.a == `text`", "text is in single quotes"),
        ("`[1,`", "text is in single quotes"),
        ("``", "text is in single quotes"),
        ("shell('x')", "Unknown function"),
        ("sum(input.text)", "invalid type"),
        ("contains('abc', `1`)", "string"),
        ("input.paths[::0]", "zero"),
        ("[" * 400 + "a" + "]" * 400, "deep"),
        ("!" * 900 + "a", "deep"),
        ("|".join("a" * 100), "deep"),
    ],
)
def test_an_expression_that_fails_is_told_with_node_and_reason(expression: str, reason: str) -> None:
    assert reason in refused(expression)


@pytest.mark.parametrize(
    "expression",
    [
        "|".join(["[@,@]"] * 40),
        "|".join(["[@,@][]"] * 40),
        "|".join(["{a: @, b: @}"] * 40),
        "[" + ",".join(["input"] * 30) + "]",
        "join(input.text, map(&to_string(@), input.numbers))",
        "input.numbers[*].[@,@,@] | [*].[@,@,@] | [*].[@,@,@]",
        "length([input,input,input,input] | [@,@,@,@] | [@,@,@,@])",
    ],
)
def test_an_expression_that_would_grow_without_bound_is_stopped(expression: str) -> None:
    assert "too many steps" in refused(expression)


def test_what_is_evaluated_for_each_of_many_values_counts_more_than_what_is_copied() -> None:
    many = {"numbers": list(range(60_000))}
    wide, narrow = (Scope({"numbers": many["numbers"][:length]}, {}, {}) for length in (60_000, 20_000))
    one = node("deploy", work=Call("deploy.release", []), when="input.numbers[?@ > `5`]")

    assert condition_holds(one, narrow)
    with pytest.raises(InvalidWorkflow, match="too many steps"):
        condition_holds(one, wide)


def test_the_account_is_one_for_all_expressions_of_a_node_and_all_elements_of_a_map() -> None:
    with pytest.raises(InvalidWorkflow, match="too many steps"):
        node_input(given_input([{"$from": "input.numbers"}] * 30), SCOPE)

    assert len(node_input(given_input([{"$from": "input.numbers"}] * 3), SCOPE)) == 3

    costly = {"$from": "length(input.numbers)"}
    one = node("deploy", work=Call("deploy.release", [costly] * 15), when="length(input.numbers) > `1`")
    each = node("each", work=Each(Call("code.review", [costly] * 15), "input.paths", 2))
    account = Account()

    assert condition_holds(one, SCOPE, account)
    assert len(node_input(one, SCOPE, account)) == 15
    with pytest.raises(InvalidWorkflow, match="too many steps"):
        condition_holds(replace(one, when=f"[{','.join(['input.numbers'] * 5)}]"), SCOPE, account)
    elements = element_inputs(each, SCOPE)
    assert len(next(elements)) == 15
    with pytest.raises(InvalidWorkflow, match="too many steps"):
        next(elements)


@given(st.text(alphabet="ab.[]*?@|&{}()`'\"!<=>,:0 -", max_size=30), json_values)
def test_any_text_gives_a_value_or_a_refusal(expression: str, value: Any) -> None:
    try:
        node_input(given_input({"$from": expression}), Scope(value, {}, {}))
    except InvalidWorkflow as error:
        assert error.facts["node"] == "deploy"


@pytest.mark.parametrize(
    ("one", "told"),
    [
        (node("b", work=Call("x.y", {"a": [{"$from": "results.a.x"}]})), "does not come after; add a to `after`"),
        (node("b", when="states.a == 'failed'"), "does not come after; add a to `after`"),
        (node("b", "a", when="result.a"), "There is no 'result' to see in 'result.a'; did you mean results?"),
        (node("b", when="lenght(input)"), "There is no function lenght() in 'lenght(input)'; did you mean length?"),
        (node("b", when="input.a.."), "'input.a..': This is no JMESPath expression: "),
        (node("b", when="item"), "There is no 'item' to see"),
        (node("b", work=Call("x.y", {"$from": "index"})), "There is no 'index' to see"),
        (node("b", work=Each(Call("x.y"), "item.x", 1)), "There is no 'item' to see"),
        (node("b", "a", when="input.list[?results.c.x].y | [0]"), None),
        (node("b", "a", when="sort_by(input.list, &age)[0].a && results.a && results.*.x"), None),
        (node("b", "a", work=Each(Call("x.y", {"$from": "item.a || index"}), "results.a", 1)), None),
        (node("b", "a", work=Call("x.y", {"$literal": {"$from": "nonsense("}})), None),
    ],
)
def test_an_expression_is_checked_before_anything_runs(one: Node, told: str | None) -> None:
    problems = check_expressions(flow(node("a"), one))

    assert [problem.path[:2] for problem in problems] == ([] if told is None else [("nodes", "b")])
    assert all(told is not None and told in f"{problem.sentence}; {problem.fix}" for problem in problems)

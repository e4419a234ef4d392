"""What the parts share: statistics, profiles, the report, and how the two sides are started and counted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.demo.docs import FLOW
from benchmarks.figures import median, percentile, ratio, rounded
from benchmarks.parts.parallel_docs import one_by_one
from benchmarks.parts.sides import BY_HAND, OTHERS, Side, agent_of, client_of, rotated
from benchmarks.profiling import ELSEWHERE, KERNEL, Frame, read_shares, room, shares, shares_as_markdown
from benchmarks.programs.driver import BODY_BYTES, Load
from benchmarks.programs.order import Mode, Order
from benchmarks.programs.tally import Tally, reached, span_seconds, total
from benchmarks.programs.workload import echo_agent, echo_capability
from benchmarks.report import Report, as_json, as_markdown, write
from benchmarks.runner import PARTS
from benchmarks.verdict import Bound, Figure, Findings, Verdict
from coditect.workflow.documents.file import load_workflow
from coditect.workflow.graph import graph_of
from tests.docs.pages import section, table_rows
from tests.servers import ROOT

NUMBERS = st.floats(min_value=-1e9, max_value=1e9)


@pytest.mark.parametrize(("share", "value"), [(1, 1), (50, 50), (50.5, 51), (99, 99), (99.1, 100), (100, 100)])
def test_percentile_is_the_nearest_rank(share: float, value: float) -> None:
    assert percentile(list(range(100, 0, -1)), share) == value


@given(st.lists(NUMBERS, min_size=1), st.floats(min_value=0.01, max_value=100))
def test_percentile_is_measured_and_not_exceeded_by_its_share(values: list[float], share: float) -> None:
    found = percentile(values, share)

    assert found in values
    assert sum(value <= found for value in values) >= share * len(values) / 100 - 1e-9


def test_statistics_of_nothing_or_of_an_impossible_share_are_refused() -> None:
    for share in (0, -1, 100.1):
        with pytest.raises(ValueError, match="share"):
            percentile([1.0], share)
    for statistic in (median, lambda values: percentile(values, 50)):
        with pytest.raises(ValueError, match="no values"):
            statistic([])


def test_median_ratio_and_rounding() -> None:
    assert (median([9.0, 1.0, 5.0]), median([9.0, 1.0, 5.0, 6.0])) == (5.0, 5.5)
    assert ratio([30.0, 10.0, 20.0], [5.0, 100.0, 10.0]) == 2.0
    values = (0.0, 1234.56, 0.000123456, -9.87654, 99.996)
    assert [rounded(value) for value in values] == pytest.approx([0.0, 1235.0, 0.0001235, -9.877, 100.0], rel=1e-12)


RUN = Frame("run", "/lib/python3.11/asyncio/runners.py")
OURS = Frame("_start", "/src/coditect/coditect/agent/runtime.py")
PUBLISH = Frame("publish", "/src/coditect/broker/rabbitmq/publishing.py")
STANDARD = Frame("dumps", "/lib/python3.11/json/__init__.py")
SEND = Frame("__libc_send", "libc.so.6")
UNKNOWN = Frame("main", "python3.11")


@pytest.mark.parametrize(
    ("stack", "name"),
    [
        ([RUN, OURS, PUBLISH], "coditect.broker.rabbitmq.publishing"),
        ([RUN, OURS, STANDARD], "coditect.agent.runtime"),
        ([RUN, OURS, SEND], KERNEL),
        ([UNKNOWN, RUN], "asyncio"),
        ([UNKNOWN], ELSEWHERE),
        ([], ELSEWHERE),
    ],
)
def test_sample_belongs_to_the_innermost_room(stack: list[Frame], name: str) -> None:
    assert room(stack) == name


def test_shares_of_a_profile_add_up_and_the_largest_is_first(tmp_path: Path) -> None:
    found = shares([([RUN, OURS], 1.0), ([RUN, SEND], 2.0), ([], 1.0)])
    assert list(found.values()) == pytest.approx([50.0, 25.0, 25.0])

    frames = [{"name": "run", "file": RUN.file}, {"name": "publish", "file": PUBLISH.file}]
    profiles = [{"samples": [[0, 1], [0]], "weights": [0.3, 0.1]}, {"samples": [[0, 1]], "weights": [0.6]}]
    file = tmp_path / "profile.json"
    file.write_text(json.dumps({"shared": {"frames": frames}, "profiles": profiles}))
    assert read_shares(file) == pytest.approx({"coditect.broker.rabbitmq.publishing": 90.0, "asyncio": 10.0})

    text = shares_as_markdown({"client": {"aiormq": 60.0, "redis": 0.9}, "agent": {"pydantic": 99.1, "redis": 0.9}})
    assert text.splitlines()[2:] == [
        "| pydantic                 | 0.0 %  | 99.1 % |",
        "| aiormq                   | 60.0 % | 0.0 %  |",
        "| the rest, each below 1 % | 0.9 %  | 0.9 %  |",
    ]


MET = Verdict("ratio", 1.23456, Bound.AT_LEAST, 0.9, "x")
MISSED = Verdict("wait", 12.0, Bound.AT_MOST, 10.0, "ms")


def report(*verdicts: Verdict) -> Report:
    found = Findings("throughput", verdicts, (Figure("tasks per second", 3123.456, "/s"),), {"rounds": [1, 2]})
    return Report("20260101T000000Z", "python -m benchmarks", {"python": "CPython 3.11.7"}, [found])


@pytest.mark.parametrize(
    ("bound", "measured", "ok"),
    [
        (Bound.AT_LEAST, 10.0, True),
        (Bound.AT_LEAST, 9.9, False),
        (Bound.AT_MOST, 10.0, True),
        (Bound.AT_MOST, 10.1, False),
        (Bound.BELOW, 9.9, True),
        (Bound.BELOW, 10.0, False),
    ],
)
def test_verdict_compares_as_its_bound_says(bound: Bound, measured: float, ok: bool) -> None:
    assert Verdict("any", measured, bound, 10.0).ok is ok


def test_report_is_ok_when_every_verdict_is_and_names_command_machine_and_verdicts(tmp_path: Path) -> None:
    assert report(MET).ok
    assert "wanted" not in as_markdown(report())

    document, text = write(report(MET, MISSED), tmp_path / "results")

    found, shown = json.loads(document.read_text()), text.read_text()
    assert found == as_json(report(MET, MISSED))
    assert found["ok"] is False
    assert found["parts"]["throughput"]["raw"] == {"rounds": [1, 2]}
    assert found["parts"]["throughput"]["verdicts"][0] == {
        "name": "ratio",
        "measured": 1.23456,
        "bound": "at least",
        "target": 0.9,
        "unit": "x",
        "ok": True,
    }
    assert shown == as_markdown(report(MET, MISSED))
    for line in (
        "command: `python -m benchmarks`",
        "- python: CPython 3.11.7",
        "| ratio  | at least 0.9 x | 1.235 x  | ok     |",
        "| wait   | at most 10 ms  | 12 ms    | MISSED |",
        "| tasks per second | 3,123 /s |",
    ):
        assert line in shown


def test_every_part_is_described_in_the_order_in_which_it_runs() -> None:
    rows = table_rows(section(ROOT / "benchmarks" / "README.md", "What is measured"))

    assert [row[0].strip("`") for row in rows if row[0]] == list(PARTS)


BURST = Order(Mode.BURST, 10, 100, capabilities=3)


def test_order_is_read_as_it_was_written() -> None:
    order = Order(Mode.FORGET, 1, 2, body_bytes=3, driver="module", watched={"agent": 4}, tally="folder")

    assert Order.read(order.written()) == order


def test_sides_have_drivers_of_their_own_and_go_first_in_turns() -> None:
    drivers = {Order.read(client_of(side, BURST).argv[-1]).driver for side in (*BY_HAND, *OTHERS)}

    assert len(drivers) == len({*BY_HAND, *OTHERS})
    assert [rotated(BY_HAND, number)[0] for number in range(4)] == [*BY_HAND, *BY_HAND]
    assert agent_of(Side.CODITECT, BURST).env["BENCH_CAPABILITIES"] == "3"
    assert [one.name for one in echo_agent(3).capabilities] == [echo_capability(number) for number in range(3)]
    assert agent_of(Side.CODITECT, BURST).argv[-1].endswith(":echoer")
    assert agent_of(Side.CODITECT, Order(Mode.FORGET, 1, 1)).argv[-1].endswith(":counter"), "it counts on its own"


@pytest.mark.parametrize("size", [0, 1, 44, 45, 46, BODY_BYTES, 256_000])
def test_load_has_the_size_that_was_asked_for(size: int) -> None:
    assert len(Load(size).text.encode()) == size


async def test_executed_tasks_are_counted_over_all_processes_and_waited_for_in_time(tmp_path: Path) -> None:
    (tmp_path / "not-yet-written").touch()
    one, other = Tally(tmp_path / "1"), Tally(tmp_path / "2")
    assert (total(tmp_path), span_seconds(tmp_path)) == (0, 0.0)

    for tally in (one, one, other):
        tally.add()

    assert total(tmp_path) == 3
    assert span_seconds(tmp_path) > 0
    await reached(tmp_path, 3, seconds=5)
    with pytest.raises(TimeoutError):
        await reached(tmp_path, 4, seconds=0.01)


def test_documents_one_by_one_are_the_same_workflow_in_a_row() -> None:
    flow = load_workflow(FLOW)
    chained = one_by_one(flow)

    assert len(graph_of(flow).layers) == 3
    order = [list(layer) for layer in graph_of(chained).layers]
    assert order[:3] == [["reference"], ["user_guide"], ["deployment_guide"]]
    assert [(node.name, node.input) for node in chained.nodes] == [(node.name, node.input) for node in flow.nodes]

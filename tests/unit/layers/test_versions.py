"""Rows carry a version: earlier ones are read, later ones are refused by name, and what is packed is read as it was."""

from __future__ import annotations

import inspect
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic_core import to_json

from coditect.errors import NewerVersion
from coditect.workflow.definition import SubWorkflow
from coditect.workflow.states import Tally, TaskState, WorkflowState
from dispatcher.ledger import definitions, keyspace, versions
from dispatcher.ledger.effects import NodeKey
from dispatcher.ledger.rows import AttemptRecord, NodeRecord, ParentNode, RunRecord, WorkflowRecord
from dispatcher.ledger.versions import RowFormat
from tests.unit.layers.store_of_version_1 import rows_by_kind

FORMATS = {one.kind: one for one in vars(versions).values() if isinstance(one, RowFormat)}
PLAIN = {"edge", "flight", "todo", "approval", "again", "indexed", "awaiting", "signal", "signal_kept", "child"}
"""Values that are one text, or nothing: they have no version."""
NEW = {"lock", "lock_queue", "lock_count", "space", "schedule", "breaker", "checkpoint", "restore", "trigger"}
NEW |= {"decision", "audit", "learned"}
NEW |= {"thread", "thread_message", "thread_sent", "thread_member", "thread_reader", "handoff"}
"""Kinds of rows that the build before versions did not have."""
CLASSES: dict[str, type[Any]] = {
    "workflow": WorkflowRecord,
    "run": RunRecord,
    "status": NodeRecord,
    "attempt": AttemptRecord,
}

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
number = st.integers(0, 2**53 - 1)
instant = st.none() | st.integers(1, 2**45)  # none is at the epoch itself: a 0 at the end of a row is not written
counts = st.dictionaries(st.sampled_from([state.value for state in TaskState]), st.integers(1, 9))
state = st.sampled_from(TaskState)
ROWS: dict[str, st.SearchStrategy[Any]] = {
    "workflow": st.builds(
        WorkflowRecord,
        number,
        text,
        text,
        text,
        number,
        number,
        st.dictionaries(text, text, max_size=3),
        instant,
        st.none() | st.builds(ParentNode, text, text, text, number),
    ),
    "run": st.builds(
        RunRecord,
        st.sampled_from(WorkflowState),
        counts,
        counts,
        number,
        st.booleans(),
        text,
        instant,
        number,
        st.booleans(),
        number,
        st.none() | st.sampled_from(WorkflowState),
        st.booleans(),
        number,
        st.none() | st.just([1, ["a"], "ada", False]),
    ),
    "status": st.builds(
        NodeRecord,
        *(state, st.builds(Tally, number, number, number, st.none() | state), st.integers(1, 99), number, number, text),
        *(instant, instant, instant, instant, text, st.booleans(), st.booleans(), instant, instant, instant),
        st.booleans(),
    )
    | st.builds(
        NodeRecord,
        *(state, st.just(Tally(0, 0))),
        by_hand=st.booleans(),
        capability=text,
        handoffs=st.integers(1, 99),
        doubted=st.lists(st.tuples(text, number).map(list), min_size=1, max_size=3),
        losses=number,
    ),
    "attempt": st.builds(AttemptRecord, number, number, number, text, instant, instant, instant, text, text, text),
}
fields = st.one_of(text, number, st.binary(max_size=9), st.none(), st.booleans())


@pytest.mark.parametrize("kind", sorted(FORMATS.keys() - NEW))
def test_a_row_of_the_build_before_versions_is_read_and_written_as_it_was(kind: str) -> None:
    for row in rows_by_kind()[kind]:
        if kind in CLASSES:
            assert CLASSES[kind].unpack(row).pack() == row
        else:
            assert FORMATS[kind].pack(FORMATS[kind].unpack(row)) == row


def test_every_kind_of_row_has_a_version_but_those_of_one_text() -> None:
    drawn = set(re.findall(r'── "(\w+)"', inspect.getdoc(keyspace) or ""))

    assert FORMATS.keys() <= drawn
    assert rows_by_kind().keys() - PLAIN == FORMATS.keys() - NEW


@given(st.data())
def test_what_is_packed_is_read_as_it_was(data: st.DataObject) -> None:
    row = data.draw(st.one_of(*ROWS.values()))

    assert type(row).unpack(row.pack()) == row


@given(st.sampled_from(sorted(FORMATS)), st.lists(fields))
def test_no_row_of_version_1_begins_with_a_digit(kind: str, given_fields: list[Any]) -> None:
    one = FORMATS[kind]
    is_tuple = one.decode(one.pack(())) == ()
    written: Any = tuple(field for field in given_fields if type(field) in (str, bytes, int))
    if not is_tuple:
        written = [field for field in given_fields if not isinstance(field, bytes)]
        written = {"told": written} if kind in {"node", "answer"} else written

    row = one.pack(written)

    assert not row[:1].isdigit()
    assert one.decode(row) == written


@pytest.mark.parametrize("kind", sorted(FORMATS))
@pytest.mark.parametrize("ahead", [1, 9, 999])
def test_a_row_of_a_newer_version_is_refused_by_name_and_says_what_to_do(kind: str, ahead: int) -> None:
    known = FORMATS[kind].version
    version = known + ahead
    row = FORMATS[kind].pack_as(version, ["no", "build", "knows"] if kind in CLASSES else ())

    with pytest.raises(NewerVersion, match="newer dispatcher wrote") as refused:
        CLASSES[kind].unpack(row) if kind in CLASSES else FORMATS[kind].unpack(row)

    assert refused.value.retryable
    assert refused.value.facts == {"kind": kind, "version": version, "known": known, "fix": versions.NEWER_VERSION_FIX}


@pytest.mark.parametrize("of", [versions.STATUS, versions.NODE_DOCUMENT, versions.TIMER])
def test_each_version_is_read_by_the_steps_that_follow_it(of: RowFormat) -> None:
    def add(field: str) -> versions.Step:
        if of is versions.NODE_DOCUMENT:
            return lambda document: {**document, field: True}
        return lambda row: type(row)((*row, field))

    raised = RowFormat(of.kind, of.pack, of.decode, (add("second"), add("third")))
    first: Any = {"first": True} if of is versions.NODE_DOCUMENT else (1,)
    second, third = add("second")(first), add("third")(add("second")(first))
    expected = raised.decode(raised.pack(third))

    assert raised.version == 3
    assert raised.unpack(of.pack(first)) == expected
    assert raised.unpack(raised.pack_as(2, second)) == expected
    assert raised.unpack(raised.pack_as(3, third)) == expected
    with pytest.raises(NewerVersion):
        raised.unpack(raised.pack_as(4, third))


@given(ROWS["run"])
def test_row_of_a_run_has_the_lowest_version_that_has_all_of_its_fields(run: RunRecord) -> None:
    plain = not (run.to_compensate or run.ended is not None or run.keeps)

    first = b'["' if plain else b'2["'
    later = b'3["' if run.checkpoint_ms or run.restoring is not None else first

    assert run.pack().startswith(b'4["' if run.children else later)


def test_rows_are_read_as_the_first_release_that_has_them_writes_them() -> None:
    workflow = WorkflowRecord(3, "press", "", "", 2, 1_000, parent=ParentNode("w", "book", "r", 2))
    run = RunRecord(WorkflowState.RUNNING, {"blocked": 1}, {}, 1, children=4)

    assert workflow.pack() == b'3[3,"press","","",2,1000,{},null,["w","book","r",2]]'
    assert run.pack() == b'4["running",{"blocked":1},{},1,false,"",null,0,false,0,null,false,0,null,4]'
    assert WorkflowRecord.unpack(workflow.pack()) == workflow
    assert RunRecord.unpack(run.pack()) == run
    assert definitions.pack({"workflow": "press"}) == b'2{"workflow":"press"}'
    assert definitions.known(NodeKey("w", "book"), b'2{"workflow":"press"}').work == SubWorkflow("press")

    trace = {"traceparent": f"00-{7:032x}-{9:016x}-01", "baggage": "tenant=blue"}
    run = RunRecord(WorkflowState.RUNNING, {"blocked": 1}, {}, 1, trace=trace)

    written = (
        b'5["running",{"blocked":1},{},1,false,"",null,0,false,0,null,false,0,null,0,'
        b'{"traceparent":"00-00000000000000000000000000000007-0000000000000009-01","baggage":"tenant=blue"}]'
    )
    assert run.pack() == written
    assert RunRecord.unpack(written) == run


def test_a_damaged_row_is_no_newer_one() -> None:
    with pytest.raises(ValueError, match="EOF"):
        versions.STATUS.unpack(b'["ready",')


def test_schedule_and_trigger_of_version_1_are_read_as_their_reports() -> None:
    cron = ["30 2 * * *", "UTC", 0, 60_000, "skip", "all", 9, "report", 1_000, 2_000, False, None, "", 3, 1, ""]
    period = ["", "UTC", 30_000, 0, "allow", "latest", 100, "report", 1_000, None, True, 900, "run-1", 1, 0, "late"]
    signal = ["repo.*", "", "", "paid", "event.data.order", 1_000, True, 2, 1, 900, "run-1", "late"]
    start = ["repo.#", "event.data.urgent", "report", "", "", 1_000, False, 0, 0, None, "", ""]

    assert [versions.SCHEDULE.unpack(to_json(row)) for row in (cron, period)] == [
        ["report", "active", *cron[:2], None, *cron[3:7], 1_000, 2_000, None, None, 3, 1, ""],
        ["report", "paused", None, None, *period[2:7], 1_000, None, 900, "run-1", 1, 0, "late"],
    ]
    assert [versions.TRIGGER.unpack(to_json(row)) for row in (signal, start)] == [
        ["repo.*", None, None, "paid", "event.data.order", "paused", 1_000, 2, 1, 900, "run-1", "late"],
        ["repo.#", "event.data.urgent", "report", None, None, "active", 1_000, 0, 0, None, None, ""],
    ]

"""Rows carry a version: later ones are refused by name, and what is packed is read as it was."""

from __future__ import annotations

import inspect
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coditect.errors import NewerVersion
from coditect.workflow.attempt_row import AttemptRow
from coditect.workflow.definition import SubWorkflow
from coditect.workflow.states import Tally, TaskState, WorkflowState
from dispatcher.ledger import definitions, keyspace, versions
from dispatcher.ledger.effects import NodeKey
from dispatcher.ledger.rows import NodeRecord, ParentNode, RunRecord, WorkflowRecord, pack_attempt, unpack_attempt
from dispatcher.ledger.versions import RowFormat

FORMATS = {one.kind: one for one in vars(versions).values() if isinstance(one, RowFormat)}
PLAIN = {"again", "answer_expiry", "approval", "audit_of", "autonomy", "awaiting", "child", "compensate", "dead"}
PLAIN |= {"edge", "ended", "expiry", "key_expiry", "labeled", "live", "lock_owner", "signal"}
PLAIN |= {"signal_kept", "space_version", "state", "todo", "unbound"}
"""Values that are one text, a number or nothing: they have no version."""
CLASSES: dict[str, type[Any]] = {
    "workflow": WorkflowRecord,
    "run": RunRecord,
    "status": NodeRecord,
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
        by_hand=st.booleans(),
    )
    | st.builds(
        NodeRecord,
        st.sampled_from([TaskState.READY, TaskState.PUBLISHED, TaskState.WORKING]),
        destination=text.filter(bool),
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
}
fields = st.one_of(text, number, st.binary(max_size=9), st.none(), st.booleans())


def test_every_kind_of_row_has_a_version_but_those_of_one_text() -> None:
    drawn = set(re.findall(r'── "(\w+)"', inspect.getdoc(keyspace) or ""))

    assert FORMATS.keys() <= drawn
    assert drawn - FORMATS.keys() == PLAIN


@given(st.data())
def test_what_is_packed_is_read_as_it_was(data: st.DataObject) -> None:
    row = data.draw(st.one_of(*ROWS.values()))

    assert type(row).unpack(row.pack()) == row


@given(st.builds(AttemptRow, *(text, number, number, number, text, instant, instant, instant, text, text, text)))
def test_attempt_is_read_as_it_was(attempt: AttemptRow) -> None:
    assert unpack_attempt(attempt.node, pack_attempt(attempt)) == attempt


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
    version = versions.VERSION + ahead
    row = b"%d%b" % (version, FORMATS[kind].pack(["no", "build", "knows"] if kind in CLASSES else ()))

    with pytest.raises(NewerVersion, match="newer dispatcher wrote") as refused:
        CLASSES[kind].unpack(row) if kind in CLASSES else FORMATS[kind].unpack(row)

    assert refused.value.retryable
    told = {"kind": kind, "version": version, "known": versions.VERSION, "fix": versions.NEWER_VERSION_FIX}
    assert refused.value.facts == told


def test_rows_are_read_as_the_first_release_writes_them() -> None:
    trace = {"traceparent": f"00-{7:032x}-{9:016x}-01", "baggage": "tenant=blue"}
    written: dict[bytes, Any] = {
        b'[3,"press","","",2,1000,{},null,null]': WorkflowRecord(3, "press", "", "", 2, 1_000),
        b'[3,"press","","",2,1000,{"team":"x"},5,["w","book","r",2]]': WorkflowRecord(
            3, "press", "", "", 2, 1_000, {"team": "x"}, 5, ParentNode("w", "book", "r", 2)
        ),
        b'["running",{"blocked":1},{},1,false,"",null,0]': RunRecord(WorkflowState.RUNNING, {"blocked": 1}, {}, 1),
        b'["running",{"blocked":1},{},1,false,"",null,0,false,0,null,false,0,null,4,'
        b'{"traceparent":"00-00000000000000000000000000000007-0000000000000009-01","baggage":"tenant=blue"},0]': (
            RunRecord(WorkflowState.RUNNING, {"blocked": 1}, {}, 1, children=4, trace=trace)
        ),
        b'["blocked",0,0,0,null,1]': NodeRecord(TaskState.BLOCKED),
        b'["completed",1,0,1,"failed",1,2,3,"worker-1",4,5,6,7]': NodeRecord(
            TaskState.COMPLETED, Tally(1, 0, 1, TaskState.FAILED), 1, 2, 3, "worker-1", 4, 5, 6, 7
        ),
        b'["working",0,0,0,null,1,0,0,"",null,null,null,null,"",false,false,null,null,null,null,true,"",2]': NodeRecord(
            TaskState.WORKING, by_hand=True, handoffs=2
        ),
        b'["ready",0,0,0,null,1,0,0,"",5,null,null,null,"",false,false,null,null,null,"code.review.p0"]': NodeRecord(
            TaskState.READY, ready_ms=5, destination="code.review.p0"
        ),
    }

    for row, record in written.items():
        assert record.pack() == row
        assert type(record).unpack(row) == record
    assert definitions.known(NodeKey("w", "book"), b'{"workflow":"press"}').work == SubWorkflow("press")


def test_a_damaged_row_is_no_newer_one() -> None:
    with pytest.raises(ValueError, match="EOF"):
        versions.STATUS.unpack(b'["ready",')

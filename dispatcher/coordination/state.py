"""The shared state of workflows and of named spaces: values by key, each version with its writer.

A key's versions are numbered from 1 and never reused, also over a deletion, so a write that names the version it read
replaces that version or nothing. The last `VERSIONS_KEPT` versions can be read back.

The lessons are shared state, to which the owner of their space's shard adds what the recorder has heard;
`coditect.model.lesson` says what a lesson is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from coditect.errors import InputError, InvalidTask, NotFound, Retryable, VersionConflict
from coditect.model.lesson import LESSON_KEEP_MS, Lesson, read_rows, rows_of
from coditect.model.lesson import merged as merged_lessons
from coditect.wire.control import LESSONS_SPACE, Verb, keeper_of, workflow_of
from coditect.wire.json import dumps, loads
from coditect.wire.tasks import as_claim
from dispatcher.ledger import values
from dispatcher.ledger.commands import RECORD_LESSONS
from dispatcher.ledger.handlers.requests import Query, ShardChange
from dispatcher.ledger.keyspace import SPACE_VERSIONS, SPACES
from dispatcher.ledger.unit_of_work import UnitOfWork
from dispatcher.ledger.workflows import control
from dispatcher.ledger.workflows.checkpoints import spaces
from dispatcher.ledger.workflows.checkpoints.spaces import VERSIONS_KEPT, StateVersion, latest, unpack, value_key
from dispatcher.ledger.workflows.queries import Body
from dispatcher.ledger.workflows.submit import number, text
from dispatcher.store.transaction import Reads

LONGEST_STATE_NAME_BYTES = 500
MAX_STATE_PAGE = 500


def get(tr: Reads, body: Body) -> dict[str, Any]:
    """Return a key's present or a former version in shared state with its value; version 0 if it was never written.

    Raises:
        NotFound: when the wanted version was never written, or is not kept any more.
    """
    space, key = _place(body)
    wanted = body.get("version")
    found = latest(tr, space, key) if wanted is None else _past(tr, space, key, number(body, "version", 1))
    return found.as_json() | {"value": _value(tr, space, key, found)}


def put(unit: UnitOfWork, body: Body) -> dict[str, Any]:
    """Write the next version of a key in shared state: a `value`, a JSON merge `patch`, or a deletion (`delete`).

    Raises:
        VersionConflict: when the present version is not `if_version`; 0 stands for a missing key.
        NotFound: when the space is that of an unknown workflow.
        InputError: when that workflow has ended, the writing attempt is not the present one any more, or Coditect
            itself keeps the space.
        Retryable: while that workflow is being restored, for a client.
    """
    space, key = _place(body)
    _check_keeper(space, body)
    at_ms = _check_space(unit, space, by_node="by" in body)
    control.check_present(unit, body)
    before = latest(unit.tr, space, key)
    _check_version(before, body.get("if_version"), key)
    if body.get("delete") and before.deleted:
        return before.as_json()
    writer, task = (str(body.get(name) or "")[:LONGEST_STATE_NAME_BYTES] for name in ("writer", "task"))
    after = StateVersion(before.number + 1, writer, task, at_ms, deleted=bool(body.get("delete")))
    spaces.write(unit, space, key, after, None if after.deleted else _next_value(unit, space, key, before, body))
    return after.as_json()


def list_keys(tr: Reads, body: Body) -> dict[str, Any]:
    """Return a page of the undeleted keys, not the values, of a space of shared state, ascending or descending."""
    space, backwards = _space(body), bool(body.get("reverse"))
    prefix = text(body, "prefix", "", longest=LONGEST_STATE_NAME_BYTES)
    begin = SPACES.pack((space, prefix))[:-1]  # without the end of the text, so that longer keys are in the range
    end = begin + b"\xff"
    if body.get("after"):
        after = SPACES.pack((space, text(body, "after")))
        begin, end = (begin, min(end, after)) if backwards else (max(begin, after + b"\0"), end)
    limit = min(number(body, "limit", MAX_STATE_PAGE), MAX_STATE_PAGE)
    found = tr.get_range(begin, end, limit=limit, reverse=backwards)
    keys = [str(SPACES.unpack(key)[1]) for key, _ in found]
    rows = [
        {"key": key} | version.as_json()
        for key, version in zip(keys, (unpack(row) for _, row in found), strict=True)
        if not version.deleted
    ]
    return {"keys": rows, "next": keys[-1] if len(found) == limit else None}


def history(tr: Reads, body: Body) -> dict[str, Any]:
    """Return the kept versions of a key of shared state, the latest first, without the values."""
    space, key = _place(body)
    found = tr.get_range(*SPACE_VERSIONS.range((space, key)), limit=VERSIONS_KEPT, reverse=True)
    return {"versions": [unpack(row).as_json() for _, row in found]}


def _place(body: Body) -> tuple[str, str]:
    return _space(body), text(body, "key", longest=LONGEST_STATE_NAME_BYTES)


def _space(body: Body) -> str:
    return text(body, "space", longest=LONGEST_STATE_NAME_BYTES)


def _check_space(unit: UnitOfWork, space: str, *, by_node: bool) -> int:
    """Return the time to record for a write to shared state, or refuse the write.

    Writes to an ended workflow are refused, and clients' writes to one that is being restored: only its nodes
    (compensations) still write, and a client's write would be taken back unseen.
    """
    workflow = workflow_of(space)
    if workflow is None:
        return unit.now_ms
    run = control.run_of(unit, workflow)
    if run.state.terminal:
        raise InputError("The workflow has ended: its state stays as it is", workflow=workflow, state=run.state.value)
    if run.restoring is not None and not by_node:
        raise Retryable("The workflow is being restored", workflow=workflow, fix="try again in a moment")
    return run.after_checkpoint(unit.now_ms)


def _check_keeper(space: str, body: Body) -> None:
    keeper, by_handler = keeper_of(space), bool(body.get("task") or body.get("by"))
    if keeper and (by_handler or body.get("keeper") != keeper):
        fix = "choose another name; only webhooks, lessons and LangGraph's saver change such spaces"
        raise InputError("Coditect itself keeps this space, and nothing else writes to it", space=space, fix=fix)


def _check_version(before: StateVersion, wanted: object, key: str) -> None:
    if wanted is None:
        return
    if isinstance(wanted, bool) or not isinstance(wanted, int) or wanted < 0:
        raise InvalidTask("A field of the request is no version", field="if_version")
    present = 0 if before.deleted else before.number
    if wanted != present:
        raise VersionConflict(
            "The key has another version now", key=key, version=present, wanted=wanted, fix="read it again, and decide"
        )


def _next_value(unit: UnitOfWork, space: str, key: str, before: StateVersion, body: Body) -> bytes:
    if "patch" not in body:
        return dumps(body.get("value"))
    value = _value(unit.tr, space, key, before)
    if as_claim(value) is not None:
        raise InputError("A value over the inline limit cannot be merged", key=key, fix="read it and put the whole")
    return dumps(merged(value, body["patch"]))


def merged(value: Any, patch: Any) -> Any:
    """Return a JSON value with a merge patch applied, as RFC 7396 says: null removes a member, objects are merged."""
    if not isinstance(patch, dict):
        return patch
    result = dict(value) if isinstance(value, dict) else {}
    for name, part in patch.items():
        if part is None:
            result.pop(name, None)
        else:
            result[name] = merged(result.get(name), part)
    return result


def _past(tr: Reads, space: str, key: str, version: int) -> StateVersion:
    row = tr.get(SPACE_VERSIONS.pack((space, key, version)))
    if row is None:
        fix = f"the last {VERSIONS_KEPT} versions are kept"
        raise NotFound("There is no such version of this key", space=space, key=key, version=version, fix=fix)
    return unpack(row)


def _value(tr: Reads, space: str, key: str, version: StateVersion) -> Any:
    """Return the value of a version; None of a deletion."""
    packed = None if version.deleted else values.get(tr, value_key(space, key, version.number))
    return None if packed is None else loads(packed)


def _shard_key(body: Body) -> str:
    space = _space(body)
    return workflow_of(space) or space


WRITER = "dispatcher"
MAX_LESSON_CAPABILITIES = 1_000
"""The most capabilities that have lessons."""


def record(unit: UnitOfWork, body: Body) -> dict[str, Any]:
    """Merge new evidence into the kept lessons of each capability; forget capabilities that are old, or too many.

    Evidence that a full transaction does not take is lost, as lessons are hints.
    """
    heard: dict[str, list[Lesson]] = {}
    for row in read_rows(body.get("lessons")):
        heard.setdefault(row.capability, []).append(row)
    kept = {str(SPACES.unpack(key)[1]): unpack(row) for key, row in unit.tr.get_range(*SPACES.range((LESSONS_SPACE,)))}
    present = {name: version for name, version in kept.items() if not version.deleted and name not in heard}
    by_age = sorted(present, key=lambda name: -present[name].at_ms)
    fresh = [name for name in by_age if present[name].at_ms > unit.now_ms - LESSON_KEEP_MS][
        : MAX_LESSON_CAPABILITIES - len(heard)
    ]
    for name in sorted(kept.keys() - set(fresh) - heard.keys()):
        _forget(unit, name, kept[name])
    for name, more in heard.items():
        if unit.is_full:
            break
        before = latest(unit.tr, LESSONS_SPACE, name)
        found = merged_lessons(read_rows(_value(unit.tr, LESSONS_SPACE, name, before)), more, unit.now_ms)
        if known := [lesson for lesson in found if lesson.count]:  # else a fix of a forgotten lesson came
            after = StateVersion(before.number + 1, WRITER, "", unit.now_ms, deleted=False)
            spaces.write(unit, LESSONS_SPACE, name, after, dumps(rows_of(known)))
    return {}


def _forget(unit: UnitOfWork, name: str, last: StateVersion) -> None:
    """Remove the key of a capability, also that of a deletion, without a trace."""
    unit.tr.clear(SPACES.pack((LESSONS_SPACE, name)))
    unit.tr.clear(SPACE_VERSIONS.pack((LESSONS_SPACE, name, last.number)))
    values.clear(unit.tr, value_key(LESSONS_SPACE, name, last.number))


STATE_VERBS: Mapping[str, Query | ShardChange] = {
    Verb.STATE_GET: Query(get),
    Verb.STATE_PUT: ShardChange(put, _shard_key),
    Verb.STATE_LIST: Query(list_keys),
    Verb.STATE_HISTORY: Query(history),
}
LESSON_VERBS: Mapping[str, ShardChange] = {RECORD_LESSONS: ShardChange(record, lambda _: LESSONS_SPACE, own=True)}
"""The handler of the dispatcher's own request to add lessons, by its verb."""

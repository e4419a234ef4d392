"""The arguments of the Lua scripts that write jobs, made from a template hash that stock RQ itself produces.

The template is the hash that the installed RQ would write for such a job, so that a field which a later version adds is
there, too. The script fills in the fields that differ from job to job.
"""

from __future__ import annotations

import json
import re
import zlib
from base64 import b64encode
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from functools import cache, lru_cache
from typing import Any

from redis import Redis
from rq.job import Job as StockJob
from rq.serializers import JSONSerializer
from rq.utils import utcformat

from coditect.model.capability import Priority
from dispatcher.taskgraph.function import FUNCTION
from dispatcher.taskgraph.port import BATCH, MOST_RESULT_BYTES, Change, Job, JobState, Key

MOST_ERROR_CHARACTERS = 8_192
MOST_DEPENDENCIES = 10_000
"""The most predecessors that RQ is given for a job; a job with more gets none, and only a `Change` queues it."""
MOST_EDGES = 5_000
"""The most predecessor edges in one batch of new jobs, unless a single job has more."""

KEEP = -1
"""The time to live that RQ gives results and failures: for ever, until the dispatcher removes them."""

_FILLED = frozenset({"created_at", "data", "origin", "description", "timeout", "status"})
_DATA_BEGIN = f'["{FUNCTION}", null, '
_DATA_END = ", {}]"


@cache
def template() -> tuple[str, ...]:
    """Return the hash fields that are the same in all RQ jobs of nodes, as `name, value, name, value...`."""
    job = StockJob.create(
        FUNCTION, args=("", ""), connection=Redis(), result_ttl=KEEP, failure_ttl=KEEP, serializer=JSONSerializer
    )
    fields = {name: value for name, value in job.to_dict().items() if name not in _FILLED}
    return tuple(str(part) for pair in fields.items() for part in pair)


def job_row(job: Job) -> list[Any]:
    """Return a job's arguments for the Lua script: id, queue, state, data, description, timeout, predecessors."""
    after = job.after if len(job.after) <= MOST_DEPENDENCIES else ()
    return [
        job_id(job.workflow, job.node),
        queue_name(job.level, job.shard),
        job.state.value,
        f"{_DATA_BEGIN}{json.dumps([job.workflow, job.node])}{_DATA_END}",
        f"{job.node}: {job.capability}",
        KEEP if job.timeout_ms is None else -(-job.timeout_ms // 1000),
        [job_id(job.workflow, node) for node in after],
    ]


def change_row(change: Change) -> list[Any]:
    """Return the Lua script's arguments for a change of a job: id, queue, state, result id, result, error, and others.

    The others are the due time in seconds, `+inf` for none, and whether to write the job even if its state is the same.
    """
    return [
        job_id(change.workflow, change.node),
        queue_name(change.level, change.shard),
        change.state.value,
        change.entry,
        _result(change.result) if change.state is JobState.FINISHED else "",
        _error(change.error) if change.state is JobState.FAILED else "",
        "+inf" if change.due_ms is None else str(change.due_ms // 1000),
        int(change.anew),
    ]


def refusal_row(job: str, queue: str, error: str) -> list[Any]:
    """Return the Lua script's arguments that fail an RQ job which belongs to no node."""
    return [job, queue, JobState.FAILED.value, "", "", _error(error), "+inf", 0]


def stamp(now_ms: int, worker: str, nonce: str) -> list[str]:
    """Return a Lua script's common arguments: the time in RQ's formats, the worker's name, an execution id prefix."""
    moment = datetime.fromtimestamp(now_ms / 1000, UTC)
    return [utcformat(moment), str(now_ms / 1000), str(now_ms // 1000), worker, nonce]


def batches(jobs: Sequence[Job]) -> Iterator[Sequence[Job]]:
    """Yield the jobs in order, in batches of at most 500, with at most 5,000 predecessors unless one job has more."""
    begin, edges = 0, 0
    for end, job in enumerate(jobs):
        if end > begin and (end - begin == BATCH or edges + len(job.after) > MOST_EDGES):
            yield jobs[begin:end]
            begin, edges = end, 0
        edges += len(job.after)
    if begin < len(jobs):
        yield jobs[begin:]


def _result(result: bytes | None) -> str:
    """Encode a node's result as RQ stores it; empty for null, for no result and for one that is too large."""
    if result is None or result == b"null" or len(result) > MOST_RESULT_BYTES:
        return ""
    return b64encode(result).decode()


def _error(error: str) -> str:
    return b64encode(zlib.compress(error[:MOST_ERROR_CHARACTERS].encode(errors="replace"))).decode()


def pages_of_changes(changes: Sequence[Change]) -> Iterator[Sequence[Change]]:
    """Yield changes in order, in pages of at most 500 without two changes of one job, as `tell` takes them."""
    begin, seen = 0, set[tuple[str, str]]()
    for end, change in enumerate(changes):
        key = (change.workflow, change.node)
        if key in seen or end - begin == BATCH:
            yield changes[begin:end]
            begin, seen = end, set()
        seen.add(key)
    if begin < len(changes):
        yield changes[begin:]


# The Redis keys of stock RQ 2.12 that hold the task graph, and the dispatcher's few own keys beside them.
#
# ::
#
#     rq:queues                          set      keys of all queues
#     rq:queue:<queue>                   list     ids of the queued jobs, oldest first
#     rq:job:<id>                        hash     the job; `coditect_state` is the last state that the dispatcher set
#     rq:job::<id>:dependencies          set      ids it waits for (two colons); kept whole
#     rq:job:<id>:dependents             set      ids that wait for it; a queued one is taken out
#     rq:deferred|scheduled|finished|failed|canceled:<queue>   sorted set  ids, scores: `lua/moves.lua`
#     rq:wip:<queue>                     sorted set  <id>:<execution> of started jobs, score +inf
#     rq:executions:<id>                 sorted set  execution ids, score +inf
#     rq:execution:<id>:<execution>      hash     its start and its worker
#     rq:results:<id>                    stream   outcomes, at most ten
#     coditect:told:failed|canceled:<queue>      set     ids that the dispatcher failed or canceled
#     coditect:epoch:<shard>             string   written after a reconciliation; gone when Redis was wiped
#
# A queue is `coditect-<level>-<shard>`. A job's id is `<workflow>_<node>`; RQ allows letters, digits, `_` and `-`, so
# every other byte of a node's name is written `-` and two hex digits: node `build[3]` is `build-5b3-5d`.

_OTHER = re.compile(rb"[^A-Za-z0-9_]")
_ESCAPED = re.compile(rb"-([0-9a-f]{2})")
_JOB_ID = re.compile(r"([A-Za-z0-9-]+)_((?:[A-Za-z0-9_]|-[0-9a-f]{2})+)")


def job_id(workflow: str, node: str) -> str:
    """Return the id of a node's job in RQ."""
    return f"{workflow}_{node}" if node.isidentifier() and node.isascii() else f"{workflow}_{_escape(node)}"


def identity(job: str) -> Key | None:
    """Return the workflow and node of a job id in RQ; None for an id of another form."""
    found = _JOB_ID.fullmatch(job)
    if found is None:
        return None
    try:
        return Key(found[1], _ESCAPED.sub(_unescape, found[2].encode()).decode())
    except UnicodeDecodeError:
        return None


@lru_cache(maxsize=1024)
def queue_name(level: Priority, shard: int) -> str:
    """Return the name of the RQ queue for one priority level of one shard."""
    return f"coditect-{level.value}-{shard}"


@lru_cache(maxsize=4096)
def _escape(node: str) -> str:
    return _OTHER.sub(lambda found: b"-%02x" % found[0][0], node.encode()).decode()


def _unescape(found: re.Match[bytes]) -> bytes:
    return bytes.fromhex(found[1].decode())

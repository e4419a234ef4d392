"""The Redis keys of stock RQ 2.12 that hold the task graph, and the dispatcher's few own keys beside them.

::

    rq:queues                          set      keys of all queues
    rq:queue:<queue>                   list     ids of the queued jobs, oldest first
    rq:job:<id>                        hash     the job; `coditect_state` is the last state that the dispatcher set
    rq:job::<id>:dependencies          set      ids it waits for (two colons); kept whole
    rq:job:<id>:dependents             set      ids that wait for it; a queued one is taken out
    rq:deferred|scheduled|finished|failed|canceled:<queue>   sorted set  ids, scores: `lua/moves.lua`
    rq:wip:<queue>                     sorted set  <id>:<execution> of started jobs, score +inf
    rq:executions:<id>                 sorted set  execution ids, score +inf
    rq:execution:<id>:<execution>      hash     its start and its worker
    rq:results:<id>                    stream   outcomes, at most ten
    coditect:told:failed|canceled:<queue>      set     ids that the dispatcher failed or canceled
    coditect:epoch:<shard>             string   written after a reconciliation; gone when Redis was wiped

A queue is `coditect-<level>-<shard>`. A job's id is `<workflow>_<node>`; RQ allows letters, digits, `_` and `-`, so
every other byte of a node's name is written `-` and two hex digits: node `build[3]` is `build-5b3-5d`.
"""

from __future__ import annotations

import re
from functools import lru_cache

from coditect.model.capability import Priority
from dispatcher.taskgraph.port import Key

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

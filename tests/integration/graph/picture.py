"""Everything that Redis holds about some jobs, with what differs from run to run left out."""

from __future__ import annotations

import json
import zlib
from base64 import b64decode
from collections.abc import Mapping, Sequence
from typing import Any

REGISTRIES = ("deferred", "scheduled", "finished", "failed", "canceled", "wip")
MOMENTS = {"created_at", "enqueued_at", "started_at", "ended_at", "last_heartbeat"}

Picture = dict[str, Any]


def picture(client: Any, queue: str, ids: Mapping[str, str]) -> Picture:
    """By key, with the node in place of its job's id; `ids` are the jobs' ids by node, `client` a `redis.Redis`."""
    names = {job: node for node, job in ids.items()}
    found: Picture = {"queue": sorted(_named(client.lrange(f"rq:queue:{queue}", 0, -1), names))}
    for registry in REGISTRIES:
        members = client.zrange(f"rq:{registry}:{queue}", 0, -1, withscores=True)
        found[registry] = {names[member.decode().split(":")[0]]: _score(score) for member, score in members}
    for node, job in ids.items():
        found[f"{node} job"] = _job(client.hgetall(f"rq:job:{job}"), names, queue)
        for key, written in (
            ("dependencies", f"rq:job::{job}:dependencies"),
            ("dependents", f"rq:job:{job}:dependents"),
        ):
            found[f"{node} {key}"] = sorted(_named(client.smembers(written), names))
        executions = [one.decode() for one in client.zrange(f"rq:executions:{job}", 0, -1)]
        found[f"{node} executions"] = [
            _execution(client.hgetall(f"rq:execution:{job}:{one}"), one) for one in executions
        ]
        found[f"{node} results"] = [_result(entry) for _, entry in client.xrange(f"rq:results:{job}")]
        found[f"{node} lives"] = [client.ttl(f"rq:{kind}:{job}") < 0 for kind in ("job", "results")]
    return found


def _named(members: Sequence[bytes], names: Mapping[str, str]) -> list[str]:
    return [names[member.decode()] for member in members]


def _score(score: float) -> str:
    """A moment is left out: +inf and RQ's -1 mean something."""
    return "moment" if 0 < score < float("inf") else str(score)


def _text(fields: Mapping[bytes, bytes]) -> dict[str, str]:
    return {name.decode(): value.decode("latin-1") for name, value in fields.items()}


def _job(hash_: Mapping[bytes, bytes], names: Mapping[str, str], queue: str) -> dict[str, Any]:
    fields: dict[str, Any] = _text(hash_)
    for name in MOMENTS & fields.keys():
        fields[name] = fields[name] and "moment"
    fields["worker_name"] = fields["worker_name"] and "worker"
    fields["origin"] = fields["origin"] == queue
    written = hash_[b"data"]
    data = json.loads(zlib.decompress(written) if written[:1] == b"x" else written)
    fields["data"] = [data[0], data[1], [names[f"{data[2][0]}_{data[2][1]}"]], data[3]]
    if "dependency_ids" in fields:
        fields["dependency_id"] = names[fields["dependency_id"]]
        fields["dependency_ids"] = [names[job] for job in json.loads(fields["dependency_ids"])]
    return fields


def _execution(hash_: Mapping[bytes, bytes], execution: str) -> dict[str, Any]:
    fields = _text(hash_)
    right = fields.pop("id") == execution and len(execution) == 32 and fields.pop("worker_name") != ""
    return {"right": right} | {name: float(value) > 0 for name, value in fields.items()}


def _result(entry: Mapping[bytes, bytes]) -> dict[str, Any]:
    fields: dict[str, Any] = _text(entry)
    fields["worker_name"] = "worker"
    fields["execution_id"] = len(fields["execution_id"])
    for name in ("execution_started_at", "execution_ended_at"):
        fields[name] = float(fields[name]) > 0
    if "return_value" in fields:
        fields["return_value"] = json.loads(b64decode(fields["return_value"]))
    if "exc_string" in fields:
        fields["exc_string"] = zlib.decompress(b64decode(fields["exc_string"])).decode()
    return fields

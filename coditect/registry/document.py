"""How the registry's entries are written: the keys and the index in Redis, and registrations and loads as JSON.

::

    <prefix>leases         sorted set  agent id by the end of its lease, ms of Redis' own clock
    <prefix>registrations  hash        agent id: registration as JSON
    <prefix>loads          hash        agent id: load as JSON, with the time of the heartbeat
    <prefix>terms          hash        agent id: JSON list of its index terms, to remove them again
    <prefix>index          sorted set  every score 0, members "<term> NUL <agent id>", found by range
    <prefix>gone           sorted set  id of an agent that went away by when, ms; its registration and load stay a day
    <prefix>turns          hash        name: the last turn given out
    <prefix>start:<task>   string      id of the agent that started this redelivered task; lives a day at most
    <prefix>returns:<task> string      how often agents handed this task back; lives an hour at most
    <prefix>rate:<name>    hash        the token bucket of a capability with a rate; lives at least a minute

A term is ``a`` (every agent has it), ``c NUL <capability>`` or ``t NUL <tag>``. One index for all terms keeps every key
of a script declared, however many capabilities there are.

The next script that runs moves a lapsed agent to `gone`, which keeps the latest 1,000 for a day. Each key (but `turns`,
marks, returns and rates) lives a day longer than the longest lease written to it, so a fleet that is gone leaves
nothing behind. The scripts may write when the memory is full (`allow-oom`): the fleet bounds what they hold, and agents
must not lapse because another program filled Redis. Start marks are bounded by nothing but the redelivered tasks, so no
mark is written then.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import isfinite
from typing import Any

from coditect.errors import InputError, InvalidTask
from coditect.model.capability import CapabilitySpec, Strategy
from coditect.model.ids import AgentId
from coditect.model.limits import Rate
from coditect.model.prediction import RecentOutcomes, TaskKind, Weight
from coditect.model.registration import AgentStatus, Load, Registration
from coditect.wire import json

KEYS = ("leases", "registrations", "loads", "terms", "index", "gone")
"""The names of the keys that every Lua script about agents declares, in this order."""

HTTP_PREFIX = "coditect:http:"
"""The prefix of the keys of the HTTP agents' registry."""

TURNS_KEY = "turns"
START_PREFIX = "start:"
RETURNS_PREFIX = "returns:"
RATE_PREFIX = "rate:"
SEPARATOR = "\0"

ANY_AGENT = "a"
"""The term under which the registry's index lists every agent."""


def capability_term(name: str) -> str:
    """Return the term under which the registry's index lists the agents that offer a capability."""
    return f"c{SEPARATOR}{name}"


def tag_term(tag: str) -> str:
    """Return the term under which the registry's index lists the agents with a tag."""
    return f"t{SEPARATOR}{tag}"


def encode_registration(registration: Registration) -> bytes:
    """Encode a registration as the JSON document that the registry stores.

    Raises:
        InvalidTask: when JSON cannot express a schema or the metadata.
    """
    return json.dumps(
        {
            "agent_id": registration.agent_id,
            "name": registration.name,
            "version": registration.version,
            "slots": registration.slots,
            "capabilities": [_capability_values(offer) for offer in registration.capabilities],
            "tags": sorted(registration.tags),
            "host": registration.host,
            "pid": registration.pid,
            "started_at_ms": registration.started_at_ms,
            "metadata": dict(registration.metadata),
        }
    )


def decode_registration(text: bytes) -> Registration:
    """Decode a registration from the registry's JSON document.

    Raises:
        InvalidTask: when the JSON is no registration.
    """
    try:
        values = json.loads(text)
        return Registration(
            agent_id=AgentId(str(values["agent_id"])),
            name=str(values["name"]),
            version=str(values["version"]),
            slots=int(values["slots"]),
            capabilities=tuple(_capability(offer) for offer in values["capabilities"]),
            tags=frozenset(map(str, values.get("tags", ()))),
            host=str(values.get("host", "")),
            pid=int(values.get("pid", 0)),
            started_at_ms=int(values.get("started_at_ms", 0)),
            metadata=dict(values.get("metadata", {})),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InvalidTask("This is not a registration", reason=repr(error)[:200]) from error


def encode_load(load: Load) -> bytes:
    """Encode an agent's load as the JSON document that the registry stores."""
    return json.dumps(
        {
            "status": load.status.value,
            "running": load.running,
            "suspended": load.suspended,
            "awaiting_owner": load.awaiting_owner,
            "cpu_percent": round(load.cpu_percent, 1),
            "resident_bytes": load.resident_bytes,
            "latency_ms": round(load.latency_ms, 3),
            "completed": load.completed,
            "failed": load.failed,
            "failed_attempts": load.failed_attempts,
            "trouble": load.trouble,
        }
        | ({"waiting": dict(load.waiting)} if load.waiting else {})
        | ({"limited": dict(load.limited)} if load.limited else {})
        | ({"recent": [_recent_values(outcomes) for outcomes in load.recent]} if load.recent else {})
        | ({"learned": [_weight_values(weight) for weight in load.learned]} if load.learned else {})
    )


def decode_load(text: bytes) -> Load:
    """Decode an agent's load, or the last load of an agent that went away, from the registry's JSON document.

    Raises:
        InvalidTask: when the JSON is no load.
    """
    try:
        values = json.loads(text)
        gone = values.get("gone", "")
        return Load(
            status=AgentStatus.OFFLINE if gone else AgentStatus(values["status"]),
            running=int(values.get("running", 0)),
            suspended=int(values.get("suspended", 0)),
            awaiting_owner=int(values.get("awaiting_owner", 0)),
            cpu_percent=float(values.get("cpu_percent", 0)),
            resident_bytes=int(values.get("resident_bytes", 0)),
            latency_ms=float(values.get("latency_ms", 0)),
            completed=int(values.get("completed", 0)),
            failed=int(values.get("failed", 0)),
            failed_attempts=int(values.get("failed_attempts", values.get("failed", 0))),
            trouble=str(gone or values.get("trouble", ""))[:200],
            waiting=tuple((str(capability), str(breaker)) for capability, breaker in values.get("waiting", {}).items()),
            learned=tuple(_learned(values.get("learned"))),
            limited=tuple((str(capability), str(rate)) for capability, rate in values.get("limited", {}).items()),
            recent=tuple(_recent(values.get("recent"))),
            beat_ms=int(values.get("beat_ms", 0)),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InvalidTask("This is not a load", reason=repr(error)[:200]) from error


def _recent_values(outcomes: RecentOutcomes) -> list[object]:
    kind = outcomes.kind
    figures = round(outcomes.attempts, 2), round(outcomes.mean_ms, 3), round(outcomes.success, 3)
    return [kind.capability, kind.size, *figures]


def _recent(rows: Any) -> Iterator[RecentOutcomes]:
    """Yield an agent's recent results by kind of task; skip any that cannot be decoded, so the load stays readable."""
    for row in rows if isinstance(rows, list) else ():
        try:
            name, size, *figures = row
            attempts, mean_ms, success = map(float, figures[:3])
            kind = TaskKind(str(name), int(size))
        except (TypeError, ValueError):
            continue
        if attempts >= 0 and mean_ms >= 0 and 0 <= success <= 1:
            yield RecentOutcomes(kind, attempts, mean_ms, success)


def _weight_values(weight: Weight) -> list[object]:
    return [weight.capability, weight.feature, round(weight.log_ms, 3), round(weight.failing, 3)]


def _learned(rows: Any) -> Iterator[Weight]:
    """Yield what an agent has learned by features; skip any row that cannot be decoded, so the load stays readable."""
    for row in rows if isinstance(rows, list) else ():
        try:
            capability, feature, log_ms, failing = row[:4]
            weight = Weight(str(capability), str(feature), float(log_ms), float(failing))
        except (TypeError, ValueError):
            continue
        if isfinite(weight.log_ms) and isfinite(weight.failing):
            yield weight


def _capability_values(offer: CapabilitySpec) -> dict[str, object]:
    return {
        "name": offer.name,
        "description": offer.description,
        "input_schema": dict(offer.input_schema),
        "output_schema": dict(offer.output_schema),
        "cost": offer.cost,
        "tags": sorted(offer.tags),
        "timeout_seconds": offer.timeout_seconds,
        "strategy": offer.strategy,
        "max_queued": offer.max_queued,
        **({} if offer.rate is None else {"rate": {"limit": offer.rate.limit, "burst": offer.rate.burst}}),
        **({"features": list(offer.features)} if offer.features else {}),
    }


def _capability(values: Mapping[str, Any]) -> CapabilitySpec:
    return CapabilitySpec(
        name=str(values["name"]),
        description=str(values.get("description", "")),
        input_schema=dict(values.get("input_schema", {})),
        output_schema=dict(values.get("output_schema", {})),
        cost=float(values.get("cost", 1)),
        tags=frozenset(map(str, values.get("tags", ()))),
        timeout_seconds=float(values.get("timeout_seconds", 300)),
        strategy=_strategy(values.get("strategy")),
        max_queued=None if values.get("max_queued") is None else int(values["max_queued"]),
        rate=_rate(values.get("rate")),
        features=tuple(map(str, values.get("features", ()))),
    )


def _rate(value: object) -> Rate | None:
    """Decode a capability's rate limit; return None for a form that this version does not know."""
    if not isinstance(value, dict):
        return None
    try:
        return Rate(value.get("limit", ""), value.get("burst"))
    except InputError:
        return None


def _strategy(value: object) -> Strategy | None:
    """Decode a selection strategy by name; return None for a name that this version does not know."""
    return Strategy(value) if isinstance(value, str) and value in tuple(Strategy) else None

"""The JSON encoding of registrations and loads for the registry: ``docs/wire/registration.schema.json``.

Fields that a newer agent adds are ignored, fields with a default may be missing: agents of several versions share a
registry.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from coditect.errors import InputError, InvalidTask
from coditect.model.capability import CapabilitySpec
from coditect.model.ids import AgentId
from coditect.model.limits.rate import Rate
from coditect.model.recent import RecentOutcomes, TaskKind
from coditect.model.registration import AgentStatus, Load, Registration
from coditect.model.strategy import Strategy
from coditect.wire import json


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
            metadata={str(name): str(value) for name, value in values.get("metadata", {}).items()},
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
        | ({"recent": [_recent_values(one) for one in load.recent]} if load.recent else {})
    )


def decode_load(text: bytes) -> Load:
    """Decode an agent's load from the JSON document that the registry stores for it.

    Raises:
        InvalidTask: when the JSON is no load.
    """
    try:
        values = json.loads(text)
        return Load(
            status=AgentStatus(values["status"]),
            running=int(values.get("running", 0)),
            suspended=int(values.get("suspended", 0)),
            awaiting_owner=int(values.get("awaiting_owner", 0)),
            cpu_percent=float(values.get("cpu_percent", 0)),
            resident_bytes=int(values.get("resident_bytes", 0)),
            latency_ms=float(values.get("latency_ms", 0)),
            completed=int(values.get("completed", 0)),
            failed=int(values.get("failed", 0)),
            failed_attempts=int(values.get("failed_attempts", values.get("failed", 0))),
            trouble=str(values.get("trouble", ""))[:200],
            waiting=tuple((str(one), str(breaker)) for one, breaker in values.get("waiting", {}).items()),
            limited=tuple((str(one), str(rate)) for one, rate in values.get("limited", {}).items()),
            recent=tuple(_recent(values.get("recent"))),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InvalidTask("This is not a load", reason=repr(error)[:200]) from error


def _recent_values(outcomes: RecentOutcomes) -> list[object]:
    kind = outcomes.kind
    told = round(outcomes.attempts, 2), round(outcomes.mean_ms, 3), round(outcomes.success, 3)
    return [kind.capability, kind.size, *told]


def _recent(rows: Any) -> Iterator[RecentOutcomes]:
    """Yield an agent's recent results by kind of task; skip any that cannot be decoded, so the load stays readable."""
    for row in rows if isinstance(rows, list) else ():
        try:
            name, size, *told = row
            attempts, mean_ms, success = map(float, told[:3])
            kind = TaskKind(str(name), int(size))
        except (TypeError, ValueError):
            continue
        if attempts >= 0 and mean_ms >= 0 and 0 <= success <= 1:
            yield RecentOutcomes(kind, attempts, mean_ms, success)


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
    } | ({} if offer.rate is None else {"rate": {"limit": offer.rate.limit, "burst": offer.rate.burst}})


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

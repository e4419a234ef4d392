"""Agents to register in tests."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from coditect.model.capability import CapabilitySpec
from coditect.model.ids import AgentId
from coditect.model.limits import Rate
from coditect.model.registration import AgentRecord, AgentStatus, Load, Registration

REVIEW = CapabilitySpec(
    name="code.review",
    description="Finds Mistakes in Python",
    input_schema={"type": "object", "properties": {"path": {"type": "string"}}, "required": ["path"]},
    output_schema={"type": "array", "items": {"$ref": "#/$defs/finding"}, "$defs": {"finding": {}}},
    cost=2.5,
    tags=frozenset({"lint", "python"}),
    timeout_seconds=12.5,
    max_queued=500,
    rate=Rate("100/m", burst=10),
    features=("language", "options.depth"),
)
SUMMARY = CapabilitySpec(name="text.summarize", description="Kürzt Texte, 要約", tags=frozenset({"text"}))
IDLE = Load(status=AgentStatus.IDLE)


def make_registration(
    agent_id: str = "reviewer-0000000a",
    *,
    offers: tuple[CapabilitySpec, ...] = (REVIEW,),
    tags: frozenset[str] = frozenset({"fast"}),
    slots: int = 4,
) -> Registration:
    return Registration(
        agent_id=AgentId(agent_id),
        name=agent_id.rpartition("-")[0],
        version="1.4.0",
        slots=slots,
        capabilities=offers,
        tags=tags,
        host="node-7",
        pid=4711,
        started_at_ms=1_763_000_000_000,
        metadata={"zone": "eu-1", "größe": "L"},
    )


def make_record(
    agent_id: str,
    *,
    status: AgentStatus = AgentStatus.IDLE,
    slots: int = 4,
    running: int = 0,
    latency_ms: float = 0.0,
    lease_ms: int = 3_000,
    tags: frozenset[str] = frozenset({"fast"}),
    **load: Any,
) -> AgentRecord:
    """`load` are further fields of the load."""
    carried = replace(Load(status=status, running=running, latency_ms=latency_ms), **load)
    return AgentRecord(make_registration(agent_id, slots=slots, tags=tags), carried, lease_ms)

"""A client, a broker in memory, and a control plane that does what the test says."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from coditect.broker.memory import MemoryBroker, MemoryServer
from coditect.client.client import Client
from coditect.model.capability import CapabilitySpec
from coditect.model.ids import AgentId
from coditect.model.registration import AgentStatus, Load, Registration
from coditect.registry.memory import MemoryRegistry
from coditect.workflow.builder import Workflow
from coditect.workflow.definition import Definition
from tests.control_plane import ScriptedPlane

CAPABILITY = "code.review"


@dataclass(slots=True)
class Scene:
    """Everything of one test."""

    client: Client
    plane: ScriptedPlane
    broker: MemoryBroker
    """The control plane's."""
    server: MemoryServer
    registry: MemoryRegistry

    async def register(self, *, timeout_seconds: float, capability: str = CAPABILITY) -> None:
        """Puts an agent into the registry that declares this timeout."""
        registration = Registration(
            agent_id=AgentId("reviewer-00000001"),
            name="reviewer",
            version="1.0.0",
            slots=8,
            capabilities=(CapabilitySpec(capability, timeout_seconds=timeout_seconds),),
            host="here",
            pid=42,
            started_at_ms=1_800_000_000_000,
        )
        await self.registry.register(registration, Load(AgentStatus.IDLE), lease_seconds=60)


@asynccontextmanager
async def open_scene() -> AsyncIterator[Scene]:
    server, registry, plane = MemoryServer(), MemoryRegistry(), ScriptedPlane()
    async with (
        MemoryBroker(server, name="plane") as broker,
        plane.serving(broker, CAPABILITY),
        MemoryBroker(server, name="client") as own,
        Client(own, registry) as client,
    ):
        yield Scene(client, plane, broker, server, registry)


def chain(count: int) -> Definition:
    """So many nodes, one after the other."""
    flow = Workflow("chain")
    before = flow.task(CAPABILITY, {"number": 0}, name="n0")
    for number in range(1, count):
        before = flow.task(CAPABILITY, {"number": number}, name=f"n{number}", after=[before])
    return flow.definition()

"""Handoffs in a fleet on virtual time: a running task goes to another agent, or stays where it is with the reasons."""

from __future__ import annotations

from typing import Any

from coditect import Agent, Context
from coditect.testing import TestFleet


def generalist(*, to: str = "ticket.billing", **more: Any) -> Agent:
    """An agent that hands off what it does not know, and says how it went otherwise."""
    agent = Agent("generalist", slots=2)

    @agent.capability("ticket.answer", timeout="10m")
    async def answer(ticket: dict[str, str], ctx: Context) -> dict[str, Any]:
        handoff = await ctx.hand_off(to, reason="billing", context={"tried": ["faq"]}, **more)
        return {"by": ctx.agent_id, "state": handoff.state, "reasons": dict(handoff.reasons), "why": handoff.why}

    return agent


def specialist(name: str = "billing", capability: str = "ticket.billing", *, slots: int = 2) -> Agent:
    agent = Agent(name, slots=slots)

    @agent.capability(capability)
    async def bill(ticket: dict[str, str], ctx: Context) -> dict[str, Any]:
        handoff = await ctx.handoff()
        told = {} if handoff is None else {"from": handoff.owner, "why": handoff.reason, "context": handoff.context}
        return {"by": ctx.agent_id.rpartition("-")[0], "ticket": ticket["text"], "attempt": ctx.attempt} | told

    return agent


async def answered(fleet: TestFleet, text: str = "refund") -> dict[str, Any]:
    handle = await fleet.client.submit("ticket.answer", {"text": text}, durable=True)
    return dict(await handle.result(timeout="5m"))


async def test_task_goes_to_a_capability_with_its_reason_and_context() -> None:
    async with TestFleet(agents=[generalist(), specialist()], seed=1) as fleet:
        value = await answered(fleet)

        assert value.pop("from").startswith("generalist-")
        assert value == {
            "by": "billing",
            "ticket": "refund",
            "attempt": 1,
            "why": "billing",
            "context": {"tried": ["faq"]},
        }

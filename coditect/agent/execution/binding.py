"""The preparation of capabilities at an agent's start: middleware, and batches of tasks for list handlers."""

from __future__ import annotations

from dataclasses import replace
from functools import partial, update_wrapper

from coditect.agent.declaration import Agent, Capability
from coditect.agent.execution.batches import Batches
from coditect.agent.handlers.middleware import chained
from coditect.aio.supervisor import Supervisor


def bound(agent: Agent, most: int, background: Supervisor) -> tuple[dict[str, Capability], list[Batches]]:
    """Return an agent's capabilities by name, each with the agent's middleware, and the batches of its list handlers.

    A handler of lists is replaced by one that adds its task to a batch of at most `most` tasks, as many as the slots of
    the process allow.
    """
    chain = chained(agent.middleware_stack)
    found = {one.name: replace(one, middleware=chain) for one in agent.capabilities}
    made = []
    for name, one in found.items():
        if one.batch is not None and one.batch_handler is not None:
            policy = replace(one.batch, size=min(one.batch.size, most))  # the slots of a process are a setting
            made.append(batches := Batches(one.batch_handler, policy, background))
            gathered = partial(batches.handle)
            found[name] = replace(one, handler=update_wrapper(gathered, one.handler))  # by which its file is found
    return found, made

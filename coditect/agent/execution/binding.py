"""The binding of an agent's capabilities at its start: what is the same for every task is put together once."""

from __future__ import annotations

from dataclasses import replace
from functools import partial, update_wrapper

from coditect.agent.declaration import Agent, Capability
from coditect.agent.execution.batches import Batches
from coditect.agent.handlers.middleware import chained
from coditect.aio.supervisor import Supervisor


def bound(agent: Agent, most: int, background: Supervisor) -> tuple[dict[str, Capability], list[Batches]]:
    """Return the capabilities of an agent by name, with its middleware, and the batches that some are gathered in.

    A batch has at most `most` tasks, as many as the slots of the process allow.
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

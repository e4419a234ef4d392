"""Nodes of LangGraph graphs, each of which submits a task to the fleet and waits for its result."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from langchain_core.runnables import Runnable, RunnableConfig, RunnableLambda

from coditect.client.client import Client
from coditect.client.durable import NODE
from coditect.errors import InputError
from coditect.integrations.langgraph.loops import within
from coditect.model.duration import Duration
from coditect.sync.client import SyncClient
from coditect.workflow.states import TaskState

_WITHOUT_A_VALUE = frozenset({TaskState.FAILED, TaskState.DEAD, TaskState.REJECTED, TaskState.CANCELED})


def task_node(
    client: Client | SyncClient,
    capability: str,
    *,
    reads: str | Callable[[Any], Any],
    writes: str,
    direct: bool = False,
    timeout: Duration = "1h",
) -> Runnable[Any, dict[str, Any]]:
    """Return a LangGraph node that submits a task, waits, and writes the result to the channel that `writes` names.

    `reads` is the key of the state that is the task's input, or a function that makes the input of the state.
    The task is durable, and its idempotency key is made of the thread and the checkpoint from which the node runs: a
    graph that goes on after a crash, in any process, waits for the task that it has submitted before. A task that had
    failed by then is done again, and so is one whose checkpoint was not committed: run the graph with
    `durability="sync"` to commit it first.

    With `direct`, the task is a direct one, without a control plane: done again when the node runs again, and canceled
    when the node is. `timeout` is how long the node waits; a durable task goes on.

    The node raises the errors of `Client.submit` and `Handle.result`, and InputError for a durable task in a graph
    without a checkpointer.
    """
    inner, loop = within(client)
    value_of = reads if callable(reads) else _reading(reads)

    async def do(state: Any, config: RunnableConfig) -> dict[str, Any]:
        if direct:
            result = await _done_directly(inner, capability, value_of(state), timeout)
        else:
            result = await _done_once(inner, capability, value_of(state), key_of(config), timeout)
        return {writes: result}

    def block(state: Any, config: RunnableConfig) -> dict[str, Any]:
        return loop.run(do(state, config))

    async def wait(state: Any, config: RunnableConfig) -> dict[str, Any]:
        return await loop.call(do(state, config))

    return RunnableLambda(block, afunc=wait, name=capability)


async def _done_once(client: Client, capability: str, value: Any, key: str, timeout: Duration) -> Any:
    handle = await client.submit(capability, value, idempotency_key=key)
    if not handle.run.new and (await handle.row()).state in _WITHOUT_A_VALUE:
        await handle.run.redrive(NODE)
    return await handle.result(timeout=timeout)


async def _done_directly(client: Client, capability: str, value: Any, timeout: Duration) -> Any:
    handle = await client.submit(capability, value, deadline=timeout)
    try:
        return await handle.result(timeout=timeout)
    except asyncio.CancelledError:
        await asyncio.shield(handle.cancel(reason="its graph was canceled"))
        raise
    finally:
        handle.forget()


def key_of(config: Mapping[str, Any]) -> str:
    """Return the idempotency key for the task of the node that runs with a LangGraph configuration.

    The node's namespace ends in the id of its LangGraph task, which is made of the checkpoint and the node's name.

    Raises:
        InputError: when the graph has no checkpointer or runs without a thread.
    """
    given = config.get("configurable") or {}
    thread, namespace = given.get("thread_id"), given.get("checkpoint_ns")
    if thread is None or not namespace:
        fix = 'compile(checkpointer=...) and {"configurable": {"thread_id": "..."}}, or task_node(..., direct=True)'
        raise InputError("A node with a durable task needs a checkpointer and a thread", fix=fix)
    return f"langgraph {thread} {namespace}"


def _reading(key: str) -> Callable[[Any], Any]:
    def read(state: Any) -> Any:
        return state[key] if isinstance(state, Mapping) else getattr(state, key)

    return read

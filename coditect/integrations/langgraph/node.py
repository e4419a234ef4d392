"""Nodes of LangGraph graphs, each of which submits a task to the fleet and waits for its result.

The second half runs coroutines on a client's event loop, from that loop or from other threads.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import Future
from functools import partial
from typing import Any, TypeVar

from langchain_core.runnables import Runnable, RunnableConfig, RunnableLambda

from coditect.aio.threads import LoopThread
from coditect.client.client import Client
from coditect.client.handle import DURABLE_NODE
from coditect.errors import InputError, SetupError
from coditect.model.duration import Duration
from coditect.sync import SyncClient
from coditect.workflow.states import TaskState

T = TypeVar("T")
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
    graph that continues after a crash, in any process, waits for the task that it submitted before. If that task had
    failed, or its checkpoint was not committed, the task is executed again: run the graph with
    `durability="sync"` to commit it first.

    With `direct`, the task is a direct one, without a control plane: repeated when the node runs again, and canceled
    when the node is. `timeout` is how long the node waits; a durable task continues.

    The node raises the errors of `Client.submit` and `Handle.result`, and InputError for a durable task in a graph
    without a checkpointer.
    """
    inner, loop = within(client)
    value_of = reads if callable(reads) else partial(_read, reads)

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
        await handle.run.redrive(DURABLE_NODE)
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
    configurable = config.get("configurable") or {}
    thread, namespace = configurable.get("thread_id"), configurable.get("checkpoint_ns")
    if thread is None or not namespace:
        fix = 'compile(checkpointer=...) and {"configurable": {"thread_id": "..."}}, or task_node(..., direct=True)'
        raise InputError("A node with a durable task needs a checkpointer and a thread", fix=fix)
    return f"langgraph {thread} {namespace}"


def _read(key: str, state: Any) -> Any:
    return state[key] if isinstance(state, Mapping) else getattr(state, key)


# The client's event loop, for a library that calls from that loop or from threads


class RunningLoop:
    """The event loop of an async `Client`: the one that runs when this object is made."""

    def __init__(self) -> None:
        try:
            self._loop = asyncio.get_running_loop()
        except RuntimeError as error:
            fix = "make it inside of `async with Client...`, or give it a SyncClient: Client.sync()"
            raise SetupError("An async client is used where its event loop runs", fix=fix) from error

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the client's event loop, and wait for its result; for callers in other threads.

        Raises:
            SetupError: in the loop's own thread, which would wait for itself, or when the loop runs no more.
        """
        if _running() is self._loop:
            work.close()
            fix = "use the async methods there, such as `graph.ainvoke`, or give it a SyncClient"
            raise SetupError("A blocking call cannot wait on the client's own event loop", fix=fix)
        return self._begun(work).result()

    async def call(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the client's event loop, and await its result, in that loop or in another.

        Raises:
            SetupError: when the loop runs no more.
        """
        if _running() is self._loop:
            return await work
        return await asyncio.wrap_future(self._begun(work))

    def _begun(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        if not self._loop.is_running():  # nobody would ever do it
            work.close()
            raise SetupError("The client's event loop runs no more", fix="open a client, and make another one of it")
        return asyncio.run_coroutine_threadsafe(work, self._loop)


def _running() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def within(client: Client | SyncClient) -> tuple[Client, RunningLoop | LoopThread]:
    """Return the async client of a `Client` or `SyncClient`, and the event loop on which it runs.

    Raises:
        SetupError: when an async client is given, and no event loop runs.
    """
    if isinstance(client, SyncClient):
        return client.inside()
    return client, RunningLoop()

"""An A2A agent for tests, made by the official SDK: its skills are good, slow, failing, refusing, asking or deadly.

As a program, `remote_server.py FOLDER PORT` serves at a port until it is killed.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import uvicorn
from a2a.helpers import new_data_part, new_task_from_user_message, new_text_part
from a2a.server.agent_execution import AgentExecutor, RequestContext
from a2a.server.events import EventQueue
from a2a.server.request_handlers import DefaultRequestHandler
from a2a.server.routes import create_agent_card_routes, create_jsonrpc_routes
from a2a.server.tasks import InMemoryTaskStore, TaskUpdater
from a2a.types.a2a_pb2 import AgentCapabilities, AgentCard, AgentInterface, AgentSkill, Message, Part, Role, TaskState
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from coditect.api.program import listener

SKILLS = ("count", "echo", "stall", "fail", "reject", "ask", "tell", "die-once", "answer", "crash")
TOKEN = "let-me-in"


class Worker(AgentExecutor):
    """Does what the skill that a message names says; notes in its folder what happened."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    async def execute(self, context: RequestContext, event_queue: EventQueue) -> None:
        assert context.message is not None
        skill = str(context.message.metadata["skillId"])
        text = context.get_user_input()
        self.note("ran", skill)
        if skill == "answer":
            parts = [new_text_part(text.upper())]
            await event_queue.enqueue_event(Message(role=Role.ROLE_AGENT, message_id="answer", parts=parts))
            return
        task = new_task_from_user_message(context.message)
        task.id, task.context_id = str(context.task_id), str(context.context_id)
        await event_queue.enqueue_event(task)
        updater = TaskUpdater(event_queue, task.id, task.context_id)
        await updater.start_work()
        await self._work(skill, text, list(context.message.parts), updater)

    async def cancel(self, context: RequestContext, event_queue: EventQueue) -> None:
        self.note("canceled", "task")
        await TaskUpdater(event_queue, str(context.task_id), str(context.context_id)).cancel()

    async def _work(self, skill: str, text: str, parts: list[Part], updater: TaskUpdater) -> None:
        said = updater.new_agent_message([new_text_part(f"it {skill}s: {text}")])
        match skill:
            case "fail":
                return await updater.failed(said)
            case "reject":
                return await updater.reject(said)
            case "ask":
                return await updater.requires_input(said)
            case "crash":
                raise RuntimeError("a bug")
            case "stall":
                await asyncio.Event().wait()
            case "tell":
                await updater.update_status(TaskState.TASK_STATE_WORKING, said, metadata={"share": 0.5})
            case "die-once" if not (self._folder / "died").exists():
                (self._folder / "died").touch()
                os.kill(os.getpid(), signal.SIGKILL)
        value = parts if skill == "echo" else [new_data_part(len(text))]
        await updater.add_artifact(value)
        return await updater.complete()

    def note(self, what: str, how: str) -> None:
        with (self._folder / what).open("a") as file:
            file.write(f"{how}\n")


class Guarded:
    """An application that wants a token for all but the card."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope)
        if request.url.path == "/rpc" and request.headers.get("authorization") != f"Bearer {TOKEN}":
            await PlainTextResponse("who are you?", status_code=401)(scope, receive, send)
            return
        await self._app(scope, receive, send)


def card_of(url: str, *, streaming: bool, skills: tuple[str, ...] = SKILLS) -> AgentCard:
    """The card of the agent."""
    return AgentCard(
        name="remote",
        description="A remote agent.",
        version="1",
        supported_interfaces=[AgentInterface(url=url, protocol_binding="JSONRPC", protocol_version="1.0")],
        capabilities=AgentCapabilities(streaming=streaming),
        default_input_modes=["text/plain"],
        default_output_modes=["text/plain"],
        skills=[AgentSkill(id=skill, name=skill, description=f"It {skill}s.", tags=["test"]) for skill in skills],
    )


def application(folder: Path, address: str, *, streaming: bool, guarded: bool = False) -> ASGIApp:
    """The agent at an address."""
    card = card_of(f"{address}/rpc", streaming=streaming)
    handler = DefaultRequestHandler(Worker(folder), InMemoryTaskStore(), card)
    app = Starlette(routes=[*create_agent_card_routes(card), *create_jsonrpc_routes(handler, "/rpc")])
    return Guarded(app) if guarded else app


@asynccontextmanager
async def serving(make: Callable[[str], ASGIApp], *, port: int = 0) -> AsyncIterator[str]:
    """An application at a port, by default a free one, made from its address."""
    with listener("127.0.0.1", port) as own:
        address = f"http://127.0.0.1:{own.getsockname()[1]}"
        config = uvicorn.Config(make(address), log_level="error", lifespan="off", timeout_graceful_shutdown=0)
        server = uvicorn.Server(config)
        running = asyncio.create_task(server._serve([own]))
        while not server.started:
            await asyncio.sleep(0.01)
        try:
            yield address
        finally:
            server.should_exit = True
            await running


def hostile(card: AgentCard, answer: Callable[[dict[str, Any]], Awaitable[Response]]) -> ASGIApp:
    """An agent with a good card, whose JSON-RPC answers are any."""

    async def rpc(request: Request) -> Response:
        return await answer(await request.json())

    app = Starlette(routes=create_agent_card_routes(card))
    app.add_route("/rpc", rpc, methods=["POST"])
    return app


if __name__ == "__main__":
    place, port = Path(sys.argv[1]), int(sys.argv[2])
    uvicorn.run(application(place, f"http://127.0.0.1:{port}", streaming=True), port=port, log_level="error")

"""An HTTP agent written from the contract alone: FastAPI, strict models, and no field beside the contract's."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Annotated, Any, Literal
from uuid import UUID, uuid4

import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field, HttpUrl

AGENT_ID = "Code_Reviewer.01"


class Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")


class AgentRequest(Strict):
    event_type: Literal["agent_request"]
    event_id: Annotated[UUID, Field(strict=False)]  # JSON has texts for these three
    source_agent: str
    target_agent: str
    action: str
    parameters: dict[str, Any]
    callback_url: Annotated[HttpUrl | None, Field(strict=False)]
    priority: Literal["low", "medium", "high", "critical"]
    timeout_seconds: int = Field(gt=0)
    correlation_id: str | None
    created_at: Annotated[datetime, Field(strict=False)]


class AgentResponse(Strict):
    event_type: Literal["agent_response"] = "agent_response"
    event_id: UUID
    request_id: UUID
    source_agent: str
    target_agent: str
    status: Literal["success", "error", "timeout"]
    result: Any = None
    error: str | None = None
    duration_ms: int
    created_at: datetime


class ContractAgent:
    """The agent: it counts lines, and says of every other action that it does not know it."""

    def __init__(self, url: str) -> None:
        self.requests: list[AgentRequest] = []
        self.registration: dict[str, Any] = {
            "agent_id": AGENT_ID,
            "agent_name": "Code Reviewer (v2)",
            "base_url": url,
            "capabilities": [
                {
                    "name": "code.lines",
                    "description": "Counts lines",
                    "parameters": {"code": "str", "limit": "integer", "options": "Dict[str, Any]"},
                    "cost_estimate": 0.25,
                    "tags": ["code"],
                },
                {"name": "code.forgotten", "description": "", "parameters": {}, "cost_estimate": None, "tags": []},
            ],
            "metadata": {
                "model": {"name": "small", "window": 8192},
                "regions": ["eu", "us"],
                "gpu": False,
                "note": None,
            },
            "status": "active",
        }

    def app(self) -> FastAPI:
        app = FastAPI()

        @app.post("/agent-request")
        async def agent_request(request: AgentRequest) -> AgentResponse:
            began = time.monotonic()
            self.requests.append(request)
            known = request.action == "code.lines"
            return AgentResponse(
                event_id=uuid4(),
                request_id=request.event_id,
                source_agent=AGENT_ID,
                target_agent=request.source_agent,
                status="success" if known else "error",
                result={"lines": len(request.parameters.get("code", "").splitlines())} if known else None,
                error=None if known else f"Unknown action: {request.action}",
                duration_ms=round(1000 * (time.monotonic() - began)),
                created_at=datetime.now(UTC),
            )

        return app


@asynccontextmanager
async def contract_agent() -> AsyncIterator[ContractAgent]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        agent = ContractAgent(f"http://127.0.0.1:{listener.getsockname()[1]}")
        server = uvicorn.Server(uvicorn.Config(agent.app(), log_level="error", lifespan="off"))
        running = asyncio.create_task(server._serve([listener]))
        try:
            yield agent
        finally:
            server.should_exit = True
            await running

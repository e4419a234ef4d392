"""The HTTP routes of patterns (workflow definitions with parameters): list, show, fill in the parameters, start.

Patterns are read from files, so what reads them runs in a thread.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from http import HTTPStatus
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Response
from pydantic import BaseModel, Field

from coditect.api.access.roles import Role
from coditect.api.routes.parameters import ApiRequest, IdempotencyKey, Who, request_key
from coditect.api.routes.work.workflows import accepted
from coditect.api.services import Services, needs
from coditect.operations.workflows import patterns
from coditect.operations.workflows.requests import AcceptedWorkflow
from coditect.workflow.documents.document import to_document
from coditect.workflow.patterns.pattern import WorkflowPattern

FOLDERS = "CODITECT_PATTERNS"
"""The variable with the folders of further patterns, separated as in PATH; the command line reads it, too."""

router = APIRouter(prefix="/patterns", tags=["patterns"])
steered = APIRouter(prefix="/patterns", tags=["patterns"], dependencies=[needs(Role.OPERATOR)])


class PatternSummary(BaseModel):
    """A pattern in a list: its name, what it is for, and the names of its parameters."""

    pattern: str
    description: str
    parameters: list[str]


class PatternArguments(ApiRequest):
    """The values from which a pattern makes a workflow, by the names of its parameters."""

    parameters: dict[str, Any] = Field(default_factory=dict, description="Values by the names of parameters.")


class PatternOrder(PatternArguments):
    """The request to start a workflow from a pattern: the parameters' values, and the workflow's input and labels."""

    input: Any = Field(default=None, description="The workflow's input.")
    labels: dict[str, str] = Field(default_factory=dict, max_length=16)


@router.get("")
def list_patterns(services: Services) -> list[PatternSummary]:
    """List the patterns (workflows with parameters): packaged ones, and those in the folders of CODITECT_PATTERNS."""
    found = patterns.list_patterns(_folders(services.opened.environ))
    return [
        PatternSummary(pattern=one.pattern, description=one.description, parameters=list(one.parameters))
        for one in found
    ]


@router.get("/{name}")
def show_pattern(name: str, services: Services) -> WorkflowPattern:
    """Show one pattern: its parameters, and the workflow into which their values are put."""
    return patterns.show_pattern(name, _folders(services.opened.environ))


@router.post("/{name}/render")
def render_pattern(name: str, order: PatternArguments, services: Services) -> dict[str, Any]:
    """Return the workflow that a pattern and values for its parameters make; start nothing; 422 lists wrong values."""
    return to_document(patterns.make_workflow(name, order.parameters, _folders(services.opened.environ)))


@steered.post("/{name}/run", status_code=HTTPStatus.CREATED)
async def run_pattern(
    name: str, order: PatternOrder, services: Services, who: Who, response: Response, key: IdempotencyKey = None
) -> AcceptedWorkflow:
    """Start the workflow that a pattern and values make; a repeated Idempotency-Key gives the one that has it (200)."""
    folders = _folders(services.opened.environ)
    made = await asyncio.to_thread(patterns.make_workflow, name, order.parameters, folders)
    kept_key = request_key(who, key, order, of=name)
    async with services.opened.fleet() as client:
        run = await client.start(made, order.input, key=kept_key, labels=order.labels)
        return await accepted(run, response)


def _folders(environ: Mapping[str, str]) -> list[Path]:
    return [Path(folder) for folder in environ.get(FOLDERS, "").split(os.pathsep) if folder]

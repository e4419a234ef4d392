"""The resources of a fleet for MCP clients: its workflows and its dead letters, as JSON documents."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from mcp.shared.exceptions import MCPError
from mcp_types import INVALID_PARAMS, ReadResourceResult, Resource, ResourceTemplate, TextResourceContents

from coditect.errors import CoditectError
from coditect.operations.connections import Connections
from coditect.operations.dead_letters import settling
from coditect.operations.dead_letters.queues import Selection
from coditect.operations.documents.dead import DeadNodeDocument, LetterDocument, WholeLetter
from coditect.operations.workflows import requests
from coditect.wire.json import dumps

SCHEME = "coditect://"
WORKFLOWS, DEAD = f"{SCHEME}workflows", f"{SCHEME}dead"
MOST = 100
"""How many workflows or dead letters a listing has."""
JSON = "application/json"


class FleetResources:
    """The MCP resources of a fleet: its workflows and its dead letters, listed and read one by one."""

    def __init__(self, opened: Connections) -> None:
        self._opened = opened

    async def listed(self) -> list[Resource]:
        """Return the descriptions of two MCP resources: the list of the latest workflows, and that of dead letters.

        A single workflow or dead letter is read at an address that `templates` describes.
        """
        return [
            Resource(name="workflows", uri=WORKFLOWS, description="The latest workflows.", mime_type=JSON),
            Resource(name="dead letters", uri=DEAD, description="Tasks that were given up.", mime_type=JSON),
        ]

    def templates(self) -> list[ResourceTemplate]:
        """Return the URI templates by which an MCP client reads one workflow, or one dead letter, by its id."""
        return [
            ResourceTemplate(
                name="workflow",
                uri_template=f"{WORKFLOWS}/{{workflow}}",
                description="A workflow with its nodes.",
                mime_type=JSON,
            ),
            ResourceTemplate(
                name="dead letter",
                uri_template=f"{DEAD}/{{id}}",
                description="A dead letter: its reason, its attempts and its body.",
                mime_type=JSON,
            ),
        ]

    async def read(self, uri: str) -> ReadResourceResult:
        """Return the MCP resource at an address as JSON: a list, or one workflow or dead letter.

        Raises:
            MCPError: when there is no such resource, or the fleet does not answer; the message says what to do.
        """
        kind, _, key = uri.removeprefix(SCHEME).partition("/")
        try:
            if uri.startswith(WORKFLOWS) and kind == "workflows":
                document = await self._workflow(key) if key else await self._workflows()
            elif uri.startswith(DEAD) and kind == "dead":
                document = await self._letter(key) if key else await self._dead()
            else:
                raise MCPError(INVALID_PARAMS, f"There is no resource {uri[:200]}; try {WORKFLOWS} or {DEAD}")
        except CoditectError as error:
            raise MCPError(INVALID_PARAMS, str(error)) from error
        text = dumps(document).decode()
        return ReadResourceResult(contents=[TextResourceContents(uri=uri, mime_type=JSON, text=text)])

    async def _workflows(self) -> Any:
        rows = await requests.list_workflows(self._opened, requests.WorkflowFilter(), most=MOST)
        return [asdict(row) for row in rows]

    async def _workflow(self, workflow: str) -> Any:
        found = await requests.show_workflow(self._opened, workflow, None)
        return {"workflow": asdict(found.row), "nodes": [asdict(row) for row in found.nodes]}

    async def _dead(self) -> Any:
        letters = list[LetterDocument]()
        listing = await settling.list_dead(
            self._opened,
            Selection(),
            most=MOST,
            each=lambda letter: letters.append(LetterDocument.of(letter)),
            note=_unseen,
        )
        nodes = [asdict(DeadNodeDocument.of(row)) for row in listing.nodes]
        return {"letters": [asdict(one) for one in letters], "nodes": nodes}

    async def _letter(self, letter_id: str) -> Any:
        letter = await settling.show_letter(self._opened, letter_id, capability=None, note=_unseen)
        return asdict(WholeLetter.of(letter))


def _unseen(note: str) -> None:
    """Ignore a note that some dead letters or nodes could not be read; the MCP client gets the readable ones."""

"""The routes of shared state: the values of a named space, or of a workflow, each with its version as ETag."""

from __future__ import annotations

from http import HTTPStatus
from typing import Annotated, Any

from fastapi import APIRouter, Body, Depends, Header, Response
from starlette.requests import HTTPConnection

from coditect.api.access.roles import Role
from coditect.api.problems import RequestRefused
from coditect.api.routes.parameters import FreeName
from coditect.api.services import ApiServices, Services, needs
from coditect.client.client import Client
from coditect.collaboration.state import SharedState, StateEntry
from coditect.errors import InputError, NotFound

OWN = "coditect."
"""The prefix of the names of spaces in which Coditect keeps its own configuration, such as the webhooks."""


async def _not_own(connection: HTTPConnection) -> None:
    """Raise RequestRefused (403) if the path names a space of shared state that Coditect keeps for itself.

    The names of such spaces begin with `coditect.`. An operator could change there, unchecked, what only an admin may.
    """
    if str(connection.path_params.get("space", "")).startswith(OWN):
        fix = "use the routes of what is kept there, such as /v1/webhooks, or choose another name"
        raise RequestRefused(HTTPStatus.FORBIDDEN, f"Spaces that begin with {OWN} are Coditect's own", fix=fix)


router = APIRouter(tags=["shared state"], dependencies=[Depends(_not_own)])
steered = APIRouter(tags=["shared state"], dependencies=[needs(Role.OPERATOR), Depends(_not_own)])

SPACES = "/spaces/{space}"
WORKFLOWS = "/workflows/{workflow}/state"
IfMatch = Annotated[
    str | None,
    Header(alias="If-Match", description='The version to replace, such as "3"; "0" for a key without a value.'),
]
NewValue = Annotated[Any, Body(description="The value: any JSON.")]


@router.get(SPACES)
async def list_space(space: FreeName, services: Services) -> list[StateEntry]:
    """List the keys of a named space, with versions and writers, without the values."""
    return await _listed(services, space=space)


@router.get(SPACES + "/{key:path}/history")
async def list_versions(space: FreeName, key: FreeName, services: Services) -> list[StateEntry]:
    """List a key's last 20 versions at most with their writers, the latest first, without the values."""
    async with services.opened.fleet() as client:
        return await client.space(space).history(key)


@router.get(SPACES + "/{key:path}")
async def get_value(space: FreeName, key: FreeName, services: Services, response: Response) -> StateEntry:
    """Return a key's value; its version is the ETag."""
    return await _read(services, key, response, space=space)


@steered.put(SPACES + "/{key:path}")
async def put_value(
    space: FreeName, key: FreeName, value: NewValue, services: Services, response: Response, if_match: IfMatch = None
) -> dict[str, int]:
    """Write a key's value, and return its new version; with If-Match only in place of the version in it, else 412."""
    return await _write(services, key, value, response, if_match, space=space)


@steered.delete(SPACES + "/{key:path}", status_code=HTTPStatus.NO_CONTENT)
async def delete_value(space: FreeName, key: FreeName, services: Services, if_match: IfMatch = None) -> None:
    """Remove a key's value; with If-Match only that version, else 412."""
    await _delete(services, key, if_match, space=space)


@router.get(WORKFLOWS)
async def list_workflow_state(workflow: str, services: Services) -> list[StateEntry]:
    """List the keys of a workflow's shared state, without the values."""
    return await _listed(services, workflow=workflow)


@router.get(WORKFLOWS + "/{key:path}")
async def get_workflow_value(workflow: str, key: FreeName, services: Services, response: Response) -> StateEntry:
    """Return a value of a workflow's shared state; its version is the ETag."""
    return await _read(services, key, response, workflow=workflow)


@steered.put(WORKFLOWS + "/{key:path}")
async def put_workflow_value(
    workflow: str, key: FreeName, value: NewValue, services: Services, response: Response, if_match: IfMatch = None
) -> dict[str, int]:
    """Write a value of a workflow's shared state, return its version; with If-Match replace only that one, else 412."""
    return await _write(services, key, value, response, if_match, workflow=workflow)


async def _listed(services: ApiServices, **where: str) -> list[StateEntry]:
    async with services.opened.fleet() as client:
        return [entry async for entry in _state(client, **where).entries()]


async def _read(services: ApiServices, key: str, response: Response, **where: str) -> StateEntry:
    async with services.opened.fleet() as client:
        entry = await _state(client, **where).entry(key)
    if entry.deleted:
        raise NotFound("This key has no value", key=key, **where)
    response.headers["etag"] = f'"{entry.version}"'
    return entry


async def _write(
    services: ApiServices, key: str, value: Any, response: Response, if_match: str | None, **where: str
) -> dict[str, int]:
    async with services.opened.fleet() as client:
        version = await _state(client, **where).put(key, value, if_version=_version(if_match))
    response.headers["etag"] = f'"{version}"'
    return {"version": version}


async def _delete(services: ApiServices, key: str, if_match: str | None, **where: str) -> None:
    async with services.opened.fleet() as client:
        await _state(client, **where).delete(key, if_version=_version(if_match))


def _state(client: Client, *, space: str = "", workflow: str = "") -> SharedState:
    return client.run(workflow).shared if workflow else client.space(space)


def _version(if_match: str | None) -> int | None:
    if if_match is None:
        return None
    text = if_match.strip().removeprefix('"').removesuffix('"')
    if not (text.isascii() and text.isdecimal() and len(text) <= 15):
        raise InputError("If-Match is a version in quotes", given=if_match[:80], fix='the ETag of a GET, such as "3"')
    return int(text)

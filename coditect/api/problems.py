"""Answers for errors: RFC 9457 problem documents, made from the errors that `coditect.errors` defines.

One table says which error becomes which status. An answer has the error's sentence, its facts and its fix, and never
the text of an exception that is not a CoditectError, nor the input.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Response
from fastapi.exceptions import RequestValidationError, WebSocketRequestValidationError
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection
from starlette.routing import compile_path
from starlette.websockets import WebSocket, WebSocketState

from coditect import errors
from coditect.errors import CoditectError, InvalidWorkflow
from coditect.settings.addresses import without_passwords
from coditect.wire.json import dumps

log = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"
STATUSES: Mapping[type[CoditectError], HTTPStatus] = {
    CoditectError: HTTPStatus.INTERNAL_SERVER_ERROR,
    errors.Retryable: HTTPStatus.SERVICE_UNAVAILABLE,
    errors.PublishUnconfirmed: HTTPStatus.GATEWAY_TIMEOUT,
    errors.LockTaken: HTTPStatus.CONFLICT,
    errors.Deadlock: HTTPStatus.CONFLICT,
    errors.LockLost: HTTPStatus.CONFLICT,
    errors.StreamRestarted: HTTPStatus.CONFLICT,
    errors.InputError: HTTPStatus.UNPROCESSABLE_ENTITY,
    errors.TooLarge: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    errors.Conflict: HTTPStatus.CONFLICT,
    errors.VersionConflict: HTTPStatus.PRECONDITION_FAILED,
    errors.NotFound: HTTPStatus.NOT_FOUND,
    errors.ControlPlaneRequired: HTTPStatus.SERVICE_UNAVAILABLE,
    errors.NewerVersion: HTTPStatus.SERVICE_UNAVAILABLE,
    errors.TaskError: HTTPStatus.CONFLICT,
    errors.ResultTimeout: HTTPStatus.GATEWAY_TIMEOUT,
}
"""The status of an error; a class without a line has that of the nearest class above it in the tree."""
DURATION = r"^[0-9]{1,9}(\.[0-9]{1,9})?(ms|s|m|h|d)$"
"""The pattern of a duration in a request; errors describe it in words in place of the pattern."""
_WORDS = re.compile(r"(?<=[a-z])(?=[A-Z])")


class RequestRefused(HTTPException):
    """The error of a request that is refused before anything is done for it, with what its sender can do."""

    def __init__(
        self, status: HTTPStatus, sentence: str, *, fix: str, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(status, sentence, headers)
        self.fix = fix


class Mistake(BaseModel):
    """A mistake in a request: its place, a sentence, and how to correct it."""

    model_config = ConfigDict(frozen=True)

    at: str = Field(description="Path of the mistake, such as `body.priority` or `nodes.build.after[0]`.")
    sentence: str
    fix: str = ""
    line: int | None = Field(default=None, description="Line of a submitted text, from 1.")


class ProblemDocument(BaseModel):
    """The JSON answer for an error, as RFC 9457 describes it, with the facts of the error and what to do about it."""

    model_config = ConfigDict(frozen=True)

    type: str = Field(description="`urn:coditect:problem:` and the name of the error.")
    title: str = Field(description="The kind of error in words.")
    status: int
    detail: str = Field(description="What went wrong, in a sentence.")
    retryable: bool = Field(default=False, description="Whether the same request may succeed later.")
    fix: str | None = Field(default=None, description="What to do about it.")
    facts: dict[str, Any] = Field(default_factory=dict, description="The particulars of the error.")
    mistakes: list[Mistake] = Field(default_factory=list, description="All mistakes found in the request.")


RESPONSES: dict[int | str, dict[str, Any]] = {
    kind: {
        "description": description,
        "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/ProblemDocument"}}},
    }
    for kind, description in (
        ("4XX", "The request cannot be carried out as it is."),
        ("5XX", "The fleet cannot answer now."),
    )
}
"""What every route documents of its errors."""


def problem_schemas() -> dict[str, Any]:
    """Return the JSON Schemas of problem documents, by name, for the OpenAPI document."""
    schema = ProblemDocument.model_json_schema(ref_template="#/components/schemas/{model}")
    return {**schema.pop("$defs"), "ProblemDocument": schema}


def status_of(error: CoditectError) -> HTTPStatus:
    """Return the HTTP status of an error."""
    return next(STATUSES[kind] for kind in type(error).__mro__ if kind in STATUSES)


def problem_of(error: CoditectError) -> ProblemDocument:
    """Return the problem document of an error."""
    name = type(error).__name__
    facts = {fact: _plain(value) for fact, value in error.facts.items() if fact != "fix"}
    fix = error.facts.get("fix")
    found = error.problems if isinstance(error, InvalidWorkflow) else ()
    return ProblemDocument(
        type=f"urn:coditect:problem:{_WORDS.sub('-', name).lower()}",
        title=_WORDS.sub(" ", name).capitalize(),
        status=status_of(error),
        detail=without_passwords(error.sentence),
        retryable=error.retryable,
        fix=None if fix is None else str(fix),
        facts=facts,
        mistakes=[Mistake(at=one.place, sentence=one.sentence, fix=one.fix, line=one.line) for one in found],
    )


def answer(problem: ProblemDocument, headers: Mapping[str, str] | None = None) -> Response:
    """Return a problem document as a response."""
    body = dumps(problem.model_dump(exclude_none=True))
    return Response(body, status_code=problem.status, headers=dict(headers or {}), media_type=MEDIA_TYPE)


def add_problem_handlers(app: FastAPI) -> None:
    """Let an application answer every error with a problem document."""

    async def coditect_error(request: HTTPConnection, error: Exception) -> Response:
        assert isinstance(error, CoditectError)
        return error_answer(error)

    async def http_error(request: HTTPConnection, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        status, headers = error.status_code, dict(error.headers or {})
        if status in (HTTPStatus.NOT_FOUND, HTTPStatus.METHOD_NOT_ALLOWED):
            methods = _methods_of(app, request.url.path)
            if methods and request.scope.get("method") not in methods:
                status, headers = HTTPStatus.METHOD_NOT_ALLOWED, {"allow": ", ".join(methods)}
        told = "" if error.detail == HTTPStatus(error.status_code).phrase else error.detail
        fix = error.fix if isinstance(error, RequestRefused) else None
        return answer(problem_of_status(HTTPStatus(status), told, fix=fix), headers)

    async def invalid_request(request: HTTPConnection, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError | WebSocketRequestValidationError)
        found = [Mistake(at=_place(one["loc"]), sentence=_sentence(one), fix=_fix(one)) for one in error.errors()]
        return answer(
            problem_of_status(HTTPStatus.UNPROCESSABLE_ENTITY, "The request is not as the API wants it", found)
        )

    async def unexpected(request: HTTPConnection, error: Exception) -> Response:
        log.error("A request failed unexpectedly", extra={"path": request.url.path}, exc_info=error)
        return answer(problem_of_status(HTTPStatus.INTERNAL_SERVER_ERROR, "The API failed; its log has the reason"))

    handlers: dict[type[Exception], Callable[..., Any]] = {
        CoditectError: coditect_error,
        HTTPException: http_error,
        RequestValidationError: invalid_request,
        WebSocketRequestValidationError: invalid_request,
        Exception: unexpected,
    }
    for kind, handler in handlers.items():
        app.add_exception_handler(kind, _answering(handler))


def _answering(handler: Callable[[HTTPConnection, Exception], Awaitable[Response]]) -> Callable[..., Any]:
    """Wrap an error handler so that its answer also takes the place of a WebSocket's handshake, unlike in Starlette."""

    async def answering(connection: HTTPConnection, error: Exception) -> Response | None:
        if not isinstance(connection, WebSocket):
            return await handler(connection, error)
        if connection.application_state is not WebSocketState.CONNECTING:
            raise error
        await connection.send_denial_response(await handler(connection, error))
        return None  # Starlette would send a response again

    return answering


def error_answer(error: CoditectError) -> Response:
    """Return the response for an error, with `Retry-After` where the error knows how long to wait."""
    wait = error.facts.get("retry_after", error.facts.get("retry_after_seconds"))
    headers = {"retry-after": str(max(1, round(wait)))} if isinstance(wait, int | float) else {}
    return answer(problem_of(error), headers)


def problem_of_status(
    status: HTTPStatus, detail: str = "", mistakes: list[Mistake] | None = None, *, fix: str | None = None
) -> ProblemDocument:
    """Return the problem document of a failure that is no CoditectError, from its HTTP status and a sentence."""
    words = detail or f"{status.description or status.phrase}."
    return ProblemDocument(
        type="about:blank",
        title=status.phrase,
        status=status,
        detail=words,
        retryable=status == HTTPStatus.TOO_MANY_REQUESTS,
        fix=fix,
        mistakes=mistakes or [],
    )


def _methods_of(app: FastAPI, path: str) -> list[str]:
    """Return all HTTP methods that the API has at a path, where a router knows only those of one of its routes.

    A path without parameters has its own methods only, although a template such as `/{name}` may fit it as well.
    """
    paths = app.openapi()["paths"]
    found = [paths[path]] if path in paths else [paths[one] for one in paths if compile_path(one)[0].match(path)]
    allowed = {method.upper() for methods in found for method in methods}
    return sorted(allowed | {"HEAD"} if "GET" in allowed else allowed)


def _place(path: tuple[str | int, ...]) -> str:
    parts = (f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return "".join(parts).removeprefix(".")


def _sentence(error: Mapping[str, Any]) -> str:
    if error["type"] == "string_pattern_mismatch" and error["ctx"]["pattern"] == DURATION:
        return "This is no duration"
    return str(error["msg"])


def _fix(error: Mapping[str, Any]) -> str:
    """Return how to correct a wrong duration, or a body that is not taken for a JSON object; else empty."""
    if error["type"] == "string_pattern_mismatch" and error["ctx"]["pattern"] == DURATION:
        return "write a number and its unit: 500ms, 30s, 5m, 2h or 1d"
    no_object = error["loc"] == ("body",) and error["type"] in ("dict_type", "model_attributes_type")
    return "send a JSON object, with the header Content-Type: application/json" if no_object else ""


def _plain(value: object) -> object:
    """Return one detail of an error as a JSON value, without the passwords of URLs."""
    match value:
        case None | bool() | int() | float():
            return value
        case Mapping():
            return {str(name): _plain(one) for name, one in value.items()}
        case list() | tuple() | set() | frozenset():
            return [_plain(one) for one in value]
        case _:
            return without_passwords(str(value))

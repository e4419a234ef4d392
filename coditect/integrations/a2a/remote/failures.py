"""The errors of calls to a remote A2A agent; each says whether the failed attempt may be followed by another."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import httpx
from a2a.utils import errors as a2a
from google.protobuf.json_format import Error as ProtobufError

from coditect.errors import CoditectError, InputError, Retryable
from coditect.integrations.http.failures import AgentLost, AnswerBroken

TOKEN = "CODITECT_A2A_TOKEN"  # noqa: S105 - a variable's name
LOST = "The remote agent went away, or did not answer in time"
LONGEST_TEXT = 2_000
_REFUSALS = (
    a2a.InvalidParamsError,
    a2a.InvalidRequestError,
    a2a.MethodNotFoundError,
    a2a.ContentTypeNotSupportedError,
    a2a.UnsupportedOperationError,
    a2a.VersionNotSupportedError,
    a2a.ExtensionSupportRequiredError,
)
_BROKEN = (ProtobufError, ValueError, LookupError, TypeError, AttributeError, RecursionError)
"""What the SDK raises for an answer that is none of A2A, beside its own errors."""


class RemoteFailed(Retryable):
    """The error of a task that failed or was canceled at the remote agent, or of the agent's own failure; retryable."""


class RemoteRejected(InputError):
    """The error of a message, a token or a task that the remote agent refuses; the attempt is the last."""


class RemoteAsks(InputError):
    """The error of a task for which the remote agent wants more input, or credentials; the attempt is the last."""


@contextmanager
def judged(url: str) -> Iterator[None]:
    """Translate errors of the A2A SDK, HTTP and parsing, and timeouts, that the block raises into errors of Coditect.

    Raises:
        RemoteRejected: when the agent refuses the request, or the token.
        RemoteFailed: when the agent answers with an error of its own; retryable.
        AgentLost: when the connection broke, or no answer came in time; retryable.
        AnswerBroken: when the answer is none of A2A; retryable.
    """
    try:
        yield
    except CoditectError:
        raise
    except _REFUSALS as error:
        raise RemoteRejected("The remote agent refuses the message", url=url, reason=_said(error)) from error
    except a2a.A2AError as error:
        raise _of_connection(url, error) from error
    except (TimeoutError, httpx.TransportError) as error:
        raise AgentLost(
            "The remote agent went away, or did not answer in time", url=url, reason=_said(error)
        ) from error
    except _BROKEN as error:
        raise AnswerBroken("The remote agent's answer is none of A2A", url=url, reason=_said(error)) from error


def _of_connection(url: str, error: a2a.A2AError) -> CoditectError:
    """Return Coditect's error for an SDK error, by the HTTP status or connection error that caused it, if any did."""
    match error.__cause__:
        case httpx.HTTPStatusError(response=response) if response.status_code in (401, 403):
            fix = f"set {TOKEN} to a token or key that may use the agent"
            return RemoteRejected("The remote agent wants other credentials", status=response.status_code, fix=fix)
        case httpx.HTTPStatusError(response=response) if 400 <= response.status_code < 500 and (
            response.status_code not in (408, 425, 429)
        ):
            return RemoteRejected("The remote agent refuses the request", url=url, status=response.status_code)
        case httpx.HTTPStatusError(response=response):
            return AnswerBroken("The remote agent answers with a status of no use", status=response.status_code)
        case httpx.TransportError():
            return AgentLost(LOST, url=url, reason=_said(error))
        case None if not type(error).__module__.startswith("a2a.client"):
            return RemoteFailed("The remote agent failed", url=url, reason=_said(error))
        case _:
            return AnswerBroken("The remote agent's answer is none of A2A", url=url, reason=_said(error))


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:LONGEST_TEXT].encode(errors="backslashreplace").decode()

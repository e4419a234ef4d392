"""Inputs and values too large for a message, which are fetched before the handler runs and stored after its end."""

from __future__ import annotations

from dataclasses import replace

from coditect.agent.execution.execution import Execution
from coditect.agent.execution.handler import HandlerEnd
from coditect.blobs import Blobs, whole
from coditect.errors import BlobUnavailable, ClaimBroken, CoditectError, TooLarge
from coditect.model.result import Failure, Status


async def fetch_input(blobs: Blobs, execution: Execution) -> HandlerEnd | None:
    """Fetch a task's large input from the blob store into its body; return None, or the attempt's end on a failure."""
    try:
        execution.task = replace(execution.task, body=await whole(blobs, execution.task.body))
    except (TooLarge, ClaimBroken) as error:
        reason = "too_large" if isinstance(error, TooLarge) else "claim_broken"
        return HandlerEnd(Status.REJECTED, failure=_failure(reason, error), error=error)
    except BlobUnavailable as error:
        return _failed("blob_unavailable", error)
    return None


async def put_value(blobs: Blobs, ended: HandlerEnd) -> HandlerEnd:
    """Store a handler's large value as a blob; return the attempt's end with the blob reference, or a failed end."""
    try:
        claim = await blobs.put(ended.body)
    except TooLarge as error:
        return _failed("result_too_large", error)
    except BlobUnavailable as error:
        return _failed("blob_unavailable", error)
    return HandlerEnd(ended.status, claim.document, claims=True, binary=ended.binary)


def _failed(reason: str, error: CoditectError) -> HandlerEnd:
    return HandlerEnd(Status.FAILED, failure=_failure(reason, error), error=error)


def _failure(reason: str, error: CoditectError) -> Failure:
    return Failure(
        reason,
        type(error).__name__,
        str(error),
        retryable=error.retryable,
        fix=str(error.facts.get("fix", "")),
    )

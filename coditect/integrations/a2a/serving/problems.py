"""The errors of the fleet as A2A errors, which say what happened and, where it is known, what to do."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from a2a.utils.errors import A2AError, InternalError, InvalidParamsError, TaskNotFoundError

from coditect.errors import CoditectError, InputError, NotFound
from coditect.settings.addresses import without_passwords

log = logging.getLogger(__name__)

LONGEST = 4_000


@contextmanager
def told() -> Iterator[None]:
    """Translate every error that the block raises into an A2A error.

    Raises:
        TaskNotFoundError: for a task that the fleet does not have.
        InvalidParamsError: for a mistake of the caller.
        InternalError: for any other error of the fleet, and without its text for an unexpected one, which is logged.
    """
    try:
        yield
    except A2AError:
        raise
    except CoditectError as error:
        raise as_a2a(error) from error
    except Exception as error:  # the boundary of a request: the SDK would answer with the exception's text
        log.error("An A2A request failed unexpectedly", exc_info=error)
        raise InternalError("The API failed; its log has the reason") from error


def as_a2a(error: CoditectError) -> A2AError:
    """Return the A2A error for an error of the fleet; its data say if a repetition may help and, if known, a remedy."""
    kinds = ((NotFound, TaskNotFoundError), (InputError, InvalidParamsError))
    kind = next((a2a for ours, a2a in kinds if isinstance(error, ours)), InternalError)
    facts = {name: without_passwords(str(fact)) for name, fact in error.facts.items() if name != "traceback"}
    said = "".join(f"; {name}: {fact}" for name, fact in facts.items())
    data = {"retryable": str(error.retryable).lower()} | ({"fix": facts["fix"]} if "fix" in facts else {})
    return kind(f"{without_passwords(error.sentence)}{said}"[:LONGEST], data=data)

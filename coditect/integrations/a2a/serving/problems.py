"""The errors of the fleet as A2A errors: each says what happened, and what to do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from a2a.utils.errors import A2AError, InternalError, InvalidParamsError, TaskNotFoundError

from coditect.errors import CoditectError, InputError, NotFound
from coditect.settings.addresses import without_passwords

LONGEST = 4_000


@contextmanager
def told() -> Iterator[None]:
    """Raise what the block raises as an A2A error.

    Raises:
        TaskNotFoundError: for a task that the fleet does not have.
        InvalidParamsError: for a mistake of the caller.
        InternalError: for any other error of the fleet.
    """
    try:
        yield
    except CoditectError as error:
        raise as_a2a(error) from error


def as_a2a(error: CoditectError) -> A2AError:
    """Return the A2A error for an error of the fleet; its data say what to do, and whether a repetition may help."""
    kinds = ((NotFound, TaskNotFoundError), (InputError, InvalidParamsError))
    kind = next((a2a for ours, a2a in kinds if isinstance(error, ours)), InternalError)
    facts = {name: without_passwords(str(fact)) for name, fact in error.facts.items() if name != "traceback"}
    said = "".join(f"; {name}: {fact}" for name, fact in facts.items())
    data = {"retryable": str(error.retryable).lower()} | ({"fix": facts["fix"]} if "fix" in facts else {})
    return kind(f"{without_passwords(error.sentence)}{said}"[:LONGEST], data=data)

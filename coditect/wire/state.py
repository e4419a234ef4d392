"""How a request names a space of shared state: `workflow:` and an id, or `space:` and a name."""

from __future__ import annotations

_WORKFLOW = "workflow:"
_NAMED = "space:"


def workflow_space(workflow: str) -> str:
    """Return the name of a workflow's own space of shared state, which is removed with the workflow."""
    return _WORKFLOW + workflow


def named_space(name: str) -> str:
    """Return the name, with prefix, of a space of shared state that any agent or client may use."""
    return _NAMED + name


def workflow_of(space: str) -> str | None:
    """Return the id of the workflow that a space belongs to; None for a named space."""
    return space.removeprefix(_WORKFLOW) if space.startswith(_WORKFLOW) else None

"""The names of spaces, the key-value stores of shared state: `workflow:` and an id, or `space:` and a name."""

from __future__ import annotations

_WORKFLOW = "workflow:"
_NAMED = "space:"


def workflow_space(workflow: str) -> str:
    """Return the name of the shared-state space (key-value store) that belongs to a workflow and is removed with it."""
    return _WORKFLOW + workflow


def named_space(name: str) -> str:
    """Return the prefixed name of a shared-state space (key-value store) that any agent or client may use."""
    return _NAMED + name


def workflow_of(space: str) -> str | None:
    """Return the id of the workflow whose shared-state space has this name; None for any other space."""
    return space.removeprefix(_WORKFLOW) if space.startswith(_WORKFLOW) else None

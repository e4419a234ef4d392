"""The spaces of shared state, as requests name them: one for each workflow, and any number of named ones."""

from __future__ import annotations

_WORKFLOW = "workflow:"
_NAMED = "space:"


def workflow_space(workflow: str) -> str:
    """Return the space of a workflow's own state, which goes when the workflow is removed."""
    return _WORKFLOW + workflow


def named_space(name: str) -> str:
    """Return a space that any agent or client may use by its name."""
    return _NAMED + name


def workflow_of(space: str) -> str | None:
    """Return the id of the workflow that a space belongs to; None for a named space."""
    return space.removeprefix(_WORKFLOW) if space.startswith(_WORKFLOW) else None

"""The names of spaces, the key-value stores of shared state: `workflow:` and an id, or `space:` and a name."""

from __future__ import annotations

_WORKFLOW = "workflow:"
_NAMED = "space:"
COORDINATION, LANGGRAPH = "coditect", "langgraph"
"""The keepers of reserved spaces: Coditect's own configuration, such as webhooks, and LangGraph's checkpoints."""


def workflow_space(workflow: str) -> str:
    """Return the name of the shared-state space (key-value store) that belongs to a workflow and is removed with it."""
    return _WORKFLOW + workflow


def named_space(name: str) -> str:
    """Return the prefixed name of a shared-state space (key-value store) that any agent or client may use."""
    return _NAMED + name


def keeper_of(space: str) -> str:
    """Return the keeper that alone writes to a reserved space; empty for a space that any agent or client may write.

    Reserved are the names that begin with `coditect.` or `langgraph:`, and `langgraph`.
    """
    name = space.removeprefix(_NAMED) if space.startswith(_NAMED) else ""
    if name.startswith("coditect."):
        return COORDINATION
    return LANGGRAPH if name == "langgraph" or name.startswith("langgraph:") else ""


def workflow_of(space: str) -> str | None:
    """Return the id of the workflow whose shared-state space has this name; None for any other space."""
    return space.removeprefix(_WORKFLOW) if space.startswith(_WORKFLOW) else None

"""Use cases for locks: list them, show one, and release one by force."""

from __future__ import annotations

from coditect.client.coordination.locks import LockRow
from coditect.errors import InputError, NotFound
from coditect.operations.connections import Connections


async def list_locks(opened: Connections, *, resource: str | None = None, most: int) -> list[LockRow]:
    """Return at most `most` lock holders and waiters, of all resources or of one, in order of arrival at each."""
    async with opened.fleet() as client:
        return [row async for row in client.locks(resource, most=most)]


async def show_lock(opened: Connections, resource: str, *, most: int) -> list[LockRow]:
    """Return the holders of the lock on a resource, and those that wait for it, at most `most` in all.

    Raises:
        NotFound: when no agent or client has a lock on the resource, or waits for one.
    """
    rows = await list_locks(opened, resource=resource, most=most)
    if not rows:
        raise NotFound(
            "No agent or client holds this lock, or waits for it", resource=resource, fix="coditect lock list"
        )
    return rows


async def release_locks(
    opened: Connections, resource: str | None, *, agent: str | None, task: str | None, reason: str
) -> int:
    """Release by force a resource's locks, or all that an agent or one of its tasks has or awaits; return how many.

    Raises:
        InputError: when it is not said which locks are meant.
    """
    if (resource is None) is (agent is None) or (task is not None and agent is None):
        raise InputError("Say which locks to release", fix="name a resource, or --agent, or --agent and --task")
    async with opened.fleet() as client:
        return await client.release_locks(resource, agent=agent, task=task, reason=reason)

"""The keys of the registry in Redis, and the layout of its index of agents by capability and tag.

::

    <prefix>leases         sorted set  agent id by the end of its lease, ms of Redis' own clock
    <prefix>registrations  hash        agent id: registration as JSON
    <prefix>loads          hash        agent id: load as JSON
    <prefix>terms          hash        agent id: JSON list of its index terms, to remove them again
    <prefix>index          sorted set  every score 0, members "<term> NUL <agent id>", found by range
    <prefix>turns          hash        name: the last turn given out
    <prefix>start:<task>   string      id of the agent that started this redelivered task; lives a day at most
    <prefix>returns:<task> string      how often agents handed this task back; lives an hour at most
    <prefix>rate:<name>    hash        the token bucket of a capability with a rate; lives at least a minute

A term is ``a`` (every agent has it), ``c NUL <capability>`` or ``t NUL <tag>``. One index for all terms keeps every key
of a script declared, however many capabilities there are.

The next script that runs removes a lapsed agent. Each key (but `turns`, marks, returns and rates) also lives no longer
than the longest lease written to it, so a fleet that is gone leaves nothing behind. The scripts may write when the
memory is full (`allow-oom`): the fleet bounds what they hold, and agents must not lapse because another program filled
Redis. Start marks are bounded by nothing but the redelivered tasks, so no mark is written then.
"""

from __future__ import annotations

KEYS = ("leases", "registrations", "loads", "terms", "index")
"""The names of the keys that every Lua script about agents declares, in this order."""

HTTP_PREFIX = "coditect:http:"
"""The prefix of the keys of the HTTP agents' registry."""

TURNS_KEY = "turns"
START_PREFIX = "start:"
RETURNS_PREFIX = "returns:"
RATE_PREFIX = "rate:"
SEPARATOR = "\0"

ANY_AGENT = "a"
"""The term under which the registry's index lists every agent."""


def capability_term(name: str) -> str:
    """Return the term under which the registry's index lists the agents that offer a capability."""
    return f"c{SEPARATOR}{name}"


def tag_term(tag: str) -> str:
    """Return the term under which the registry's index lists the agents with a tag."""
    return f"t{SEPARATOR}{tag}"

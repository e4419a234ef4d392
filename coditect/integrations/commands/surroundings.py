"""The environment variables of a command: those that are allowed by name, and some that describe its task."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase

from coditect.agent.handlers.context import Context
from coditect.integrations.commands.outcome import SHORTEST_SECRET

ALWAYS = ("PATH", "LANG", "LC_*", "TZ")
_SECRET = re.compile(r"KEY|TOKEN|SECRET|PASS|CREDENTIAL|AUTH", re.IGNORECASE)


def command_environment(environment: Mapping[str, str], allowed: Iterable[str], ctx: Context) -> dict[str, str]:
    """Return a command's variables: PATH, LANG, LC_*, TZ, those allowed by name, and its task's id, attempt and trace.

    The task's capability and fence are among them, too.
    """
    patterns = (*ALWAYS, *allowed)
    found = {
        name: text for name, text in environment.items() if any(fnmatchcase(name, pattern) for pattern in patterns)
    }
    facts = {
        "CODITECT_TASK_ID": ctx.task_id,
        "CODITECT_CAPABILITY": ctx.capability,
        "CODITECT_ATTEMPT": str(ctx.attempt),
        "CODITECT_FENCE": str(ctx.fence),
    }
    return found | facts | {name.upper(): text for name, text in ctx.trace.items()}


def secrets_in(environment: Mapping[str, str]) -> tuple[str, ...]:
    """Return the values of 6 characters or more of variables that are secrets by name (`API_KEY`), longest first."""
    found = {text for name, text in environment.items() if _SECRET.search(name) and len(text) >= SHORTEST_SECRET}
    return tuple(sorted(found, key=len, reverse=True))

"""The text of an error for a person: its sentence, its facts, and how to fix it."""

from __future__ import annotations

import os
import re
from pathlib import Path

from coditect.cli.terminal.output import LINE_ENDS, say
from coditect.errors import (
    BrokerUnavailable,
    CoditectError,
    ControlPlaneRequired,
    Overloaded,
    PublishUnconfirmed,
    RegistryUnavailable,
    ResultTimeout,
    SetupError,
    TopologyMismatch,
    UnknownCapability,
    Unroutable,
)
from coditect.settings.addresses import printable, without_passwords

AMQP, REDIS = "CODITECT_AMQP_URL", "CODITECT_REDIS_URL"
_PLACE = re.compile(r'File "(.+?)", line (\d+), in (\S+)')
_WAYS_OUT: tuple[tuple[type[CoditectError], str], ...] = (
    (BrokerUnavailable, "`coditect doctor` says what is unreachable; `coditect up` starts a private broker."),
    (
        RegistryUnavailable,
        "`coditect doctor` says what is unreachable; running agents come back by themselves.",
    ),
    (PublishUnconfirmed, "The task may have been taken. Run it again only when doing it twice does no harm."),
    (Overloaded, "The broker takes nothing more at the moment. Try again later."),
    (UnknownCapability, "`coditect capability list` shows what is offered."),
    (Unroutable, "`coditect capability list` shows what is offered; start an agent that has the capability."),
    (TopologyMismatch, "`coditect topology apply --dry-run` shows the difference and what to do."),
    (ControlPlaneRequired, "Start a dispatcher, or leave out the option that needs one."),
    (ResultTimeout, "The task goes on; `coditect task cancel <id>` ends it."),
)


def describe(error: CoditectError) -> str:
    """Return an error's sentence, facts and fix as lines of text, with passwords removed from URLs."""
    facts = {name: value for name, value in error.facts.items() if name != "fix" and value not in (None, "", ())}
    lines = [f"Error: {error.sentence}."]
    lines += [f"  {name.replace('_', ' ')}: {_fact(value)}" for name, value in facts.items()]
    if isinstance(error, BrokerUnavailable | RegistryUnavailable | SetupError) and "url" in facts:
        variable = REDIS if isinstance(error, RegistryUnavailable) else AMQP
        lines.append(f"  address from: {_source(variable) or f'nowhere: {_unset(variable)}, so localhost was tried'}")
    log = getattr(error, "log", "")
    if log:
        lines.append(str(log))
    way_out = _way_out(error)
    if way_out:
        lines.append(f"Fix: {way_out}")
    return printable(without_passwords("\n".join(lines)), keep=LINE_ENDS)


def say_guesses(*variables: str) -> None:
    """Print, for each unset variable with a server's address, that localhost is tried, and how to set the variable."""
    from coditect.settings.settings import DEFAULTS

    guesses = {AMQP: DEFAULTS.amqp_url, REDIS: DEFAULTS.redis_url}
    for variable in variables:
        if _source(variable) is None:
            say(f"{_unset(variable)}: {guesses[variable]} is tried. Set it, or let `coditect up` start servers.")


def _source(variable: str) -> str | None:
    """Return where a variable with a server's address is set (environment or env file); None when it is not set."""
    from coditect.settings.settings import find_env_file, read_env_file

    if os.environ.get(variable):
        return f"{variable} in the environment"
    file = find_env_file(Path.cwd())
    if variable in read_env_file(file):
        return f"{variable} in {file}"
    return None


def _unset(variable: str) -> str:
    from coditect.settings.settings import ENV_FILE

    return f"{variable} is not set, and no {ENV_FILE} here or above names it"


def raised_at(traceback: str) -> str:
    """Return file, line and function of a traceback's last frame, outside of libraries if it has one; may be empty."""
    places = _PLACE.findall(traceback)
    own = [place for place in places if "site-packages" not in place[0] and "/lib/python" not in place[0]]
    return next((f"{file}:{line} in {name}" for file, line, name in (own or places)[-1:]), "")


def _way_out(error: CoditectError) -> str:
    own = error.facts.get("fix") or getattr(error, "fix", "")
    if own:
        return str(own)
    return next((text for kind, text in _WAYS_OUT if isinstance(error, kind)), "")


def _fact(value: object) -> str:
    if isinstance(value, tuple | list | set | frozenset):
        return ", ".join(str(item) for item in value)
    return str(value)

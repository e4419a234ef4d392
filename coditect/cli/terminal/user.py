"""The name of the person who runs a command, recorded with the decisions that the command makes."""

from __future__ import annotations

from getpass import getuser
from typing import Annotated

import typer

ByOption = Annotated[str | None, typer.Option("--by", help="Who says so. Default: the user of this machine.")]


def user_name() -> str:
    """Return the name of the user of this machine; `unknown` when the user has none."""
    try:
        return getuser()
    except (OSError, KeyError):  # a container's user may have no name
        return "unknown"

"""The connections of the running command: a test's own, else those that `compose` makes."""

from __future__ import annotations

from typing import cast

import typer

from coditect.operations.connections import Connections
from coditect.settings.settings import read_settings


def connections(context: typer.Context) -> Connections:
    """Return the connections for the running command: a test's own, else the real ones of the settings."""
    if context.obj is None:
        from coditect.cli.compose import RealConnections

        context.obj = RealConnections(read_settings())
    return cast(Connections, context.obj)

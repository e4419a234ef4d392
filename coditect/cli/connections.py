"""The broker, registry and client of the running command: injected by a test, or made by `compose`."""

from __future__ import annotations

from typing import cast

import typer

from coditect.operations.connections import Connections
from coditect.settings.settings import read_settings


def connections(context: typer.Context) -> Connections:
    """Return what opens the command's connections: what a test put into the typer context, else made from settings."""
    if context.obj is None:
        from coditect.cli.compose import RealConnections

        context.obj = RealConnections(read_settings())
    return cast(Connections, context.obj)

"""The broker, registry and client of the running command: injected by a test, or made by `compose`."""

from __future__ import annotations

from typing import cast

import typer

from coditect.operations.connections import Connections
from coditect.settings.settings import read_settings


def connections(context: typer.Context) -> Connections:
    """Return the command's broker, registry and client: those that a test put into the typer context, else real ones.

    The real ones are made from the settings, and kept in the context.
    """
    if context.obj is None:
        from coditect.cli.compose import RealConnections

        context.obj = RealConnections(read_settings())
    return cast(Connections, context.obj)

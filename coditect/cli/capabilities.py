"""Which capabilities exist, as far as this process can know: what agents registered, and what is named."""

from __future__ import annotations

from collections.abc import Iterable

from coditect.cli.connections import Connections
from coditect.cli.output import say
from coditect.errors import RegistryUnavailable
from coditect.model.capability import check_capability_name


async def known_capabilities(connections: Connections, named: Iterable[str]) -> tuple[str, ...]:
    """The named capabilities, or when none is named every one that a living agent offers.

    Without a registry nobody is known; that is said, and the command goes on with less.
    """
    given = tuple(dict.fromkeys(check_capability_name(name) for name in named))
    if given:
        return given
    try:
        async with connections.registry() as registry:
            return tuple(sorted(await registry.capabilities()))
    except RegistryUnavailable:
        say("The registry does not answer: only capabilities named with --capability are looked at.")
        return ()

"""What the dispatcher knows of the fleet: how many slots there are for each capability."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter

from coditect.errors import RegistryUnavailable
from coditect.registry.port import Registry, Search
from dispatcher.window import Window

log = logging.getLogger(__name__)

LOOK_SECONDS = 2.0


async def keep_slots(registry: Registry, window: Window) -> None:
    """Tells the window the fleet's slots, every two seconds; while the registry is silent it keeps what it knew."""
    while True:
        try:
            records = await registry.find(Search())
        except RegistryUnavailable as error:
            log.debug("The fleet's slots are unknown", extra={"reason": str(error)})
        else:
            slots: Counter[str] = Counter()
            for record in records:
                for offer in record.registration.capabilities:
                    slots[offer.name] += record.registration.slots
            window.set_slots(slots)
        await asyncio.sleep(LOOK_SECONDS)

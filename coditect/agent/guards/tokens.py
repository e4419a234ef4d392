"""The tokens of one capability's rate that an agent process holds: leased in batches, lost when they are not used.

A batch grows while it is used up before it ends, and shrinks to what was used: a busy capability asks the registry some
times a second, whatever its rate, and an idle one never.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from math import inf

from coditect.errors import RegistryUnavailable
from coditect.model.limits.rate import Rate
from coditect.registry.port import Registry

log = logging.getLogger(__name__)

AGAIN_SECONDS = 0.5
"""The pause after the registry did not answer."""


class LeasedTokens:
    """The tokens of one capability's rate limit in one process; each token lets one execution begin."""

    def __init__(self, capability: str, rate: Rate, registry: Registry, *, now: Callable[[], float]) -> None:
        self.capability, self.rate = capability, rate
        self._registry, self._now = registry, now
        self._hold_seconds = rate.hold_seconds
        self._tokens = self._promised = self._leased = 0
        self._until, self._none_before = -inf, -inf
        """The event loop's times at which the tokens are lost, and before which the bucket has no more of them."""
        self._batch = 1
        self._wanting = 0
        self._asking = asyncio.Lock()
        self.trouble = ""
        """Why the registry gives no tokens; empty while it answers."""

    async def take(self) -> bool:
        """Take a token for an execution that begins now; False when there is none, or the registry does not answer."""
        self._wanting += 1
        try:
            if self._held() <= 0:
                await self._ask(lambda: self._held() > 0)
        finally:
            self._wanting -= 1
        if self._held() <= 0:
            return False
        self._tokens -= 1
        self._promised = max(0, self._promised - 1)
        return True

    async def promise(self) -> bool:
        """Reserve a token for a task that is being fetched, so that `take` finds it; False when no token is left."""
        if self._held() <= self._promised:
            await self._ask(lambda: self._held() > self._promised)
        if self._held() <= self._promised:
            return False
        self._promised += 1
        return True

    def withdraw(self) -> None:
        """Release a token that `promise` reserved, because there was no task to fetch."""
        self._promised = max(0, self._promised - 1)

    def pause_seconds(self, chance: float) -> float:
        """Return how many seconds to wait before the registry is asked for tokens again.

        That is until its bucket has a token, or longer: a part of the tokens' holding time that `chance` (0 to 1)
        varies, in which the bucket gets several.
        """
        return max(self._none_before - self._now(), self._hold_seconds * (0.25 + 0.5 * chance))

    def postpone(self) -> None:
        """Ask the registry for no tokens of this capability in the next 0.5 s (`AGAIN_SECONDS`)."""
        self._none_before = self._now() + AGAIN_SECONDS

    def _held(self) -> int:
        if self._now() >= self._until:
            self._promised = 0
            return 0
        return self._tokens

    async def _ask(self, enough: Callable[[], bool]) -> None:
        """Lease a batch of tokens from the registry, unless `enough` returns True, or it is too early to ask again."""
        async with self._asking:
            now = self._now()
            if enough() or now < self._none_before:
                return
            early = now < self._until
            self._batch = 2 * self._leased if early else max(1, self._leased - self._tokens)
            try:
                lease = await self._registry.lease_tokens(
                    self.capability, self.rate, max(1, self._wanting, self._batch)
                )
            except RegistryUnavailable as error:
                if not self.trouble:
                    log.warning("A capability waits for the tokens of its rate", extra=self._facts(error))
                self.trouble = "the registry does not answer"
                self.postpone()
                return
            self.trouble = ""
            left = self._held()
            self._until = min(self._until if left else inf, now + lease.hold_seconds)
            self._tokens, self._leased, self._hold_seconds = left + lease.tokens, lease.tokens, lease.hold_seconds
            self._none_before = self._now() + lease.wait_seconds

    def _facts(self, error: RegistryUnavailable) -> dict[str, str]:
        return {"capability": self.capability, "rate": str(self.rate), "reason": str(error)}

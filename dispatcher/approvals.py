"""The approval policy of a dispatcher, read at its start, and the tags and costs that agents register meanwhile."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

from coditect.aio.supervisor import Supervisor
from coditect.errors import RegistryUnavailable, SetupError
from coditect.registry.port import Registry, Search
from coditect.workflow.approvals.policy import ApprovalPolicy, CapabilityFacts
from coditect.workflow.approvals.signing import SHORTEST_KEY

log = logging.getLogger(__name__)

LOOK_SECONDS = 5.0
"""The pause between two looks at what agents have registered."""
MOST_CAPABILITIES = 10_000


def read_approvals(path: str | None, key: str | None) -> ApprovalPolicy | None:
    """Read the approval policy that the settings name, with the key that signs answers; None when they name neither.

    Raises:
        SetupError: when the key is too short.
        NotFound: when there is no such file.
        InputError: when the file is no approval policy.
    """
    if key is not None and len(key) < SHORTEST_KEY:
        fix = "set CODITECT_APPROVAL_KEY, such as: openssl rand -hex 32"
        raise SetupError("Answers to approvals are signed by a key of 32 characters or more", has=len(key), fix=fix)
    if path is None:
        return None if key is None else ApprovalPolicy((), answer_key=key)
    from coditect.workflow.approvals.file import load_policy  # noqa: PLC0415 - only a dispatcher with a policy pays

    policy = load_policy(path)
    log.info("Approvals follow a policy", extra={"path": path, "rules": len(policy.rules), "policy": policy.digest})
    return replace(policy, answer_key=key)


async def informed(policy: ApprovalPolicy | None, registry: Registry, background: Supervisor) -> ApprovalPolicy | None:
    """Return the policy; if a rule looks at tags or costs, add a lookup of those that agents register.

    The lookup's data is refreshed in the background.
    """
    if policy is None or not any(rule.tags or rule.cost_above is not None for rule in policy.rules):
        return policy
    registered = RegisteredFacts(registry)
    await registered.look()
    background.keep(registered.run, name="registered capabilities", critical=False, idle=True)
    return replace(policy, facts=registered.of)


class RegisteredFacts:
    """The tags and costs that agents register for capabilities, kept also while no agent offers a capability."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self.facts: Mapping[str, CapabilityFacts] = MappingProxyType({})

    def of(self, capability: str) -> CapabilityFacts | None:
        """Return a capability's known tags and cost; None when no agent is known to have offered the capability."""
        return self.facts.get(capability)

    async def run(self) -> None:
        """Read the tags and costs from the registry every 5 seconds, until canceled."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            await self.look()

    async def look(self) -> None:
        """Read the registry once; keep the known tags and costs when the registry does not answer."""
        try:
            records = await self._registry.find(Search())
        except RegistryUnavailable as error:
            log.info("What capabilities cost is not seen; what was known counts", extra={"reason": str(error)})
            return
        found: dict[str, CapabilityFacts] = {}
        for record in records:
            for offer in record.registration.capabilities:
                tags, before = record.registration.tags | offer.tags, found.get(offer.name)
                cost = offer.cost if before is None else max(before.cost, offer.cost)
                found[offer.name] = CapabilityFacts(tags if before is None else before.tags | tags, cost)
        for name, facts in self.facts.items():
            if len(found) < MOST_CAPABILITIES:
                found.setdefault(name, facts)
        self.facts = MappingProxyType(found)

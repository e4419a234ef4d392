"""The hosts to which requests may be sent: those that the settings name, and private addresses only if allowed.

The name is resolved here and the request sent to a checked address, so that a name cannot mean one host when it is
checked and another when it is used.

The errors of calls are here, too: how an attempt fails; a refused connection is no attempt.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address, ip_network
from typing import TypeVar
from urllib.parse import urlsplit

from coditect.errors import InputError, Retryable
from coditect.settings.addresses import is_host
from coditect.settings.settings import PRIVATE_ADDRESSES

T = TypeVar("T")


class AgentRefused(Retryable):
    """The error of a URL to which no connection could be made, so that the request was not sent."""


class AgentLost(Retryable):
    """The error of an agent that may have the request and went away, such as by a broken connection or an ended lease.

    The attempt counts, since the agent may have done the work, or the work may have ended the agent.
    """


class AnswerBroken(Retryable):
    """The error of an invalid answer, such as one with a wrong status or id, a redirect, too much data, or no JSON."""


class ActionFailed(Retryable):
    """The error of an action that the HTTP agent answered with the status `error`."""


class InputRefused(InputError):
    """The error of an input that an HTTP agent refused by 400 or 422, or of an action that it does not know.

    The attempt is the last.
    """


LONGEST_URL = 2_000
CARRIERS = (IPv6Network("64:ff9b::/96"), IPv6Network("::/96"), IPv6Network("::ffff:0:0:0/96"))
"""IPv6 networks whose addresses end in an IPv4 address, to which a gateway, or the machine itself, may connect."""
LOCAL_CARRIER = IPv6Network("64:ff9b:1::/48")
"""The IPv6 network of a site's own gateways, whose addresses embed an IPv4 address in one of four places."""
CLOUD_SERVICES = tuple(
    map(ip_network, ("192.0.0.0/24", "168.63.129.16", "100.100.100.200", "fd00:ec2::/32", "fd20:ce::/32"))
)
"""Where clouds serve a machine's credentials and settings beside link-local addresses: never a receiver of requests.

Oracle (within IETF's own block), Azure, Alibaba, AWS, Google.
"""
NOT_PUBLIC = tuple(map(ip_network, ("192.88.99.0/24", "3fff::/20", "5f00::/16")))
"""Networks for special purposes that the `ipaddress` of an older Python calls global."""


@dataclass(frozen=True, slots=True)
class AllowedHosts:
    """The hosts to which a program may connect, by patterns of their names, with or without private addresses."""

    patterns: tuple[str, ...] = ()
    """Names, or patterns such as `*.agents.example.com`; an address in a URL must be named, too."""
    private: bool = False
    """Whether loopback and private addresses are allowed; all others that are not public are always refused."""
    use: str = "http"
    """The word of `CODITECT_PRIVATE_ADDRESSES` that allows private addresses."""

    @classmethod
    def read(cls, patterns: str, *, private: bool, use: str = "http") -> AllowedHosts:
        """Return the allowed hosts of a setting's text: host names or patterns of them, separated by commas."""
        return cls(tuple(host.strip().lower() for host in patterns.split(",") if host.strip()), private, use)

    def check(self, url: str) -> str:
        """Return a URL without its trailing slashes, after a check of its form and its host's name.

        Raises:
            InputError: when the URL's host is not allowed; the error says what to write, or which setting to set.
        """
        try:
            parts = urlsplit(url)
            host, _ = parts.hostname, parts.port
        except ValueError as error:
            raise InputError("This is no URL", given=url[:200], fix=_SHAPE) from error
        extra = parts.username or parts.password or parts.query or parts.fragment
        written = len(url) <= LONGEST_URL and url.isprintable() and " " not in url
        named = host is not None and is_host(host, parts.netloc)
        if parts.scheme not in ("http", "https") or host is None or extra or not (written and named):
            raise InputError("This is no URL of an HTTP agent", given=url[:200], fix=_SHAPE)
        if not any(fnmatchcase(host.lower(), pattern) for pattern in self.patterns):
            variable = f"CODITECT_{self.use.upper()}_HOSTS"
            fix = f"add the host to {variable}, such as {variable}={host}"
            raise InputError("The settings do not allow this host", host=host, fix=fix)
        return url.rstrip("/")

    async def addresses(self, host: str, port: int) -> Sequence[str]:
        """Resolve a host name and return its IP addresses in the resolver's order; refuse it if one is not allowed.

        Raises:
            InputError: when one of them is not allowed.
            OSError: when the name cannot be resolved.
            ValueError: when it is no name, such as a text with an empty part.
        """
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        return self.checked(host, [str(entry[4][0]) for entry in found])

    def checked(self, host: str, addresses: Sequence[str]) -> Sequence[str]:
        """Return the addresses of a host as they are; refuse them if one is not allowed.

        Raises:
            InputError: when one of them is not allowed.
        """
        fix = f"{PRIVATE_ADDRESSES}={self.use} allows loopback and private addresses"
        if self.private:
            fix = "name another host: link-local addresses, and others where clouds serve credentials, get no requests"
        for address in addresses:
            if not self._allows(ip_address(address.partition("%")[0])):
                raise InputError("The settings do not allow this address", host=host, address=address, fix=fix)
        return addresses

    async def first_that_connects(
        self, host: str, port: int, send: Callable[[str], Awaitable[T]], *refusals: type[Exception]
    ) -> T:
        """Return what `send` returns for the first IP address of a host to which it can connect.

        Raises:
            InputError: when an address of the host is not allowed; nothing was sent.
            AgentRefused: when the host has no address, or `send` raised one of `refusals` for each; nothing was sent.
        """
        try:
            addresses = await self.addresses(host, port)
        except (OSError, ValueError) as error:  # a ValueError: no name, or none that DNS knows
            raise AgentRefused("The agent's host cannot be reached", host=host, reason=said(error)) from error
        last: Exception | None = None
        for address in dict.fromkeys(addresses):
            try:
                return await send(address)
            except refusals as error:
                last = error
        raise AgentRefused("The agent's URL takes no connection", host=host, port=port, reason=said(last)) from last

    async def check_receiver(self, url: str) -> None:
        """Check that the host of a well-formed URL has allowed addresses only; an unknown host is not refused.

        Raises:
            InputError: when it has an address to which nothing is sent, or its host is no name.
        """
        parts = urlsplit(url)
        try:
            with suppress(OSError):
                await self.addresses(parts.hostname or "", parts.port or 443)
        except ValueError as error:
            fix = "such as https://example.com"
            raise InputError("The host of this URL is no name", given=url[:200], fix=fix) from error

    def _allows(self, address: IPv4Address | IPv6Address) -> bool:
        if isinstance(address, IPv6Address) and address in LOCAL_CARRIER:
            return self.private and not any(map(_serves_machines, _embedded(address)))
        return all(self._allows_one(meant) for meant in _meant(address))

    def _allows_one(self, address: IPv4Address | IPv6Address) -> bool:
        if address.is_multicast or address.is_unspecified or _serves_machines(address):
            return False
        if isinstance(address, IPv6Address) and address.is_site_local:
            return self.private
        public = address.is_global and not any(address in network for network in NOT_PUBLIC)
        return public or (self.private and (address.is_private or address.is_loopback))


def said(error: BaseException | None) -> str:
    """Return an error's type and text as a reason, cut to 300 characters."""
    return f"{type(error).__name__}: {error}"[:300]


def webhook_hosts(*, private: bool) -> AllowedHosts:
    """Return the hosts to which events are posted: all, with or without loopback and private addresses."""
    return AllowedHosts(("*",), private, "webhooks")


def _serves_machines(address: IPv4Address | IPv6Address) -> bool:
    """Tell whether an address is link-local, or one at which a cloud serves its machines."""
    return address.is_link_local or any(address in network for network in CLOUD_SERVICES)


def _embedded(address: IPv6Address) -> tuple[IPv4Address, ...]:
    """Return the IPv4 addresses that a site's own gateway may read in an address, by prefix length (RFC 6052)."""
    packed = address.packed
    places = (packed[6:8] + packed[9:11], packed[7:8] + packed[9:12], packed[9:13], packed[12:])
    return tuple(map(IPv4Address, places))


def _meant(address: IPv4Address | IPv6Address) -> tuple[IPv4Address | IPv6Address, ...]:
    """Return the addresses to which an address may lead, among them IPv4 addresses that are embedded in an IPv6 one."""
    if isinstance(address, IPv4Address):
        return (address,)
    if address.ipv4_mapped is not None:
        return (address.ipv4_mapped,)
    inside = [address.sixtofour, *(address.teredo or ())]
    if any(address in network for network in CARRIERS) and not address.is_loopback:
        inside.append(IPv4Address(int(address) & 0xFFFF_FFFF))
    return (address, *(candidate for candidate in inside if candidate is not None))


_SHAPE = "such as http://agent.example.com:8080, without user, query and fragment"

"""Use cases for webhooks: add, list, enable, disable and remove them; `coditect api` sends the events.

The webhooks are one value in shared state, so the control plane keeps them, and every API process reads them with one
request. The value has no secrets: a webhook's secret is made of the API's key and the webhook's salt.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import re
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from secrets import token_hex
from typing import Any, Self
from urllib.parse import urlsplit

from coditect.broker.port import Broker
from coditect.broker.topology import webhook_queue
from coditect.client.client import Client
from coditect.collaboration.state import SharedState, reserved
from coditect.errors import InputError, InvalidTask, NotFound, SetupError
from coditect.messaging.event_filter import EventFilter
from coditect.operations.connections import Connections
from coditect.wire import routing
from coditect.wire.state import COORDINATION

SPACE = "coditect.webhooks"
"""The space of shared state that has the webhooks."""
KEY = "all"
MOST_WEBHOOKS = 100
LONGEST_URL = 2_000
SHORTEST_KEY = 32
SHORTEST_SALT = 16
MOST_VALUES = 100
"""The most values of one field of a filter."""
NO_API = (
    "no running API posts its events: set CODITECT_API_WEBHOOK_KEY, and start `coditect up` or `coditect api` again"
)
NOTICED_WITHIN_SECONDS = 8.0
"""The time in which a running API has noticed a new webhook: it reads the list every five seconds."""
FIELDS = ("kind", "task", "workflow", "capability", "agent")
"""The names of a filter's fields."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_KIND = re.compile(r"(?=.{1,200}\Z)[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*(?:\.\*)?")
_SHAPE = "such as https://example.com/hooks/coditect"


@dataclass(frozen=True, slots=True)
class Webhook:
    """A URL to which the events that pass a filter are posted."""

    name: str
    url: str
    filter: Mapping[str, Collection[str]]
    """The values of each field of the filter that has any: `{"kind": ["task.dead"]}`."""
    salt: str = field(repr=False)
    created_ms: int
    """The instant at which the webhook was added, in milliseconds since the epoch."""
    state: str = "active"
    """`active`, or `disabled` after repeated failures, or by a person; `broken` if the kept row is no webhook."""
    reason: str = ""
    """Why the webhook is disabled or broken."""

    @classmethod
    def read(cls, name: str, row: object) -> Self:
        """Return the webhook that a row of the shared state describes; a `broken` one if the row has another form."""
        try:
            given = dict(row)  # type: ignore[call-overload]
            webhook = cls(**{one.name: given[one.name] for one in fields(cls)})
            webhook._check(name)
        except (AttributeError, InputError, KeyError, TypeError, ValueError) as error:
            reason = f"its row in shared state is no webhook ({type(error).__name__}: {error})"
            return cls(name, "", {}, "", 0, "broken", f"{reason[:400]}; fix: coditect webhook remove {name}")
        return webhook

    def _check(self, name: str) -> None:
        """Raise InputError, or an error of Python's, if a field has a wrong type or value."""
        check_url(self.url)
        check_filter(self.filter)
        bytes.fromhex(self.salt)
        texts = (self.name, self.salt, self.state, self.reason)
        if self.name != name or _NAME.fullmatch(name) is None or not all(isinstance(text, str) for text in texts):
            raise ValueError("a name or another text is wrong")
        if len(self.salt) < SHORTEST_SALT or self.state not in ("active", "disabled") or self.created_ms < 0:
            raise ValueError("the salt, the state or the time is wrong")

    @property
    def active(self) -> bool:
        """Tell whether the webhook is enabled, so that its events are sent."""
        return self.state == "active"

    @property
    def queue(self) -> str:
        """The name of the webhook's event queue; a later webhook of the same name has another queue."""
        return routing.webhook_queue(f"{self.name}.{self.salt[:8]}")

    def selection(self) -> EventFilter:
        """Return the filter of the webhook's events."""
        return EventFilter.of(**{name: tuple(values) for name, values in self.filter.items()})

    def patterns(self) -> tuple[str, ...]:
        """Return the binding keys of the webhook's queue: `KIND.#` for each event kind in its filter, else `#`."""
        kinds = self.selection().kinds
        return tuple(f"{kind}.#" for kind in sorted(kinds)) or ("#",)

    def secret(self, key: str) -> str:
        """Return the secret by which the receiver verifies events, in the form of Standard Webhooks: `whsec_...`."""
        drawn = hmac.digest(key.encode(), f"{self.name}\0{self.salt}".encode(), hashlib.sha256)
        return f"whsec_{base64.b64encode(drawn).decode()}"


def check_key(key: str) -> str:
    """Check that the key from which webhooks' secrets are derived is long enough, and return the key.

    Raises:
        SetupError: when there is none, or it is too short.
    """
    if len(key) < SHORTEST_KEY:
        fix = "set CODITECT_API_WEBHOOK_KEY, the same for all API processes, such as: openssl rand -hex 32"
        raise SetupError("Webhooks are signed by a key of the API of 32 characters or more", has=len(key), fix=fix)
    return key


async def add_webhook(
    opened: Connections, name: str, url: str, chosen: Mapping[str, Collection[str]], *, now_ms: int
) -> Webhook:
    """Add a webhook and its queue of events, and return the webhook; earlier events are not sent to it.

    Raises:
        InputError: when there is a webhook of the name, or a value is wrong.
        ControlPlaneRequired: when no dispatcher answers.
    """
    if _NAME.fullmatch(name) is None:
        raise InputError("A webhook's name is letters, digits, dots, hyphens and _", given=name[:120])
    webhook = Webhook(name, check_url(url), check_filter(chosen), token_hex(16), now_ms)

    def add(webhooks: dict[str, Any]) -> None:
        if name in webhooks:
            fix = f"choose another name, or remove it: coditect webhook remove {name}"
            raise InputError("There is a webhook of this name", webhook=name, fix=fix)
        if len(webhooks) >= MOST_WEBHOOKS:
            raise InputError(
                "There are too many webhooks", most=MOST_WEBHOOKS, fix="coditect webhook list, then remove"
            )
        webhooks[name] = asdict(webhook)

    await _change(opened, add)
    async with opened.broker() as broker:
        await broker.declare(webhook_queue(webhook.queue, webhook.patterns()))
    return webhook


async def stored_webhooks(opened: Connections) -> list[Webhook]:
    """Return all webhooks as they are stored, active, disabled or broken, sorted by name."""
    async with opened.fleet() as client:
        kept = await client.space(SPACE).get(KEY)
    return [Webhook.read(name, row) for name, row in sorted((kept or {}).items())]


async def list_webhooks(opened: Connections) -> list[Webhook]:
    """Return all webhooks, sorted by name; an active one to which no running API posts is `undelivered`."""
    found = await stored_webhooks(opened)
    async with opened.broker() as broker:
        return [await _delivered(broker, webhook) for webhook in found]


async def await_delivery(
    opened: Connections, webhook: Webhook, *, within_seconds: float = NOTICED_WITHIN_SECONDS
) -> Webhook:
    """Return an active webhook once a running API posts to it; as `undelivered` when none does within the time."""
    deadline = time.monotonic() + within_seconds
    async with opened.broker() as broker:
        while True:
            found = await _delivered(broker, webhook)
            if found.state != "undelivered" or time.monotonic() >= deadline:
                return found
            await asyncio.sleep(0.1)


async def _delivered(broker: Broker, webhook: Webhook) -> Webhook:
    stats = await broker.stats(webhook.queue) if webhook.active else None
    if not webhook.active or (stats is not None and stats.consumers):
        return webhook
    return replace(webhook, state="undelivered", reason=NO_API)


async def get_webhook(opened: Connections, name: str) -> Webhook:
    """Return the webhook of a name, without its secret.

    Raises:
        NotFound: when there is none of the name.
    """
    async with opened.fleet() as client:
        kept = _rows(await _space(client).get(KEY))
    return _usable(Webhook.read(name, _row(kept, name)))


async def steer_webhook(opened: Connections, name: str, *, active: bool, reason: str = "") -> Webhook:
    """Enable a webhook, or disable it with a reason; return it. While disabled, its latest 10,000 events wait.

    Raises:
        NotFound: when there is none of the name.
    """
    steered: list[Webhook] = []

    def steer(webhooks: dict[str, Any]) -> None:
        before = _usable(Webhook.read(name, _row(webhooks, name)))
        after = replace(before, state="active" if active else "disabled", reason="" if active else reason[:500])
        webhooks[name] = asdict(after)
        steered.append(after)

    await _change(opened, steer)
    return steered[-1]


async def remove_webhook(opened: Connections, name: str) -> None:
    """Remove a webhook with the events that wait for it.

    Raises:
        NotFound: when there is none of the name.
    """

    removed: list[Webhook] = []

    def remove(webhooks: dict[str, Any]) -> None:
        removed.append(Webhook.read(name, _row(webhooks, name)))
        del webhooks[name]

    await _change(opened, remove)
    if removed[-1].state == "broken":  # the name of its queue is unknown
        return
    async with opened.broker() as broker:
        await broker.delete_queue(removed[-1].queue)


def check_url(url: str) -> str:
    """Check the form of a webhook's URL, and return the URL; its IP addresses are checked at each send.

    Raises:
        InputError: when it is no URL of the scheme https (or http), or has a user or fragment.
    """
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise InputError("This is no URL", given=url[:200], fix=_SHAPE) from error
    wrong = parts.scheme not in ("http", "https") or not host or len(url) > LONGEST_URL or not url.isascii()
    if wrong or parts.username or parts.password or parts.fragment or not url.isprintable() or " " in url:
        raise InputError("This is no URL for a webhook", given=url[:200], fix=f"{_SHAPE}, without user and fragment")
    return url


def check_filter(chosen: Mapping[str, Collection[str]]) -> dict[str, list[str]]:
    """Check the event filter of a webhook, and return its fields that have values.

    Raises:
        InputError: when a field is unknown, or a kind of events is none.
    """
    if unknown := sorted(chosen.keys() - set(FIELDS)):
        raise InputError("A filter has no such field", given=unknown[:5], known=list(FIELDS))
    for name, values in chosen.items():
        if len(values) > MOST_VALUES or any(not 0 < len(value) <= 500 for value in values):
            raise InputError("A field of a filter has up to 100 values of 1 to 500 characters", field=name)
    for kind in chosen.get("kind", ()):
        if _KIND.fullmatch(kind) is None:
            raise InputError("This is no kind of events", given=kind[:80], fix="such as task, task.dead or workflow")
    return {name: sorted(set(values)) for name, values in chosen.items() if values}


async def _change(opened: Connections, change: Callable[[dict[str, Any]], None]) -> None:
    def changed(value: Any) -> Any:
        webhooks = dict(value) if isinstance(value, dict) else {}
        change(webhooks)
        return webhooks

    async with opened.fleet() as client:
        await _space(client).update(KEY, changed)


def _space(client: Client) -> SharedState:
    return reserved(client.space(SPACE), COORDINATION)


def _rows(kept: Any) -> dict[str, Any]:
    if kept is None or isinstance(kept, dict):
        return dict(kept or {})
    fix = "coditect webhook add begins a new list"
    raise InvalidTask("The list of webhooks in shared state is no object", space=SPACE, fix=fix)


def _usable(webhook: Webhook) -> Webhook:
    if webhook.state == "broken":
        raise InvalidTask("The webhook is broken", webhook=webhook.name, reason=webhook.reason)
    return webhook


def _row(webhooks: Mapping[str, Any], name: str) -> object:
    if name not in webhooks:
        raise NotFound("There is no such webhook", webhook=name, fix="coditect webhook list")
    return webhooks[name]

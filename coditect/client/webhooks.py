"""Webhooks: URLs to which `coditect api` posts the events that pass a filter.

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
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from secrets import token_hex
from typing import Annotated, Any, Self, Unpack
from urllib.parse import urlsplit

from typing_extensions import TypedDict  # pydantic reads no other before Python 3.12

from coditect.aio.clock import Clock
from coditect.broker.port import Broker
from coditect.broker.topology import webhook_queue
from coditect.collaboration.state import SharedState, reserved
from coditect.errors import InputError, InvalidTask, NotFound, SetupError
from coditect.messaging.event_stream import EventFilter
from coditect.model.option import Option, read_options
from coditect.settings.addresses import is_host
from coditect.wire import routing
from coditect.wire.control import COORDINATION

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
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_KIND = re.compile(r"(?=.{1,200}\Z)[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*(?:\.\*)?")
_SHAPE = "such as https://example.com/hooks/coditect"


class WebhookOptions(TypedDict, total=False):
    """The filter of a webhook's events: an event must have one of the values of each option that has any."""

    kind: Annotated[
        Collection[str],
        Option("An event's type or its first words.", high=MOST_VALUES, example=["task.dead", "workflow"], short="-k"),
    ]
    task: Annotated[Collection[str], Option("A task that events are about.", high=MOST_VALUES)]
    workflow: Annotated[Collection[str], Option("A workflow that events are of.", high=MOST_VALUES)]
    capability: Annotated[Collection[str], Option("A capability of events' tasks.", high=MOST_VALUES, short="-c")]
    agent: Annotated[Collection[str], Option("An agent that events are of.", high=MOST_VALUES)]


@dataclass(frozen=True, slots=True)
class Webhook:
    """A URL to which the events that pass a filter are posted."""

    name: str
    url: str
    filter: Mapping[str, Collection[str]]
    """The values of each field of the filter that has any: `{"kind": ["task.dead"]}`."""
    salt: str = field(repr=False)
    created_ms: int
    """The instant at which the webhook was made, in milliseconds since the epoch."""
    state: str = "active"
    """`active`, or `disabled` after repeated failures, or by a person; `broken` if the kept row is no webhook."""
    reason: str = ""
    """Why the webhook is disabled or broken."""

    @classmethod
    def read(cls, name: str, row: object) -> Self:
        """Return the webhook that a row of the shared state describes; a `broken` one if the row has another form."""
        try:
            given = dict(row)  # type: ignore[call-overload]
            webhook = cls(**{column.name: given[column.name] for column in fields(cls)})
            webhook._check(name)
        except (AttributeError, InputError, KeyError, TypeError, ValueError) as error:
            reason = f"its row in shared state is no webhook ({type(error).__name__}: {error})"
            return cls(name, "", {}, "", 0, "broken", f"{reason[:400]}; fix: coditect webhook delete {name}")
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


class Webhooks:
    """The webhooks that the control plane keeps."""

    def __init__(self, space: SharedState, broker: Broker, clock: Clock) -> None:
        self._space = reserved(space, COORDINATION)
        self._broker = broker
        self._clock = clock

    async def create(self, name: str, url: str, **conditions: Unpack[WebhookOptions]) -> Webhook:
        """Make a webhook and its queue of events, and return the webhook; earlier events are not posted to it.

        It gets the events that have one of the values of each option that has any, such as `kind=["task.dead"]`.

        Raises:
            InputError: when there is a webhook of the name, or a value is wrong.
            ControlPlaneRequired: when no dispatcher answers.
        """
        if _NAME.fullmatch(name) is None:
            raise InputError("A webhook's name is letters, digits, dots, hyphens and _", given=name[:120])
        webhook = Webhook(name, check_url(url), check_filter(conditions), token_hex(16), self._clock.now_ms())

        def create(webhooks: dict[str, Any]) -> None:
            if name in webhooks:
                fix = f"choose another name, or delete it: coditect webhook delete {name}"
                raise InputError("There is a webhook of this name", webhook=name, fix=fix)
            if len(webhooks) >= MOST_WEBHOOKS:
                raise InputError(
                    "There are too many webhooks", most=MOST_WEBHOOKS, fix="coditect webhook list, then delete"
                )
            webhooks[name] = asdict(webhook)

        await self._change(create)
        await self._broker.declare(webhook_queue(webhook.queue, webhook.patterns()))
        return webhook

    async def stored(self) -> tuple[Webhook, ...]:
        """Return all webhooks as they are stored, active, disabled or broken, sorted by name."""
        rows = await self._space.get(KEY)
        return tuple(Webhook.read(name, row) for name, row in sorted((rows or {}).items()))

    async def list(self) -> AsyncIterator[Webhook]:
        """Yield the webhooks, sorted by name; an active one to which no running API posts is `undelivered`."""
        for webhook in await self.stored():
            yield await self._delivered(webhook)

    async def get(self, name: str) -> Webhook:
        """Return the webhook of a name, without its secret.

        Raises:
            NotFound: when there is none of the name.
        """
        return _usable(Webhook.read(name, _row(_rows(await self._space.get(KEY)), name)))

    async def enable(self, name: str) -> Webhook:
        """Make a disabled webhook active again, and return it: events are posted to it, those first that waited.

        Raises:
            NotFound: when there is none of the name.
        """
        return await self._steer(name, "active", "")

    async def disable(self, name: str, *, reason: str = "disabled by a person") -> Webhook:
        """Disable a webhook, and return it: nothing is posted until it is enabled; its latest 10,000 events wait.

        Raises:
            NotFound: when there is none of the name.
        """
        return await self._steer(name, "disabled", reason[:500])

    async def _steer(self, name: str, state: str, reason: str) -> Webhook:
        steered: list[Webhook] = []

        def steer(webhooks: dict[str, Any]) -> None:
            webhook = replace(_usable(Webhook.read(name, _row(webhooks, name))), state=state, reason=reason)
            webhooks[name] = asdict(webhook)
            steered.append(webhook)

        await self._change(steer)
        return steered[-1]

    async def delete(self, name: str) -> None:
        """Delete a webhook with the events that wait for it.

        Raises:
            NotFound: when there is none of the name.
        """
        deleted: list[Webhook] = []

        def delete(webhooks: dict[str, Any]) -> None:
            deleted.append(Webhook.read(name, _row(webhooks, name)))
            del webhooks[name]

        await self._change(delete)
        if deleted[-1].state != "broken":  # else the name of its queue is unknown
            await self._broker.delete_queue(deleted[-1].queue)

    async def delivered(self, webhook: Webhook, *, within_seconds: float = NOTICED_WITHIN_SECONDS) -> Webhook:
        """Return an active webhook once a running API posts to it; as `undelivered` when none does within the time."""
        deadline = time.monotonic() + within_seconds
        while True:
            found = await self._delivered(webhook)
            if found.state != "undelivered" or time.monotonic() >= deadline:
                return found
            await asyncio.sleep(0.1)

    async def _delivered(self, webhook: Webhook) -> Webhook:
        stats = await self._broker.stats(webhook.queue) if webhook.active else None
        if not webhook.active or (stats is not None and stats.consumers):
            return webhook
        return replace(webhook, state="undelivered", reason=NO_API)

    async def _change(self, change: Callable[[dict[str, Any]], None]) -> None:
        def changed(value: Any) -> Any:
            webhooks = dict(value) if isinstance(value, dict) else {}
            change(webhooks)
            return webhooks

        await self._space.update(KEY, changed)


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
    named = host is not None and is_host(host, parts.netloc)
    wrong = parts.scheme not in ("http", "https") or not named or len(url) > LONGEST_URL or not url.isascii()
    if wrong or parts.username or parts.password or parts.fragment or not url.isprintable() or " " in url:
        raise InputError("This is no URL for a webhook", given=url[:200], fix=f"{_SHAPE}, without user and fragment")
    return url


def check_filter(conditions: Mapping[str, Any]) -> dict[str, list[str]]:
    """Check the event filter of a webhook, and return its fields that have values.

    Raises:
        InputError: when a field is unknown, or a kind of events is none.
    """
    chosen = {name: values for name, values in read_options("A webhook", WebhookOptions, conditions).items() if values}
    for name, values in chosen.items():
        if any(not 0 < len(value) <= 500 for value in values):
            raise InputError("A field of a filter has values of 1 to 500 characters", field=name)
    for kind in chosen.get("kind", ()):
        if _KIND.fullmatch(kind) is None:
            raise InputError("This is no kind of events", given=kind[:80], fix="such as task, task.dead or workflow")
    return chosen


def _rows(kept: Any) -> dict[str, Any]:
    if kept is None or isinstance(kept, dict):
        return dict(kept or {})
    fix = "coditect webhook create begins a new list"
    raise InvalidTask("The list of webhooks in shared state is no object", space=SPACE, fix=fix)


def _usable(webhook: Webhook) -> Webhook:
    if webhook.state == "broken":
        raise InvalidTask("The webhook is broken", webhook=webhook.name, reason=webhook.reason)
    return webhook


def _row(webhooks: Mapping[str, Any], name: str) -> object:
    if name not in webhooks:
        raise NotFound("There is no such webhook", webhook=name, fix="coditect webhook list")
    return webhooks[name]

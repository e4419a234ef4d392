"""The routes of webhooks: add, list, test, enable, disable and remove the URLs to which events are posted."""

from __future__ import annotations

from dataclasses import asdict
from http import HTTPStatus
from typing import Annotated, Any, Self

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field

from coditect.aio.clock import SystemClock
from coditect.api.access.roles import Role
from coditect.api.routes.parameters import ApiRequest
from coditect.api.services import Services, needs
from coditect.api.webhooks.sending import WebhookAttempt
from coditect.operations.coordination import webhooks
from coditect.operations.coordination.webhooks import MOST_VALUES, Webhook

router = APIRouter(tags=["webhooks"])
steered = APIRouter(tags=["webhooks"], dependencies=[needs(Role.ADMIN)])

Value = Annotated[str, Field(min_length=1, max_length=500)]
Values = Annotated[list[Value], Field(default_factory=list, max_length=MOST_VALUES)]


class WebhookRequest(ApiRequest):
    """A webhook: the URL, and the filter of its events; a field of the filter without values takes every event."""

    url: str = Field(examples=["https://example.com/hooks/coditect"], max_length=webhooks.LONGEST_URL)
    kind: Values = Field(default_factory=list, examples=[["task.dead", "workflow"]], max_length=MOST_VALUES)
    task: Values
    workflow: Values
    capability: Values
    agent: Values


class WebhookDocument(BaseModel):
    """A webhook as answers show it, without its secret: URL, event filter, and whether it is active or why disabled."""

    model_config = ConfigDict(frozen=True)

    name: str
    url: str
    filter: dict[str, list[str]]
    created_ms: int
    state: str = Field(description="`active`, `disabled`, `undelivered` without an API that posts, or `broken`.")
    reason: str = Field(description="Why it is disabled or broken.")

    @classmethod
    def of(cls, webhook: Webhook, **more: Any) -> Self:
        """Return the API's answer for a webhook: its own fields, which have no secret, and those in `more`."""
        return cls.model_validate(asdict(webhook) | more)


class NewWebhook(WebhookDocument):
    """A webhook that was just added, with its secret, which is shown once."""

    secret: str = Field(
        repr=False, description="The secret by which the receiver checks signatures, as Standard Webhooks has it."
    )


@router.get("/webhooks")
async def list_webhooks(services: Services) -> list[WebhookDocument]:
    """List the webhooks with their event filters, and whether each is active, or why it is disabled."""
    return [WebhookDocument.of(one) for one in await webhooks.list_webhooks(services.opened)]


@steered.put("/webhooks/{name}", status_code=HTTPStatus.CREATED)
async def add_webhook(name: str, order: WebhookRequest, services: Services) -> NewWebhook:
    """Add a webhook, and show its secret this once; later events that fit its filter are posted, signed, to its URL."""
    services.webhooks.check_key()
    await services.webhooks.hosts.check_receiver(webhooks.check_url(order.url))
    chosen = {field: getattr(order, field) for field in webhooks.FIELDS}
    now_ms = SystemClock().now_ms()
    added = await webhooks.add_webhook(services.opened, name, order.url, chosen, now_ms=now_ms)
    return NewWebhook.of(added, secret=services.webhooks.secret(added))


@steered.post("/webhooks/{name}/test")
async def test_webhook(name: str, services: Services) -> WebhookAttempt:
    """Post an event `webhook.test` to a webhook's URL once, and return how its receiver answered."""
    webhook = await webhooks.get_webhook(services.opened, name)
    return await services.webhooks.send_test(webhook, SystemClock())


@steered.post("/webhooks/{name}/enable")
async def enable_webhook(name: str, services: Services) -> WebhookDocument:
    """Make a disabled webhook active again: events are posted to it, those first that waited."""
    return WebhookDocument.of(await webhooks.steer_webhook(services.opened, name, active=True))


@steered.post("/webhooks/{name}/disable")
async def disable_webhook(name: str, services: Services) -> WebhookDocument:
    """Disable a webhook: nothing is posted to it until it is enabled; of later events the latest 10,000 wait."""
    disabled = await webhooks.steer_webhook(services.opened, name, active=False, reason="disabled by a person")
    return WebhookDocument.of(disabled)


@steered.delete("/webhooks/{name}", status_code=HTTPStatus.NO_CONTENT)
async def remove_webhook(name: str, services: Services) -> None:
    """Remove a webhook with the events that wait for it."""
    await webhooks.remove_webhook(services.opened, name)

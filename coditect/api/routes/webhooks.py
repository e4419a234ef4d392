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
    """A webhook without its secret."""

    model_config = ConfigDict(frozen=True)

    name: str
    url: str
    filter: dict[str, list[str]]
    created_ms: int
    state: str = Field(description="`active` or `disabled`.")
    reason: str = Field(description="Why it is disabled.")

    @classmethod
    def of(cls, webhook: Webhook, **more: Any) -> Self:
        """Convert a webhook to the API's answer, without the secret unless it is in the added fields `more`."""
        return cls.model_validate(asdict(webhook) | more)


class NewWebhook(WebhookDocument):
    """A webhook that was just added, with its secret, which is shown once."""

    secret: str = Field(description="The secret by which the receiver checks signatures, as Standard Webhooks has it.")


@router.get("/webhooks")
async def list_webhooks(services: Services) -> list[WebhookDocument]:
    """List the webhooks with their state."""
    return [WebhookDocument.of(one) for one in await webhooks.list_webhooks(services.opened)]


@steered.put("/webhooks/{name}", status_code=HTTPStatus.CREATED)
async def add_webhook(name: str, order: WebhookRequest, services: Services) -> NewWebhook:
    """Add a webhook; the events from now on are posted to its URL, signed, until they are taken."""
    services.webhooks.check_key()
    chosen = {field: getattr(order, field) for field in webhooks.FIELDS}
    now_ms = SystemClock().now_ms()
    added = await webhooks.add_webhook(services.opened, name, order.url, chosen, now_ms=now_ms)
    return NewWebhook.of(added, secret=services.webhooks.secret(added))


@steered.post("/webhooks/{name}/test")
async def test_webhook(name: str, services: Services) -> WebhookAttempt:
    """Post an event `webhook.test` once, and show what came of it."""
    webhook = await webhooks.get_webhook(services.opened, name)
    return await services.webhooks.send_test(webhook, SystemClock())


@steered.post("/webhooks/{name}/enable")
async def enable_webhook(name: str, services: Services) -> WebhookDocument:
    """Send the events of a disabled webhook again, beginning with those that waited."""
    return WebhookDocument.of(await webhooks.steer_webhook(services.opened, name, active=True))


@steered.post("/webhooks/{name}/disable")
async def disable_webhook(name: str, services: Services) -> WebhookDocument:
    """Send no more events to a webhook; those that happen wait, the latest 10,000."""
    disabled = await webhooks.steer_webhook(services.opened, name, active=False, reason="disabled by a person")
    return WebhookDocument.of(disabled)


@steered.delete("/webhooks/{name}", status_code=HTTPStatus.NO_CONTENT)
async def remove_webhook(name: str, services: Services) -> None:
    """Remove a webhook with the events that wait for it."""
    await webhooks.remove_webhook(services.opened, name)

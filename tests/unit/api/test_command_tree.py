"""What the command line can do the API can do, but for a few commands that stand here with their reasons."""

from __future__ import annotations

from collections.abc import Iterator

import typer
from fastapi.routing import APIRoute
from typer.core import TyperGroup

from coditect.api.application import ROUTERS
from coditect.cli.main import app

OWN_MACHINE = "it starts, stops or looks at what runs on the machine where it is typed"
OWN_FILES = "it reads or writes files of the machine where it is typed"
EXCEPTIONS = {
    **dict.fromkeys(("init", "up", "dev", "down", "health", "doctor", "chaos", "load"), OWN_MACHINE),
    **dict.fromkeys(("agent run", "dispatcher run", "mcp serve"), OWN_MACHINE),
    **dict.fromkeys(("store backup", "store restore", "policy check"), OWN_FILES),
    **dict.fromkeys(("api key create", "api key list", "api key revoke"), OWN_FILES),
    "goal": "its plans come from a file or a model beside it; an agent that offers goal.pursue takes goals as tasks",
}
ROUTES = {
    "dispatcher status": "GET /status",
    "agent list": "GET /agents",
    "agent show": "GET /agents/{agent_id}",
    "agent drain": "POST /agents/{agent_id}/drain",
    "capability list": "GET /capabilities",
    "capability show": "GET /capabilities/{name}",
    "task why-not": "GET /tasks/{task_id}/why-not",
    "task submit": "POST /tasks",
    "task get": "GET /tasks/{task_id}",
    "task wait": "GET /tasks/{task_id}",
    "task cancel": "POST /tasks/{task_id}/cancel",
    "workflow run": "POST /workflows",
    "workflow check": "POST /workflows/check",
    "workflow graph": "GET /workflows/{workflow}/graph",
    "workflow list": "GET /workflows",
    "workflow show": "GET /workflows/{workflow}",
    "workflow history": "GET /workflows/{workflow}/history",
    "workflow cancel": "POST /workflows/{workflow}/cancel",
    "workflow pause": "POST /workflows/{workflow}/pause",
    "workflow resume": "POST /workflows/{workflow}/resume",
    "workflow signal": "POST /workflows/{workflow}/signals/{name}",
    "workflow checkpoint": "PUT /workflows/{workflow}/checkpoints/{name}",
    "workflow checkpoints": "GET /workflows/{workflow}/checkpoints",
    "workflow restore": "POST /workflows/{workflow}/checkpoints/{name}/restore",
    "pattern list": "GET /patterns",
    "pattern show": "GET /patterns/{name}",
    "pattern render": "POST /patterns/{name}/render",
    "pattern run": "POST /patterns/{name}/run",
    "schedule create": "PUT /schedules/{name}",
    "schedule list": "GET /schedules",
    "schedule show": "GET /schedules/{name}",
    "schedule pause": "POST /schedules/{name}/pause",
    "schedule resume": "POST /schedules/{name}/resume",
    "schedule run": "POST /schedules/{name}/run",
    "schedule delete": "DELETE /schedules/{name}",
    "trigger create": "PUT /triggers/{name}",
    "trigger add": "PUT /triggers/{name}",
    "trigger list": "GET /triggers",
    "trigger pause": "POST /triggers/{name}/pause",
    "trigger resume": "POST /triggers/{name}/resume",
    "trigger delete": "DELETE /triggers/{name}",
    "trigger remove": "DELETE /triggers/{name}",
    "webhook add": "PUT /webhooks/{name}",
    "webhook list": "GET /webhooks",
    "webhook test": "POST /webhooks/{name}/test",
    "webhook enable": "POST /webhooks/{name}/enable",
    "webhook disable": "POST /webhooks/{name}/disable",
    "webhook remove": "DELETE /webhooks/{name}",
    "approval list": "GET /approvals",
    "approval show": "GET /approvals/{workflow}/{node}",
    "approval explain": "GET /approvals/{workflow}/{node}",
    "approval grant": "POST /approvals/{workflow}/{node}",
    "approval deny": "POST /approvals/{workflow}/{node}",
    "audit list": "GET /audit",
    "autonomy": "GET /autonomy",
    "lock list": "GET /locks",
    "lock show": "GET /locks",
    "lock release": "POST /locks/release",
    "thread list": "GET /threads",
    "thread show": "GET /threads/{thread}",
    "thread open": "POST /threads",
    "thread say": "POST /threads/{thread}/messages",
    "thread close": "POST /threads/{thread}/close",
    "handoff list": "GET /handoffs",
    "handoff show": "GET /handoffs/{handoff}",
    "handoff withdraw": "POST /handoffs/{handoff}/withdraw",
    "breaker list": "GET /breakers",
    "breaker show": "GET /breakers/{name}",
    "breaker open": "POST /breakers/{name}/open",
    "breaker reset": "POST /breakers/{name}/reset",
    "trace": "GET /tasks/{task_id}/trace",
    "dead list": "GET /dead",
    "dead show": "GET /dead/{letter_id}",
    "dead redrive": "POST /dead/redrive",
    "dead discard": "POST /dead/discard",
    "topology plan": "GET /topology",
    "topology apply": "POST /topology",
    "topology export": "GET /topology/export",
    "events tail": "GET /events",
    "log level": "POST /log-level",
    "top": "GET /overview",
}


def commands(group: TyperGroup, before: str = "") -> Iterator[str]:
    """The words of every command; groups are loaded when they are asked for."""
    context = typer.Context(group)
    for name in group.list_commands(context):
        one = group.get_command(context, name)
        if isinstance(one, TyperGroup) and one.list_commands(context):
            yield from commands(one, f"{before}{name} ")
        else:
            yield before + name


def routes() -> set[str]:
    found = (route for router in ROUTERS for route in router.routes if isinstance(route, APIRoute))
    return {f"{method} {route.path}" for route in found for method in route.methods or ()}


def test_every_command_has_its_route_or_stands_among_the_exceptions_with_a_reason() -> None:
    root = typer.main.get_command(app)
    assert isinstance(root, TyperGroup)

    assert set(commands(root)) == ROUTES.keys() | EXCEPTIONS.keys()
    assert not ROUTES.keys() & EXCEPTIONS.keys()


def test_every_route_of_a_command_is_one_of_the_api() -> None:
    assert set(ROUTES.values()) - routes() == set()

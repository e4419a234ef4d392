"""One vocabulary on three faces: command line, HTTP API and Python use the same nouns, verbs, parameters and defaults.

Where they differ, the difference stands here with its reason.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from fastapi.routing import APIRoute
from pydantic import BaseModel

import coditect
from coditect.agent.context import Context, PlainContext
from coditect.api.application import ROUTERS
from coditect.client.approvals import Approvals
from coditect.client.client import Agents, Client, Tasks
from coditect.client.coordination import FleetBreakers, Handoffs, Locks, Threads
from coditect.client.options import OptionFields
from coditect.client.schedules import Schedules, Triggers
from coditect.client.webhooks import WebhookOptions, Webhooks
from coditect.client.workflow_run import WorkflowRun
from coditect.client.workflows import Workflows
from coditect.collaboration.lessons import Lessons
from coditect.collaboration.locks import GrantedLockOptions
from coditect.collaboration.state import SharedState
from coditect.collaboration.threads import Thread, ThreadOptions
from coditect.testing.fleet import TestFleet
from coditect.wire.control import Verb
from coditect.workflow.builder import Workflow
from coditect.workflow.starters import ScheduleOptions, TriggerOptions
from tests.unit.cli.scene import EVERY

OWN_MACHINE = "it starts, stops or looks at what runs on the machine where it is typed"
OWN_FILES = "it reads or writes files of the machine where it is typed"
NO_ROUTE = {
    **dict.fromkeys(("init", "up", "down", "doctor", "load"), OWN_MACHINE),
    **dict.fromkeys(("agent run", "dispatcher run", "api", "api mcp"), OWN_MACHINE),
    **dict.fromkeys(("dispatcher backup", "dispatcher restore", "approval policy"), OWN_FILES),
    **dict.fromkeys(("api key create", "api key list", "api key revoke"), OWN_FILES),
}
ROUTES = {
    "dispatcher status": "GET /status",
    "agent list": "GET /agents",
    "agent get": "GET /agents/{agent_id}",
    "agent drain": "POST /agents/{agent_id}/drain",
    "capability list": "GET /capabilities",
    "capability get": "GET /capabilities/{name}",
    "task submit": "POST /tasks",
    "task list": "GET /overview",
    "task get": "GET /tasks/{task_id}",
    "task cancel": "POST /tasks/{task_id}/cancel",
    "workflow start": "POST /workflows",
    "workflow check": "POST /workflows/check",
    "workflow list": "GET /workflows",
    "workflow get": "GET /workflows/{workflow}",
    "workflow cancel": "POST /workflows/{workflow}/cancel",
    "workflow pause": "POST /workflows/{workflow}/pause",
    "workflow resume": "POST /workflows/{workflow}/resume",
    "workflow signal": "POST /workflows/{workflow}/signals/{name}",
    "workflow checkpoint": "PUT /workflows/{workflow}/checkpoints/{name}",
    "workflow restore": "POST /workflows/{workflow}/checkpoints/{name}/restore",
    "workflow pattern": "GET /patterns/{name}",
    "schedule create": "PUT /schedules/{name}",
    "schedule list": "GET /schedules",
    "schedule get": "GET /schedules/{name}",
    "schedule pause": "POST /schedules/{name}/pause",
    "schedule resume": "POST /schedules/{name}/resume",
    "schedule run": "POST /schedules/{name}/run",
    "schedule delete": "DELETE /schedules/{name}",
    "trigger create": "PUT /triggers/{name}",
    "trigger list": "GET /triggers",
    "trigger pause": "POST /triggers/{name}/pause",
    "trigger resume": "POST /triggers/{name}/resume",
    "trigger delete": "DELETE /triggers/{name}",
    "webhook create": "PUT /webhooks/{name}",
    "webhook list": "GET /webhooks",
    "webhook test": "POST /webhooks/{name}/test",
    "webhook update": "POST /webhooks/{name}/enable",
    "webhook delete": "DELETE /webhooks/{name}",
    "approval list": "GET /approvals",
    "approval get": "GET /approvals/{approval}",
    "approval grant": "POST /approvals/{approval}/grant",
    "approval deny": "POST /approvals/{approval}/deny",
    "approval audit": "GET /audit",
    "lock list": "GET /locks",
    "lock acquire": "POST /locks",
    "lock renew": "POST /locks/{ticket}/renew",
    "lock release": "POST /locks/release",
    "thread list": "GET /threads",
    "thread get": "GET /threads/{thread}",
    "thread open": "POST /threads",
    "thread say": "POST /threads/{thread}/messages",
    "thread close": "POST /threads/{thread}/close",
    "schedule heal": "PUT /schedules/{name}",  # the schedule `heal-NAME` of the pattern `self_healing`
    "task handoff list": "GET /handoffs",
    "task handoff get": "GET /handoffs/{handoff}",
    "task handoff withdraw": "POST /handoffs/{handoff}/withdraw",
    "capability forget": "DELETE /lessons/{capability}",
    "breaker list": "GET /breakers",
    "breaker get": "GET /breakers/{name}",
    "breaker open": "POST /breakers/{name}/open",
    "breaker reset": "POST /breakers/{name}/reset",
    "state list": "GET /state/{space}",
    "state get": "GET /state/{space}/{key:path}",
    "state put": "PUT /state/{space}/{key:path}",
    "state delete": "DELETE /state/{space}/{key:path}",
    "dead list": "GET /dead",
    "dead get": "GET /dead/{letter_id}",
    "dead redrive": "POST /dead/redrive",
    "dead discard": "POST /dead/discard",
    "topology apply": "POST /topology",
    "topology export": "GET /topology/export",
    "event tail": "GET /events",
    "event emit": "POST /events",
    "agent log-level": "POST /log-level",
    "top": "GET /overview",
}


BROKER = "an operator's: it looks at the broker and the registry, which the client of a program does not"
ON_HANDLE = "the handle is the object of the method"
NO_METHOD = {
    **dict.fromkeys(("dispatcher status", "agent get", "agent drain", "agent log-level", "top"), BROKER),
    **dict.fromkeys(("capability list", "capability get", "task list"), BROKER),
    **dict.fromkeys(("dead list", "dead get", "dead redrive", "dead discard"), BROKER),
    **dict.fromkeys(("topology apply", "topology export"), BROKER),
    "schedule heal": "a schedule of a pattern",
    "workflow pattern": "Python makes workflows by functions",
    "workflow check": "`Workflow.definition()` checks",
    "webhook update": "`webhooks.enable` and `webhooks.disable`",
    "webhook test": "the API and the command line post it, with the key of the secrets",
}
"""The commands with a route that are no method of the client, and why."""
METHODS: Mapping[str, tuple[type, str]] = {
    "agent list": (Agents, "list"),
    "task submit": (Client, "submit"),
    "task get": (Tasks, "get"),
    "task cancel": (Tasks, "cancel"),
    **{f"workflow {verb}": (Workflows, verb) for verb in ("start", "list", "get")},
    **{f"workflow {verb}": (WorkflowRun, verb) for verb in ("cancel", "pause", "resume", "signal")},
    **{f"workflow {verb}": (WorkflowRun, verb) for verb in ("checkpoint", "restore")},
    **{f"schedule {verb}": (Schedules, verb) for verb in ("create", "list", "get", "pause", "resume", "run", "delete")},
    **{f"trigger {verb}": (Triggers, verb) for verb in ("create", "list", "pause", "resume", "delete")},
    **{f"webhook {verb}": (Webhooks, verb) for verb in ("create", "list", "delete")},
    **{f"approval {verb}": (Approvals, verb) for verb in ("list", "get", "grant", "deny", "audit")},
    **{f"lock {verb}": (Locks, verb) for verb in ("list", "acquire", "renew")},
    "lock release": (Locks, "release_all"),
    **{f"thread {verb}": (Threads, verb) for verb in ("list", "get", "open")},
    **{f"thread {verb}": (Thread, verb) for verb in ("say", "close")},
    **{f"task handoff {verb}": (Handoffs, verb) for verb in ("list", "get", "withdraw")},
    "capability forget": (Lessons, "forget"),
    **{f"breaker {verb}": (FleetBreakers, verb) for verb in ("list", "get", "open", "reset")},
    **{f"state {verb}": (SharedState, verb) for verb in ("put", "delete")},
    "state list": (SharedState, "entries"),
    "state get": (SharedState, "entry"),
    "event tail": (Client, "events"),
    "event emit": (Client, "emit_data"),
}
NOUNS = (Agents, Tasks, Workflows, Schedules, Triggers, Webhooks, Approvals, Locks, Threads, Handoffs, Lessons)
PYTHON_ALONE = {
    "Workflows.dead_nodes": "`dead list` has them among the dead letters",
    "Webhooks.stored": "the API's, which posts to them",
    **dict.fromkeys(("Webhooks.enable", "Webhooks.disable"), "`webhook update`"),
    "Webhooks.get": "`webhook list` shows all of one",
    "Webhooks.delivered": "the API's, which posts to them",
    "Approvals.autonomy": "`approval audit --autonomy`",
    "Locks.release": "`Locks.release_all` stands for the command",
    "Handoffs.request": "an agent's, which runs the task",
    "Handoffs.accept": "an agent's, to which the task is offered",
    "Handoffs.decline": "an agent's, to which the task is offered",
    "Lessons.list": "`capability list --lessons`, `capability get --lessons`",
    "Lessons.about": "an agent's, which plans by them",
}
"""The methods of nouns without a command, and why."""
OTHER_VERBS = {
    "lock release": "Python releases its own lock by `release`, and others' by `release_all`; one command does both",
    "state list": "a space is one object in Python: it has entries",
    "state get": "`SharedState.get` is the value alone",
    "event tail": "Python iterates over the events",
    "event emit": "`emit` takes the data as keywords",
}
"""Where the method's name is not the command's verb, and why."""


OF_HTTP_AGENTS = "an HTTP agent's, which has no connection to the broker"
SAME_AS = "the same by another route: "
ROUTE_ALONE = {
    **dict.fromkeys(("POST /agents", "POST /agents/{agent_id}/heartbeat"), OF_HTTP_AGENTS),
    **dict.fromkeys(("POST /handoffs", "POST /handoffs/{handoff}/accept"), OF_HTTP_AGENTS),
    **dict.fromkeys(("POST /handoffs/{handoff}/decline", "POST /threads/{thread}/read"), OF_HTTP_AGENTS),
    **dict.fromkeys(("POST /broadcasts", "POST /broadcasts/stream"), "a program's, which counts the agents that heard"),
    "POST /tasks/stream": SAME_AS + "`task submit`, whose result comes in parts",
    "POST /locks/{ticket}/release": SAME_AS + "`lock release --ticket`",
    "POST /patterns/{name}/render": SAME_AS + "`workflow pattern`",
    "POST /patterns/{name}/start": SAME_AS + "`workflow start --pattern`",
    "POST /webhooks/{name}/disable": SAME_AS + "`webhook update --disabled`",
    "POST /workflows/{workflow}/nodes/{node}/redrive": SAME_AS + "`dead redrive`",
    "POST /rebuild": SAME_AS + "`doctor --rebuild`",
    "PUT /workflows/{workflow}/state/{key:path}": SAME_AS + "`state put`, with the workflow's space",
}
"""The routes that change something and belong to no command, and why."""
ASKED_BY_DISPATCHERS = {"TRIGGER_FIRE"}


def routes() -> dict[str, APIRoute]:
    found = (route for router in ROUTERS for route in router.routes if isinstance(route, APIRoute))
    return {f"{method} {route.path}": route for route in found for method in route.methods or ()}


COMMON = {
    **dict.fromkeys(("output", "watch"), "how a command shows"),
    **dict.fromkeys(
        ("trace", "history", "checkpoints", "autonomy", "why_not"), "another view, if any a method of its own in Python"
    ),
    "cursor": "Python reads page after page",
    **dict.fromkeys(("wait", "no_wait", "detach", "count"), "Python awaits, and breaks out of its loop"),
    **dict.fromkeys(("hours", "last"), "a period up to now"),
    **dict.fromkeys(("tag", "keyword", "status"), "the registry's search"),
    "label": "one after the other; Python has `labels`",
    "if_match": "HTTP's `if_version`",
    "open": "`open_only` is not the builtin function",
}
"""The parameters of a command or a route that are none of a method, whatever the noun, and why."""
AUDIT_CONDITIONS = ("workflow", "node", "since", "since_ms", "until", "until_ms", "decision", "by", "capability")
OTHER_PARAMETERS = {
    "task submit": {"agent": "`pin` and `strategy`", "bytes": "sent as they are", "input_base64": "sent as they are"},
    "task get": dict.fromkeys(("capability", "limit"), "where a direct task is looked for"),
    "workflow start": {
        **dict.fromkeys(("pattern", "with", "folder"), "Python makes workflows by functions"),
        **dict.fromkeys(("goal", "templates", "capability", "plans", "tokens"), "elsewhere a task of `goal.pursue`"),
    },
    "workflow get": {"node": "`WorkflowRun.look(node)`", "graph": "drawn for people, from what Python lists"},
    "workflow cancel": {"keep": "`compensate=False`"},
    "workflow restore": dict.fromkeys(
        ("yes", "dry_run", "token", "name"), "`plan_restore` makes the plan that is restored"
    ),
    "schedule list": {"heal": "the schedules of a pattern, with what agents record of them"},
    "approval audit": dict.fromkeys((*AUDIT_CONDITIONS, "automatic", "only"), "a condition, which Python passes on"),
    "lock release": {"ticket": "`release`", "fence": "`release`"},
    "thread get": {"after": "`Thread.history`", "limit": "`Thread.history`"},
    "thread say": {
        "answers": "`Thread.answer`",
        "json": "Python's value is JSON",
        "by": "`threads.get(by=)`",
        "thread": ON_HANDLE,
    },
    "thread close": {"thread": ON_HANDLE},
    "event emit": {"type": "`type_` is not the builtin function"},
}
OTHER_DEFAULTS = {
    "limit": "a command and a page end; Python reads on",
    "input": "`{}` where Python has no input",
}
"""The defaults of commands that are not Python's, and why."""
INJECTED = {"client", "services", "who", "response", "request", "stream", "key", "run", "shared"}
"""What FastAPI gives a route, and the header Idempotency-Key."""


def of_method(kind: type, name: str) -> dict[str, Any]:
    """The parameters of a method with their defaults; those of its options have the declaration's."""
    found: dict[str, Any] = {}
    for parameter in inspect.signature(getattr(kind, name)).parameters.values():
        if parameter.kind is not parameter.VAR_KEYWORD:
            found[parameter.name] = parameter.default
    for spec in (OptionFields, ScheduleOptions, TriggerOptions, GrantedLockOptions, ThreadOptions, WebhookOptions):
        if f"Unpack[{spec.__name__}]" in str(inspect.signature(getattr(kind, name))):
            found |= dict.fromkeys(get_type_hints(spec), inspect.Parameter.empty)
    return found


def of_command(command: str) -> dict[str, Any]:
    """The options of a command with their defaults."""
    options = [option for option in EVERY[tuple(command.split())].params if option.param_type_name == "option"]
    named = {max(option.opts, key=len)[2:].replace("-", "_"): option.default for option in options}
    return {name: default for name, default in named.items() if name != "help"}


def of_route(command: str) -> set[str]:
    """The parameters of a route: of its path, its query and its body."""
    found: set[str] = set()
    for name, parameter in inspect.signature(routes()[ROUTES[command]].endpoint, eval_str=True).parameters.items():
        kind = getattr(parameter.annotation, "__origin__", parameter.annotation)
        if inspect.isclass(kind) and issubclass(kind, BaseModel):
            found |= {field.alias or field_name for field_name, field in kind.model_fields.items()}
        elif hasattr(kind, "__required_keys__"):
            found |= kind.__annotations__.keys()
        elif name not in INJECTED:
            found.add(name)
    return found


def test_every_command_has_its_route_or_stands_among_the_exceptions_with_a_reason() -> None:
    assert {" ".join(words) for words in EVERY} == ROUTES.keys() | NO_ROUTE.keys()
    assert not ROUTES.keys() & NO_ROUTE.keys()


def test_every_route_of_a_command_is_one_of_the_api() -> None:
    assert set(ROUTES.values()) <= routes().keys()


def test_every_route_that_changes_something_has_its_command_or_stands_among_the_exceptions_with_a_reason() -> None:
    changing = {route for route in routes() if not route.startswith(("GET ", "HEAD "))}

    assert changing - set(ROUTES.values()) == ROUTE_ALONE.keys()


def test_every_verb_of_the_control_plane_is_asked_by_the_library_or_by_dispatchers() -> None:
    library = Path(inspect.getfile(coditect)).parent
    used = "".join(module.read_text() for module in library.rglob("*.py") if module.parent.name != "wire")

    assert {verb.name for verb in Verb if not re.search(rf"Verb\.{verb.name}\b", used)} == ASKED_BY_DISPATCHERS


def test_every_command_with_a_route_is_a_method_or_stands_among_the_exceptions_with_a_reason() -> None:
    assert METHODS.keys() | NO_METHOD.keys() == ROUTES.keys()
    assert not METHODS.keys() & NO_METHOD.keys()


def test_every_method_of_a_noun_has_its_command_or_stands_among_the_exceptions_with_a_reason() -> None:
    methods = {f"{noun.__name__}.{name}" for noun in NOUNS for name in vars(noun) if not name.startswith("_")}

    assert methods - {f"{noun.__name__}.{name}" for noun, name in METHODS.values()} == PYTHON_ALONE.keys()


def test_a_method_has_the_verb_of_its_command() -> None:
    other = {command for command, (_, name) in METHODS.items() if name != command.split()[-1].replace("-", "_")}

    assert other == OTHER_VERBS.keys()


@pytest.mark.parametrize("command", METHODS)
def test_the_parameters_of_a_command_and_of_its_route_are_those_of_the_method(command: str) -> None:
    known = of_method(*METHODS[command]).keys() | COMMON.keys() | OTHER_PARAMETERS.get(command, {}).keys()

    assert of_command(command).keys() <= known
    assert of_route(command) <= known


@pytest.mark.parametrize("command", METHODS)
def test_a_command_has_the_defaults_of_its_method(command: str) -> None:
    method, options = of_method(*METHODS[command]), of_command(command)
    other = {
        name
        for name, default in options.items()
        if default not in (None, False, "", "{}") and name in method
        if method[name] not in (default, inspect.Parameter.empty)
    }

    assert other <= OTHER_DEFAULTS.keys()


@pytest.mark.parametrize("kind", [Client, Context, PlainContext, Workflow, TestFleet])
def test_the_input_of_a_task_or_workflow_has_one_name(kind: type) -> None:
    methods = (method for name, method in inspect.getmembers(kind, inspect.isfunction) if not name.startswith("_"))
    named = {method.__name__: inspect.signature(method).parameters.keys() for method in methods}

    other = {name for name, parameters in named.items() if parameters & {"body", "data", "payload", "value"}}

    assert not other - {"broadcast", "emit", "emit_data"}  # an event has data

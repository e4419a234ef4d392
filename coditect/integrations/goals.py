"""The agent that pursues goals, as a module to run: `coditect agent run coditect.integrations.goals`.

Plans come from the templates in the file that ``CODITECT_GOALS`` names, or, without it, from the model of
``CODITECT_CHAT_URL``. Inputs of plans are checked by their JSON Schemas, which needs the extra `programs`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from coditect.client.client import Client
from coditect.errors import InvalidTask, SetupError
from coditect.goals.planners import MAX_TEMPLATE_BYTES, TemplatePlanner, read_templates
from coditect.goals.pursuit import GoalMeans, goal_agent
from coditect.model.capability import CapabilitySpec
from coditect.settings.settings import ChatSettings, ToolSettings, read_variables
from coditect.workflow.documents.file import read_file


def check_input(spec: CapabilitySpec, value: Any) -> None:
    """Check a planned task's input by its capability's JSON Schema, since a plan may come from anybody.

    Raises:
        InvalidTask: when it does not fit, or its agent's schema is invalid.
        SetupError: when the extra `programs` is not installed.
    """
    from coditect.integrations.json_schema import SchemaCheck  # noqa: PLC0415 - an optional dependency

    if not spec.input_schema:
        return
    try:
        check = SchemaCheck(spec.input_schema)
    except SetupError as error:  # of another agent, whose trouble it is: a plan without that capability may do
        raise InvalidTask("The capability's JSON Schema is invalid", capability=spec.name, reason=str(error)) from error
    check.check(value)


def read_goals(path: Path) -> TemplatePlanner:
    """Return a planner that uses the goal templates in a file.

    Raises:
        NotFound: when there is no such file.
        InputError: when it has no templates, with every problem.
    """
    return TemplatePlanner(read_templates(read_file(path, most_bytes=MAX_TEMPLATE_BYTES), name=str(path)))


@asynccontextmanager
async def _means() -> AsyncIterator[GoalMeans]:
    values = read_variables()
    async with Client.from_env() as client:
        if templates := ToolSettings.read(values).goals:
            planner = read_goals(Path(templates))
            yield GoalMeans(client, lambda tokens: planner)
            return
        from coditect.chat.endpoint import open_chat  # noqa: PLC0415
        from coditect.chat.port import ChatBudget  # noqa: PLC0415 - the extra `chat`, which templates do without
        from coditect.goals.planners import ChatPlanner  # noqa: PLC0415

        async with open_chat(ChatSettings.read(values)) as model:
            yield GoalMeans(client, lambda tokens: ChatPlanner(model, ChatBudget(tokens)))


agent = goal_agent(_means, check_input)

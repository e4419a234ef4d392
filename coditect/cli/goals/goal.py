"""`coditect goal`: make a workflow from a sentence (the goal), run it, and print its value."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated

import typer

from coditect.aio.loop import run_loop
from coditect.cli.connections import connections
from coditect.cli.terminal.output import FieldsView, Output, OutputOption, render, say
from coditect.cli.terminal.waiting import checked
from coditect.goals.plan import MOST_PLANS
from coditect.goals.planner import Planner
from coditect.goals.pursuit import GoalResult
from coditect.goals.share import MOST_TOKENS
from coditect.operations.connections import Connections
from coditect.operations.goals import GoalOrder, pursue_goal
from coditect.settings.settings import read_variables
from coditect.workflow.definition import Definition

app = typer.Typer()


@app.command("goal")
def pursue(
    context: typer.Context,
    goal: Annotated[str, typer.Argument(metavar="GOAL", help="What is wanted, in one sentence.")],
    templates: Annotated[
        Path | None, typer.Option("--templates", envvar="CODITECT_GOALS", help="A YAML file of plans by words.")
    ] = None,
    chat: Annotated[bool, typer.Option("--chat", help="Ask the model of CODITECT_CHAT_URL for the plan.")] = False,
    capability: Annotated[
        list[str] | None,
        typer.Option("--capability", "-c", help="What plans may use, such as 'code.*'; can be repeated."),
    ] = None,
    plans: Annotated[int, typer.Option("--plans", min=1, max=10, help="How many plans are tried.")] = MOST_PLANS,
    tokens: Annotated[int, typer.Option("--tokens", min=100, help="Most tokens for plans, in and out.")] = MOST_TOKENS,
    wait: Annotated[
        str, typer.Option("--wait", callback=checked, help="How long one plan may take; it goes on by itself.")
    ] = "1h",
    key: Annotated[
        str | None, typer.Option("--key", "-k", help="Pursues it once: with the same key, the workflows that it has.")
    ] = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Plan a goal by templates or by a model, run the plan, and plan again when it fails for good.

    \b
    Example: coditect goal "Review and document the module" --templates goals.yaml
    """
    if (templates is None) is not chat:
        raise typer.BadParameter("Plans come from --templates FILE, or from a model by --chat; one of both")
    order = GoalOrder(goal, capability or ["*"], wait, plans, tokens, key)
    result = run_loop(_pursue(connections(context), order, templates))
    document = {"value": result.value, "workflow": result.workflow, "failures": list(result.failures)}
    render(output, document, FieldsView({"value": json.dumps(result.value, ensure_ascii=False)}))


async def _pursue(opened: Connections, order: GoalOrder, templates: Path | None) -> GoalResult:
    from coditect.integrations.goals import check_input

    async with _planner(templates, order.tokens) as planner:
        return await pursue_goal(opened, order, planner, check_input, planned=_planned)


@asynccontextmanager
async def _planner(templates: Path | None, tokens: int) -> AsyncIterator[Planner]:
    if templates is not None:
        from coditect.integrations.goals import read_goals

        yield read_goals(templates)
        return
    from coditect.chat.budget import ChatBudget
    from coditect.chat.endpoint import open_chat
    from coditect.goals.chat import ChatPlanner
    from coditect.settings.chat import chat_settings

    async with open_chat(chat_settings(read_variables())) as model:
        yield ChatPlanner(model, ChatBudget(tokens))


def _planned(plan: Definition, workflow: str) -> None:
    say(f"Planned {', '.join(f'{one.name} ({one.title})' for one in plan.nodes)}; workflow {workflow}.")

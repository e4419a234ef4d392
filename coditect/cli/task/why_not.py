"""`coditect task why-not`: list the agents, and say why each would or would not take a task now."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import typer

from coditect.aio.loop import run_loop
from coditect.broker.port import Broker
from coditect.cli.connections import Connections, connections
from coditect.cli.terminal.output import Output, OutputOption, say, write_json, write_table
from coditect.errors import NotFound, RegistryUnavailable
from coditect.model.capability import Priority, check_capability_name
from coditect.model.ids import is_uuid
from coditect.model.registration import AgentRecord
from coditect.operations.diagnose import Explanation, QueueSeen, TakeVerdict, TaskQuestion, explain
from coditect.operations.locate import TaskLocator
from coditect.operations.sightings import Found, Sighting, task_verdict, unseen
from coditect.registry.port import Search
from coditect.wire import routing

DEFAULT_MOST = 1_000
LOOK_AGAIN_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class _Answer:
    verdict: TakeVerdict
    explanation: Explanation | None
    task_id: str | None = None
    found: Found | None = None
    unseen: tuple[str, ...] = ()


def why_not(
    context: typer.Context,
    target: Annotated[str, typer.Argument(metavar="TASK_OR_CAPABILITY", help="A task's id, or what to do.")],
    capability: Annotated[
        str | None, typer.Option("--capability", "-c", help="The task's; its queues are looked through for it.")
    ] = None,
    priority: Annotated[Priority, typer.Option("--priority", "-p", help="Of the task in question.")] = Priority.P1,
    tag: Annotated[list[str] | None, typer.Option("--tag", help="Wanted of the agent; can be repeated.")] = None,
    most: Annotated[
        int, typer.Option("--most", min=1, max=100_000, help="Look through so many messages of each queue.")
    ] = DEFAULT_MOST,
    output: OutputOption = Output.TABLE,
) -> None:
    """Say which agents exist and why each would or would not take a task now.

    Of a capability: what each agent would do with such a task. Of a task (an id, or anything with
    --capability): where it is, as far as that can be known without a control plane. Exits 4 when no agent
    offers the capability and it has no queue, and when the task was not found.

    \b
    Example: coditect task why-not code.review --priority p1
    """
    opened, tags = connections(context), frozenset(tag or ())
    if capability is not None:
        question = TaskQuestion(check_capability_name(capability), priority, tags)
        answer = run_loop(_of_task(opened, target, question, most))
    elif is_uuid(target):
        answer = run_loop(_of_task(opened, target, None, most))
    else:
        answer = run_loop(_of_capability(opened, TaskQuestion(check_capability_name(target), priority, tags)))
    if output is Output.JSON:
        write_json(_json(answer))
    else:
        _tell(answer)
    if not answer.verdict.known:
        raise typer.Exit(NotFound.exit_code)


async def _of_capability(opened: Connections, question: TaskQuestion) -> _Answer:
    fleet = await _fleet(opened)
    async with opened.broker() as broker:
        explanation = await _explained(broker, question, fleet)
    return _Answer(explanation.verdict, explanation)


async def _of_task(opened: Connections, task_id: str, given: TaskQuestion | None, most: int) -> _Answer:
    fleet = await _fleet(opened)
    offered = {offer.name for record in fleet or () for offer in record.registration.capabilities}
    named = () if given is None else (given.capability,)
    async with opened.broker() as broker:
        found = await TaskLocator(broker).find(task_id, waiting=named, dead=offered.union(named), most=most)
        question = _question_of(found.best, given)
        explanation = None if question is None else await _explained(broker, question, fleet)
    verdict = task_verdict(task_id, found, explanation, named=given is not None)
    perhaps = () if found.sightings else unseen(found, named=given is not None)
    return _Answer(verdict, explanation, task_id, found, perhaps)


async def whereabouts(opened: Connections, task_id: str) -> Found:
    """Find a direct task: ask the agents, and look through the queues of all capabilities that they offer."""
    fleet = await _fleet(opened)
    offered = {offer.name for record in fleet or () for offer in record.registration.capabilities}
    async with opened.broker() as broker:
        for pause in (LOOK_AGAIN_SECONDS, 0.0):
            found = await TaskLocator(broker).find(task_id, waiting=sorted(offered), dead=offered, most=DEFAULT_MOST)
            if found.sightings:
                break
            await asyncio.sleep(pause)  # on its way to a slot it is nowhere
    return found


async def _fleet(opened: Connections) -> tuple[AgentRecord, ...] | None:
    try:
        async with opened.registry() as registry:
            return await registry.find(Search())
    except RegistryUnavailable:
        return None


async def _explained(broker: Broker, question: TaskQuestion, fleet: Sequence[AgentRecord] | None) -> Explanation:
    queues = []
    for level in Priority:
        name = routing.task_queue(question.capability, level)
        stats = await broker.stats(name)
        if stats is None:
            queues.append(QueueSeen(name, exists=False))
        else:
            queues.append(QueueSeen(name, exists=True, messages=stats.messages, consumers=stats.consumers))
    return explain(question, fleet, queues)


def _question_of(seen: Sighting | None, given: TaskQuestion | None) -> TaskQuestion | None:
    """Return the question to explain; the task's own capability and priority precede those of the command line."""
    if seen is None or seen.capability is None:
        return given
    return TaskQuestion(seen.capability, seen.priority or Priority.P1, given.tags if given is not None else frozenset())


def _tell(answer: _Answer) -> None:
    """Write the verdict and the tables to stdout: all of it is the answer."""
    typer.echo(f"{answer.verdict.sentence}.")
    if answer.verdict.fix:
        typer.echo(f"Fix: {answer.verdict.fix}")
    if answer.found is not None:
        for seen in answer.found.sightings:
            typer.echo(f"Seen: {seen.place} {seen.queue or seen.agent_id}")
        say(f"{len(answer.found.looked)} queues were looked through, {answer.found.asked} agents answered.")
    for place in answer.unseen:
        typer.echo(f"Perhaps {place}.")
    if answer.explanation is None:
        return
    typer.echo()
    rows = [(one.agent_id, one.version, one.obstacle is None, one.text) for one in answer.explanation.agents]
    write_table(("agent", "version", "takes it", "why"), rows, empty="No agent is registered.")
    typer.echo()
    queues = [
        (one.name, one.messages if one.exists else "no queue", one.consumers if one.exists else None)
        for one in answer.explanation.queues
    ]
    write_table(("queue", "waiting", "consumers"), queues)


def _json(answer: _Answer) -> dict[str, object]:
    verdict, explanation = answer.verdict, answer.explanation
    return {
        "verdict": verdict.sentence,
        "fix": verdict.fix or None,
        "takes": verdict.takes,
        "task": None if answer.task_id is None or answer.found is None else _task_json(answer.task_id, answer),
        "question": None if explanation is None else _question_json(explanation.question),
        "nearest": list(explanation.nearest) if explanation is not None else [],
        "agents": [
            {
                "agent_id": one.agent_id,
                "version": one.version,
                "takes": one.obstacle is None,
                "obstacle": one.obstacle,
                "why": one.text,
            }
            for one in (explanation.agents if explanation is not None else ())
        ],
        "queues": [
            {"name": one.name, "exists": one.exists, "messages": one.messages, "consumers": one.consumers}
            for one in (explanation.queues if explanation is not None else ())
        ],
    }


def _question_json(question: TaskQuestion) -> dict[str, object]:
    return {"capability": question.capability, "priority": question.priority, "tags": sorted(question.tags)}


def _task_json(task_id: str, answer: _Answer) -> dict[str, object]:
    found = answer.found
    return {
        "id": task_id,
        "seen": [
            {
                "place": one.place,
                "capability": one.capability,
                "priority": one.priority,
                "queue": one.queue,
                "agent_id": one.agent_id,
                "before": one.before,
                "reason": one.reason or None,
            }
            for one in (found.sightings if found is not None else ())
        ],
        "looked": list(found.looked) if found is not None else [],
        "cut": list(found.cut) if found is not None else [],
        "agents_asked": found.asked if found is not None else 0,
        "perhaps": list(answer.unseen),
    }

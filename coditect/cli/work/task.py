"""`coditect task`: submits a task and waits for its result, or asks for a durable task later by its id."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from coditect.aio.loop import run_loop
from coditect.cli.connections import connections
from coditect.cli.observe.completion import complete_agent, complete_capability, complete_task
from coditect.cli.terminal.body import read_body
from coditect.cli.terminal.failure import raised_at
from coditect.cli.terminal.output import Aside, Output, OutputOption, TableView, View, render, say, write_json
from coditect.cli.terminal.progress import shown_events
from coditect.cli.terminal.waiting import checked, going_on
from coditect.cli.terminal.workflow_tables import attempts_table, nodes_table
from coditect.client.options import Options
from coditect.errors import CoditectError, InputError, NotFound
from coditect.model.capability import Priority, check_capability_name
from coditect.model.ids import AgentId, is_uuid
from coditect.model.result import Outcome, Status
from coditect.operations import tasks
from coditect.operations.connections import Connections
from coditect.operations.diagnosis.explain import TaskQuestion
from coditect.operations.diagnosis.locations import Found
from coditect.operations.diagnosis.why_not import DEFAULT_MOST, WhyNot, why_not_capability, why_not_task
from coditect.operations.documents.tasks import TaskDocument
from coditect.operations.tasks import TaskOrder
from coditect.wire.json import dumps, loads
from coditect.workflow.fields import instant_ms

CapabilityArgument = Annotated[
    str, typer.Argument(help="What to do, e.g. hello.greet.", autocompletion=complete_capability)
]
AgentOption = Annotated[
    str | None, typer.Option("--agent", help="Prefer this agent, by its id.", autocompletion=complete_agent)
]
DurableArgument = Annotated[
    str,
    typer.Argument(
        metavar="ID", help="Of a durable task, as `task submit --detach` printed it.", autocompletion=complete_task
    ),
]

app = typer.Typer(no_args_is_help=True)


@app.command("why-not")
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
    """Say why each agent would or would not take a task now.

    Of a capability: what each agent would do with such a task. Of a task (an id, or anything with
    --capability): where it is, as far as that can be known without a control plane. Exits 4 when no agent
    offers the capability and it has no queue, and when the task was not found.

    \b
    Example: coditect task why-not hello.greet --priority p1
    """
    opened, tags = connections(context), frozenset(tag or ())
    if capability is not None:
        question = TaskQuestion(check_capability_name(capability), priority, tags)
        answer = run_loop(why_not_task(opened, target, question, most=most))
    elif is_uuid(target):
        answer = run_loop(why_not_task(opened, target, None, most=most))
    else:
        question = TaskQuestion(check_capability_name(target), priority, tags)
        answer = run_loop(why_not_capability(opened, question))
    render(output, _why_json(answer), *_why_views(answer))
    if not answer.verdict.known:
        raise typer.Exit(NotFound.exit_code)


@app.command("submit")
def submit_task(
    context: typer.Context,
    capability: CapabilityArgument,
    body: Annotated[str, typer.Argument(help="JSON, or @file, or - for stdin.", metavar="[BODY|@FILE|-]")] = "{}",
    priority: Annotated[Priority, typer.Option("--priority", "-p", help="p0 is urgent, p2 is bulk.")] = Priority.P1,
    timeout: Annotated[str | None, typer.Option("--timeout", help="Longest run of one attempt, e.g. 5m.")] = None,
    deadline: Annotated[
        str | None, typer.Option("--deadline", help="Not wanted any more after so long from now, e.g. 1h.")
    ] = None,
    agent: AgentOption = None,
    wait: Annotated[str, typer.Option("--wait", callback=checked, help="Wait for the result at most so long.")] = "10m",
    stream: Annotated[
        bool, typer.Option("--stream", help="Print the parts of the result as they come, each on a line.")
    ] = False,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Print the id and return.")] = False,
    detach: Annotated[
        bool, typer.Option("--detach", "-d", help="Durable: the control plane keeps it. Print its id and return.")
    ] = False,
    key: Annotated[
        str | None, typer.Option("--key", "-k", help="Durable, once: with the same key, the task that has it.")
    ] = None,
    delay: Annotated[
        str | None, typer.Option("--delay", help="Durable, and not published before so long from now, e.g. 5m.")
    ] = None,
    at: Annotated[
        str | None, typer.Option("--at", help="Durable, and not published before, e.g. 2026-12-24T08:00:00+01:00.")
    ] = None,
    binary: Annotated[bool, typer.Option("--bytes", help="The body is bytes, such as a file, and not JSON.")] = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """Submit a task, show its progress and print its value.

    With --detach, --key, --delay or --at the control plane keeps it: it may run for hours, and `task get`, `task wait`
    and `task cancel` find it by its id. Exits 0 with the value, 1 when it failed, 3 when it expired or did not end in
    time.

    \b
    Example: coditect task submit hello.greet '"Ada"' --priority p0
    """
    if stream and (no_wait or detach):
        raise InputError("Parts are printed while the command waits", fix="--stream without --no-wait and --detach")
    options = Options(
        priority=priority,
        timeout=timeout,
        deadline=deadline,
        pin=AgentId(agent) if agent else None,
        idempotency_key=key,
        stream=stream,
        delay=delay,
        at=None if at is None else datetime.fromtimestamp(instant_ms(at) / 1000, UTC),
    )
    order = TaskOrder(capability, read_body(body, binary=binary), options)
    until = None if no_wait or detach else wait
    work = _submit_durable if detach or options.kept else _submit
    task_id, outcome = run_loop(work(connections(context), order, until))
    if outcome is None:
        render(output, {"task_id": task_id, "status": "submitted"}, task_id)
    elif not stream or outcome.status is not Status.COMPLETED:
        direct = f"coditect dead show {task_id} --capability {capability}"
        _tell(task_id, outcome, output, whole=None if tasks.is_durable(task_id) else direct)


@app.command("get")
def get_task(context: typer.Context, task_id: DurableArgument, output: OutputOption = Output.TABLE) -> None:
    """Show a durable task's state and attempts. Once it has ended, also its value or failure.

    \b
    Example: coditect task get 01890a5d-ac96-774b-bcce-b302099a8057:task
    """
    task = run_loop(tasks.get_task(connections(context), task_id))
    outcome = task.outcome
    told = {} if outcome is None else outcome_json(task_id, outcome)
    document = {"task_id": task_id, "status": task.row.state, "attempts": task.attempts} | told
    render(output, document, *nodes_table([task.row]), "", *attempts_table(task.attempts))
    if output is Output.TABLE and outcome is not None and outcome.status is Status.COMPLETED:
        typer.echo()
        write_json(loads(outcome.body))


@app.command("wait")
def wait_for_task(
    context: typer.Context,
    task_id: DurableArgument,
    wait: Annotated[str, typer.Option("--wait", callback=checked, help="At most so long.")] = "10m",
    output: OutputOption = Output.TABLE,
) -> None:
    """Wait for a durable task and print its value. The exit codes are those of `task submit`.

    \b
    Example: coditect task wait 01890a5d-ac96-774b-bcce-b302099a8057:task
    """
    _tell(task_id, run_loop(_wait(connections(context), task_id, wait)), output)


@app.command("cancel")
def cancel_task(context: typer.Context, task_id: Annotated[str, typer.Argument(metavar="ID")]) -> None:
    """Cancel a task: every agent is asked to stop it or not to start it. Best effort, remembered for 10 minutes.

    A durable task (its id ends in :task) is canceled by the control plane, which does not forget. Exits 4 when there is
    no such task to cancel, as far as agents and queues tell.

    \b
    Example: coditect task cancel 01890a5d-ac96-774b-bcce-b302099a8057
    """
    report = run_loop(tasks.cancel_task(connections(context), task_id))
    say(f"{task_id}: cancel was {'accepted by the control plane' if report.durable else 'sent to every agent'}.")
    if report.error is not None:
        raise report.error


def _tell(task_id: str, outcome: Outcome, output: Output, *, whole: str | None = None) -> None:
    if output is not Output.TABLE:
        render(output, outcome_json(task_id, outcome))
        if outcome.status is not Status.COMPLETED:
            raise typer.Exit(failure_of(outcome).exit_code)
        return
    if outcome.status is not Status.COMPLETED:
        failed = failure_of(outcome)
        if outcome.failure is not None and (where := raised_at(outcome.failure.traceback)):
            failed.facts |= {"where": where, "traceback": whole or f"coditect task wait {task_id} --output json"}
        raise failed
    if outcome.binary:
        typer.echo(outcome.body, nl=False)
    else:
        write_json(loads(outcome.body))


async def _submit(opened: Connections, order: TaskOrder, wait: str | None) -> tuple[str, Outcome | None]:
    with ExitStack() as stack:

        def submitted(task_id: str) -> None:
            say(f"{task_id} submitted to {order.capability}")
            where = f"coditect task why-not {task_id} --capability {order.capability}"
            end = f"coditect task cancel {task_id}"
            stack.enter_context(going_on(f"The task goes on. Where it is: {where}; to end it: {end}"))

        part = _print_part if order.options.stream else None
        return await tasks.submit_task(opened, order, wait, submitted=submitted, shown=shown_events, part=part)


def _print_part(part: Any) -> None:
    typer.echo(dumps(part))


async def _submit_durable(opened: Connections, order: TaskOrder, wait: str | None) -> tuple[str, Outcome | None]:
    if order.options.pin is not None:
        say("A durable task prefers no agent; --agent is left out.")
    with ExitStack() as stack:

        def accepted(task_id: str, new: bool) -> None:
            if not new:
                say(f"{task_id} has this key already; nothing new was submitted.")
            elif wait is not None:
                say(f"{task_id} accepted for {order.capability}")
            if wait is not None:
                stack.enter_context(going_on(f"The task goes on. Its value: coditect task wait {task_id}"))

        return await tasks.submit_durable(opened, order, wait, accepted=accepted)


async def _wait(opened: Connections, task_id: str, wait: str) -> Outcome:
    with going_on(f"The task goes on. Where it is: coditect task get {task_id}"):
        return await tasks.wait_for_task(opened, task_id, wait)


def outcome_json(task_id: str, outcome: Outcome) -> dict[str, object]:
    """Return a task's outcome (status, value, failure, agent, times) as JSON values for `--output json`."""
    document = asdict(TaskDocument.of(task_id, outcome))
    del document["attempts"]  # `task get` has them beside it
    if not outcome.binary:
        del document["value_base64"]
    return document


def failure_of(outcome: Outcome) -> CoditectError:
    """Return the error of a task that ended without a value; the error carries the command's exit code."""
    from coditect.client.handle import task_error

    return task_error(outcome)


def _why_views(answer: WhyNot) -> Iterator[View]:
    """Yield texts and tables that `task why-not` prints: verdict, fix, where the task was seen, agents and queues."""
    yield f"{answer.verdict.sentence}."
    if answer.verdict.fix:
        yield f"Fix: {answer.verdict.fix}"
    if answer.found is not None:
        for seen in answer.found.locations:
            yield f"Seen: {seen.place} {seen.queue or seen.agent_id}"
        yield Aside(f"{len(answer.found.looked)} queues were looked through, {answer.found.asked} agents answered.")
    for place in answer.unseen:
        yield f"Perhaps {place}."
    if answer.explanation is None:
        return
    rows = [(one.agent_id, one.version, one.obstacle is None, one.text) for one in answer.explanation.agents]
    yield ""
    yield TableView(("agent", "version", "takes it", "why"), rows, "No agent is registered.")
    queues = [
        (one.name, one.messages if one.exists else "no queue", one.consumers if one.exists else None)
        for one in answer.explanation.queues
    ]
    yield ""
    yield TableView(("queue", "waiting", "consumers"), queues)


def _why_json(answer: WhyNot) -> dict[str, object]:
    verdict, explanation, found, task_id = answer.verdict, answer.explanation, answer.found, answer.task_id
    return {
        "verdict": verdict.sentence,
        "fix": verdict.fix or None,
        "takes": verdict.takes,
        "task": None if task_id is None or found is None else _task_json(task_id, found, answer.unseen),
        "question": None if explanation is None else _question_json(explanation.question),
        "nearest": explanation.nearest if explanation is not None else (),
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
        "queues": explanation.queues if explanation is not None else (),
    }


def _question_json(question: TaskQuestion) -> dict[str, object]:
    return {"capability": question.capability, "priority": question.priority, "tags": sorted(question.tags)}


def _task_json(task_id: str, found: Found, perhaps: Sequence[str]) -> dict[str, object]:
    return {
        "id": task_id,
        "seen": [{**asdict(one), "reason": one.reason or None} for one in found.locations],
        "looked": found.looked,
        "cut": found.cut,
        "agents_asked": found.asked,
        "perhaps": perhaps,
    }

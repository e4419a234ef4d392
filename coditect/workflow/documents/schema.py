"""The pydantic models of workflow documents: the fields of a workflow and a node in a YAML or JSON file.

The models check a document by the checks of `fields.py`; `reader.py` makes the frozen values of
`definition.py` from them. `docs/workflows.md` lists the fields, too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, TypeAlias

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, PlainValidator, Tag
from pydantic_core import PydanticCustomError

from coditect.errors import InputError
from coditect.model.capability import Priority
from coditect.workflow import fields
from coditect.workflow.definition import Join, OnFailure, OnTimeout, Rest, check_name, check_node_name

REFUSED = "refused"
"""The error type by which a pydantic validation reports the InputError of a check, kept in its context."""
_NO_EDGES: Any = ()


def _told(check: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Wrap a check so that its InputError becomes an error of pydantic's validation."""

    def checked(value: Any) -> Any:
        try:
            return check(value)
        except InputError as error:
            raise PydanticCustomError(REFUSED, REFUSED, {"error": error}) from None

    return checked


def _by(check: Callable[[Any], Any], written: Any = str) -> PlainValidator:
    """Return a pydantic validator that calls `check` on a value; `written` is the type that the JSON schema shows."""
    return PlainValidator(_told(check), json_schema_input_type=written)


_Text: TypeAlias = Annotated[str, _by(fields.text)]
_Question: TypeAlias = Annotated[str, _by(fields.some_text)]
_Expression: TypeAlias = Annotated[str, _by(fields.expression)]
_Over: TypeAlias = Annotated[str | list[Any], _by(fields.over, str | list[Any])]
_Condition: TypeAlias = Annotated[str | None, _by(fields.expression)]
_Capability: TypeAlias = Annotated[str, _by(fields.capability)]
_Compensation: TypeAlias = Annotated[str | None, _by(fields.capability)]
_Attempts: TypeAlias = Annotated[int, _by(fields.count(1_000), int)]
_Elements: TypeAlias = Annotated[int, _by(fields.limit, int)]
_Delay: TypeAlias = Annotated[str, _by(fields.delay, str | float)]
_LongestDelay: TypeAlias = Annotated[str, _by(fields.longest_delay, str | float)]
_Period: TypeAlias = Annotated[int | None, _by(fields.duration_ms, str | float)]
_TaskDelay: TypeAlias = Annotated[int | str | None, _by(fields.task_delay, str | float)]
_Heartbeat: TypeAlias = Annotated[int | None, _by(fields.heartbeat_ms, str | float)]
_Span: TypeAlias = Annotated[int, _by(fields.duration_ms, str | float)]
_Instant: TypeAlias = Annotated[Any, _by(fields.instant, str | dict[str, str])]
_Signal: TypeAlias = Annotated[str, _by(fields.signal)]
_Input: TypeAlias = Annotated[Any, _by(fields.template, Any)]
_Artifacts: TypeAlias = Annotated[dict[str, str], _by(fields.artifacts, dict[str, str])]
_Labels: TypeAlias = Annotated[dict[str, str], _by(fields.labels, dict[str, str])]
_Join: TypeAlias = Annotated[Join, _by(fields.join, Join)]
_Priority: TypeAlias = Annotated[Priority, _by(fields.priority, Priority)]
_OnFailure: TypeAlias = Annotated[OnFailure, _by(fields.one_of(OnFailure), OnFailure)]
_Rest: TypeAlias = Annotated[Rest, _by(fields.one_of(Rest), Rest)]
_Least: TypeAlias = Annotated[int | None, _by(fields.least, int)]
_OnTimeout: TypeAlias = Annotated[OnTimeout, _by(fields.one_of(OnTimeout), OnTimeout)]
_NodeName: TypeAlias = Annotated[str, _by(check_node_name)]
_WorkflowName: TypeAlias = Annotated[str, _by(lambda name: check_name("workflow", fields.text(name)))]


class _Fields(BaseModel):
    """The base of all objects in a workflow document, which refuses unknown fields."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class RetryFields(_Fields):
    """The fields of a retry policy: how often a task is tried, and how long after a failure."""

    max_attempts: _Attempts = Field(3, description="Attempts in all, the first included; 1 to 1,000.")
    first: _Delay = Field("1s", description="The longest first delay; doubled for every further attempt.")
    cap: _LongestDelay = Field("1m", description="The longest delay of all; at most 1h.")


class RepeatFields(_Fields):
    """The fields of a task's loop: until when the task is repeated, how often at most, and with what pause."""

    until: _Expression = Field(description="An expression over `result`; the loop ends where it finds something.")
    most: _Attempts = Field(description="Iterations in all; the node fails after them. 1 to 1,000.")
    every: _Period = Field(None, description="The pause between two iterations; else none.")


class EdgeFields(_Fields):
    """The fields of an edge: the predecessor, and the policy for the predecessor's failure."""

    node: _Text = Field(description="The predecessor's name.")
    on_failure: _OnFailure = Field(
        OnFailure.FAIL, description="What follows for the node when it ends without a value."
    )


_Repeat: TypeAlias = Annotated[RepeatFields | None, BeforeValidator(_told(fields.repeat_object))]
_Retry: TypeAlias = Annotated[RetryFields | None, BeforeValidator(_told(fields.retry_object))]


class PlaceFields(_Fields):
    """The fields of a node's place in the graph, common to nodes of every kind."""

    after: list[str | EdgeFields] = Field(_NO_EDGES, description="The predecessors; at most 10,000.")
    join: _Join = Field("all", description="How many of the predecessors must be met: all, any, or a number.")
    when: _Condition = Field(None, description="An expression; where it finds nothing, the node is skipped.")
    rest: _Rest = Field(Rest.KEEP, description="What becomes of predecessors that have not ended: keep, or cancel.")
    least: _Least = Field(
        None, description="How many are enough when all predecessors have ended; else as `join` says."
    )


class CallFields(PlaceFields):
    """The fields of a task's input and limits, common to task nodes and map nodes."""

    input: _Input = Field(None, description="JSON; `{$from: expression}` stands for what the expression finds.")
    priority: _Priority = Field(Priority.P1, description="p0 goes before p1, and p1 before p2.")
    timeout: _Period = Field(None, description="The longest run of an attempt; else the capability's own.")
    start_within: _Period = Field(None, description="How long an attempt may wait until an agent starts it.")
    deadline: _Period = Field(None, description="How long all attempts may take together.")
    heartbeat: _Heartbeat = Field(None, description="How long the task's agent may be silent; at least 45s.")
    retry: _Retry = Field(None, description="When the task is tried again; else by the capability's own policy.")
    compensate: _Compensation = Field(None, description="The capability that undoes the task if the workflow fails.")
    repeat: _Repeat = Field(None, description="The task's loop: until, most, every; else it is done once.")


class TaskFields(CallFields):
    """The fields of a node that runs one task."""

    task: _Capability = Field(description="The capability.")
    delay: _TaskDelay = Field(None, description="What the first attempt waits for: a duration, or an instant.")


class MapFields(CallFields):
    """The fields of a node that runs a task for every element of a list."""

    map: _Capability = Field(description="The capability, for every element of a list.")
    over: _Over = Field(description="The expression that finds the list, or the list itself.")
    limit: _Elements = Field(description="How many elements the list may have at most; 1 to 10,000.")


class ApprovalFields(PlaceFields):
    """The fields of a node that waits for a person's answer."""

    approval: _Question = Field(description="The question to a person.")
    timeout: _Period = Field(None, description="How long the question waits for an answer; else for ever.")
    on_timeout: _OnTimeout = Field(
        OnTimeout.REJECT, description="What counts as the answer when none was given in time."
    )
    artifacts: _Artifacts = Field(
        default_factory=dict, description="Expressions by names; each must find something before anybody is asked."
    )


class WaitFields(PlaceFields):
    """The fields of a node that waits for a period of time."""

    wait: _Span = Field(description="How long the node waits, from when it may run.")


class WaitUntilFields(PlaceFields):
    """The fields of a node that waits for an instant."""

    wait_until: _Instant = Field(description="The instant, or `{$from: expression}` for one that finds it.")


class AwaitSignalFields(PlaceFields):
    """The fields of a node that waits for a signal."""

    await_signal: _Signal = Field(description="The signal's name.")
    timeout: _Period = Field(None, description="How long the node waits before it fails; else for ever.")


class SubWorkflowFields(PlaceFields):
    """The fields of a node that runs another workflow as its child."""

    workflow: _WorkflowName = Field(description="The child's name: one of the `workflows`, or the workflow's own.")
    input: _Input = Field(None, description="The child's input; JSON, with expressions in it.")
    retry: _Retry = Field(None, description="When a child that failed is followed by a new one; else never.")
    compensate: _Compensation = Field(None, description="The capability that undoes the child; else it undoes itself.")


KINDS: Mapping[str, type[PlaceFields]] = {
    "task": TaskFields,
    "map": MapFields,
    "approval": ApprovalFields,
    "wait": WaitFields,
    "wait_until": WaitUntilFields,
    "await_signal": AwaitSignalFields,
    "workflow": SubWorkflowFields,
}
"""The models of the kinds of nodes, by the field that only this kind has."""


def kinds_of(document: Mapping[str, Any]) -> list[str]:
    """Return the kinds (task, map, approval, ...) whose field a node's document has; a valid document has one."""
    return [kind for kind in KINDS if kind in document]


def _kind(document: object) -> str | None:
    """Return a node document's kind, such as task or map; None when its fields name no kind, or several."""
    kinds = kinds_of(document) if isinstance(document, dict) else []
    return kinds[0] if len(kinds) == 1 else None


_Task: TypeAlias = Annotated[TaskFields, Tag("task")]
_Map: TypeAlias = Annotated[MapFields, Tag("map")]
_Approval: TypeAlias = Annotated[ApprovalFields, Tag("approval")]
_Wait: TypeAlias = Annotated[WaitFields, Tag("wait")]
_WaitUntil: TypeAlias = Annotated[WaitUntilFields, Tag("wait_until")]
_AwaitSignal: TypeAlias = Annotated[AwaitSignalFields, Tag("await_signal")]
_SubWorkflow: TypeAlias = Annotated[SubWorkflowFields, Tag("workflow")]
_Work: TypeAlias = _Task | _Map | _Approval | _Wait | _WaitUntil | _AwaitSignal | _SubWorkflow
Nodes: TypeAlias = dict[_NodeName, Annotated[_Work, Discriminator(_kind)]]


class ChildFields(_Fields):
    """The fields of a sub-workflow, which nodes run as a child; its name is its key in `workflows`."""

    description: _Text = Field("", description="What the workflow is for.")
    nodes: Nodes = Field(description="The nodes by their names; at most 1,000.")


class WorkflowFields(_Fields):
    """The fields of a whole workflow document: name, description and nodes."""

    name: _WorkflowName = Field(description="The workflow's name.")
    description: _Text = Field("", description="What the workflow is for.")
    labels: _Labels = Field(
        default_factory=dict, description="The labels of each run: texts by their names, at most 16."
    )
    retention: _Period = Field(None, description="How long a run is kept after its end; else by the dispatcher's.")
    nodes: Nodes = Field(description="The nodes by their names.")
    workflows: dict[_WorkflowName, ChildFields] = Field({}, description="The workflows that nodes run as children.")

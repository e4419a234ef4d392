"""`coditect capability`: see what the fleet offers with an example of each input, and what it learned from failures."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Mapping
from dataclasses import asdict
from typing import Annotated, Any

import typer

from coditect.aio.loop import run_loop
from coditect.cli.connections import ask, complete_capability, connections
from coditect.cli.terminal.options import ShownAnswer, WatchOption, only_with, present, presented, read_body
from coditect.cli.terminal.output import Aside, FieldsView, Output, OutputOption, TableView, instant, json_text, say
from coditect.cli.terminal.tables import show_why_not
from coditect.codec import is_binary
from coditect.errors import InputError
from coditect.integrations.pattern import matcher
from coditect.model.capability import CapabilitySpec, Priority, check_capability_name
from coditect.operations import fleet
from coditect.operations.connections import Connections
from coditect.operations.documents import SpecDocument
from coditect.operations.explain import TaskQuestion
from coditect.operations.fleet import CapabilityOffer
from coditect.operations.locate import why_not_capability
from coditect.registry.port import Search

_TEXTS = ("text", "a", "A", "0", "1.0.0", "a@example.org", "https://example.org/", "a.b", "/a", "AAA", "000", "a-0")
_FORMATS: Mapping[str, str] = {
    "date-time": "2030-01-01T00:00:00Z",
    "date": "2030-01-01",
    "time": "00:00:00Z",
    "duration": "PT1M",
    "uuid": "00000000-0000-4000-8000-000000000000",
    "uri": "https://example.org/",
    "email": "a@example.org",
    "ipv4": "192.0.2.1",
    "ipv6": "2001:db8::1",
    "ipvanyaddress": "192.0.2.1",
    "ipv4network": "192.0.2.0/24",
    "ipv6network": "2001:db8::/32",
    "ipvanynetwork": "192.0.2.0/24",
    "json-string": "{}",
}


class Example:
    """An example value for one JSON Schema (`body`), and a list of its parts that may not fit the schema (`unsure`)."""

    def __init__(self, schema: Mapping[str, Any]) -> None:
        self._definitions = schema.get("$defs") or {}
        self.unsure: list[str] = []
        self.body = self._value(schema, "body", (), 0)

    def _value(self, schema: Any, at: str, within: tuple[str, ...], nth: int) -> Any:
        """Return an example value for a schema; a different number `nth` may give a different value.

        `within` are the definitions around the value.
        """
        schema = schema if isinstance(schema, Mapping) else {}  # true: anything
        if (name := _definition(schema)) is not None:
            if name in within:
                self.unsure.append(f"{at}: the schema requires itself")
                return None
            return self._value(self._definitions.get(name), at, (*within, name), nth)
        if "const" in schema:
            return schema["const"]
        if values := schema.get("examples") or schema.get("enum"):
            return values[nth % len(values)]
        if choices := schema.get("anyOf") or schema.get("oneOf"):
            return self._value(min(choices, key=lambda choice: _rank(choice, within)), at, within, nth)
        return self._typed(schema, at, within, nth)

    def _typed(self, schema: Mapping[str, Any], at: str, within: tuple[str, ...], nth: int) -> Any:
        match schema.get("type"):
            case "string":
                return self._text(schema, at, nth)
            case "integer" | "number":
                return self._number(schema, at, nth)
            case "boolean":
                return nth % 2 == 1
            case "null":
                return None
            case "array":
                return self._list(schema, at, within)
            case _:
                return self._object(schema, at, within, nth)

    def _object(self, schema: Mapping[str, Any], at: str, within: tuple[str, ...], nth: int) -> dict[str, Any]:
        fields, others = schema.get("properties") or {}, schema.get("additionalProperties")
        names = [str(name) for name in schema.get("required") or ()]
        names += [str(number) for number in range(len(names), schema.get("minProperties", 0))]
        return {name: self._value(fields.get(name, others), f"{at}.{name}", within, nth) for name in names}

    def _list(self, schema: Mapping[str, Any], at: str, within: tuple[str, ...]) -> list[Any]:
        first, items = schema.get("prefixItems") or [], schema.get("items")
        shown = 1 if isinstance(items, Mapping) and _rank(items, within) < _ITSELF else 0
        size = max(len(first), schema.get("minItems", 0), min(shown, schema.get("maxItems", 1)))
        kinds = [*first, *[items] * (size - len(first))]
        return [self._value(kind, f"{at}[{number}]", within, number) for number, kind in enumerate(kinds)]

    def _text(self, schema: Mapping[str, Any], at: str, nth: int) -> str:
        if (form := str(schema.get("format"))) in _FORMATS:
            return _FORMATS[form]
        shortest, longest = schema.get("minLength", 0), schema.get("maxLength", math.inf)
        pattern = str(schema.get("pattern") or "")
        texts = [f"{text}{number or ''}" for text in _TEXTS for number in range(nth + 1)]
        texts += [text.rjust(shortest, text[0]) for text in texts] + [str(number) for number in range(nth + 1)] + [""]
        fitting = [text for text in texts if shortest <= len(text) <= longest and _matches(pattern, text)]
        if fitting:
            return fitting[nth % len(fitting)]
        self.unsure.append(f"{at}: a text that matches {pattern}")
        return pattern

    def _number(self, schema: Mapping[str, Any], at: str, nth: int) -> int | float:
        """Return a small number, or one near a bound, that the schema allows; if none is found, note that in `unsure`.

        Another `nth` gives another number where several fit.
        """
        low = max(schema.get("minimum", -math.inf), schema.get("exclusiveMinimum", -math.inf))
        high = min(schema.get("maximum", math.inf), schema.get("exclusiveMaximum", math.inf))
        bounds = [bound for bound in (low, high) if math.isfinite(bound)]
        step = schema.get("multipleOf") or 1
        starts = [step, 0, *(math.ceil(bound / step) * step for bound in bounds), *bounds, sum(bounds) / 2]
        steps = [sign * number * step for number in range(nth + 2) for sign in (1, -1)]
        fitting = dict.fromkeys(
            int(number) if schema["type"] == "integer" else number
            for number in (start + more for start in starts for more in steps)
            if _fits(schema, number)
        )
        if fitting:
            return list(fitting)[nth % len(fitting)]
        self.unsure.append(f"{at}: a number within its bounds")
        return step


_ITSELF = 3


def _definition(schema: Mapping[str, Any]) -> str | None:
    return str(schema["$ref"]).rpartition("/")[2] if "$ref" in schema else None


def _rank(schema: Mapping[str, Any], within: tuple[str, ...]) -> int:
    """Return the rank of one of several alternative schemas; the alternative with the lowest rank is used.

    A plain schema ranks first, then a definition, then null, and last a definition that contains the alternative.
    """
    name = _definition(schema)
    if name is not None:
        return _ITSELF if name in within else 1
    return 2 if schema.get("type") == "null" else 0


def _fits(schema: Mapping[str, Any], number: float) -> bool:
    return bool(
        schema.get("minimum", -math.inf) <= number <= schema.get("maximum", math.inf)
        and schema.get("exclusiveMinimum", -math.inf) < number < schema.get("exclusiveMaximum", math.inf)
        and number % schema.get("multipleOf", 1 if schema["type"] == "integer" else number or 1) == 0
    )


def _matches(pattern: str, text: str) -> bool:
    try:
        return matcher(pattern)(text)
    except InputError:  # a dialect with look-around
        return False


app = typer.Typer(no_args_is_help=True)

LessonsOption = Annotated[
    bool, typer.Option("--lessons", help="Show what failed, why, and what fixed it; frequent and recent ones first.")
]
SPEC_COLUMNS = ("timeout s", "cost", "tags", "description")


@app.command("list")
@presented
async def list_capabilities(
    context: typer.Context,
    tag: Annotated[str | None, typer.Option(help="Only with this tag, of its own or of an agent's.")] = None,
    keyword: Annotated[
        str | None, typer.Option("--keyword", "-k", help="Only with this word in a name, description or tag.")
    ] = None,
    lessons: LessonsOption = False,
) -> ShownAnswer:
    """List the capabilities that the living agents offer, or with --lessons what was learned about all capabilities.

    \b
    Example: coditect capability list
    """
    if lessons and (tag or keyword):
        raise InputError("Lessons are not searched", fix="--lessons without --tag and --keyword")
    opened, search = connections(context), Search(tag=tag, keyword=keyword)
    if lessons:
        return await _lessons(opened, None)
    offers = await fleet.find_offers(opened, search)
    columns = ("capability", "agents", *SPEC_COLUMNS)
    rows = [(offer.spec.name, len(offer.agents), *spec_cells(offer.spec)) for offer in offers]
    table = TableView(columns, rows, "No agent is registered.")
    return ShownAnswer([_capability_json(offer) for offer in offers], (table,))


@app.command("get")
def get_capability(
    context: typer.Context,
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME", help="As `coditect capability list` shows it.", autocompletion=complete_capability
        ),
    ],
    why_not: Annotated[
        bool, typer.Option("--why-not", help="Say why each agent would or would not take such a task now.")
    ] = False,
    priority: Annotated[
        Priority, typer.Option("--priority", "-p", help="With --why-not: the task's priority.")
    ] = Priority.P1,
    tag: Annotated[list[str] | None, typer.Option(help="With --why-not: wanted of the agent; can be repeated.")] = None,
    input_text: Annotated[
        str | None,
        typer.Option("--input", metavar="JSON|@FILE|-", help="With --why-not: what agents should need for this input."),
    ] = None,
    lessons: LessonsOption = False,
    output: OutputOption = Output.TABLE,
    watch: WatchOption = False,
) -> None:
    """Show one capability: its agents, schemas, and an example task.

    With --why-not, exits 4 when no agent offers the capability and it has no queue.

    \b
    Example: coditect capability get hello.greet
             coditect capability get hello.greet --why-not --priority p0
    """
    opened = connections(context)
    only_with(context, ("why_not",), "priority", "tag", "input_text")
    if why_not and (lessons or watch):
        raise InputError("These options show different things", fix="--lessons, --watch or both; or --why-not")
    if why_not:
        body = None if input_text is None else read_body(input_text)
        question = TaskQuestion(check_capability_name(name), priority, frozenset(tag or ()), body)
        show_why_not(run_loop(why_not_capability(opened, question)), output)
        return

    async def look() -> ShownAnswer:
        return await _lessons(opened, name) if lessons else _capability(await fleet.get_offer(opened, name))

    present(look, output, watch=watch)


def _capability(offer: CapabilityOffer) -> ShownAnswer:
    spec, example = offer.spec, Example(offer.spec.input_schema)
    shown = {
        "capability": spec.name,
        "description": spec.description,
        "agents": offer.agents,
        "versions": offer.versions,
        "tags": spec.tags,
        "cost": spec.cost,
        "timeout s": spec.timeout_seconds,
        "strategy": spec.strategy,
        "max queued": spec.max_queued,
        "rate": None if spec.rate is None else str(spec.rate),
        "input": json_text(spec.input_schema),
        "value": json_text(spec.output_schema),
        "try": _try(spec, example),
    }
    asides = [Aside(f"The example has to be filled in at {place}") for place in example.unsure]
    return ShownAnswer(_capability_json(offer), (FieldsView(shown), *asides))


async def _lessons(opened: Connections, capability: str | None) -> ShownAnswer:
    async with opened.fleet() as client:
        rows = await client.lessons.list(capability)
    columns = ("lesson", "capability", "failed", "why", "times", "last seen", "fixed by", "tasks")
    cells = [
        (
            row.id,
            row.capability,
            row.failed,
            row.why + (f" (advice: {row.advice})" if row.advice else ""),
            str(row.count),
            instant(row.last_ms),
            ", ".join(f"{fix} ({times})" for fix, times in row.fixes.items()),
            " ".join(row.tasks),
        )
        for row in rows
    ]
    return ShownAnswer(rows, (TableView(columns, cells, "Nothing has been learned."),))


def _capability_json(offer: CapabilityOffer) -> dict[str, object]:
    spec = offer.spec
    example = Example(spec.input_schema)
    return {
        **spec_json(spec),
        "agents": offer.agents,
        "versions": offer.versions,
        "example": example.body,
        "example_unsure": example.unsure,
    }


def spec_cells(spec: CapabilitySpec) -> tuple[object, ...]:
    """Return a capability's timeout, cost, tags and description as the cells of a table row."""
    return spec.timeout_seconds, spec.cost, spec.tags, spec.description


def spec_json(spec: CapabilitySpec) -> dict[str, object]:
    """Return a capability's declaration as JSON values for `--output json`."""
    return asdict(SpecDocument.of(spec))


def _try(spec: CapabilitySpec, example: Example) -> str:
    if is_binary(spec.input_schema):
        return f"coditect task submit {spec.name} @file --bytes"
    durable = " --detach" if spec.long else ""
    return f"coditect task submit {spec.name} {shlex.quote(json.dumps(example.body, ensure_ascii=False))}{durable}"


@app.command("forget")
def forget_lessons(
    context: typer.Context,
    capability: Annotated[str, typer.Argument(metavar="CAPABILITY", autocompletion=complete_capability)],
    lesson: Annotated[
        str | None, typer.Argument(metavar="[LESSON]", help="Its id, as --lessons prints it. Default: all.")
    ] = None,
) -> None:
    """Forget one lesson of a capability, or all; a failure that comes again is learned again.

    \b
    Example: coditect capability forget code.review 3f2a9c1e
    """
    forgotten = ask(context, lambda client: client.lessons.forget(capability, lesson))
    say(f"{forgotten} {'lesson' if forgotten == 1 else 'lessons'} of {capability} forgotten.")

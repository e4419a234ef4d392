"""Markdown agents: files with front matter, as coding assistants use them, each of which becomes a capability.

A language model does the work, through `coditect.chat`: it is asked and its tools are called, until it answers. What it
answers is text of a stranger: it can call the capabilities that its file names, with inputs that fit their schemas, and
nothing else.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from coditect.agent.context import Context
from coditect.agent.declaration import Agent
from coditect.chat.port import (
    ChatBudget,
    ChatMessage,
    ChatModel,
    ChatRequest,
    ChatRole,
    ChatTool,
    ChatUnavailable,
    ToolCall,
)
from coditect.collaboration.lessons import Prompting
from coditect.errors import CoditectError, InputError, InvalidWorkflow, SetupError
from coditect.integrations.json_schema import SchemaCheck
from coditect.integrations.tools import INPUT, OfferedCapabilities, as_object, input_of
from coditect.model.capability import CapabilitySpec
from coditect.model.limits import Breaker
from coditect.registry.port import Registry
from coditect.wire.json import dumps, loads

log = logging.getLogger(__name__)

MAX_MARKDOWN_BYTES = 256 * 1024
MOST_FILES = 200
_LINE_END = re.compile(r"\r\n?|\n")
_FENCE = re.compile(r"[ \t]*---[ \t]*")
_PLAIN_WITH_COLON = re.compile(r"""^(\w+:[ \t]+)([^\s"'|>\[{&*!#%@`].*:[ \t].*?)[ \t]*$""", re.MULTILINE)
_TOOL = re.compile(r"[^\s,(]+(?:\([^)]*\))?")
"""A name in a list of tools, such as `text.count`, or `Bash(git log:*)` of other assistants."""


def tool_name(capability: str) -> str:
    """Return the name by which a model knows a capability: with underscores for dots, and at most 64 characters."""
    return capability.replace(".", "_")[:64]


class MarkdownAgent(BaseModel):
    """The front matter and the text of one file; fields that only other assistants know are ignored."""

    model_config = ConfigDict(extra="ignore", frozen=True, use_attribute_docstrings=True)

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]*$", max_length=60)
    """The name, from which the capability has its own."""
    description: str = Field(min_length=1, max_length=4_000)
    """What the agent is for; the registry shows it."""
    tools: tuple[str, ...] = ()
    """The capabilities that the model may call: a list, or names with commas or blanks between."""
    model: str | None = None
    """The model; none, or `inherit`, for that of the settings."""
    instructions: str = ""
    """The text below the front matter, which the model gets first."""

    @field_validator("tools", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        return tuple(_TOOL.findall(value)) if isinstance(value, str) else value or ()

    @field_validator("tools")
    @classmethod
    def _each_by_its_name(cls, tools: tuple[str, ...]) -> tuple[str, ...]:
        """Refuse tools that would have the same name for a model, since a call could reach only one of them."""
        for name, count in Counter(map(tool_name, dict.fromkeys(tools))).items():
            if count > 1:
                raise ValueError(f"{count} of them have the name {name} for a model; leave all but one out")
        return tools

    @field_validator("model", mode="before")
    @classmethod
    def _own(cls, value: Any) -> Any:
        return None if value == "inherit" else value


def read_folder(folder: Path) -> list[MarkdownAgent]:
    """Read the markdown agents of the `*.md` files in a folder and the folders below it, in order of the paths.

    A file that is no markdown agent, such as a README, is left out and logged with the reason, and so is the later of
    two with one name. A link to a folder is followed.

    Raises:
        SetupError: when there is no such folder, it has too many files, or no file is an agent; it has the reasons.
    """
    if not folder.is_dir():
        raise SetupError("There is no such folder", path=str(folder)[:200], fix="name a folder of *.md files")
    paths = sorted(_markdown_paths(folder))
    if len(paths) > MOST_FILES:
        fix = "name a folder of *.md files with front matter"
        raise SetupError("A folder of markdown agents has 1 to 200 files", path=str(folder), files=len(paths), fix=fix)
    found: dict[str, MarkdownAgent] = {}
    problems = list[str]()
    for path in paths:
        try:
            agent = read_agent(_text(path), path=str(path))
            if agent.name in found:
                raise SetupError("Another file has an agent of this name", name=agent.name, path=str(path))
            found[agent.name] = agent
        except SetupError as error:
            problems.append(str(error))
            log.warning("A file is left out: it is no markdown agent", extra={"path": str(path), "reason": str(error)})
    if not found:
        fix = "name a folder of *.md files with front matter"
        raise SetupError("No file of the folder is a markdown agent", path=str(folder), problems=problems[:5], fix=fix)
    return list(found.values())


def _markdown_paths(folder: Path) -> Iterator[Path]:
    """Yield the paths `*.md` below a folder that are not hidden; each folder is read once, whatever links lead to it.

    A folder that cannot be read is left out and logged.
    """
    seen = set[str]()
    for place, folders, files in os.walk(folder, followlinks=True, onerror=_leave_out):
        if (real := os.path.realpath(place)) in seen:  # by another link, perhaps one that leads back
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        names = (name for name in (*folders, *files) if not name.startswith(".") and name.lower().endswith(".md"))
        yield from (Path(place, name) for name in names)


def _leave_out(error: OSError) -> None:
    log.warning("A folder is left out: it cannot be read", extra={"path": str(error.filename), "reason": str(error)})


def read_agent(text: str, *, path: str = "") -> MarkdownAgent:
    """Read one markdown agent from the text of its file.

    Byte order marks, empty lines before the front matter and blanks around its `---` are ignored.

    Raises:
        SetupError: when it has no front matter, or a field is missing or wrong; the error says which.
    """
    lines = _LINE_END.split(text.lstrip("\ufeff"))
    begin = next((number for number, line in enumerate(lines) if line.strip()), len(lines))
    first = "".join(lines[begin : begin + 1])
    if _FENCE.fullmatch(first) is None:
        fix = "begin with the lines: ---, name: NAME, description: TEXT, ---"
        raise SetupError("A markdown agent begins with front matter", path=path, first_line=first[:100], fix=fix)
    end = next((number for number in range(begin + 1, len(lines)) if _FENCE.fullmatch(lines[number])), None)
    if end is None:
        raise SetupError("The front matter has no end", path=path, fix="put a line --- below the fields")
    try:
        values = _fields("\n" * (begin + 1) + "\n".join(lines[begin + 1 : end]))
        if not isinstance(values, dict):
            raise SetupError("The front matter has no fields", path=path, fix="name: NAME, description: TEXT")
        return MarkdownAgent.model_validate({**values, "instructions": "\n".join(lines[end + 1 :]).strip()})
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}" for problem in error.errors()[:5]]
        raise SetupError("The front matter is wrong", path=path, problems=problems, fix="mend these fields") from error
    except SetupError:
        raise
    except CoditectError as error:
        raise SetupError("The front matter is no YAML", path=path, reason=str(error)) from error


def _fields(front_matter: str) -> Any:
    """Return the values of front matter; a plain text may have a colon and a blank, as other assistants write it.

    Raises:
        InvalidWorkflow: when it is no YAML; with the line.
    """
    from coditect.workflow.documents.file import read_values  # noqa: PLC0415 - an optional dependency

    try:
        return read_values(front_matter)
    except InvalidWorkflow:
        # YAML has the escapes of JSON, except for a surrogate pair
        quoted = _PLAIN_WITH_COLON.sub(lambda found: found[1] + json.dumps(found[2], ensure_ascii=False), front_matter)
        return read_values(quoted)


def _text(path: Path) -> str:
    try:
        if not path.is_file():  # a folder, or a pipe: to read one without a writer waits for ever
            raise SetupError("A markdown agent is a regular file", path=str(path))
        with path.open("rb") as file:
            content = file.read(MAX_MARKDOWN_BYTES + 1)
        if len(content) > MAX_MARKDOWN_BYTES:
            raise SetupError("A markdown agent is too large", path=str(path), most_bytes=MAX_MARKDOWN_BYTES)
        return content.decode().replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        fix = "save it as UTF-8"
        raise SetupError("A markdown agent is no UTF-8", path=str(path), reason=str(error), fix=fix) from error
    except OSError as error:
        raise SetupError("A markdown agent cannot be read", path=str(path), reason=str(error)) from error


MOST_ROUNDS = 20
MOST_CALLS = 50
LONGEST_RESULT = 32_000
"""The most characters of a tool's result that the model gets."""

Request = Callable[[str, Any], Awaitable[Any]]
"""Requests a capability of the fleet with an input, and returns its value."""


def _described(name: str, spec: CapabilitySpec) -> ChatTool:
    """Return a capability as a model sees it: the tool's name, its description, and the schema of its arguments."""
    return ChatTool(name, spec.description[:1_000], as_object(spec.input_schema, INPUT))


def _input_of(spec: CapabilitySpec, arguments: str) -> Any:
    """Parse the arguments that a model wrote, check them by the tool's schema, and return the task's input.

    Raises:
        InvalidTask: when they are no JSON, or do not fit the schema.
    """
    value = loads(arguments.encode(errors="replace") or b"{}")
    SchemaCheck(as_object(spec.input_schema, INPUT)).check(value)
    return input_of(spec, value)


@dataclass(slots=True)
class Conversation:
    """The conversation with a language model about one task, bounded by tokens and by how often the model is called."""

    model: ChatModel
    budget: ChatBudget
    tools: Mapping[str, CapabilitySpec]
    """The capabilities that the model may call, by their names as tools."""
    request: Request
    _: KW_ONLY
    most_rounds: int = MOST_ROUNDS
    _called: int = 0

    async def answer(self, instructions: str, value: Any, *, model: str | None = None, records: str = "") -> str:
        """Give the model an input, call the tools that it asks for, and return its first answer that asks for none.

        `records` are data beside the input, as a message before it: they are no part of the instructions.

        Raises:
            InputError: when the model calls tools without end.
            BudgetSpent: when the budget is used up.
            CoditectError: the others of `ChatModel.ask`; some are retryable.
        """
        text = value if isinstance(value, str) else dumps(value).decode()
        messages = [ChatMessage(ChatRole.SYSTEM, instructions), ChatMessage(ChatRole.USER, text)]
        if records:
            messages.insert(1, ChatMessage(ChatRole.USER, records))
        tools = tuple(_described(name, spec) for name, spec in self.tools.items())
        for _ in range(self.most_rounds):
            answer = await self.model.ask(ChatRequest(tuple(messages), tools, model=model), self.budget)
            if not answer.tool_calls:
                return answer.text
            messages.append(ChatMessage(ChatRole.ASSISTANT, answer.text, answer.tool_calls))
            for call in answer.tool_calls:
                messages.append(ChatMessage(ChatRole.TOOL, await self._call(call), answers=call.id))
        raise InputError("The model did not come to an answer", rounds=self.most_rounds, fix="narrow the task")

    async def _call(self, call: ToolCall) -> str:
        """Call a tool, and return the text that the model reads: the tool's answer, or why it was refused or failed."""
        self._called += 1
        spec = self.tools.get(call.name)
        if spec is None:
            return f"Refused: there is no tool {call.name[:100]!r}; there are {', '.join(self.tools) or 'none'}"
        if self._called > MOST_CALLS:
            return f"Refused: more than {MOST_CALLS} calls; answer with what you have"
        try:
            return dumps(await self.request(spec.name, _input_of(spec, call.arguments))).decode()[:LONGEST_RESULT]
        except CoditectError as error:
            return f"Failed: {str(error)[:2_000]}"


CONVERSATION_TOKENS = 100_000
MARKDOWN_TIMEOUT = "10m"


@dataclass(frozen=True, slots=True)
class ModelRoom:
    """The model, the fleet's capabilities, an attempt's token budget and the lessons, for a markdown agent's tasks."""

    model: ChatModel
    offers: OfferedCapabilities
    most_tokens: int
    lessons: Prompting


def markdown_agent(
    name: str,
    files: Sequence[MarkdownAgent],
    model: Callable[[], AbstractAsyncContextManager[ChatModel]],
    registry: Callable[[], AbstractAsyncContextManager[Registry]],
    *,
    most_tokens: int = CONVERSATION_TOKENS,
    slots: int = 8,
) -> Agent:
    """Return the agent whose capabilities are markdown agents, such as `NAME.reviewer` for the agent `reviewer`.

    `model` opens the language model when the agent starts, `registry` the registry that says which tools there are;
    `most_tokens` is the budget of each attempt at a task. A model that does not answer opens the breaker `chat`, and
    its tasks wait.

    Raises:
        SetupError: when a name is invalid.
    """

    @asynccontextmanager
    async def room(_: Agent) -> AsyncIterator[ModelRoom]:
        async with model() as opened, registry() as known:
            yield ModelRoom(opened, OfferedCapabilities(known.find), most_tokens, Prompting())

    agent = Agent(name, slots=slots, lifespan=room, description="Markdown agents, done by a language model.")
    breaker = Breaker("chat", on=(ChatUnavailable,))
    for file in files:
        declare = agent.capability(
            f"{name}.{file.name}", description=file.description, timeout=MARKDOWN_TIMEOUT, breaker=breaker
        )
        declare(_handler(file))
    return agent


def _handler(file: MarkdownAgent) -> Callable[[Any, Context], Awaitable[str]]:
    async def work(value: Any, ctx: Context) -> str:
        room: ModelRoom = ctx.lifespan
        known = await room.offers.as_tools() if file.tools else {}
        tools = {tool_name(tool): known[tool] for tool in file.tools if tool in known and tool != ctx.capability}
        if missing := [tool for tool in file.tools if tool not in known]:
            log.warning("Tools of a markdown agent are not offered", extra={"agent": file.name, "missing": missing})
        talk = Conversation(room.model, ChatBudget(room.most_tokens), tools, ctx.request)
        learned = await room.lessons.text(ctx.services, ctx.capability, *(spec.name for spec in tools.values()))
        return await talk.answer(file.instructions, value, model=file.model, records=learned)

    return work

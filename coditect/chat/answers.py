"""The answer of a chat endpoint, put together from the parts of a stream (chat completions, `stream: true`).

A part has a piece of text, or pieces of calls: the first piece of a call has its id and name, further ones only the
call's index and more of its arguments. The last part has the usage, and no choice.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, Field, ValidationError

from coditect.chat.budget import BYTES_PER_TOKEN, MOST_BYTES_PER_TOKEN, TokenUsage
from coditect.chat.failures import ChatBroken, ChatUnavailable
from coditect.chat.port import ChatAnswer, ToolCall

MOST_CALLS = 64
"""The largest number of tool calls in one answer."""
_Text = Annotated[str, BeforeValidator(lambda given: "" if given is None else given)]
_LONGEST_REASON = 300


def _listed(given: Any) -> Any:
    return [] if given is None else given


class _Function(BaseModel):
    name: _Text = ""
    arguments: _Text = ""


class _CallPiece(BaseModel):
    index: int = Field(0, ge=0, lt=MOST_CALLS)
    id: _Text = ""
    function: _Function = _Function()


class _Delta(BaseModel):
    content: _Text = ""
    refusal: _Text = ""
    tool_calls: Annotated[list[_CallPiece], BeforeValidator(_listed)] = []


class _Choice(BaseModel):
    delta: _Delta = _Delta()
    finish_reason: _Text = ""


class _Usage(BaseModel):
    prompt_tokens: int = Field(0, ge=0, le=10**9)
    completion_tokens: int = Field(0, ge=0, le=10**9)


class _AnswerPart(BaseModel):
    choices: Annotated[list[_Choice], BeforeValidator(_listed)] = []
    usage: _Usage | None = None
    error: Any = None


@dataclass(slots=True)
class _Call:
    id: str = ""
    name: str = ""
    arguments: str = ""


@dataclass(slots=True)
class AnswerParts:
    """The parts of one streamed answer that have arrived so far."""

    request_bytes: int
    began: bool = False
    """Whether the endpoint took the request, so that it costs something."""
    _texts: list[str] = field(default_factory=list)
    _calls: dict[int, _Call] = field(default_factory=dict)
    _finish: str = ""
    _refusal: str = ""
    _told: TokenUsage | None = None
    _answer_bytes: int = 0

    @property
    def usage(self) -> TokenUsage:
        """The numbers of input and output tokens, as the endpoint reports them; without a report, estimates.

        A report is raised to at least one token for 16 bytes; an estimate is one token for 4 bytes.
        """
        asked, answered = self.request_bytes, self._answer_bytes
        if self._told is None:
            return TokenUsage(asked // BYTES_PER_TOKEN, answered // BYTES_PER_TOKEN)
        least = TokenUsage(asked // MOST_BYTES_PER_TOKEN, answered // MOST_BYTES_PER_TOKEN)
        return TokenUsage(max(self._told.input, least.input), max(self._told.output, least.output))

    @property
    def least_tokens(self) -> int:
        """The least number of tokens that the answer so far can have: one for every whole 16 bytes."""
        return self._answer_bytes // MOST_BYTES_PER_TOKEN

    def add(self, data: str) -> str:
        """Add a part of the stream, given as JSON, and return its piece of the answer's text, which may be empty.

        Raises:
            ChatBroken: when it is no part of an answer.
            ChatUnavailable: when it is the endpoint's report of an error.
        """
        try:
            part = _AnswerPart.model_validate_json(data)
        except ValidationError as error:
            reason = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors()[:3])
            raise ChatBroken("A part of the answer does not follow the protocol", reason=reason) from error
        if part.error is not None:
            raise ChatUnavailable("The endpoint broke the answer off", reason=str(part.error)[:_LONGEST_REASON])
        if part.usage is not None:
            self._told = TokenUsage(part.usage.prompt_tokens, part.usage.completion_tokens)
        text = ""
        for choice in part.choices[:1]:
            text = choice.delta.content
            self._finish = choice.finish_reason or self._finish
            self._refusal = (self._refusal + choice.delta.refusal)[:_LONGEST_REASON]
            self._texts.append(text)
            self._answer_bytes += len(text.encode(errors="replace"))
            for piece in choice.delta.tool_calls:
                self._add_call(piece)
        return text

    def _add_call(self, piece: _CallPiece) -> None:
        call = self._calls.setdefault(piece.index, _Call())
        call.id, call.name = call.id or piece.id, call.name or piece.function.name
        call.arguments += piece.function.arguments
        self._answer_bytes += len(piece.function.arguments.encode(errors="replace"))

    def whole(self) -> ChatAnswer:
        """Return the answer of all parts together, or raise ChatBroken if it is cut off, withheld, refused or empty.

        Raises:
            ChatBroken: when the stream ended too early, at the limit of tokens, or by a filter, or says nothing.
        """
        match self._finish:
            case "":
                raise ChatBroken("The answer ended before its end", fix="ask again")
            case "length":
                raise ChatBroken("The answer reached its limit of tokens", tokens=self.usage.output, fix="allow more")
            case "content_filter":
                raise ChatBroken("The endpoint's filter withheld the answer", fix="ask in other words")
        calls = [self._calls[index] for index in sorted(self._calls)]
        found = tuple(ToolCall(one.id or f"call-{at}", one.name, one.arguments) for at, one in enumerate(calls))
        text = "".join(self._texts)
        if self._refusal:
            raise ChatBroken("The model refuses to answer", reason=self._refusal, fix="ask in other words")
        if not text and not found:
            raise ChatBroken("The answer is empty", fix="ask again")
        return ChatAnswer(text, found, self.usage)

"""Reader and writer of workflow files in YAML or JSON; an error in a file is reported with its line number.

The text is untrusted. The reader takes events, without tags, anchors or Python objects; a repeated key, a document
over 8 MB, and a document nested over 200 levels are refused. Plain words of YAML mean what version 1.2 says: `yes`,
`on` and `2026-01-01` are text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn

from coditect.errors import InvalidWorkflow, NotFound, Problem, missing_extra
from coditect.workflow.definition import Definition
from coditect.workflow.documents.document import to_document
from coditect.workflow.documents.reader import from_document
from coditect.workflow.expressions import check_expressions
from coditect.workflow.graph import check_definition
from coditect.workflow.template import Path as Place

try:
    import yaml
except ModuleNotFoundError as _missing:
    raise missing_extra("workflow") from _missing

DOCUMENT_BYTES_LIMIT = 8_000_000
MOST_LEVELS = 200

_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_Dumper: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
_WORDS: dict[str, bool | None] = {"": None, "~": None, "null": None, "Null": None, "NULL": None}
_WORDS |= {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_WHOLE = re.compile(r"[-+]?[0-9]+")
_FRACTION = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_MOST_DIGITS = 40
_json_string: Any = vars(json.decoder)["scanstring"]  # since ever, and not in the type stubs
_OTHER_LINE_ENDS = "\x85\u2028\u2029"
"""Line ends of YAML 1.1, which version 1.2 reads as any other character."""
_STAND_INS = "\U0001fffe\U0001ffff\U0002fffe"
"""Characters that no text has: Unicode keeps them for such use."""
_HIDE_LINE_ENDS = str.maketrans(_OTHER_LINE_ENDS, _STAND_INS)
_SHOW_LINE_ENDS = str.maketrans(_STAND_INS, _OTHER_LINE_ENDS)
_TOKEN = re.compile(r'[\s,:]*(?:([\[\]{}])|(")|([^\s,:\[\]{}"]+))')


def load_workflow(path: Path | str, *, capabilities: Collection[str] | None = None) -> Definition:
    """Read and check the workflow definition in a file: JSON when its name ends in `.json`, else YAML.

    With `capabilities`, any other capability is a problem.

    Raises:
        NotFound: when the file cannot be read.
        InvalidWorkflow: with line, place and remedy of every problem that was found.
    """
    path = Path(path)
    return read_workflow(read_file(path), is_json=path.suffix == ".json", capabilities=capabilities)


def read_file(path: Path, *, noun: str = "file", most_bytes: int = DOCUMENT_BYTES_LIMIT, **facts: str) -> bytes:
    """Return the content of a file; of one that is larger, `most_bytes` and one byte more, which its reader refuses.

    Raises:
        NotFound: when the file cannot be read; the error names it by the noun, and has the facts.
    """
    try:
        with path.open("rb") as file:
            return file.read(most_bytes + 1)
    except (OSError, ValueError) as error:  # no path has a null byte
        shown, reason = str(path)[:200], str(error)[:200]
        raise NotFound(f"There is no such {noun} to read", path=shown, reason=reason, **facts) from error


def read_workflow(content: bytes, *, is_json: bool = False, capabilities: Collection[str] | None = None) -> Definition:
    """Read and check the workflow definition in the bytes of a YAML or JSON document.

    Raises:
        InvalidWorkflow: with line, place and remedy of every problem that was found.
    """
    text = _text_of(content)
    events = _json_events if is_json else _yaml_events
    try:
        definition = from_document(_Builder().build(events(text)))
        check_definition(definition, capabilities=capabilities, others=check_expressions(definition))
    except InvalidWorkflow as error:
        if any(problem.line for problem in error.problems):
            raise
        # Lines are looked for only now: they are wanted for few places, of a document that may have many.
        lines = _Builder(wanted=frozenset(_and_above(error.problems)))
        lines.build(events(text))
        located = tuple(replace(problem, line=lines.line(problem.path)) for problem in error.problems)
        known = {name: fact for name, fact in error.facts.items() if name == "workflow"}
        raise InvalidWorkflow.of(tuple(sorted(located, key=lambda problem: problem.line or 0)), **known) from None
    return definition


def parse_document(content: bytes, *, is_json: bool = False) -> Any:
    """Return the value of a YAML or JSON document other than a workflow; size and depth are limited as a workflow's.

    Raises:
        InvalidWorkflow: with the line of the first problem.
    """
    return _Builder().build((_json_events if is_json else _yaml_events)(_text_of(content)))


def _text_of(content: bytes) -> str:
    if len(content) > DOCUMENT_BYTES_LIMIT:
        _refuse(
            None,
            f"The document has more than {DOCUMENT_BYTES_LIMIT:,} bytes",
            "split it, or build the workflow in Python",
        )
    try:
        return without_mark(content.decode())
    except UnicodeDecodeError as error:
        _refuse(content.count(b"\n", 0, error.start) + 1, "The document is not UTF-8", "save it as UTF-8")


def without_mark(text: str) -> str:
    """Return the text of a file without its byte order mark, which a tool may have put before another one."""
    return text.lstrip("\ufeff")


def read_values(text: str) -> Any:
    """Read a YAML document of any size that is no workflow, such as a file of agents; aliases and tags are refused.

    Byte order marks at its beginning are ignored.

    Raises:
        InvalidWorkflow: when it is no such YAML; with the line.
    """
    return _Builder().build(_yaml_events(without_mark(text)))


def write_yaml(definition: Definition) -> str:
    """Write a definition as a YAML document."""
    text: str = yaml.dump(to_document(definition), Dumper=_Quoting, sort_keys=False, allow_unicode=True, width=110)
    return text


def write_json(definition: Definition) -> str:
    """Write a definition as an indented JSON document."""
    return json.dumps(to_document(definition), indent=2, ensure_ascii=False)


_END: Any = object()
"""What a parser event has in place of a value where the innermost open object or list ends."""


@dataclass(frozen=True, slots=True)
class _Event:
    """An event of the parsing of a document: a value, or the start or end of an object or list.

    The start of an object or list is an empty dict or list.
    """

    value: Any
    line: int


@dataclass(slots=True)
class _Builder:
    """A builder of a document's value from parser events; it also notes the line numbers of the paths in `wanted`."""

    wanted: frozenset[Place] = frozenset()
    lines: dict[Place, int] = field(default_factory=dict)

    def line(self, place: Place) -> int | None:
        """Return the line of a path in the document, or of its nearest parent with a known line; None if none has."""
        return next((self.lines[place[:end]] for end in range(len(place), -1, -1) if place[:end] in self.lines), None)

    def build(self, events: Iterator[_Event]) -> Any:
        first = next(events, _Event(None, 1))
        open_: list[Any] = [first.value]
        places: list[Place] = [()]
        self._keep((), first.line)
        for event in events if isinstance(first.value, dict | list) else ():
            if event.value is _END:
                open_.pop()
                places.pop()
                continue
            value, place = self._put(open_[-1], event, events, places[-1])
            if isinstance(value, dict | list):
                if len(open_) >= MOST_LEVELS:
                    _refuse(event.line, f"The document is nested over {MOST_LEVELS} levels", "make it flatter")
                open_.append(value)
                places.append(place)
        return first.value

    def _put(self, into: Any, event: _Event, events: Iterator[_Event], place: Place) -> tuple[Any, Place]:
        if isinstance(into, list):
            into.append(event.value)
            own: Place = (*place, len(into) - 1) if self.wanted else ()
            self._keep(own, event.line)
            return event.value, own
        if not isinstance(event.value, str):
            _refuse(event.line, "A key is text", "put it in quotes")
        if event.value in into:
            _refuse(event.line, f"The key {event.value[:80]!r} stands twice", "remove one of them")
        value = into[event.value] = next(events).value
        own = (*place, event.value) if self.wanted else ()
        self._keep(own, event.line)
        return value, own

    def _keep(self, place: Place, line: int) -> None:
        if place in self.wanted:
            self.lines[place] = line


def _and_above(problems: tuple[Problem, ...]) -> Iterator[Place]:
    for problem in problems:
        for end in range(len(problem.path) + 1):
            yield problem.path[:end]


def _yaml_events(text: str) -> Iterator[_Event]:
    documents = 0
    try:
        events: Iterator[Any] = yaml.parse(text.translate(_HIDE_LINE_ENDS), Loader=_Loader)
        for event in events:
            line = event.start_mark.line + 1
            documents += isinstance(event, yaml.DocumentStartEvent)
            if documents > 1:
                _refuse(line, "There is more than one document", "one workflow for each file")
            _refuse_references(event, line)
            match event:
                case yaml.ScalarEvent(value=written, implicit=implicit):
                    value = _text(written.translate(_SHOW_LINE_ENDS), line)
                    yield _Event(_plain(value, line) if implicit[0] else value, line)
                case yaml.MappingStartEvent():
                    yield _Event({}, line)
                case yaml.SequenceStartEvent():
                    yield _Event([], line)
                case yaml.CollectionEndEvent():
                    yield _Event(_END, line)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        _refuse(mark.line + 1 if mark else None, f"This is not YAML: {error.problem or error.context}", "mend the text")
    except yaml.YAMLError as error:
        _refuse(None, f"This is not YAML: {' '.join(str(error).split())[:200]}", "mend the text")


def _refuse_references(event: Any, line: int) -> None:
    if getattr(event, "anchor", None) is not None:  # of an alias, too: a few of them make a document of any size
        _refuse(line, "Anchors and aliases are not taken", "write it out")
    if getattr(event, "tag", None) not in (None, "!"):
        _refuse(line, f"The tag {event.tag[:80]!r} is not taken", "remove it")


def _text(value: str, line: int) -> str:
    """Return a key or text of the document; an escape may make one that the wire, which is UTF-8, cannot express."""
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            _refuse(
                line, "A text has a lone surrogate, which UTF-8 cannot express", "write both halves, or another text"
            )
    return value


def _plain(word: str, line: int) -> Any:
    """Return the value of an unquoted word: null, a boolean, a decimal number, or else the word itself as text.

    So does YAML 1.2's core schema, which also has octal and hexadecimal numbers. Its infinite and undefined numbers are
    refused.
    """
    if word in _WORDS:
        return _WORDS[word]
    if _FRACTION.fullmatch(word) is None:
        if _NOT_FINITE.fullmatch(word):
            _refuse(line, f"JSON has no number {word}", "put it in quotes if it is a text")
        return word
    if len(word) > _MOST_DIGITS:
        _refuse(line, "The number is too long", "put it in quotes")
    return int(word) if _WHOLE.fullmatch(word) else float(word)


def _json_events(text: str) -> Iterator[_Event]:
    """Yield the values, starts and ends in a JSON text as events with line numbers.

    The standard library checks the text but gives no lines, so the tokens are found once more.
    """
    try:
        json.loads(text, parse_constant=_no_number, parse_int=str)
    except json.JSONDecodeError as error:
        _refuse(error.lineno, f"This is not JSON: {error.msg}", "mend the text")
    except (ValueError, RecursionError) as error:
        _refuse(None, f"This is not JSON: {error}", "mend the text")
    line, seen = 1, 0
    while (token := _TOKEN.match(text, seen)) is not None:
        line += text.count("\n", seen, token.end())
        bracket, quote, word = token.groups()
        seen = token.end()
        if quote:
            value, seen = _json_string(text, seen)
            yield _Event(_text(value, line), line)
        elif bracket:
            yield _Event({"{": {}, "[": []}.get(bracket, _END), line)
        else:
            yield _Event(_plain(word, line), line)


def _no_number(word: str) -> NoReturn:
    raise ValueError(f"{word} is no number of JSON")


def _refuse(line: int | None, sentence: str, fix: str) -> NoReturn:
    raise InvalidWorkflow.of((Problem((), sentence, fix, line),))


class _Quoting(_Dumper):  # type: ignore[misc]  # whichever of PyYAML's two there is
    """A YAML writer that quotes text which YAML 1.1 or 1.2 would read as another type, and that writes no aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _write_text(dumper: Any, text: str) -> Any:
    unchanged = text not in _WORDS and _FRACTION.fullmatch(text) is None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=None if unchanged else '"')


_Quoting.add_representer(str, _write_text)

"""The run of one command in a thread: its input is written, its output read within bounds, its end awaited."""

from __future__ import annotations

import codecs
import json
import os
import re
import selectors
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from io import FileIO

from coditect.integrations.commands.failures import CommandFailed, CommandTroubled
from coditect.integrations.commands.launching import Launch, Launcher, StartedCommand

PIECE_BYTES = 65_536
TAIL_BYTES = 2_000
LONGEST_PROGRESS_BYTES = 65_536
"""The longest line that is read as progress; a result may be as long as the output."""
DRAIN_SECONDS = 1.0
"""How long the rest of the output is read after the command's end, if a process that no kill reaches holds it open."""
_BLANKS = bytes((*range(0x21), 0x7F))
_TERMINAL_CODE = re.compile(rb"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[ -/]*[0-Z\\^-~])")


def utf_8(text: bytes) -> bytes:
    """Return a text without its byte order mark; UTF-16 with such a mark becomes UTF-8."""
    if text.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return text.decode("utf-16", errors="replace").encode()
    return text.removeprefix(codecs.BOM_UTF8)


def bare(json_text: bytes) -> bytes:
    """Return JSON without a byte order mark, terminal codes, and blanks and control characters around it.

    Terminal codes begin with a control character, which JSON has only escaped, so no value changes.
    """
    return _TERMINAL_CODE.sub(b"", utf_8(json_text)).strip(_BLANKS)


def end_of(output: bytes | bytearray) -> str:
    """Return the last 2,000 bytes of an output as text."""
    return output[-TAIL_BYTES:].decode(errors="replace").strip()


@dataclass(frozen=True, slots=True)
class CommandEnd:
    """The end of a command: exit code (negative: a signal), stdout, the end of stderr, and any error of its start."""

    code: int
    stdout: bytes
    complaint: str
    """The last 2,000 bytes of stderr."""
    errno: int = 0
    """The error number of a command that could not be started."""


class CommandRun:
    """A run of one command: `run` blocks its thread until the command ends, any thread may call `ask_to_end`."""

    def __init__(self, launcher: Launcher, command: Launch, *, most_bytes: int) -> None:
        self._launcher = launcher
        self._command = command
        self._most_bytes = most_bytes
        self._started: StartedCommand | None = None
        self._unwanted = False

    def ask_to_end(self) -> None:
        """Ask the command to end: SIGTERM, then SIGKILL; asked before its start, kill it as it starts. Idempotent."""
        self._unwanted = True
        if self._started is not None:
            self._started.ask_to_end()

    def run(self, given: bytes, on_line: Callable[[bytes], None]) -> CommandEnd:
        """Run the command to its end, wait until none of its processes is left, and return its exit code and output.

        `on_line` gets each line of stdout and stderr that begins with a brace and is short enough for progress.

        Raises:
            CommandFailed: when it writes more than it may; it is killed.
            CommandTroubled: when the launcher or the guard is gone; retryable.
        """
        with self._launcher.start(self._command) as started:
            self._started = started
            if self._unwanted:
                started.kill()
            streams = _Streams(started, given, on_line, self._most_bytes)
            try:
                return streams.end()
            finally:
                self._started = None
                streams.close()


@dataclass(slots=True)
class _Output:
    """The bytes that a command wrote to one stream: all of stdout, or the end of stderr."""

    whole: bool
    text: bytearray = field(default_factory=bytearray)
    line: bytearray = field(default_factory=bytearray)

    def add(self, piece: bytes, on_line: Callable[[bytes], None]) -> None:
        self.text += piece
        if not self.whole:
            del self.text[:-TAIL_BYTES]
        *lines, rest = piece.split(b"\n")
        for line in lines:
            self._end_line(line, on_line)
        self._grow(rest)

    def _grow(self, rest: bytes) -> None:
        if len(self.line) <= LONGEST_PROGRESS_BYTES:
            self.line += rest

    def _end_line(self, line: bytes, on_line: Callable[[bytes], None]) -> None:
        self._grow(line)
        whole = bytes(self.line)
        self.line.clear()
        if len(whole) <= LONGEST_PROGRESS_BYTES and (found := bare(whole)).startswith(b"{"):
            on_line(found)


class _Streams:
    """The streams of one command, served by one selector."""

    def __init__(
        self, started: StartedCommand, given: bytes, on_line: Callable[[bytes], None], most_bytes: int
    ) -> None:
        self._started = started
        self._left = memoryview(given)
        self._on_line = on_line
        self._most_bytes = most_bytes
        self._read = 0
        self._outputs = {started.stdout: _Output(whole=True), started.stderr: _Output(whole=False)}
        self._selector = selectors.DefaultSelector()
        self._answer = bytearray()
        for stream in (started.stdin, *self._outputs):
            os.set_blocking(stream.fileno(), False)
        for output in self._outputs:
            self._selector.register(output, selectors.EVENT_READ)
        self._selector.register(started.control, selectors.EVENT_READ)
        if given:
            self._selector.register(started.stdin, selectors.EVENT_WRITE)
        else:
            started.stdin.close()

    def close(self) -> None:
        """Kill what is left of the command, and wait until none of its processes is left."""
        self._selector.close()
        self._started.kill()
        self._started.control.setblocking(True)
        while self._started.control.recv(PIECE_BYTES):
            continue

    def end(self) -> CommandEnd:
        """Write the input and read the outputs until the command's end, the outputs up to 1 s more; return the end."""
        ended_at: float | None = None
        open_outputs = set(self._outputs)
        while ended_at is None or (open_outputs and time.monotonic() < ended_at + DRAIN_SECONDS):
            for key, _ in self._selector.select(None if ended_at is None else DRAIN_SECONDS):
                if key.fileobj is self._started.control:
                    if self._hear():
                        ended_at = time.monotonic()
                elif key.fileobj is self._started.stdin:
                    self._write()
                elif isinstance(key.fileobj, FileIO) and not self._take(key.fileobj):
                    open_outputs.discard(key.fileobj)
        return self._end()

    def _hear(self) -> bool:
        """Read from the guard process; tell whether its answer is complete, or the guard is gone."""
        piece = self._started.control.recv(PIECE_BYTES)
        self._answer += piece
        if piece and not self._answer.endswith(b"\n"):
            return False
        self._selector.unregister(self._started.control)
        return True

    def _write(self) -> None:
        try:
            self._left = self._left[os.write(self._started.stdin.fileno(), self._left[:PIECE_BYTES]) :]
        except BlockingIOError:
            return
        except BrokenPipeError:
            self._left = self._left[:0]  # the command does not want the rest, which is its own business
        if not self._left:
            self._selector.unregister(self._started.stdin)
            self._started.stdin.close()

    def _take(self, stream: FileIO) -> bool:
        """Read a piece of stdout or stderr; return False at the stream's end; raise once both together are too long."""
        piece = stream.read(PIECE_BYTES)
        if piece is None:
            return True
        if not piece:
            self._selector.unregister(stream)
            return False
        self._read += len(piece)
        if self._read > self._most_bytes:
            fix = "write less, or raise the limit `output` of the command"
            raise CommandFailed("The command wrote more than it may, and was killed", most=self._most_bytes, fix=fix)
        self._outputs[stream].add(piece, self._on_line)
        return True

    def _end(self) -> CommandEnd:
        stdout, stderr = (one.text for one in self._outputs.values())
        complaint = end_of(stderr)
        if not self._answer:
            raise CommandTroubled("The command was killed together with its guard", complaint=complaint)
        answer = json.loads(self._answer)
        return CommandEnd(answer.get("exit", 0), bytes(stdout), complaint, answer.get("errno", 0))

"""The errors of commands; each says whether the failed attempt at a task may be followed by another."""

from __future__ import annotations

from coditect.errors import CoditectError, InputError, Retryable, SetupError


class CommandFailed(CoditectError):
    """The permanent failure of a command: by its exit code, or by an output too large or outside its workspace."""


class CommandTroubled(Retryable):
    """The error of a command run that may succeed when repeated, such as after a signal, an exit code or no result.

    It is also raised when the result says that it failed or lacks a field, the launcher or guard is gone, or git fails.
    """


class InputRefusedByCommand(InputError):
    """The error of a command that refuses its input by its exit code; no further attempt."""


class CommandMissing(SetupError):
    """The error of a command that cannot be started on this machine; another agent may have it.

    Retryable: an agent on another machine may take the next attempt.
    """

    retryable = True

"""The errors that Coditect raises, as a tree ordered by the caller's remedy: retry, fix the input, fix the set-up.

::

    CoditectError
    ├── Retryable             try again, as it is, later
    │   ├── BrokerUnavailable     no connection to the broker within the deadline
    │   ├── PublishUnconfirmed    the outcome is unknown: the message may still be delivered
    │   ├── Overloaded            the broker refuses more (full queue, alarm) within the deadline
    │   ├── RegistryUnavailable   no answer from the registry
    │   ├── BlobUnavailable       no answer from the store for large values
    │   ├── BreakerOpen           the breaker of a dependency is open; the call was not made
    │   ├── LockTaken             others have the lock, and the caller waits no longer
    │   ├── Deadlock              the wait for a lock would never end; names the cycle
    │   ├── LockLost              the lock was lost while it was held, and its block canceled
    │   └── StreamRestarted       the task is executed again, and the parts of its result begin again
    ├── InputError            fix the input
    │   ├── InvalidTask           body, headers or limits are not what the wire allows
    │   ├── TooLarge              over the inline limit, or over the one for large values
    │   ├── ClaimBroken           the value of a blob reference is missing, or differs
    │   ├── InvalidWorkflow       a definition or an expression in it; names the places and what to do
    │   ├── UnknownCapability     no agent offers the capability; names the nearest
    │   ├── Unroutable            no queue is bound to the key; names the nearest capability
    │   ├── Conflict              another caller's request came before it
    │   └── NotFound              no such task, agent, dead letter
    ├── SetupError            fix the set-up
    │   ├── TopologyMismatch      the broker holds an entity with other arguments
    │   ├── UnsupportedBroker     the broker is too old
    │   ├── ControlPlaneRequired  only a dispatcher can do this
    │   └── NewerVersion          the data is of a newer version than the process knows
    └── TaskError             the work itself ended without a value
        ├── TaskFailed            the handler failed, or its attempts are used up
        ├── TaskRejected          refused before it ran
        ├── TaskCanceled          canceled on request
        ├── TaskExpired           its deadline passed
        └── ResultTimeout         no result within the caller's time; the task continues

The message is a static sentence; the facts are keyword fields (``error.facts``) and are shown behind it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar


class CoditectError(Exception):
    """The root of all errors; `retryable` says whether the same call may succeed later."""

    retryable: bool = False
    exit_code: ClassVar[int] = 1

    def __init__(self, sentence: str, **facts: object) -> None:
        super().__init__(sentence)
        self.sentence = sentence
        self.facts = facts

    def __str__(self) -> str:
        if not self.facts:
            return self.sentence
        facts = ", ".join(f"{name}={value!r}" for name, value in self.facts.items())
        return f"{self.sentence} ({facts})"


class Retryable(CoditectError):
    """The base of errors after which an unchanged call may succeed later."""

    retryable = True


class BrokerUnavailable(Retryable):
    """The error of a broker that cannot be reached, or whose virtual host is refused; a failed publish was not sent."""


class PublishUnconfirmed(Retryable):
    """The error of a publish whose confirm did not come; the message may still be delivered."""


class Overloaded(Retryable):
    """The error of a broker or API process that takes no more for now: a full queue, an alarm, or too many at once.

    Nothing was taken, unless the process of a classic queue died behind a delivery.
    """


class RegistryUnavailable(Retryable):
    """The error of a registry (Redis) that did not answer in time, could not be reached, or refused the request."""


class BlobUnavailable(Retryable):
    """The error of a store for large values that did not answer in time, or refused the request."""


class BreakerOpen(Retryable):
    """The error of a call that an open circuit breaker refused: the dependency failed, or a person opened the breaker.

    The call was not made.

    Facts: `breaker`, `retry_after_seconds` (None while an operator holds the breaker open), `reason`, `fix`.
    """


class LockTaken(Retryable):
    """The error of a lock that others have, when the caller does not wait or waits no longer."""

    exit_code = 3


class Deadlock(Retryable):
    """The error of a lock whose wait would never end, since each of a cycle of holders waits for the next one.

    The caller, who began to wait last, gets it; the locks that the caller holds let the others continue. Facts:
    `resources`, `cycle`, `fix`.
    """


class LockLost(Retryable):
    """The error of a lock that was lost while it was held, such as one renewed too late, or released by force.

    Others may have the lock since. Facts: `resources`, `fence`, `reason`, `fix`.
    """


class StreamRestarted(Retryable):
    """The error of a streamed result whose task is executed again: its parts start over, and may differ.

    `Handle.stream` called again yields them from the first one. Facts: `attempt`, `agent`, `read` (how many parts were
    read of the former execution), `fix`.
    """


class InputError(CoditectError):
    """The base of errors that the caller corrects by changing the input."""

    exit_code = 2


class InvalidTask(InputError):
    """The error of a body, header, limit or answer that the wire format, or the declared type, does not allow."""


class TooLarge(InvalidTask):
    """The error of a value over its limit, such as that of a message (1 MiB), of the blob store, or of the broker.

    A message's limit is `wire.tasks.MAX_BODY_BYTES`; with `CODITECT_BLOB_URL` set, a value's `CODITECT_BLOB_MAX_BYTES`.
    """


class ClaimBroken(InvalidTask):
    """The error of a blob reference whose large value is missing, or does not match the reference's hash and size."""


@dataclass(frozen=True, slots=True)
class Problem:
    """A problem in a document: where it is, a sentence that says what is wrong, and, if known, how to correct it."""

    path: tuple[str | int, ...]
    """The path from the document's root: `("nodes", "build", "after", 0)`."""
    sentence: str
    fix: str = ""
    line: int | None = None
    """The line in the file, from 1; None when the document was not a text."""

    @property
    def place(self) -> str:
        """The path of the problem as text for people: `nodes.build.after[0]`."""
        parts = (f"[{part}]" if isinstance(part, int) else f".{part}" for part in self.path)
        return "".join(parts).removeprefix(".")

    def __str__(self) -> str:
        where = [text for text in (f"line {self.line}" if self.line else "", self.place) if text]
        return ": ".join([*where, self.sentence])


class InvalidWorkflow(InputError):
    """The error of an invalid workflow definition, or of an expression in it that cannot be evaluated."""

    def __init__(self, sentence: str, *, problems: tuple[Problem, ...] = (), **facts: object) -> None:
        super().__init__(sentence, **facts)
        self.problems = problems
        """All problems that were found, in the document's order; empty for an error of a single expression."""

    @classmethod
    def of(cls, problems: tuple[Problem, ...], **facts: object) -> InvalidWorkflow:
        """Return the error for a list of problems; its message has the first problem in full."""
        first, *others = problems
        context = {
            "at": first.place or None,
            "line": first.line,
            "others": tuple(str(problem) for problem in others[:9]),
        }
        shown = {name: fact for name, fact in (facts | context).items() if fact not in (None, ())}
        return cls(first.sentence, problems=problems, **shown, fix=first.fix)


class UnknownCapability(InputError):
    """The error of a capability that no agent offers."""

    exit_code = 4


class Unroutable(InputError):
    """The error of a message whose routing key has no queue; the broker did not take the message."""

    exit_code = 4


class VersionConflict(InputError):
    """The error of a write to shared state, or of a restore, that names another version than the present one.

    Nothing was changed. Facts: `key`, `version` (the present one, 0 for a missing key), `wanted`, `fix`; of a restore
    `workflow` and `fix`.
    """


class Conflict(InputError):
    """The error of a request that an earlier request of another caller excludes, such as a second handoff of a task."""


class NotFound(InputError):
    """The error of a task, agent, workflow or other object that does not exist."""

    exit_code = 4


class SetupError(CoditectError):
    """The base of errors that the caller corrects by changing the set-up around the program."""


def install_command(extras: str) -> str:
    """Return the command that installs Coditect with extras, such as `blob` or `api,speed`; no index has it yet."""
    return f"pip install '/path/to/coditect-clone-or-wheel[{extras}]'"


def missing_extra(extra: str) -> SetupError:
    """Return the error for a feature whose package extra, such as `blob`, is not installed."""
    fix = install_command(extra)
    return SetupError("This needs a part of Coditect that is not installed", extra=extra, fix=fix)


@contextmanager
def needing(extra: str) -> Iterator[None]:
    """Import parts of a package extra inside the block.

    Raises:
        SetupError: when the extra is not installed.
    """
    try:
        yield
    except ImportError as error:
        raise missing_extra(extra) from error


class TopologyMismatch(SetupError):
    """The error of an exchange or queue that exists on the broker with other arguments than Coditect declares."""


class UnsupportedBroker(SetupError):
    """The error of a broker that is too old for a feature that Coditect needs."""


class ControlPlaneRequired(SetupError):
    """The error of work that needs a dispatcher: none answers, or it was submitted as a direct task.

    Retryable: a dispatcher may be starting. An attempt that fails with it is tried again.
    """

    retryable = True


class NewerVersion(SetupError):
    """The error of data that a newer version wrote; nothing was changed. The process must be upgraded.

    Retryable: an upgraded process may answer the next time. Facts: `kind`, `version`, `known`, `fix`.
    """

    retryable = True


class TaskError(CoditectError):
    """The base of errors of tasks that ended without a value."""


class TaskFailed(TaskError):
    """The error of a task whose handler failed, or whose attempts are used up."""


class TaskRejected(TaskError):
    """The error of a task that was refused before it ran, as for invalid input, a full queue or a denied approval."""


class TaskCanceled(TaskError):
    """The error of a task that was canceled on request."""


class TaskExpired(TaskError):
    """The error of a task whose deadline passed before its end, or that no agent started in time."""

    exit_code = 3


class ResultTimeout(TaskError):
    """The error of a result that did not arrive in the caller's time (the task continues), or whose parts were lost."""

    exit_code = 3

"""Every error that Coditect raises, ordered by what the caller can do about it.

::

    CoditectError
    ├── Retryable             try again, as it is, later
    │   ├── BrokerUnavailable     no connection to the broker within the deadline
    │   ├── PublishUnconfirmed    the outcome is unknown: the message may still be delivered
    │   ├── Overloaded            the broker refuses more (full queue, alarm) within the deadline
    │   ├── RegistryUnavailable   no answer from the registry
    │   └── BlobUnavailable       no answer from where large values lie
    ├── InputError            fix the input
    │   ├── InvalidTask           body, headers or limits are not what the wire allows
    │   ├── TooLarge              over the inline limit, or over the one for large values
    │   ├── ClaimBroken           the large value that is meant is not there, or is another
    │   ├── InvalidWorkflow       a definition or an expression in it; names the places and what to do
    │   ├── UnknownCapability     nobody offers it; names the nearest
    │   ├── Unroutable            no queue is bound to the key; names the nearest capability
    │   └── NotFound              no such task, agent, dead letter
    ├── SetupError            fix the set-up
    │   ├── TopologyMismatch      the broker holds an entity with other arguments
    │   ├── UnsupportedBroker     the broker is too old
    │   ├── ControlPlaneRequired  only a dispatcher can do this
    │   └── NewerVersion          what it met is of a version that it does not know
    └── TaskError             the work itself ended without a value
        ├── TaskFailed            the handler failed, or its attempts are used up
        ├── TaskRejected          refused before it ran
        ├── TaskCanceled          canceled on request
        ├── TaskExpired           its deadline passed
        └── ResultTimeout         no result within the caller's time; the task goes on

The message is a static sentence; the facts are keyword fields (``error.facts``) and are shown behind it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar


class CoditectError(Exception):
    """The root. `retryable` says whether the same call may succeed later."""

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
    """Try again later, unchanged."""

    retryable = True


class BrokerUnavailable(Retryable):
    """No connection to the broker within the deadline. Nothing was sent."""


class PublishUnconfirmed(Retryable):
    """The deadline passed without a confirm: the message may still be delivered."""


class Overloaded(Retryable):
    """The broker refused the message until the deadline (full queue or alarm). It was not taken."""


class RegistryUnavailable(Retryable):
    """The registry did not answer in time."""


class BlobUnavailable(Retryable):
    """Where large values lie did not answer in time, or refused."""


class InputError(CoditectError):
    """The input must change."""

    exit_code = 2


class InvalidTask(InputError):
    """Body, headers or limits are not what the wire allows."""


class TooLarge(InvalidTask):
    """The body is over the inline limit of the wire (`model.wire.MAX_BODY_BYTES`), or over the broker's.

    With `CODITECT_BLOB_URL` set the limit is `CODITECT_BLOB_MAX_BYTES`.
    """


class ClaimBroken(InvalidTask):
    """The large value that is meant is not where it should lie, or what lies there is another."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong with a document, where, and what to do about it."""

    path: tuple[str | int, ...]
    """From the document's root: `("nodes", "build", "after", 0)`."""
    sentence: str
    fix: str = ""
    line: int | None = None
    """From 1; None when the document was not a text."""

    @property
    def place(self) -> str:
        """The path for a person: `nodes.build.after[0]`."""
        parts = (f"[{part}]" if isinstance(part, int) else f".{part}" for part in self.path)
        return "".join(parts).removeprefix(".")

    def __str__(self) -> str:
        where = [text for text in (f"line {self.line}" if self.line else "", self.place) if text]
        return ": ".join([*where, self.sentence])


class InvalidWorkflow(InputError):
    """A workflow's definition is not one, or an expression in it cannot be evaluated."""

    def __init__(self, sentence: str, *, problems: tuple[Problem, ...] = (), **facts: object) -> None:
        super().__init__(sentence, **facts)
        self.problems = problems
        """All that was found, in the document's order; empty when it is about a single expression."""

    @classmethod
    def of(cls, problems: tuple[Problem, ...], **facts: object) -> InvalidWorkflow:
        """The refusal for these problems: it tells the first in full."""
        first, *others = problems
        told = {"at": first.place or None, "line": first.line, "others": tuple(str(one) for one in others[:9])}
        shown = {name: fact for name, fact in (facts | told).items() if fact not in (None, ())}
        return cls(first.sentence, problems=problems, **shown, fix=first.fix)


class UnknownCapability(InputError):
    """Nobody offers this capability."""

    exit_code = 4


class Unroutable(InputError):
    """No queue is bound to this key. Nothing was taken."""

    exit_code = 4


class NotFound(InputError):
    """There is no such thing."""

    exit_code = 4


class SetupError(CoditectError):
    """Something around the program must change."""


def missing_extra(extra: str) -> SetupError:
    """The refusal of what needs an extra of the package that is not installed."""
    fix = f"pip install 'coditect[{extra}]'"
    return SetupError("This needs a part of Coditect that is not installed", extra=extra, fix=fix)


class TopologyMismatch(SetupError):
    """The broker holds an exchange or queue of this name with other arguments."""


class UnsupportedBroker(SetupError):
    """The broker is too old for what is asked of it."""


class ControlPlaneRequired(SetupError):
    """Only a dispatcher can do this, and none is there."""


class NewerVersion(SetupError):
    """A newer process wrote or sent what this one met: upgrade this one. Nothing was changed.

    Retryable: an upgraded process may answer the next time. Facts: `kind`, `version`, `known`, `fix`.
    """

    retryable = True


class TaskError(CoditectError):
    """The work ended without a value."""


class TaskFailed(TaskError):
    """The handler failed and no attempt is left."""


class TaskRejected(TaskError):
    """The task was refused before it ran."""


class TaskCanceled(TaskError):
    """The task was canceled on request."""


class TaskExpired(TaskError):
    """The task's deadline passed before it was done."""

    exit_code = 3


class ResultTimeout(TaskError):
    """No result came within the caller's time. The task itself goes on."""

    exit_code = 3

"""The errors of calls to HTTP agents, by which an attempt fails; a refused connection is no attempt."""

from __future__ import annotations

from coditect.errors import InputError, Retryable


class AgentRefused(Retryable):
    """The error of a URL that takes no connection, so that the request was not sent."""


class AgentLost(Retryable):
    """The error of an HTTP agent that went away after it had the request: its connection broke, or its lease ended.

    The attempt counts, since the agent may have done the work, or the work may have ended the agent.
    """


class AnswerBroken(Retryable):
    """The error of an invalid answer: a wrong status, a wrong id, too large, no JSON, or a redirect."""


class ActionFailed(Retryable):
    """The error of an action that the HTTP agent answered with the status `error`."""


class InputRefused(InputError):
    """The error of an input that the HTTP agent refused by the status 400 or 422; the attempt is the last."""

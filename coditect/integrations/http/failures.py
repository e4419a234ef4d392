"""The errors of calls to HTTP agents, by which an attempt fails; a refused connection is no attempt."""

from __future__ import annotations

from coditect.errors import InputError, Retryable


class AgentRefused(Retryable):
    """The error of a URL to which no connection could be made, so that the request was not sent."""


class AgentLost(Retryable):
    """The error of an agent that may have the request and went away, such as by a broken connection or an ended lease.

    The attempt counts, since the agent may have done the work, or the work may have ended the agent.
    """


class AnswerBroken(Retryable):
    """The error of an invalid answer, such as one with a wrong status or id, a redirect, too much data, or no JSON."""


class ActionFailed(Retryable):
    """The error of an action that the HTTP agent answered with the status `error`."""


class InputRefused(InputError):
    """The error of an input that the HTTP agent refused by the status 400 or 422; the attempt is the last."""

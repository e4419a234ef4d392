from __future__ import annotations

import inspect

import redis.exceptions

from coditect.registry.connection import VENDOR_ERRORS

NEVER_RAISED_TO_US = {"IncorrectPolicyType"}
"""Raised by the cluster client's command router alone."""


def test_every_exception_of_the_vendor_is_mapped() -> None:
    exceptions = inspect.getmembers(redis.exceptions, inspect.isclass)
    unmapped = {
        name for name, member in exceptions if issubclass(member, Exception) and not issubclass(member, VENDOR_ERRORS)
    }

    assert unmapped == NEVER_RAISED_TO_US


def test_our_own_time_limit_is_mapped() -> None:
    assert issubclass(TimeoutError, VENDOR_ERRORS)

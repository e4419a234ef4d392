"""`--wait`: how long a command waits, refused before anything is sent when it is no duration."""

from __future__ import annotations

from coditect.model.duration import seconds


def checked(wait: str | None) -> str | None:
    """The option's callback. Raises: InputError."""
    if wait is not None:
        seconds(wait)
    return wait

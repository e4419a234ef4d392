"""The functions that read one setting each from a mapping of environment variables, check it, and convert it.

Each function raises SetupError for a value that is wrong; the error names the variable.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from ipaddress import ip_address
from urllib.parse import urlsplit

from coditect.errors import SetupError


def flag(values: Mapping[str, str], name: str, *, default: bool) -> bool:
    """Read a true-or-false setting as a bool; return the default when the setting is missing."""
    text = values.get(name)
    if text is None:
        return default
    if text.lower() not in ("true", "false", "1", "0", "yes", "no"):
        raise SetupError("A setting is true or false", variable=name, given=text, fix=f"{name}=true, or {name}=false")
    return text.lower() in ("true", "1", "yes")


def number(values: Mapping[str, str], name: str, default: float, low: float, high: float) -> float:
    """Read a setting as a float, and check that it is from `low` to `high`; return the default when it is missing."""
    text = values.get(name)
    if text is None:
        return default
    fix = f"a number from {low:g} to {high:g}, such as {name}={default:g}"
    try:
        found = float(text)
    except ValueError as error:
        raise SetupError("A setting is a number", variable=name, given=text, fix=fix) from error
    if not low <= found <= high:
        raise SetupError("A setting is outside its range", variable=name, given=text, low=low, high=high, fix=fix)
    return found


def whole(values: Mapping[str, str], name: str, default: int, low: int, high: int) -> int:
    """Read a setting as a whole number, and check that it is from `low` to `high`; return the default when missing."""
    found = number(values, name, default, low, high)
    if found != int(found):
        raise SetupError("A setting is a whole number", variable=name, given=found, fix=f"{name}={found:.0f}")
    return int(found)


def optional(values: Mapping[str, str], name: str, low: int, high: int) -> int | None:
    """Read a setting as a whole number, and check that it is from `low` to `high`; return None when it is missing."""
    return whole(values, name, 0, low, high) if name in values else None


def choice(values: Mapping[str, str], name: str, allowed: tuple[str, ...]) -> str:
    """Read a setting that must be one of the allowed words, in any case; return the first word when missing."""
    text = values.get(name, allowed[0])
    for word in allowed:
        if text.lower() == word.lower():
            return word
    fix = f"{name}={allowed[0]}"
    raise SetupError("A setting is one of a few words", variable=name, given=text, allowed=allowed, fix=fix)


def host_names(values: Mapping[str, str], name: str) -> str | None:
    """Check a setting that lists host names or patterns with commas, and return its text; None if missing or empty."""
    text = values.get(name, "")
    for host in filter(None, map(str.strip, text.split(","))):
        if not _is_host(host):
            fix = f"{name}=api.example.com,10.0.0.7: no scheme, port or path"
            raise SetupError("A setting lists names of hosts, and nothing else", variable=name, given=host, fix=fix)
    return text.strip(", ") or None


def http_url(values: Mapping[str, str], name: str, *, fix: str) -> str | None:
    """Read a setting that must be an http or https URL, and return its text; None when missing or empty."""
    text = values.get(name)
    if not text:
        return None
    try:
        address = urlsplit(text)
        known = address.scheme in ("http", "https") and bool(address.hostname) and address.port != 0
    except ValueError:
        known = False
    if not known or not text.isprintable() or " " in text:
        raise SetupError("A setting is a URL", variable=name, given=text, fix=fix)
    return text


_HOST = re.compile(r"[\w*?\[\]!.-]{1,253}")
"""A name, a pattern of names, or an IPv4 address."""


def _is_host(text: str) -> bool:
    if _HOST.fullmatch(text):
        return True
    try:
        return ip_address(text).version == 6
    except ValueError:
        return False

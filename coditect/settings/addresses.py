"""Server addresses: their check, and text for logs and terminals without passwords and control characters."""

from __future__ import annotations

import re
import ssl
from collections.abc import Collection, Mapping
from dataclasses import fields
from ipaddress import ip_address
from urllib.parse import parse_qsl, unquote, urlsplit

from coditect.errors import SetupError

SHORTEST_SECRET = 6
"""The length in characters from which a secret is looked for in any text; a shorter one would hide plain words."""
_WRITTEN_PASSWORD = re.compile(r"\w://[^\s/:@]*:([^\s/]+)@")
_PASSWORD = re.compile(
    r"""(?P<before>\w://(?!\[[^\s@/\]]*+\])[^\s/:@"']*):
        (?:[^\s/"']+@|(?!\d{1,5}(?:[/?#\s,;"'\\)\]}]|$))\S[^@\n]{0,300}+@(?:[^\s/"'@]*@)*)""",
    re.VERBOSE,
)
"""A password up to the last `@` of its word; one with a blank, a quote or a slash, at which a URL may end, to the next.

A port or an IPv6 address, with text and an `@` behind it, is no password. The bound keeps the search linear.
"""
_NAMES = r"(?:passw(?:or)?d|passphrase|pwd|secret|token|(?:api|access|account|private)[_-]?key|credential|signature)s?"
_SECRET = re.compile(
    rf"""(?P<named>(?<![\w-])(?:[\w-]*{_NAMES}[\\"']*\s*[=:]\s*[\\"']*|--[\w-]*{_NAMES}\s+|bearer\s+))
        (?:(?<=")[^"]+|(?<=')[^']+|[^\s"',;&)}}\]]+)
    |(?P<header>(?<![\w-])(?:proxy-)?authorization[\\"']*\s*[=:]\s*[\\"']*(?:(?:basic|bearer|digest)\s+)?)
        [^\s"',;]+(?:\s+[^\s"',;]+)?
    |(?P<cookie>(?<![\w-])(?:set-)?cookie[\\"']*\s*[=:]\s*[\\"']*)[^\s"']+(?:(?<=;)\s+[^\s"']+)*
    """
    r"""|-----BEGIN[ ][A-Z ]*PRIVATE[ ]KEY-----.*?(?:-----END[ ][A-Z ]*PRIVATE[ ]KEY-----|$)
    |\b(?:AKIA|ASIA)[A-Z0-9]{16}\b
    |\b(?:gh[opsru]_|github_pat_|npm_|hf_|sk-|xox[a-z]-|glpat-|pypi-|eyJ)[\w.-]{16,}
    |(?<![\w/.-])(?=[\w+=-]{32})(?:(?=[a-z]*+\d)[a-z0-9+=]{32,}+
        |(?-i:(?=[\w+=-]{0,99}[a-z])(?=[\w+=-]{0,99}[A-Z])(?=[\w+=-]{0,99}\d)[\w+=-]{32,}+))(?![\w/.-])""",
    re.IGNORECASE | re.VERBOSE | re.DOTALL,
)
"""A value behind a name such as `password=`, a private key, a token of a known form, or a long mix of characters."""


_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]*://(?:(?P<user>[^/?#]*)@)?(?P<hosts>[^@/?#]*)(?P<rest>[^@#]*)", re.IGNORECASE)
_NOT_ENCODED = re.compile(r"%(?![0-9a-f]{2})|[\[\]\s\x00-\x1f]", re.IGNORECASE)
_WEAKENS_TLS = frozenset({"no_verify_ssl", "ssl_cert_reqs", "ssl_check_hostname", "ssl_exclude_verify_flags"})
_OF_TLS = re.compile(r"cadata|cafile|capath|certfile|keyfile|ssl_\w+")
_WITH_TLS = ("amqps://", "https://", "rediss://", "rediss+sentinel://")
_VERIFYING = {"ssl_cert_reqs": "required", "ssl_check_hostname": "true"}
"""The only values with which such a parameter is not refused."""
_HOST = re.compile(r"(?=.{1,253}\Z)(?:[a-z0-9_][a-z0-9_-]{0,62}\.)*[a-z0-9_][a-z0-9_-]{0,62}\.?", re.I | re.A)
_IN_BRACKETS = re.compile(r"(?:[^@]*@)?\[[^\[\]%]*\](?::[0-9]*)?")


def check_address(text: str, variable: str, *, example: str, parameters: Collection[str]) -> None:
    """Check one server's URL: its user and password are percent-encoded, its hosts can exist, its parameters are known.

    A parameter that weakens TLS is never one of these: certificates are always verified. A parameter of TLS is refused
    in the URL of an unencrypted connection.

    Raises:
        SetupError: otherwise; the error never shows the URL, which may hold a password.
    """
    parts = _ADDRESS.fullmatch(text)
    if parts is None or _NOT_ENCODED.search(parts["user"] or "") or re.search(r"\s", text):
        sentence = "The address of a server is no URL, or its user or password is not percent-encoded"
        fix = f"{variable}={example}, with %2F for /, %40 for @, %23 for #, %3F for ?, %25 for % and %2C for ,"
        raise SetupError(sentence, variable=variable, fix=fix)
    if not all(map(_can_exist, parts["hosts"].split(","))):
        fix = f"{variable}={example}"
        raise SetupError(
            "The host in the address of a server has an empty or too long part", variable=variable, fix=fix
        )
    for name, value in parse_qsl(parts["rest"].partition("?")[2], keep_blank_values=True):
        if _OF_TLS.fullmatch(name) and name in parameters and not text.lower().startswith(_WITH_TLS):
            fix = f"{variable}={example}"
            raise SetupError(
                "A parameter of TLS is in the address of an unencrypted connection", parameter=name, fix=fix
            )
        if name in parameters or _VERIFYING.get(name) == value.lower():
            continue
        if name in _WEAKENS_TLS:
            fix = f"leave it out of {variable}, and name the authority of a private certificate ({example})"
            raise SetupError("The certificate of a server is always verified", parameter=name, fix=fix)
        fix = f"leave it out of {variable}; known are {', '.join(sorted(parameters))}"
        raise SetupError("The address of a server has an unknown parameter", parameter=name, fix=fix)


def is_host(text: str, netloc: str) -> bool:
    """Tell whether a host is a name or an address that resolvers and HTTP clients take; non-ASCII ones are refused."""
    if "[" not in netloc:
        return _HOST.fullmatch(text) is not None
    try:  # `urlsplit` overlooks text before and after the brackets
        return _IN_BRACKETS.fullmatch(netloc) is not None and ip_address(text).version == 6
    except ValueError:
        return False


def _can_exist(place: str) -> bool:
    """Tell whether a host, with a port or without, can be looked up; for any other, Python raises a UnicodeError."""
    try:
        return place.startswith("[") or place.partition(":")[0].encode("idna") is not None
    except UnicodeError:
        return False


def trusting(parameters: Mapping[str, str], variable: str) -> ssl.SSLContext:
    """Return the TLS settings that trust the authority that a URL's parameters name, or else the system's authorities.

    Raises:
        SetupError: when its certificate cannot be read; the error names the file.
    """
    named = {name: parameters[name] for name in ("cafile", "capath", "cadata") if parameters.get(name)}
    try:
        data = bytes.fromhex(named["cadata"]) if "cadata" in named else None
        return ssl.create_default_context(cafile=named.get("cafile"), capath=named.get("capath"), cadata=data)
    except (OSError, ValueError) as error:
        fix = f"correct in {variable}: {', '.join(f'{name}={value}'[:200] for name, value in named.items())}"
        raise SetupError("The certificate of an authority cannot be read", reason=str(error), fix=fix) from error


def without_passwords(text: str) -> str:
    """Replace the password in every URL of a text with `***`: `amqp://user:***@host:5672/`."""
    return _PASSWORD.sub(r"\g<before>:***@", text) if "://" in text else text


def without_secrets(text: str) -> str:
    """Replace what looks like a secret in a text by `***`: passwords in URLs, values of such names, tokens, keys."""
    return _SECRET.sub(lambda found: f"{found[found.lastgroup] if found.lastgroup else ''}***", without_passwords(text))


def printable(text: str, *, keep: str = "") -> str:
    r"""Return a text with its control characters as escapes such as `\x1b`, but for those in `keep`.

    Text of agents can then neither move a terminal's cursor nor look like another line of a log.
    """
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() or char in keep else _escaped(char) for char in text)


def _escaped(char: str) -> str:
    return char.encode("unicode_escape").decode()


def secrets_in(settings: object) -> frozenset[str]:
    """Return the secrets of 6 characters or more in settings: passwords in URLs, and fields that `repr` leaves out.

    Each is given both as written and percent-decoded.
    """
    found: set[str] = set()
    for field in fields(settings):  # type: ignore[arg-type]  # a dataclass, of which typing has no name
        text = getattr(settings, field.name)
        if isinstance(text, str) and "://" in text:
            found |= {*_WRITTEN_PASSWORD.findall(text)}
        elif isinstance(text, str) and not field.repr:
            found.add(text)
    found |= {unquote(secret) for secret in found}
    return frozenset(secret for secret in found if len(secret) >= SHORTEST_SECRET)


def vhost_of(amqp_url: str) -> str:
    """Return the vhost that the URL of a broker names, or the first one of several URLs with commas; `/` by default."""
    return unquote(urlsplit(amqp_url.partition(",")[0]).path.removeprefix("/")) or "/"

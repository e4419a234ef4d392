"""A pull request of a Git server, by the REST API of GitHub, or of Gitea (which Forgejo has, too).

::

    the repository's URL                      the API's
    https://github.com/OWNER/NAME             https://api.github.com
    https://COMPANY.ghe.com/OWNER/NAME        https://api.COMPANY.ghe.com
    https://HOST/FOLDER/OWNER/NAME            https://HOST/FOLDER/api/v1, if a Gitea answers there,
                                              else https://HOST/FOLDER/api/v3: GitHub Enterprise Server

A request names the server, so the server must be one that the settings allow, and the name is resolved once: API and
git connect to the addresses that were checked. The token is sent to this server alone. No redirect is followed.
"""

from __future__ import annotations

import asyncio
import base64
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from enum import StrEnum
from functools import cached_property
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, JsonValue, TypeAdapter, ValidationError

from coditect import RetryAfter
from coditect.aio.loop import new_runner
from coditect.errors import InputError, NotFound, Retryable, SetupError, missing_extra
from coditect.integrations.http.addresses import AgentLost, AgentRefused, AllowedHosts, AnswerBroken
from coditect.settings.settings import PRIVATE_ADDRESSES, GitSettings

if TYPE_CHECKING:
    from coditect.integrations.http.calls import AgentCalls, HttpAnswer

_TOKEN = "CODITECT_GIT_TOKEN"  # noqa: S105 - a variable's name
_ANSWER_SECONDS, _LONGEST_PAUSE_SECONDS = 30.0, 3_600.0
_ANSWER_BYTES = 8_388_608
_PAGE, _MAX_PAGES = 50, 40
_URL = re.compile(
    r"(?P<server>https?://[^/?#@\s]+(?:/[\w.-]+)*)/(?P<owner>[\w.-]+)/(?P<name>[\w.-]+?)(?:\.git)?/?", re.ASCII
)
_BRANCH = re.compile(r"(?!.*(?:\.\.|//|@\{|\.lock(?:/|$)))[^\x00-\x20\x7f~^:?*\[\\]+")
_COMMIT = r"^[0-9a-f]{40,64}$"
_MAX_DESCRIPTION = 140
_RETRIED = frozenset({408, 425, 429})
_UNPROCESSABLE = 422
_GITEA = "/api/v1"
_ANY = TypeAdapter[JsonValue](JsonValue)


class CheckState(StrEnum):
    """The state of a status check of a commit."""

    PENDING = "pending"
    SUCCESS = "success"
    FAILURE = "failure"


class PullRequest(BaseModel):
    """A pull request as the Git server described it when it was read."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    repo_url: str
    number: int = Field(ge=1)
    url: str
    """The page of the pull request."""
    title: str
    author: str
    base: str
    """The branch that it is to be merged into."""
    commit: str = Field(pattern=_COMMIT)
    """The head: the last commit of the branch to merge."""
    fork: bool
    """Whether the branch to merge is in another repository, so that its author may be a stranger."""


class LineComment(BaseModel):
    """A comment on a line of a file, as the pull request's head has it."""

    path: str
    line: int
    text: str


class _Repository(BaseModel):
    full_name: str


class _Side(BaseModel):
    ref: str
    sha: str = Field(pattern=_COMMIT)
    repo: _Repository | None = None
    """None when the repository was deleted."""


class _User(BaseModel):
    login: str


class _PullDocument(BaseModel):
    """The fields of a pull request that both APIs have."""

    state: str
    title: str
    html_url: str
    user: _User | None = None
    head: _Side
    base: _Side


class GitServer:
    """A client for one repository of a Git server; its methods block until the server has answered."""

    def __init__(
        self, address: re.Match[str], hosts: AllowedHosts, token: str, run: Callable[..., Any], calls: AgentCalls
    ) -> None:
        """Use `open_git_server`, which takes the address apart and opens the client."""
        self._server, self._repository = address["server"], f"/repos/{address['owner']}/{address['name']}"
        self._hosts, self._token, self._run, self._calls = hosts, token, run, calls
        self.url = f"{self._server}/{address['owner']}/{address['name']}"

    @property
    def path(self) -> str:
        """The host and the path of the URL: a name for the repository's copy on this machine."""
        parts = urlsplit(self.url)
        return f"{parts.netloc.lower().replace(':', '_')}{parts.path}"

    def pull_request(self, number: int) -> PullRequest:
        """Read an open pull request.

        Raises:
            InputError: not retryable; there is none, or it is closed.
        """
        path = f"{self._repository}/pulls/{number}"
        try:
            found = _PullDocument.model_validate(self._ask("GET", path))
        except ValidationError as error:
            reason = str(error)[:300]
            raise Retryable("The Git server answers with no pull request", url=self.url, reason=reason) from error
        if found.state != "open":
            raise InputError("The pull request is not open", url=found.html_url, state=found.state, fix="open it again")
        if not _BRANCH.fullmatch(found.base.ref):
            raise InputError("The pull request's base is no branch", base=found.base.ref[:200], fix="name another base")
        head, base = found.head.repo, found.base.repo
        return PullRequest(
            repo_url=self.url,
            number=number,
            url=found.html_url,
            title=found.title[:300],
            author=found.user.login[:100] if found.user else "",
            base=found.base.ref,
            commit=found.head.sha,
            fork=head is None or base is None or head.full_name != base.full_name,
        )

    def set_status(self, commit: str, state: CheckState, *, context: str, description: str, link: str = "") -> None:
        """Set a status check of a commit; a later state of the same context replaces it."""
        document = {"state": state, "context": context, "description": description[:_MAX_DESCRIPTION]}
        if link:
            document["target_url"] = link
        self._ask("POST", f"{self._repository}/statuses/{commit}", document)

    def review(self, request: PullRequest, text: str, comments: Sequence[LineComment], *, mark: str) -> None:
        """Post a review with comments on lines, unless there is one with this mark, which no reader sees.

        GitHub refuses a review as a whole when it does not show the line of a comment, as in a very large diff: the
        comments then stand in the review's text.
        """
        hidden = f"<!-- coditect {mark} -->"
        path = f"{self._repository}/pulls/{request.number}/reviews"
        if any(hidden in str(review.get("body")) for review in self._pages(path)):
            return
        placed = [self._placed(comment) for comment in comments]
        try:
            self._post_review(path, request, f"{text}\n\n{hidden}", placed)
        except InputError as error:
            if not placed or error.facts.get("status") != _UNPROCESSABLE:
                raise
            listed = "\n".join(f"* {as_code(f'{comment.path}:{comment.line}')} {comment.text}" for comment in comments)
            self._post_review(path, request, f"{text}\n\n{listed}\n\n{hidden}", [])

    def git_options(self) -> dict[str, str]:
        """Return options for git with which it connects to this server's checked addresses only, with the token.

        The options hold the token, so they must not be part of a command line.

        Raises:
            InputError: not retryable; an address of the server is not allowed.
            Retryable: its name cannot be resolved.
        """
        parts = urlsplit(self.url)
        host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
        try:
            addresses = self._run(self._hosts.addresses(host, port))
        except OSError as error:
            raise Retryable("The Git server cannot be reached", host=host, reason=str(error)) from error
        options = {"http.followRedirects": "false", "http.proxy": "", "credential.helper": ""}
        if ":" not in host:
            known = ",".join(f"[{address}]" if ":" in address else address for address in dict.fromkeys(addresses))
            options["http.curloptResolve"] = f"{host}:{port}:{known}"
        if self._token:
            basic = base64.b64encode(f"x-access-token:{self._token}".encode()).decode()
            options["http.extraHeader"] = f"Authorization: Basic {basic}"
        return options

    @cached_property
    def _api(self) -> str:
        """The URL of the server's API; the first use asks the server for it."""
        parts = urlsplit(self._server)
        if parts.hostname == "github.com" or str(parts.hostname).endswith(".ghe.com"):
            return f"https://api.{parts.netloc}"
        gitea = f"{self._server}{_GITEA}"
        answer = self._exchange("GET", f"{gitea}/version")
        if _is_temporary(answer):
            raise self._refusal(answer)
        return gitea if answer.status == 200 else f"{self._server}/api/v3"

    def _placed(self, comment: LineComment) -> dict[str, JsonValue]:
        place: dict[str, JsonValue] = {"path": comment.path, "body": comment.text}
        if self._api.endswith(_GITEA):
            return place | {"new_position": comment.line, "old_position": 0}
        return place | {"line": comment.line, "side": "RIGHT"}

    def _post_review(self, path: str, request: PullRequest, text: str, comments: Sequence[JsonValue]) -> None:
        document = {"commit_id": request.commit, "event": "COMMENT", "body": text, "comments": list(comments)}
        self._ask("POST", path, document)

    def _pages(self, path: str) -> Iterator[Mapping[str, Any]]:
        """Yield the elements of a list, page by page; GitHub calls a page's length `per_page`, Gitea `limit`."""
        for page in range(1, _MAX_PAGES + 1):
            found = self._ask("GET", f"{path}?page={page}&per_page={_PAGE}&limit={_PAGE}")
            elements = [element for element in found if isinstance(element, dict)] if isinstance(found, list) else []
            if not elements:
                return
            yield from elements

    def _ask(self, method: str, path: str, document: Mapping[str, Any] | None = None) -> JsonValue:
        """Send a request to the API, and return the JSON of its answer."""
        body = b"" if document is None else _ANY.dump_json(dict(document))
        answer = self._exchange(method, f"{self._api}{path}", body)
        if answer.status not in (200, 201):
            raise self._refusal(answer)
        try:
            return _ANY.validate_json(answer.body)
        except ValidationError as error:
            raise Retryable("The Git server answers with no JSON", url=self.url) from error

    def _exchange(self, method: str, url: str, body: bytes = b"") -> HttpAnswer:
        try:
            answer: HttpAnswer = self._run(self._sent(method, url, body))
            return answer
        except TimeoutError as error:
            raise Retryable("The Git server does not answer", url=self.url, seconds=_ANSWER_SECONDS) from error
        except (AgentRefused, AgentLost, AnswerBroken) as error:
            if isinstance(error.__cause__, InputError):  # an address that is not allowed
                raise error.__cause__ from error
            raise Retryable("The Git server cannot be reached", **{**error.facts, "url": self.url}) from error

    async def _sent(self, method: str, url: str, body: bytes) -> HttpAnswer:
        headers = {"accept": "application/json", "x-github-api-version": "2022-11-28"}
        if self._token:
            headers["authorization"] = f"token {self._token}"
        async with asyncio.timeout(_ANSWER_SECONDS):
            return await self._calls.request(method, url, body, headers)

    def _refusal(self, answer: HttpAnswer) -> Exception:
        """Return the error for an answer without a value: whether to try again, mend the token, or name another."""
        facts = {"url": self.url, "status": answer.status, "reason": answer.body[:300].decode(errors="replace")}
        if _is_temporary(answer):
            pause = answer.pause_seconds(limit=_LONGEST_PAUSE_SECONDS)
            if pause is not None:
                return RetryAfter(
                    timedelta(seconds=pause), f"The Git server asks for a pause by status {answer.status}"
                )
            return Retryable("The Git server does not answer now", **facts)
        if answer.status in (401, 403):
            fix = f"set {_TOKEN} to a token that may read code, and write pull requests and commit statuses"
            return SetupError("The Git server refuses the token", **facts, fix=fix)
        if answer.status == 404:
            fix = f"check repo_url and pr_number; a private repository needs {_TOKEN}"
            return NotFound("The Git server has no such repository or pull request", **facts, fix=fix)
        if 300 <= answer.status < 400:
            return InputError("The repository has another URL now", **facts, fix="name that one: none is followed")
        return InputError("The Git server refuses the request", **facts, fix="see what it says")


@contextmanager
def open_git_server(repo_url: str, values: Mapping[str, str]) -> Iterator[GitServer]:
    """Yield the server of a repository for the block, by the settings in `values`; opening it sends nothing.

    Raises:
        InputError: not retryable; the text is no URL of a repository, or its host is not allowed.
        SetupError: not retryable; a setting is wrong, or the HTTP client is not installed.
    """
    try:
        from coditect.integrations.http.calls import agent_calls  # noqa: PLC0415 - only pull requests need it
    except ImportError as error:
        raise missing_extra("api") from error
    settings, address = GitSettings.read(values), _URL.fullmatch(repo_url)
    hosts = AllowedHosts.read(settings.hosts, private=settings.private, use="git")
    if address is None or {".", ".."} & {*repo_url.split("/")}:
        fix = "such as https://github.com/OWNER/NAME, without user, query and fragment"
        raise InputError("This is no URL of a repository", given=repo_url[:200], fix=fix)
    hosts.check(address["server"])
    if settings.token and not settings.private and not repo_url.startswith("https://"):
        fix = f"name the repository by https; in a network of your own, {PRIVATE_ADDRESSES}=git allows http"
        raise InputError("The token would be sent for everybody to read", given=repo_url[:200], fix=fix)
    with new_runner() as runner:
        client = agent_calls(hosts, most_bytes=_ANSWER_BYTES)
        calls = runner.run(client.__aenter__())
        try:
            yield GitServer(address, hosts, settings.token, runner.run, calls)
        finally:
            runner.run(client.__aexit__(None, None, None))


def as_code(text: str) -> str:
    """Return the first line of a text as code: it may be the change's author's, and must neither call nor link."""
    first, *_ = [*text.strip().splitlines(), ""]
    return f"`{first[:300].replace('`', chr(39)) or ' '}`"


def _is_temporary(answer: HttpAnswer) -> bool:
    throttled = answer.status == 403 and (answer.retry_after is not None or b"rate limit" in answer.body.lower())
    return answer.status >= 500 or answer.status in _RETRIED or throttled

"""Who may do what: keys, roles, tokens of an issuer, limits, the audit line, and pages of other sites."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from threading import Event, Thread
from typing import Any, ClassVar
from urllib.error import URLError
from urllib.parse import urlsplit
from urllib.request import urlopen

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from fastapi.routing import APIRoute
from httpx2 import ASGITransport, AsyncClient
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from coditect.api.access import Caller, KeyFile, Role
from coditect.api.application import ROUTERS, create_app
from coditect.api.bearer import BearerAccess, OidcTokens, _is_reached_safely
from coditect.api.guard import AUDIT_LOGGER
from coditect.api.program import access_of
from coditect.api.routes import collaboration, http_agents
from coditect.api.routes.parameters import own_key
from coditect.errors import InputError, NotFound, Retryable, SetupError
from coditect.model.limits import Rate
from coditect.settings.settings import ApiSettings
from coditect.testing import TestFleet
from tests.api import ADDRESS, api_of, services_of
from tests.support import eventually

MADE = "2026-01-01T00:00:00+00:00"
VIEWERS_MAY = {
    "POST /agent-response/{token}": "the path is the credential",
    "POST /patterns/{name}/render": "it changes nothing",
    "POST /workflows/check": "it changes nothing",
}
"""The requests that are no GET and that a viewer may make all the same, and why."""
NEED_AN_APPROVER = {"POST /approvals/{approval}/grant", "POST /approvals/{approval}/deny"}
NEED_AN_ADMIN = {
    "POST /topology",
    "POST /rebuild",
    "PUT /webhooks/{name}",
    "DELETE /webhooks/{name}",
    "POST /webhooks/{name}/test",
    "POST /webhooks/{name}/enable",
    "POST /webhooks/{name}/disable",
}
"""The requests for which an operator is not enough; all others that are no GET need one."""


@pytest.fixture
def file(tmp_path: Path) -> KeyFile:
    return KeyFile(tmp_path / "keys")


@pytest.fixture
async def keyed(file: KeyFile) -> AsyncIterator[AsyncClient]:
    async with TestFleet() as fleet, api_of(fleet, access=BearerAccess([file])) as http:
        yield http


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


async def test_a_request_needs_a_key(keyed: AsyncClient, file: KeyFile) -> None:
    key = file.create("ada", Role.VIEWER, made_at=MADE)

    none = await keyed.get("/v1/agents")
    wrong = await keyed.get("/v1/agents", headers=bearer("coditect_wrong"))
    right = await keyed.get("/v1/agents", headers=bearer(key))

    assert (none.status_code, wrong.status_code, right.status_code) == (401, 401, 200)
    assert none.headers["www-authenticate"] == "Bearer"
    assert "Authorization: Bearer" in none.json()["fix"]
    assert (await keyed.get("/livez")).status_code == 200


@pytest.mark.parametrize(
    ("role", "statuses"),
    [
        (Role.VIEWER, (200, 403, 403, 403)),
        (Role.OPERATOR, (200, 200, 403, 403)),
        (Role.APPROVER, (200, 200, 404, 403)),
        (Role.ADMIN, (200, 200, 404, 200)),
    ],
)
async def test_each_role_may_do_what_the_one_before_it_may(
    keyed: AsyncClient, file: KeyFile, role: Role, statuses: tuple[int, ...]
) -> None:
    headers = bearer(file.create("ada", role, made_at=MADE))
    approval = "/v1/approvals/01890a5d-ac96-774b-bcce-b302099a8057:gate/grant"

    read = await keyed.get("/v1/agents", headers=headers)
    steer = await keyed.post("/v1/dead/redrive", json={"all": True, "dry_run": True}, headers=headers)
    approve = await keyed.post(approval, json={}, headers=headers)
    administer = await keyed.post("/v1/topology", headers=headers)

    assert tuple(one.status_code for one in (read, steer, approve, administer)) == statuses


def changes() -> Iterator[tuple[str, str, str]]:
    """Yield the name, the method and a path of each request that is no GET."""
    for router in (*ROUTERS, http_agents.router, collaboration.router):
        prefix = "/v1" if router in ROUTERS else ""
        for route in (each for each in router.routes if isinstance(each, APIRoute)):
            for method in (route.methods or set()) - {"GET", "HEAD"}:
                yield f"{method} {route.path}", method, prefix + re.sub(r"{\w+(:\w+)?}", "x", route.path)


@pytest.mark.parametrize(
    ("role", "refused"),
    [
        (Role.VIEWER, {name for name, _, _ in changes()} - VIEWERS_MAY.keys()),
        (Role.OPERATOR, NEED_AN_APPROVER | NEED_AN_ADMIN),
        (Role.APPROVER, NEED_AN_ADMIN),
        (Role.ADMIN, set()),
    ],
)
async def test_each_change_is_refused_to_the_roles_below_the_one_it_needs(
    keyed: AsyncClient, file: KeyFile, role: Role, refused: set[str]
) -> None:
    headers, found = bearer(file.create("ada", role, made_at=MADE)), set[str]()
    for name, method, path in changes():
        answer = await keyed.request(method, path, json={}, headers=headers)
        if answer.status_code == HTTPStatus.FORBIDDEN:
            found.add(name)

    assert found == refused
    assert VIEWERS_MAY.keys() | NEED_AN_APPROVER | NEED_AN_ADMIN <= {name for name, _, _ in changes()}


def test_the_file_has_no_key_and_belongs_to_its_user(file: KeyFile, tmp_path: Path) -> None:
    key = file.create("ada", Role.OPERATOR, made_at=MADE)
    path = tmp_path / "keys"

    assert key not in path.read_text()
    assert path.stat().st_mode & 0o777 == 0o600
    with pytest.raises(InputError, match="key of this name"):
        file.create("ada", Role.VIEWER, made_at=MADE)


def test_a_link_in_place_of_a_draft_is_not_followed(file: KeyFile, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / f".keys.{os.getpid()}").symlink_to(victim)

    file.create("bob", Role.ADMIN, made_at=MADE)

    assert victim.read_text() == "precious"
    assert not (tmp_path / "keys").is_symlink()


async def test_a_revoked_key_is_refused_at_once(file: KeyFile) -> None:
    key, other = (file.create(name, Role.VIEWER, made_at=MADE) for name in ("ada", "bob"))

    file.revoke("ada")

    assert await file.caller_of(key) is None
    assert await file.caller_of(other) == Caller("bob", Role.VIEWER)
    with pytest.raises(NotFound):
        file.revoke("ada")


def test_a_file_that_others_may_write_or_that_is_none_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("{}\n")
    path.chmod(0o600)
    with pytest.raises(SetupError, match="no file of API keys"):
        KeyFile(path).keys()
    path.chmod(0o666)
    with pytest.raises(SetupError, match="Others may write"):
        KeyFile(path).keys()


@pytest.mark.parametrize(("owner", "believed"), [(0, True), (10_001, True), (4_711, False)])
def test_a_file_of_keys_is_the_users_own_or_roots_as_a_mounted_secret_is(
    file: KeyFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: int, believed: bool
) -> None:
    file.create("ada", Role.VIEWER, made_at=MADE)
    found = os.stat_result((0o100440, *(tmp_path / "keys").stat()[1:4], owner, *(tmp_path / "keys").stat()[5:10]))
    monkeypatch.setattr(os, "getuid", lambda: 10_001)
    monkeypatch.setattr(Path, "stat", lambda path: found)

    with nullcontext() if believed else pytest.raises(SetupError, match="Others may write"):
        assert [one.name for one in KeyFile(tmp_path / "keys").keys().values()] == ["ada"]


async def test_the_key_of_the_settings_makes_its_caller_an_admin() -> None:
    key = "local-0123456789abcdef0123456789abcdef"
    settings = ApiSettings.read({"CODITECT_API_KEY": key})
    async with TestFleet() as fleet, api_of(fleet, access=access_of(settings)) as http:
        statuses = [
            (await http.get("/v1/agents", headers=headers)).status_code
            for headers in ({}, bearer("coditect_other"), bearer(f"{key}x"), bearer(key))
        ]

    assert statuses == [401, 401, 401, 200]
    assert settings.secured


@pytest.mark.parametrize("key", ["tiny", "x" * 31, "with blank" * 4, "ü" * 32])
def test_a_key_that_is_too_short_or_no_word_is_refused_and_not_shown(key: str) -> None:
    with pytest.raises(SetupError, match=r"CODITECT_API_KEY=\$\(openssl") as refused:
        ApiSettings.read({"CODITECT_API_KEY": key})

    assert key not in str(refused.value)


async def test_a_caller_over_its_rate_is_told_when_to_come_again() -> None:
    async with TestFleet() as fleet, api_of(fleet, rate=Rate("2/m", burst=2)) as http:
        answers = [await http.get("/v1/agents") for _ in range(3)]
        await fleet.advance(f"{answers[2].headers['retry-after']}s")
        later = await http.get("/v1/agents")

    assert [one.status_code for one in answers] == [200, 200, 429]
    assert answers[2].headers["retry-after"] == "30"
    assert answers[2].json()["retryable"] is True
    assert later.status_code == 200


async def test_every_change_leaves_a_line_and_a_look_none(
    keyed: AsyncClient, file: KeyFile, caplog: pytest.LogCaptureFixture
) -> None:
    headers = bearer(file.create("ada", Role.OPERATOR, made_at=MADE))
    with caplog.at_level(logging.INFO, AUDIT_LOGGER):
        await keyed.get("/v1/agents", headers=headers)
        await keyed.post("/v1/tasks", json={"capability": "no.such"}, headers=headers)
        await keyed.post("/v1/tasks", json={"capability": "no.such"})

    refused, unknown = (vars(one) for one in caplog.records if one.name == AUDIT_LOGGER)
    assert {name: refused[name] for name in ("caller", "role", "action", "method", "path", "status")} == {
        "caller": "ada",
        "role": "operator",
        "action": "submit_task",
        "method": "POST",
        "path": "/v1/tasks",
        "status": 422,
    }
    assert (unknown["caller"], unknown["status"]) == (None, 401)


async def test_the_line_of_a_change_by_mcp_names_its_caller(file: KeyFile, caplog: pytest.LogCaptureFixture) -> None:
    async def server(scope: Scope, receive: Receive, send: Send) -> None:
        await Response(status_code=204)(scope, receive, send)

    keys = {role: bearer(file.create(role, role, made_at=MADE)) for role in (Role.OPERATOR, Role.VIEWER)}
    async with (
        TestFleet() as fleet,
        services_of(fleet.server, fleet.registry, fleet.client, access=BearerAccess([file])) as services,
    ):
        app = create_app(replace(services, mcp=server), ApiSettings())
        async with AsyncClient(transport=ASGITransport(app=app), base_url=ADDRESS) as http:
            with caplog.at_level(logging.INFO, AUDIT_LOGGER):
                taken, refused = [await http.post("/mcp", headers=headers) for headers in keys.values()]

    assert (taken.status_code, refused.status_code) == (204, 403)
    assert "coditect api key create" in refused.json()["fix"]
    assert [vars(one)["caller"] for one in caplog.records if one.name == AUDIT_LOGGER] == ["operator", "viewer"]


async def test_a_page_of_another_site_changes_nothing() -> None:
    async with TestFleet() as fleet, api_of(fleet) as http:
        order = {"capability": "no.such"}
        foreign = await http.post("/v1/tasks", json=order, headers={"origin": "http://evil.example"})
        own = await http.post("/v1/tasks", json=order, headers={"origin": "http://127.0.0.1:8009"})
        form = await http.post("/v1/tasks", content=json.dumps(order), headers={"content-type": "text/plain"})
        rebound = await http.get("/v1/agents", headers={"host": "evil.example:8009"})
        local = await http.get("/v1/agents", headers={"host": "[::1]:8009"})

    assert (foreign.status_code, own.status_code, rebound.status_code, local.status_code) == (403, 422, 403, 200)
    assert own.json()["title"] == "Unknown capability"
    assert form.json()["title"] != "Unknown capability"
    assert "Content-Type: application/json" in form.json()["mistakes"][0]["fix"]
    assert "access-control-allow-origin" not in local.headers


@pytest.mark.parametrize("headers", [{"host": "[x"}, {"origin": "http://[x"}, {"origin": "null"}, {"host": "a:b@[x"}])
async def test_a_host_or_an_origin_that_is_none_is_refused(headers: dict[str, str]) -> None:
    async with TestFleet() as fleet, api_of(fleet) as http:
        answer = await http.post("/v1/tasks", json={"capability": "no.such"}, headers=headers)

    assert answer.status_code == 403
    assert "CODITECT_API_HOSTS" in answer.json()["fix"]


async def test_coditect_s_own_spaces_are_no_way_around_the_roles(keyed: AsyncClient, file: KeyFile) -> None:
    headers = bearer(file.create("ada", Role.OPERATOR, made_at=MADE))
    changed = await keyed.put("/v1/state/coditect.webhooks/all", json={}, headers=headers)
    removed = await keyed.delete("/v1/state/coditect.webhooks/all", headers=headers)
    read = await keyed.get("/v1/state/coditect.webhooks/all", headers=headers)
    other = await keyed.put("/v1/state/team/all", json={}, headers=headers)

    assert [one.status_code for one in (changed, removed, read, other)] == [403, 403, 403, 200]
    assert "/v1/webhooks" in changed.json()["fix"]


def test_no_caller_has_the_idempotency_keys_of_another() -> None:
    one = own_key(Caller("a", Role.OPERATOR), "b/c")
    other = own_key(Caller("a/b", Role.OPERATOR), "c")

    assert one == "api/a/b/c"
    assert other not in (None, one)
    assert own_key(Caller("a%2Fb", Role.OPERATOR), "c") != other


async def test_more_names_are_a_setting_and_keys_allow_any() -> None:
    host = {"host": "fleet.example"}
    async with TestFleet() as fleet:
        async with api_of(fleet, settings=ApiSettings(hosts="Fleet.example, other")) as http:
            named = await http.get("/v1/agents", headers=host)
        async with api_of(fleet, settings=ApiSettings(keys="keys")) as http:
            any_name = await http.get("/v1/agents", headers=host)

    assert (named.status_code, any_name.status_code) == (200, 200)


class _Issuer(BaseHTTPRequestHandler):
    """Publishes one key, as an issuer does."""

    address = ""
    jwks: ClassVar[dict[str, Any]] = {}
    keys_at = "/keys"
    redirects: ClassVar[dict[str, str]] = {}

    def do_GET(self) -> None:
        keys_at = self.address + self.keys_at if self.keys_at.startswith("/") else self.keys_at
        known = {"/.well-known/openid-configuration": {"jwks_uri": keys_at}, "/keys": self.jwks}
        body = json.dumps(known.get(self.path)).encode()
        self.send_response(302 if self.path in self.redirects else 200)
        self.send_header("location", self.redirects.get(self.path, ""))
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        return


@pytest.fixture
def private_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


@pytest.fixture
def issuer(private_key: ec.EllipticCurvePrivateKey) -> Iterator[str]:
    public = json.loads(jwt.algorithms.ECAlgorithm.to_jwk(private_key.public_key()))
    with ThreadingHTTPServer(("127.0.0.1", 0), _Issuer) as server:
        _Issuer.address = f"http://127.0.0.1:{server.server_port}"
        _Issuer.jwks = {"keys": [public | {"kid": "one", "use": "sig", "alg": "ES256"}]}
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield _Issuer.address
        server.shutdown()
        thread.join()


async def test_a_token_of_the_issuer_has_the_role_that_it_names(
    issuer: str, private_key: ec.EllipticCurvePrivateKey
) -> None:
    tokens = OidcTokens(issuer, "coditect", "realm.roles")
    good = {"iss": issuer, "aud": "coditect", "sub": "ada", "exp": time.time() + 60, "realm": {"roles": ["operator"]}}

    def signed(**changed: Any) -> str:
        return jwt.encode(good | changed, private_key, algorithm="ES256", headers={"kid": "one"})

    assert await tokens.caller_of(signed()) == Caller("ada", Role.OPERATOR)
    assert await tokens.caller_of(signed(realm={"roles": ["viewer", "admin", "other"]})) == Caller("ada", Role.ADMIN)
    changes: tuple[dict[str, Any], ...] = (
        {"exp": time.time() - 120},
        {"aud": "another"},
        {"iss": "https://other"},
        {"realm": {"roles": []}},
        {"sub": ""},
        {"sub": "local"},
    )
    for wrong in changes:
        assert await tokens.caller_of(signed(**wrong)) is None
    stranger = ec.generate_private_key(ec.SECP256R1())
    assert await tokens.caller_of(jwt.encode(good, stranger, algorithm="ES256", headers={"kid": "one"})) is None
    assert await tokens.caller_of(jwt.encode(good, "x" * 32, algorithm="HS256", headers={"kid": "one"})) is None
    assert await tokens.caller_of("no token") is None


async def test_an_issuer_that_is_away_is_a_fault_that_passes_and_is_not_asked_for_every_token(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now, asked = [100.0], list[str]()

    def away(place: str, timeout: float) -> None:
        asked.append(place)
        raise URLError("away")

    monkeypatch.setattr("coditect.api.bearer.OPENER.open", away)
    tokens = OidcTokens("http://127.0.0.1:9", "coditect", now=lambda: now[0])
    for _ in range(3):
        with pytest.raises(Retryable, match="cannot be fetched"):
            await tokens.caller_of("a.b.c")
    assert len(asked) == 1

    now[0] += 6
    with pytest.raises(Retryable, match="cannot be fetched"):
        await tokens.caller_of("a.b.c")
    assert len(asked) == 2


async def test_an_issuer_without_an_address_of_its_keys_is_one_that_is_away(
    issuer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("coditect.api.bearer.DISCOVERY", "/keys")

    with pytest.raises(Retryable, match="cannot be fetched"):
        await OidcTokens(issuer, "coditect").caller_of("a.b.c")


@pytest.mark.parametrize("document", [b"<html>", b"[]", b"\xff", b"[" * 200_000, b'{"jwks_uri": 5}',
                                      b'{"jwks_uri": "https://issuer.example/", "keys": 5}'])  # fmt: skip
async def test_an_issuer_whose_answer_is_no_document_is_one_that_is_away(
    document: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("coditect.api.bearer.OPENER.open", lambda place, timeout: BytesIO(document))

    with pytest.raises(Retryable, match="cannot be fetched"):
        await OidcTokens("https://issuer.example", "coditect").caller_of("a.b.c")


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Fetches:
    fetches = Fetches()
    monkeypatch.setattr("coditect.api.bearer.OPENER.open", fetches.open)
    return fetches


@dataclass(slots=True)
class Fetches:
    """Counts the documents that are fetched of an issuer, which may be away."""

    away: bool = False
    number: int = 0

    def open(self, place: str, timeout: float) -> Any:
        self.number += 1
        if self.away:
            raise URLError("away")
        return urlopen(place, timeout=timeout)


def signer(issuer: str, key: ec.EllipticCurvePrivateKey) -> Callable[[str], str]:
    claims = {"iss": issuer, "aud": "coditect", "sub": "ada", "exp": time.time() + 3_600, "roles": ["viewer"]}
    return lambda kid: jwt.encode(claims, key, algorithm="ES256", headers={"kid": kid})


async def test_an_unknown_key_locks_nobody_out_while_the_issuer_is_away(
    issuer: str, private_key: ec.EllipticCurvePrivateKey, counted: Fetches
) -> None:
    now, sign = [100.0], signer(issuer, private_key)
    tokens = OidcTokens(issuer, "coditect", now=lambda: now[0])
    assert await tokens.caller_of(sign("one")) == Caller("ada", Role.VIEWER)
    counted.away, before = True, counted.number

    for second in range(100):
        now[0] += 1 if second < 60 else 60
        with pytest.raises(Retryable) if now[0] >= 130 else nullcontext():
            assert await tokens.caller_of(sign("unknown")) is None
        assert await tokens.caller_of(sign("one")) == Caller("ada", Role.VIEWER)
        assert await tokens.caller_of("a.b.c") is None

    assert counted.number - before <= 50  # one in five seconds at most, and one a minute


async def test_a_key_that_the_issuer_takes_back_or_adds_counts_after_the_next_fetch(
    issuer: str, private_key: ec.EllipticCurvePrivateKey, counted: Fetches
) -> None:
    now, sign = [100.0], signer(issuer, private_key)
    tokens = OidcTokens(issuer, "coditect", now=lambda: now[0])
    assert await tokens.caller_of(sign("one")) is not None
    _Issuer.jwks = {"keys": [_Issuer.jwks["keys"][0] | {"kid": "two"}]}

    assert await tokens.caller_of(sign("two")) is None  # the keys were fetched a moment ago
    now[0] += 30
    assert await tokens.caller_of(sign("two")) == Caller("ada", Role.VIEWER)
    assert await tokens.caller_of(sign("one")) is None
    _Issuer.jwks = {"keys": [_Issuer.jwks["keys"][0] | {"kid": "three"}]}
    now[0] += 301
    assert await tokens.caller_of(sign("two")) is None


async def test_an_issuer_that_is_silent_holds_up_one_caller_and_one_thread(
    issuer: str, private_key: ec.EllipticCurvePrivateKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, sign, asked, answer = [100.0], signer(issuer, private_key), list[str](), Event()
    tokens = OidcTokens(issuer, "coditect", now=lambda: now[0])
    assert await tokens.caller_of(sign("one")) is not None

    def silent(place: str, timeout: float) -> None:
        asked.append(place)
        answer.wait(30)
        raise URLError("timed out")

    monkeypatch.setattr("coditect.api.bearer.OPENER.open", silent)
    now[0] += 301
    strangers = [asyncio.ensure_future(tokens.caller_of(sign(f"unknown {number}"))) for number in range(50)]
    await eventually(lambda: asked)
    callers = await asyncio.gather(*(tokens.caller_of(sign("one")) for _ in range(50)))
    answer.set()
    outcomes = await asyncio.gather(*strangers, return_exceptions=True)

    assert callers == [Caller("ada", Role.VIEWER)] * 50
    assert {type(one) for one in outcomes} == {Retryable}
    assert len(asked) == 1


async def test_an_issuer_that_answers_without_end_keeps_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = Event()

    class Endless(_Issuer):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            try:
                while True:
                    self.wfile.write(b" ")
            except OSError:  # the reader has gone
                ended.set()

    monkeypatch.setattr("coditect.api.bearer.LARGEST_DOCUMENT_BYTES", 10**12)
    monkeypatch.setattr("coditect.api.bearer.FETCH_SECONDS", 0.5)
    with ThreadingHTTPServer(("127.0.0.1", 0), Endless) as server:
        Thread(target=server.serve_forever).start()
        tokens = OidcTokens(f"http://127.0.0.1:{server.server_port}", "coditect")
        try:
            with pytest.raises(Retryable):
                await tokens.caller_of("a.b.c")
            await eventually(ended.is_set)
        finally:
            server.shutdown()


@pytest.mark.parametrize("keys_at", ["file://{path}", "http://127.1:{port}/keys"])
@pytest.mark.parametrize("redirected", [False, True])
async def test_keys_are_fetched_by_tls_alone(
    issuer: str,
    private_key: ec.EllipticCurvePrivateKey,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    keys_at: str,
    redirected: bool,
) -> None:
    (tmp_path / "keys").write_text(json.dumps(_Issuer.jwks))
    place = keys_at.format(path=tmp_path / "keys", port=urlsplit(issuer).port)
    monkeypatch.setattr(_Issuer, "keys_at", "/moved" if redirected else place)
    monkeypatch.setattr(_Issuer, "redirects", {"/moved": place})

    with pytest.raises(Retryable, match="cannot be fetched"):
        await OidcTokens(issuer, "coditect").caller_of(signer(issuer, private_key)("one"))


@pytest.mark.parametrize(
    ("url", "named_by", "safe"),
    [
        ("https://keys.example/", "https://issuer.example", True),
        ("http://127.0.0.1/keys", "http://localhost", True),
        ("http://127.0.0.1/keys", "https://issuer.example", False),
        ("http://issuer.example/keys", "https://issuer.example", False),
        ("file:///keys", "http://localhost", False),
    ],
)
def test_a_url_that_a_document_names_is_reached_as_safely_as_the_document(url: str, named_by: str, safe: bool) -> None:
    assert _is_reached_safely(url, named_by) is safe


@pytest.mark.parametrize("odd", [{"kid": ["x"]}, {"kid": {"x": 1}}, {"alg": ["ES256"]}, {"crv": {}}, {"kty": []}])
async def test_a_published_key_of_another_form_hides_no_other(
    issuer: str, private_key: ec.EllipticCurvePrivateKey, odd: dict[str, Any]
) -> None:
    (good,) = _Issuer.jwks["keys"]
    _Issuer.jwks = {"keys": [good | odd, "x", good]}

    caller = await OidcTokens(issuer, "coditect").caller_of(signer(issuer, private_key)("one"))

    assert caller == Caller("ada", Role.VIEWER)


@pytest.mark.parametrize("purpose", [{"use": "enc"}, {"use": ["sig"]}, {"key_ops": ["sign"]}, {"key_ops": 5}])
async def test_a_key_for_another_purpose_verifies_nothing(
    issuer: str, private_key: ec.EllipticCurvePrivateKey, purpose: dict[str, Any]
) -> None:
    _Issuer.jwks = {"keys": [_Issuer.jwks["keys"][0] | purpose]}

    assert await OidcTokens(issuer, "coditect").caller_of(signer(issuer, private_key)("one")) is None


def test_an_issuer_is_reached_by_tls() -> None:
    with pytest.raises(SetupError, match="https") as refused:
        OidcTokens("http://user:s3cret'PW@issuer.example", "coditect")

    assert refused.value.facts["issuer"] == "issuer.example"

"""The application as a whole: its schema, its dashboard, and where it may listen."""

from __future__ import annotations

import socket
from dataclasses import replace
from pathlib import Path
from traceback import format_exception
from unittest.mock import create_autospec

import pytest
from httpx2 import ASGITransport, AsyncClient

from coditect.agent.program import AGENT_CONNECT_SECONDS
from coditect.api.application import create_app
from coditect.api.program import check_exposure, listener, open_services
from coditect.errors import SetupError
from coditect.integrations.http.bridge import HttpAgents
from coditect.model.limits import Rate
from coditect.settings.settings import ApiSettings, HttpAgentSettings, Settings
from coditect.telemetry.metrics import REPLIES_STRAY, MemoryMetrics
from coditect.testing import TestFleet
from tests.api import ADDRESS, api_of, services_of


async def test_the_schema_is_openapi_3_1_and_documents_errors_as_problems() -> None:
    async with TestFleet() as fleet, api_of(fleet) as http:
        schema = (await http.get("/openapi.json")).json()

    assert schema["openapi"].startswith("3.1")
    for methods in schema["paths"].values():
        for operation in methods.values():
            assert {"4XX", "5XX"} <= set(operation["responses"])
            assert "422" not in operation["responses"]
    assert "ProblemDocument" in schema["components"]["schemas"]


async def test_the_health_paths_tell_whether_the_broker_answers() -> None:
    async with TestFleet() as fleet, api_of(fleet) as http:
        lives, ready = await http.get("/livez"), await http.get("/readyz")
        fleet.server.stop()
        away, still = await http.get("/readyz"), await http.get("/livez")
        fleet.server.start()

    assert (lives.status_code, ready.status_code) == (200, 200)
    assert (away.status_code, still.status_code) == (503, 200)


async def test_the_dashboard_is_served_beside_the_api(tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text("<h1>fleet</h1>")
    async with TestFleet() as fleet, services_of(fleet.server, fleet.registry, fleet.client) as services:
        app = create_app(services, ApiSettings(), dashboard=tmp_path)
        async with AsyncClient(transport=ASGITransport(app=app), base_url=ADDRESS) as http:
            page, wrong = await http.get("/"), await http.delete("/v1/agents")
            asked, docs = await http.get("/v1/tasks"), await http.get("/docs")

    assert (page.status_code, page.text) == (200, "<h1>fleet</h1>")
    assert (docs.status_code, docs.headers["location"]) == (307, "/#/docs")
    assert (wrong.status_code, wrong.headers["allow"]) == (405, "GET, HEAD, POST")
    assert (asked.status_code, asked.headers["allow"]) == (405, "POST")
    assert asked.json()["detail"] == "Specified method is invalid for this resource."


async def test_a_fleet_without_agents_lists_none() -> None:
    async with TestFleet() as fleet, api_of(fleet) as http:
        assert (await http.get("/v1/agents")).json() == []
        assert (await http.get("/v1/agents/nobody")).status_code == 404


def test_without_keys_only_this_machine_is_served() -> None:
    for host in ("127.0.0.1", "127.1.2.3", "::1", "localhost"):
        check_exposure(ApiSettings(host=host))
    check_exposure(ApiSettings(host="0.0.0.0", keys="keys"))
    for host in ("0.0.0.0", "::", "192.168.1.7", "example.org"):
        with pytest.raises(SetupError, match="Without API keys"):
            check_exposure(ApiSettings(host=host))


def test_an_address_in_use_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(SetupError, match="cannot listen"):
        listener("127.0.0.1", taken.getsockname()[1])


def test_the_settings_have_ranges() -> None:
    assert ApiSettings.read({}) == ApiSettings()
    assert ApiSettings.read({"CODITECT_API_PORT": "0", "CODITECT_API_HOST": "::1"}) == ApiSettings(host="::1", port=0)
    with pytest.raises(SetupError, match="outside its range"):
        ApiSettings.read({"CODITECT_API_BODY_BYTES": "1"})


@pytest.mark.parametrize(
    ("variable", "given", "fix"),
    [
        ("CODITECT_API_RATE", "lots", "CODITECT_API_RATE=100/s"),
        ("CODITECT_API_RATE", "0/s", "CODITECT_API_RATE=100/s"),
        ("CODITECT_API_HOSTS", "https://api.example.com", "no scheme, port or path"),
        ("CODITECT_API_HOSTS", "api.example.com:8009", "no scheme, port or path"),
        ("CODITECT_API_TRACE_URL", "http://localhost:16686/trace", "/trace/{trace}"),
        ("CODITECT_API_TRACE_URL", "localhost/{trace}", "CODITECT_API_TRACE_URL=http://"),
        ("CODITECT_API_OIDC_ISSUER", "https://", "CODITECT_API_OIDC_ISSUER=https://"),
        ("CODITECT_API_PORT", "http", "CODITECT_API_PORT=NUMBER, from 0 to 65535"),
        ("CODITECT_PRIVATE_ADDRESSES", "true", "CODITECT_PRIVATE_ADDRESSES=a2a,git,http,webhooks"),
        ("CODITECT_HTTP_HOSTS", "http://agents.example.com", "no scheme, port or path"),
        ("CODITECT_HTTP_CALLBACK_URL", "api.example.com", "CODITECT_HTTP_CALLBACK_URL=https://"),
        ("CODITECT_HTTP_CALLBACK_URL", "http://api.example.com:port", "CODITECT_HTTP_CALLBACK_URL=https://"),
    ],
)
def test_a_wrong_setting_names_its_variable_and_what_to_write(variable: str, given: str, fix: str) -> None:
    with pytest.raises(SetupError) as refused:
        (ApiSettings.read if "_API_" in variable else HttpAgentSettings.read)({variable: given})

    assert (refused.value.facts["variable"], refused.value.facts["given"]) == (variable, given)
    assert fix in str(refused.value.facts["fix"])


@pytest.mark.parametrize(
    ("variable", "given"),
    [
        ("CODITECT_API_TRACE_URL", "http://user:s3cret PW@host/{trace}"),
        ("CODITECT_API_TRACE_URL", "http://user: s3cretPW@host/"),
        ("CODITECT_API_TRACE_URL", "http://user: s3cretPW@host/{trace}"),
        ("CODITECT_API_OIDC_ISSUER", "https://user:s3cret/PW@host"),
        ("CODITECT_API_HOSTS", "http://user:s3cret PW@h"),
        ("CODITECT_API_HOSTS", "http://user:s3cret,PW@h"),
    ],
)
def test_a_wrong_address_is_refused_without_its_password(variable: str, given: str) -> None:
    with pytest.raises(SetupError) as refused:
        ApiSettings.read({variable: given})

    assert refused.value.facts["variable"] == variable
    assert not [part for part in ("s3cret", "PW") if part in "".join(format_exception(refused.value))]


def test_settings_that_are_lists_and_rates_are_read() -> None:
    values = {
        "CODITECT_API_HOSTS": "api.example.com, 10.0.0.7,::1,",
        "CODITECT_API_RATE": "600/m",
        "CODITECT_API_TRACE_URL": "https://traces.example.com/{trace}?tab=all",
    }
    read = ApiSettings.read(values)

    assert (read.hosts, read.rate) == ("api.example.com, 10.0.0.7,::1", Rate("600/m"))
    assert read.trace_url == values["CODITECT_API_TRACE_URL"]
    assert HttpAgentSettings.read({"CODITECT_HTTP_HOSTS": "*.blue.example.com"}).hosts == "*.blue.example.com"


async def test_metrics_of_the_process_are_served() -> None:
    metrics = MemoryMetrics()
    metrics.counter(REPLIES_STRAY).value += 2
    async with TestFleet() as fleet, services_of(fleet.server, fleet.registry, fleet.client) as services:
        app = create_app(replace(services, metrics=metrics), ApiSettings())
        async with AsyncClient(transport=ASGITransport(app), base_url=ADDRESS) as http:
            told = await http.get("/metrics")

    assert told.status_code == 200
    assert "coditect_replies_stray_total 2.0\n" in told.text
    assert told.headers["content-type"].startswith("text/plain; version=")


async def test_api_waits_for_a_broker_that_starts_as_long_as_agents_do(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []

    def broker(url: str, *, connect_seconds: float, **_: object) -> None:
        waits.append(connect_seconds)
        raise SetupError("enough is known")

    monkeypatch.setattr("coditect.client.program.AmqpBroker", broker)

    with pytest.raises(SetupError, match="enough is known"):
        async with open_services(Settings(), ApiSettings(), create_autospec(HttpAgents), MemoryMetrics()):
            pass

    assert waits == [AGENT_CONNECT_SECONDS]

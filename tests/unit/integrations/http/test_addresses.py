"""The bridge posts to hosts that the settings name, and to private addresses only where they allow them."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest

from coditect.errors import InputError
from coditect.integrations.http.addresses import AgentRefused, AllowedHosts, webhook_hosts


def resolving(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> None:
    """Any name has these addresses."""

    async def resolve(host: str, port: int, **_: Any) -> list[Any]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in addresses]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", resolve)


@pytest.mark.parametrize(
    ("patterns", "url"),
    [
        ("agent.example.com", "http://agent.example.com:8080"),
        ("agent.example.com", "https://AGENT.example.com/below"),
        ("other.example.com, *.example.com", "http://agent.example.com"),
        ("10.0.0.*", "http://10.0.0.7:80"),
        ("::1", "http://[::1]:80"),
    ],
)
def test_a_host_that_the_settings_name_is_allowed(patterns: str, url: str) -> None:
    assert AllowedHosts.read(patterns, private=False).check(f"{url}/") == url


@pytest.mark.parametrize(
    "url",
    [
        "http://agent.example.com.evil.org",
        "http://evil.org",
        "http://evil.org#agent.example.com",
        "http://agent.example.com@evil.org",
        "http://user:secret@agent.example.com",
        "http://agent.example.com?to=evil.org",
        "http://agent.example.com:99999",
        "http://agent.example.com/a b",
        "http://agent.example.com/\n",
        "file:///etc/passwd",
        "ftp://agent.example.com",
        "agent.example.com",
        "http://",
        "http://[::1",
        "http://agent.example.com/" + "x" * 2_000,
    ],
)
def test_any_other_url_is_refused_with_what_to_write(url: str) -> None:
    with pytest.raises(InputError) as refused:
        AllowedHosts(("agent.example.com",)).check(url)

    assert refused.value.facts["fix"]


@pytest.mark.parametrize(
    "host",
    [
        "",
        "a..b",
        "x" * 64 + ".example",
        "evil.com\\.ok.example",
        "\u2603.net",
        "\u017f.net",
        "[v1.x]",
        "[::1%25eth0]",
        "[fe80::1%1]",
        "ok[::1]",
        "[::1]ok",
    ],
)
def test_a_host_that_no_resolver_or_client_takes_is_no_url_of_an_agent(host: str) -> None:
    with pytest.raises(InputError, match="no URL"):
        AllowedHosts(("*",)).check(f"http://{host}/")


async def test_a_receiver_whose_host_is_no_name_is_refused() -> None:
    with pytest.raises(InputError, match="no name"):
        await webhook_hosts(private=True).check_receiver("https://a..b/")


def test_without_the_setting_no_host_is_allowed_and_the_error_names_it() -> None:
    with pytest.raises(InputError, match=r"CODITECT_HTTP_HOSTS=agent\.example\.com"):
        AllowedHosts.read("", private=True).check("http://agent.example.com")


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1", "10.1.2.3", "192.168.0.1", "::1", "fd00::1", "::ffff:10.0.0.1", "64:ff9b::a00:1", "64:ff9b:1::a00:1"],
)
async def test_private_addresses_are_allowed_by_their_setting_alone(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolving(monkeypatch, address)

    assert await AllowedHosts(("*",), private=True).addresses("agent.example.com", 80) == [address]
    with pytest.raises(InputError, match="CODITECT_PRIVATE_ADDRESSES=http"):
        await AllowedHosts(("*",)).addresses("agent.example.com", 80)


@pytest.mark.parametrize(
    "address",
    [
        "169.254.169.254",
        "fe80::1",
        "0.0.0.0",
        "224.0.0.1",
        "::ffff:169.254.169.254",
        "168.63.129.16",
        "192.0.0.192",
        "192.0.0.9",
        "100.100.100.200",
        "fd00:ec2::254",
        "fd20:ce::254",
        "::ffff:168.63.129.16",
        "::168.63.129.16",
        "64:ff9b::a83f:8110",
        "64:ff9b:1::a83f:8110",
        "64:ff9b:1:a83f:81:1000::",
        "64:ff9b:1:a8:3f:8110::",
        "64:ff9b:1:0:a8:3f81:1000:0",
        "64:ff9b:1::a9fe:a9fe",
        "2002:a83f:8110::1",
        "2002:a9fe:a9fe::1",
    ],
)
async def test_addresses_of_machines_themselves_are_never_allowed(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolving(monkeypatch, address)

    with pytest.raises(InputError):
        await AllowedHosts(("*",), private=True).addresses("agent.example.com", 80)


@pytest.mark.parametrize("address", ["192.88.99.1", "3fff::1", "5f00::1", "240.0.0.1", "2001:db8::1", "2002:7f00:1::1"])
async def test_addresses_for_special_purposes_are_not_public(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    resolving(monkeypatch, address)

    with pytest.raises(InputError):
        await AllowedHosts(("*",)).addresses("agent.example.com", 80)


async def test_a_name_with_one_private_address_among_others_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    resolving(monkeypatch, "93.184.215.14", "10.0.0.1")

    with pytest.raises(InputError) as refused:
        await AllowedHosts(("*",)).addresses("agent.example.com", 80)

    assert refused.value.facts["address"] == "10.0.0.1"


async def test_the_addresses_of_a_host_are_tried_in_turn_until_one_takes_the_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    resolving(monkeypatch, "93.184.215.14", "93.184.215.14", "93.184.215.15", "93.184.215.16")
    tried, taking = list[str](), "93.184.215.15"

    async def connect(address: str) -> str:
        tried.append(address)
        if address != taking:
            raise ConnectionRefusedError(address)
        return "answer"

    hosts = AllowedHosts(("*",))
    assert await hosts.first_that_connects("agent.example.com", 80, connect, ConnectionRefusedError) == "answer"
    assert tried == ["93.184.215.14", "93.184.215.15"]

    taking = "none"
    with pytest.raises(AgentRefused, match=r"93\.184\.215\.16"):
        await hosts.first_that_connects("agent.example.com", 80, connect, ConnectionRefusedError)


async def test_no_address_of_a_host_with_one_that_is_not_allowed_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    resolving(monkeypatch, "93.184.215.14", "10.0.0.1")

    async def connect(address: str) -> None:
        raise AssertionError(address)

    with pytest.raises(InputError, match="CODITECT_PRIVATE_ADDRESSES=http"):
        await AllowedHosts(("*",)).first_that_connects("agent.example.com", 80, connect, OSError)

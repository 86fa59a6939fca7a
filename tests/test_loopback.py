"""Proxies are for other machines."""

from __future__ import annotations

import ssl

import httpx
import pytest

from crucible.loopback import bypass_proxies, no_tls


@pytest.mark.parametrize("proxy", ["HTTP_PROXY", "http_proxy", "ALL_PROXY", "https_proxy"])
def test_this_machine_is_reached_past_a_proxy(proxy: str) -> None:
    environment = {proxy: "http://proxy.example.com:3128", "no_proxy": "intranet.example.com"}
    bypass_proxies(environment)
    for name in ("NO_PROXY", "no_proxy"):
        assert environment[name] == "intranet.example.com,127.0.0.1,localhost,::1,169.254.169.254,host.docker.internal"
    bypass_proxies(environment)
    assert environment["NO_PROXY"].count("localhost") == 1


def test_without_a_proxy_nothing_is_set() -> None:
    environment: dict[str, str] = {}
    bypass_proxies(environment)
    assert environment == {}


def test_httpx_understands_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prefect's own clients read the environment."""
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    environment = {"HTTP_PROXY": "http://127.0.0.1:1"}
    bypass_proxies(environment)
    monkeypatch.setenv("NO_PROXY", environment["NO_PROXY"])
    mounts = httpx.Client()._mounts
    direct = {pattern.pattern for pattern, transport in mounts.items() if transport is None}
    assert {"all://127.0.0.1", "all://localhost", "all://[::1]"} <= direct


def test_a_client_of_this_machine_trusts_no_certificate() -> None:
    assert no_tls().verify_mode is ssl.CERT_REQUIRED
    assert no_tls().check_hostname
    assert no_tls().get_ca_certs() == []

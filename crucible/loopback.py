"""Connections to this machine, which no proxy may come between."""

from __future__ import annotations

import ssl
from collections.abc import MutableMapping

NAMES = ("127.0.0.1", "localhost", "::1", "169.254.169.254", "host.docker.internal")
"""The last two are the metadata service of a cloud machine, which answers to that machine only, and the machine that a
container runs on."""
_PROXIES = ("http_proxy", "https_proxy", "all_proxy")


def no_tls() -> ssl.SSLContext:
    """For httpx clients of servers on this machine, which speak plain HTTP; with https:// it trusts nobody.

    Without it, every client first reads the certificates of all the world's authorities: 20 ms of CPU time, also for
    http://.
    """
    return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


def bypass_proxies(environment: MutableMapping[str, str]) -> None:
    """Add this machine to `NO_PROXY` where the environment names a proxy.

    A proxy cannot reach the servers that listen here: every request would fail or wait for its timeout.
    """
    if not any(environment.get(name) or environment.get(name.upper()) for name in _PROXIES):
        return
    known = [environment.get(name, "") for name in ("no_proxy", "NO_PROXY")]
    hosts = [host.strip() for value in known for host in value.split(",") if host.strip()]
    for name in ("NO_PROXY", "no_proxy"):
        environment[name] = ",".join(dict.fromkeys([*hosts, *NAMES]))

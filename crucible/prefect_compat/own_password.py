"""The password of Crucible's profile goes to the server of that profile, and to no other.

Prefect lets `PREFECT_API_URL` in the environment replace a profile's address and keeps the profile's password: with the
profile `crucible` selected, `PREFECT_API_URL=https://prefect.example/api prefect …` would send the local server's
password there. Where the environment names another server and no password for it, this names an empty one.

Upstream issue: none found. Delete this when Prefect ties `PREFECT_API_AUTH_STRING` to the address beside it.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from urllib.parse import urlsplit

from prefect.context import get_settings_context
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL

from crucible.loopback import NAMES

PROFILE = "crucible"


def withhold_from_others(environment: MutableMapping[str, str]) -> None:
    """Set an empty password where the environment sends Prefect to another server than the profile `crucible` does."""
    profile = get_settings_context().profile
    url = environment.get(PREFECT_API_URL.name)
    if profile.name != PROFILE or not url or PREFECT_API_AUTH_STRING.name in environment:
        return
    if not same_server(url, str(profile.settings.get(PREFECT_API_URL, ""))):
        environment[PREFECT_API_AUTH_STRING.name] = ""


def same_server(url: str, other: str) -> bool:
    """Whether two addresses lead to the same host and port; every name of this machine is the same host."""
    return _place(url) == _place(other)


def _place(url: str) -> tuple[str, str, int | None]:
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:  # Prefect says what is wrong with it
        return "", url, None
    return parts.scheme, "127.0.0.1" if host in NAMES[:3] else host, port

"""Who may use the local Prefect server: everyone who can read `$CRUCIBLE_HOME/api-auth`, which is you alone.

Whoever reaches the API can start commands as you, so the API asks for a password. `crucible up` generates it and passes
it on to the Prefect profile, to workers and to flow runs. To choose your own, start `crucible up` with
`PREFECT_SERVER_API_AUTH_STRING=USER:PASSWORD`.
"""

from __future__ import annotations

import base64
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import quote

import httpx

from crucible.errors import ConfigError, ServiceError
from crucible.local.state import Home, State
from crucible.loopback import no_tls

SERVER_SETTING, CLIENT_SETTING = "PREFECT_SERVER_API_AUTH_STRING", "PREFECT_API_AUTH_STRING"
LOGIN_PATH = "/crucible/login"


def auth_string(home: Home) -> str:
    """`user:password` of the server in `home`; made on the first call, from the user's own setting if there is one."""
    try:
        known = home.auth_file.read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        known = ""
    if known:
        return known
    home.auth_file.unlink(missing_ok=True)  # an empty one, as a crash of the machine may leave it, is no password
    _write(home, _chosen() or f"crucible:{secrets.token_urlsafe(32)}")
    return auth_string(home)


def choose(home: Home, state: State) -> None:
    """Take over the user's own setting, if there is one. Raises `ServiceError` if the server runs with another one."""
    chosen = _chosen()
    if chosen is None or chosen == auth_string(home):
        return
    if state.is_running("server"):
        raise ServiceError(f"{SERVER_SETTING} has changed; run: crucible down && crucible up")
    home.auth_file.unlink()
    _write(home, chosen)


def connect(home: Home, api_url: str, *, seconds: float = 30) -> httpx.Client:
    """A client of the server in `home`. No proxy: the server is on this machine."""
    user, _, password = auth_string(home).partition(":")
    return httpx.Client(base_url=api_url, timeout=seconds, auth=(user, password), trust_env=False, verify=no_tls())


def connect_here(*, seconds: float = 30) -> httpx.Client:
    """A client of the server that this shell uses: `PREFECT_API_URL`, else the one of `crucible up`.

    Raises `ServiceError` when there is neither.
    """
    home = Home.current()
    own = State.load(home).api_url
    url = os.environ.get("PREFECT_API_URL") or own
    if not url:
        raise ServiceError("there is no Prefect server here; start it with: crucible up")
    if url == own:
        return connect(home, url, seconds=seconds)
    if key := os.environ.get("PREFECT_API_KEY"):
        return httpx.Client(base_url=url, timeout=seconds, headers={"Authorization": f"Bearer {key}"})
    user, _, password = (os.environ.get(CLIENT_SETTING) or "").partition(":")
    return httpx.Client(base_url=url, timeout=seconds, auth=(user, password))


def unreachable(api: httpx.Client, error: httpx.HTTPError) -> ServiceError:
    """What to say of a server that does not answer a client of `connect_here`, or refuses it."""
    own = State.load(Home.current()).api_url
    ours = own is not None and str(api.base_url).rstrip("/") == own.rstrip("/")
    fix = "run: crucible up" if ours else f"check PREFECT_API_URL, and PREFECT_API_KEY or {CLIENT_SETTING}"
    return ServiceError(f"the Prefect server at {api.base_url} does not answer ({error}); {fix}")


@contextmanager
def prefect_settings(home: Home) -> Iterator[None]:
    """Within it, Prefect's own clients in this process use the server in `home`."""
    from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings

    with temporary_settings({PREFECT_API_URL: State.load(home).api_url, PREFECT_API_AUTH_STRING: auth_string(home)}):
        yield


def login_link(home: Home, page: str) -> str:
    """`page` of the UI, with the password in the part of the address that a browser keeps to itself."""
    address = httpx.URL(page)
    password = base64.b64encode(auth_string(home).encode()).decode()
    target = quote(address.raw_path.decode(), safe="/")
    return f"{address.scheme}://{address.netloc.decode()}{LOGIN_PATH}?next={target}#{password}"


def _chosen() -> str | None:
    chosen = os.environ.get(SERVER_SETTING)
    if chosen and not all(chosen.partition(":")):
        raise ConfigError(f"{SERVER_SETTING}: expected USER:PASSWORD")
    return chosen or None


def _write(home: Home, value: str) -> None:
    home.root.mkdir(parents=True, exist_ok=True)
    staged = home.auth_file.with_suffix(f".{os.getpid()}")
    staged.unlink(missing_ok=True)
    with os.fdopen(os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.write(value + "\n")
        file.flush()
        os.fsync(file.fileno())
    try:
        os.link(staged, home.auth_file)  # the first of two that start at once decides
    except FileExistsError:
        pass
    finally:
        staged.unlink()

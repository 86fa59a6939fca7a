"""Who may use the local server. A page of another origin and a neighbour on this machine may not; the user need not
type anything."""

from __future__ import annotations

import asyncio
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from crucible.errors import ConfigError, ServiceError
from crucible.local import access, provision, services
from crucible.local.guard import Guard
from crucible.local.state import Home, State

if TYPE_CHECKING:
    from tests.conftest import PrefectServer

EVIL = "https://evil.example.com"
RUN = {"job_variables": {"command": "sh -c 'touch /tmp/pwned'"}}


@pytest.fixture(scope="module")
def deployment(prefect_server: PrefectServer) -> str:
    """A deployment on the pool `local` of a server that is up."""
    with access.connect(prefect_server.home, prefect_server.api_url) as api:
        provision.ensure_pool(api)
        flow = api.post("/flows/", json={"name": "victim"}).raise_for_status().json()["id"]
        body = {"name": "victim", "flow_id": flow, "work_pool_name": services.POOL}
        return str(api.post("/deployments/", json=body).raise_for_status().json()["id"])


def runs(server: PrefectServer, deployment: str) -> int:
    with access.connect(server.home, server.api_url) as api:
        wanted = {"deployments": {"id": {"any_": [deployment]}}}
        return int(api.post("/flow_runs/count", json=wanted).raise_for_status().json())


@pytest.mark.parametrize(
    "headers",
    [
        pytest.param({"Origin": EVIL, "Content-Type": "application/json"}, id="a page"),
        pytest.param({"Origin": EVIL}, id="a page, as a simple request without preflight"),
        pytest.param({"Origin": "null"}, id="a sandboxed frame"),
        pytest.param({"Origin": "http://localhost:3000"}, id="another program's page on this machine"),
        pytest.param({"Host": "rebound.example.com:4200"}, id="a page whose name was rebound to 127.0.0.1"),
        pytest.param({}, id="a neighbour"),
        pytest.param({"Authorization": "Basic Y3J1Y2libGU6Z3Vlc3M="}, id="a neighbour who guesses"),
    ],
)
def test_others_start_nothing(prefect_server: PrefectServer, deployment: str, headers: dict[str, str]) -> None:
    with httpx.Client(base_url=prefect_server.api_url, trust_env=False, timeout=30) as page:
        answer = page.post(f"/deployments/{deployment}/create_flow_run", json=RUN, headers=headers)
        documents = page.post("/block_documents/filter", json={"include_secrets": True}, headers=headers)
    assert answer.status_code in (401, 403)
    assert documents.status_code in (401, 403)
    assert "access-control-allow-origin" not in answer.headers
    assert runs(prefect_server, deployment) == 0


def test_no_other_origin_may_read_an_answer(prefect_server: PrefectServer) -> None:
    preflight = {"Origin": EVIL, "Access-Control-Request-Method": "POST"}
    answer = httpx.options(f"{prefect_server.api_url}/flows/", headers=preflight, trust_env=False)
    assert not answer.is_success
    assert "access-control-allow-origin" not in answer.headers


def test_not_even_the_user_names_the_command_of_a_run(prefect_server: PrefectServer, deployment: str) -> None:
    """The pool offers no such variable, so that a way in would not be a way to any command."""
    with access.connect(prefect_server.home, prefect_server.api_url) as api:
        for variables in (RUN["job_variables"], {"env": {"LD_PRELOAD": "/tmp/evil.so"}}):
            answer = api.post(f"/deployments/{deployment}/create_flow_run", json={"job_variables": variables})
            assert answer.is_client_error
            assert next(iter(variables)) in answer.text
    assert runs(prefect_server, deployment) == 0


def test_a_pool_of_an_earlier_version_gets_todays_template(prefect_server: PrefectServer, deployment: str) -> None:
    offers_all = {
        "variables": {"properties": {"command": {"type": "string"}}},
        "job_configuration": {"command": "{{ command }}"},
    }
    with access.connect(prefect_server.home, prefect_server.api_url) as api:
        api.patch(f"/work_pools/{services.POOL}", json={"base_job_template": offers_all}).raise_for_status()
        provision.ensure_pool(api)
        template = api.get(f"/work_pools/{services.POOL}").json()["base_job_template"]
    assert template == provision.POOL_TEMPLATE


def test_the_ui_asks_its_own_origin(prefect_server: PrefectServer) -> None:
    ui = prefect_server.api_url.removesuffix("/api")
    settings = httpx.get(f"{ui}/ui-settings", trust_env=False).raise_for_status().json()
    assert (settings["api_url"], settings["auth"]) == ("/api", "BASIC")


def test_a_link_logs_a_browser_in(prefect_server: PrefectServer) -> None:
    page = services.ui_url(prefect_server.api_url)
    link = httpx.URL(access.login_link(prefect_server.home, page))
    assert link.fragment
    assert dict(link.params) == {"next": "/v2"}
    answer = httpx.get(link, trust_env=False).raise_for_status()
    assert "prefect-password" in answer.text, "where both versions of the UI look for it"
    headers = {"Authorization": f"Basic {link.fragment}"}
    assert httpx.get(f"{prefect_server.api_url}/admin/version", headers=headers, trust_env=False).is_success


def answer_of(headers: dict[str, str], path: str = "/api/flows", kind: str = "http") -> int | str:
    """The guard's answer to a request with these headers; "in" if it lets the request pass."""

    async def ask() -> int | str:
        said: list[Any] = []

        async def app(*_: Any) -> None:
            said.append("in")

        async def send(message: Any) -> None:
            said.append(message.get("status") or message.get("code"))

        given = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
        scope = {"type": kind, "method": "GET", "path": path, "headers": given}
        guard = Guard(app, "me:secret", "https://prefect.team.example/v2")
        await guard(scope, None, send)  # type: ignore[arg-type]
        return said[0]  # type: ignore[no-any-return]

    return asyncio.run(ask())


@pytest.mark.parametrize(
    ("headers", "answer"),
    [
        ({"Host": "127.0.0.1:4200"}, "in"),
        ({"Host": "localhost:8080", "Origin": "http://localhost:8080"}, "in"),  # a port forwarded by ssh
        ({"Host": "[::1]:4200"}, "in"),
        ({"Host": "prefect.team.example", "Origin": "https://prefect.team.example"}, "in"),
        ({"Host": "127.0.0.1:4200", "Origin": "https://prefect.team.example"}, "in"),  # a proxy that changes the Host
        ({"Host": "server:4200", "Authorization": "Basic bWU6c2VjcmV0"}, "in"),  # a container, a tunnel
        ({"Host": "server:4200", "Authorization": "Basic bWU6Z3Vlc3M="}, 403),
        ({"Host": "server:4200"}, 403),
        ({"Host": "127.0.0.1:4200", "Origin": "http://127.0.0.1:4201"}, 403),
        ({"Host": "localhost.evil.example"}, 403),
        ({}, 403),
    ],
)
def test_which_names_and_origins_are_ours(headers: dict[str, str], answer: int | str) -> None:
    assert answer_of(headers) == answer


def test_a_websocket_is_for_programs_and_for_the_ui() -> None:
    """Browsers always send an Origin with one, and no rule of theirs keeps a page from opening it."""
    answers = {
        "worker": answer_of({"Host": "server:4200"}, "/api/events/in", "websocket"),
        "ui": answer_of({"Host": "127.0.0.1:4200", "Origin": "http://127.0.0.1:4200"}, "/api/events/out", "websocket"),
        "page": answer_of({"Host": "127.0.0.1:4200", "Origin": EVIL}, "/api/events/out", "websocket"),
        "rebound": answer_of({"Host": "evil.com", "Origin": "http://evil.com"}, "/api/events/out", "websocket"),
    }
    assert answers == {"worker": "in", "ui": "in", "page": 1008, "rebound": 1008}


def test_a_probe_may_use_any_name() -> None:
    assert answer_of({"Host": "server:4200"}, "/api/health") == "in"
    assert answer_of({"Host": "server:4200"}, "/api/healthy") == 403


def test_only_the_user_can_read_the_password_whatever_the_umask(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    before = os.umask(0)
    try:
        password = access.auth_string(home)
    finally:
        os.umask(before)
    assert stat.S_IMODE(home.auth_file.stat().st_mode) == 0o600
    assert access.auth_string(home) == password


def test_an_empty_file_is_no_password(tmp_path: Path) -> None:
    """As a machine that crashes may leave it: the server would refuse our own clients, and its password be known."""
    home = Home(tmp_path)
    home.auth_file.touch()
    made = access.auth_string(home)
    assert all(made.partition(":"))
    assert access.auth_string(home) == made == home.auth_file.read_text().strip()


def test_a_password_of_the_users_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = Home(tmp_path)
    monkeypatch.delenv(access.SERVER_SETTING)
    generated = access.auth_string(home)
    assert len(generated) > 40
    monkeypatch.setenv(access.SERVER_SETTING, "me:chosen")
    access.choose(home, State())
    assert access.auth_string(home) == "me:chosen"
    assert services.server(home, "http://127.0.0.1:1/api").settings[access.SERVER_SETTING] == "me:chosen"
    assert access.SERVER_SETTING not in services.service_environment(home, "http://127.0.0.1:1/api")
    monkeypatch.setenv(access.SERVER_SETTING, "chosen")
    with pytest.raises(ConfigError, match="expected USER:PASSWORD"):
        access.choose(home, State())


def test_the_password_does_not_change_under_a_running_server(
    prefect_server: PrefectServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(access.SERVER_SETTING, "me:chosen")
    with pytest.raises(ServiceError, match="crucible down && crucible up"):
        access.choose(prefect_server.home, prefect_server.state)


@pytest.mark.parametrize(
    ("variable", "value", "sent"),
    [("PREFECT_API_KEY", "pnu_1", "Bearer pnu_1"), ("PREFECT_API_AUTH_STRING", "me:secret", "Basic bWU6c2VjcmV0")],
)
def test_a_server_elsewhere_gets_its_credentials_and_the_advice_is_about_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, sent: str
) -> None:
    for name in ("PREFECT_API_KEY", "PREFECT_API_AUTH_STRING"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CRUCIBLE_HOME", str(tmp_path))
    monkeypatch.setenv("PREFECT_API_URL", f"http://127.0.0.1:{services.free_port()}/api")
    monkeypatch.setenv(variable, value)
    with access.connect_here() as api, pytest.raises(httpx.ConnectError) as away:
        api.get("/health")
    assert away.value.request.headers["Authorization"] == sent
    assert "check PREFECT_API_URL" in str(access.unreachable(api, away.value))

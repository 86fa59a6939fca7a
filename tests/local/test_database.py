"""The one setting that names the server's database: a PostgreSQL of the user's own."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.postgres import find_binaries, running_postgres
from crucible.doctor import checks
from crucible.errors import ConfigError, ServiceError
from crucible.local import database, services, up
from crucible.local.access import connect
from crucible.local.profile import NAME, select
from crucible.local.state import PROJECT, Home, State

SECRET_URL = "postgresql://prefect:s3cret@db.example.com:5432/prefect"


def quiet(part: str, status: str) -> None:
    pass


@pytest.fixture(scope="module")
def postgres_url() -> Iterator[str]:
    if not (found := find_binaries()):
        pytest.skip("no PostgreSQL is installed; on Debian: apt install postgresql")
    with running_postgres(found[0]) as (url, _):
        yield url


def test_the_server_is_started_with_the_users_postgresql_and_on_no_other_later(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A process that does nothing stands in for the server; with a real one: `make test-slow`."""

    def silent(home: Home, api_url: str, database_url: str | None = None) -> services.Service:
        return replace(
            real(home, api_url, database_url),
            command=(sys.executable, "-S", "-c", "import time; time.sleep(600)"),
            answers=lambda record: True,
        )

    real = services.server
    monkeypatch.setattr(services, "server", silent)
    home, state = Home(tmp_path / "home"), State()
    monkeypatch.setenv(database.SETTING, SECRET_URL)
    try:
        up.ensure_server(home, PROJECT, state, quiet)
        process = state.services["server"].find()
        assert process is not None
        assert process.environ()[database.SETTING] == SECRET_URL.replace("postgresql", "postgresql+asyncpg")
        assert state.database == database.describe(SECRET_URL)

        # Another shell, without the setting: it goes on as it is. After a crash it must not start on another database.
        monkeypatch.delenv(database.SETTING)
        up.ensure_server(home, PROJECT, state, quiet)
        assert state.services["server"].pid == process.pid
        up.stop_services(home, state.model_copy(deep=True), quiet)
        with pytest.raises(ServiceError, match=rf"uses PostgreSQL.*{database.SETTING} is not set here"):
            up.ensure_server(home, PROJECT, state, quiet)
    finally:
        up.stop_services(home, state, quiet)


@pytest.mark.slow
def test_the_server_keeps_its_data_in_the_users_postgresql(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    home = Home(tmp_path / "home")
    monkeypatch.setenv("CRUCIBLE_HOME", str(home.root))
    monkeypatch.setenv(database.SETTING, postgres_url.replace("postgresql+asyncpg", "postgresql"))
    state = State()
    try:
        api_url = up.ensure_server(home, PROJECT, state, quiet)
        with connect(home, api_url) as api:
            api.post("/flows/", json={"name": "kept"}).raise_for_status()
        assert state.database == database.describe(postgres_url)
        assert not (home.prefect / "prefect.db").exists()
        check = checks.database()
        assert (check.ready, check.found) == (True, state.database)

        # Another shell, without the setting: it goes on as it is. After a crash it must not start on another database.
        monkeypatch.delenv(database.SETTING)
        up.ensure_server(home, PROJECT, state, quiet)
        up.stop_services(home, state.model_copy(deep=True), quiet)
        with pytest.raises(ServiceError, match=rf"uses PostgreSQL.*{database.SETTING} is not set here"):
            up.ensure_server(home, PROJECT, state, quiet)
    finally:
        up.stop_services(home, state, quiet)


def test_the_password_stays_with_the_server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(database.SETTING, SECRET_URL)
    monkeypatch.setenv("PREFECT_API_DATABASE_CONNECTION_URL", SECRET_URL)
    assert "s3cret" not in str(services.service_environment(Home(tmp_path), "http://127.0.0.1:1/api"))
    assert "s3cret" not in database.describe(SECRET_URL)
    assert database.describe(SECRET_URL) == "PostgreSQL database prefect at db.example.com:5432"


def test_the_setting_may_be_in_the_profile(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PREFECT_PROFILES_PATH", str(tmp_path / "profiles.toml"))
    assert database.configured_url() is None
    select({database.SETTING: SECRET_URL})
    assert NAME == "crucible"
    assert database.configured_url() == SECRET_URL.replace("postgresql", "postgresql+asyncpg")


@pytest.mark.parametrize("url", ["mysql://me@here/db", "prefect.db", "postgresql"])
def test_what_is_no_database_of_prefects_is_refused(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(database.SETTING, url)
    with pytest.raises(ConfigError, match=rf"{database.SETTING}: expected postgresql\+asyncpg://"):
        database.configured_url()

"""Services that do not start: one line with the reason, the log and the mend."""

from __future__ import annotations

import re
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from crucible.errors import ServiceError
from crucible.local import services
from crucible.local.services import HOST, Service, free_port
from crucible.local.state import Home, State

if TYPE_CHECKING:
    from tests.conftest import PrefectServer

API = "http://127.0.0.1:1/api"


def test_a_port_in_use_is_passed_over() -> None:
    with socket.socket() as listener:
        first = free_port(20_000)
        listener.bind((HOST, first))
        listener.listen()
        assert free_port(first) > first


def test_a_server_of_somebody_else_on_our_port_does_not_count_as_ours(
    prefect_server: PrefectServer, tmp_path: Path
) -> None:
    """Two `crucible up` at once may choose the same port; one of them gets it."""
    answers = services.server(prefect_server.home, prefect_server.api_url).answers
    assert answers(prefect_server.state.services["server"])
    sleeper = Service("server", "", (sys.executable, "-c", "import time; time.sleep(600)"), answers)
    ours = sleeper.start(Home(tmp_path), tmp_path, API)
    process = ours.find()
    assert process is not None
    try:
        assert not answers(ours)
    finally:
        process.kill()


def test_a_service_that_ends_while_starting_is_reported_with_its_last_words(tmp_path: Path) -> None:
    home = Home(tmp_path)
    command = (sys.executable, "-c", "raise SystemExit('port 4200 is already in use')")
    service = Service("server", "Prefect server", command, lambda _: False)
    with pytest.raises(ServiceError) as raised:
        service.wait(service.start(home, tmp_path, API))
    message = str(raised.value)
    assert re.fullmatch(
        rf"Prefect server ended while starting: port 4200 is already in use; see {home.log('server')}, .*crucible up",
        message,
    )


def test_a_service_that_never_answers_is_not_waited_for_endlessly(tmp_path: Path) -> None:
    command = (sys.executable, "-c", "import time; time.sleep(600)")
    service = Service("worker", "Worker", command, lambda _: False, timeout_seconds=0.0)
    record = service.start(Home(tmp_path), tmp_path, API)
    try:
        with pytest.raises(ServiceError, match=r"Worker did not answer within 0 s; see .*worker\.log"):
            service.wait(record)
    finally:
        process = record.find()
        assert process is not None
        process.kill()


def test_a_program_that_cannot_be_started_is_an_error_of_ours(tmp_path: Path) -> None:
    service = Service("server", "Prefect server", (str(tmp_path / "absent"),), lambda _: False)
    with pytest.raises(ServiceError, match="Prefect server could not be started"):
        service.start(Home(tmp_path), tmp_path, API)


def test_services_do_not_inherit_the_way_to_another_server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PREFECT_API_KEY", "secret of the team's server")
    monkeypatch.setenv("PREFECT_API_URL", "https://prefect.example.com/api")
    monkeypatch.setenv("PREFECT_PROFILE", "team")
    environment = services.service_environment(Home(tmp_path), API)
    assert environment["PREFECT_API_URL"] == API
    assert not {"PREFECT_API_KEY", "PREFECT_PROFILE"} & environment.keys()


def test_a_damaged_services_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "services.json").write_text('{"services": ')
    with pytest.raises(ServiceError, match=rf"{tmp_path}/services\.json cannot be read"):
        State.load(Home(tmp_path))

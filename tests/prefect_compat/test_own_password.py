"""With the profile `crucible` selected, its password reaches its own server only."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from crucible.local import profile
from crucible.prefect_compat import own_password
from crucible.prefect_compat.own_password import same_server

SHOW = "from prefect.settings import PREFECT_API_AUTH_STRING as s, PREFECT_API_URL as u; print(u.value(), s.value())"
OWN = "http://127.0.0.1:4291/api"


@pytest.mark.parametrize(
    ("variables", "shown"),
    [
        ({"PREFECT_API_URL": "http://192.0.2.7:4291/api"}, "http://192.0.2.7:4291/api"),
        ({"PREFECT_API_URL": "http://localhost:4291/api"}, "http://localhost:4291/api crucible:secret"),
    ],
    ids=["another server", "this one by another name"],
)
def test_the_password_goes_where_the_profile_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], shown: str
) -> None:
    monkeypatch.delenv("PREFECT_API_AUTH_STRING")
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    profile.select(
        {
            "PREFECT_API_URL": OWN,
            "PREFECT_API_AUTH_STRING": "crucible:secret",
            "PREFECT_PLUGINS_ENABLED": "true",
            "PREFECT_PLUGINS_ALLOW": "crucible",
        }
    )
    environment = {**os.environ, **variables}
    done = subprocess.run([sys.executable, "-c", SHOW], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == shown, done.stderr


def test_the_profile_is_the_one_that_crucible_writes() -> None:
    assert own_password.PROFILE == profile.NAME


def test_a_server_is_its_host_and_port() -> None:
    assert same_server("http://localhost:4200/api/", "http://127.0.0.1:4200/api")
    assert not same_server("http://localhost:4201/api", "http://localhost:4200/api")
    assert not same_server("http://localhost:port/api", "http://localhost:4200/api")

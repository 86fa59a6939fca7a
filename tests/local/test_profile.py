"""The Prefect profile that `crucible up` selects, and the way back."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest

from crucible.errors import ServiceError
from crucible.local import profile

SETTINGS = {"PREFECT_API_URL": "http://127.0.0.1:4200/api"}
OTHERS = 'active = "team"\n\n[profiles.team]\nPREFECT_API_URL = "https://prefect.example.com/api"\n'


@pytest.fixture
def profiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect"))
    return tmp_path / "prefect" / "profiles.toml"


def content(path: Path) -> dict[str, Any]:
    return tomllib.loads(path.read_text())


def test_the_first_profile_of_a_new_user(profiles: Path) -> None:
    assert profile.select(SETTINGS) == profile.PREFECT_DEFAULT
    assert content(profiles) == {"active": "crucible", "profiles": {"crucible": SETTINGS}}
    assert profiles.stat().st_mode & 0o077 == 0


def test_other_profiles_stay_and_the_earlier_one_comes_back(profiles: Path) -> None:
    profiles.parent.mkdir()
    profiles.write_text(OTHERS)
    assert profile.select(SETTINGS) == "team"
    assert content(profiles)["profiles"]["team"] == {"PREFECT_API_URL": "https://prefect.example.com/api"}
    assert profile.restore("team") == "team"
    assert content(profiles)["active"] == "team"


def test_selecting_again_keeps_what_the_user_added_and_the_way_back(profiles: Path) -> None:
    profile.select(SETTINGS)
    profiles.write_text(profiles.read_text() + 'PREFECT_LOGGING_LEVEL = "DEBUG"\n')
    assert profile.select({"PREFECT_API_URL": "http://127.0.0.1:4201/api"}) is None
    assert content(profiles)["profiles"]["crucible"] == {
        "PREFECT_API_URL": "http://127.0.0.1:4201/api",
        "PREFECT_LOGGING_LEVEL": "DEBUG",
    }


def test_a_profile_chosen_meanwhile_is_left_alone(profiles: Path) -> None:
    profile.select(SETTINGS)
    profiles.write_text(profiles.read_text().replace('active = "crucible"', 'active = "team"'))
    assert profile.restore("ephemeral") is None
    assert content(profiles)["active"] == "team"


def test_a_damaged_file_is_named_and_not_overwritten(profiles: Path) -> None:
    profiles.parent.mkdir()
    profiles.write_text("active = ")
    with pytest.raises(ServiceError, match=r"profiles\.toml.*not valid TOML"):
        profile.select(SETTINGS)
    assert profiles.read_text() == "active = "


def test_variables_that_win_over_the_profile_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    assert profile.overridden_by(SETTINGS) == []
    monkeypatch.setenv("PREFECT_API_URL", "https://prefect.example.com/api")
    monkeypatch.setenv("PREFECT_PROFILE", "team")
    assert profile.overridden_by(SETTINGS) == ["PREFECT_API_URL", "PREFECT_PROFILE"]

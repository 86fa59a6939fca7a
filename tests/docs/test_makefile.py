"""What make would run, target by target: nothing is run."""

from __future__ import annotations

import re
import subprocess
import tomllib

import pytest

from crucible.local.state import PROJECT

TARGETS = re.findall(r"^([a-z-]+):", (PROJECT / "Makefile").read_text(encoding="utf-8"), re.M)
EXTRAS = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]


@pytest.mark.parametrize("target", TARGETS)
def test_it_installs_extras_that_exist_and_its_commands_are_whole(target: str) -> None:
    made = subprocess.run(
        ["make", "--dry-run", "--always-make", target], cwd=PROJECT, capture_output=True, text=True, check=False
    )
    assert made.returncode == 0, made.stderr
    checked = subprocess.run(["sh", "-n"], input=made.stdout, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr
    for installed in re.findall(r"--editable (.*?)(?: 2>|[;}]|$)", made.stdout, re.M):
        extras = re.fullmatch(r"\.|'\.\[([\w,]+)\]'", installed.strip())
        assert extras, installed
        assert set((extras[1] or "").split(",")) - {""} <= EXTRAS.keys()

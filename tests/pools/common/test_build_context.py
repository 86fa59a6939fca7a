"""Only what the images are made of is looked at."""

from __future__ import annotations

from pathlib import Path

import pytest

from crucible.errors import ConfigError
from crucible.local.state import PROJECT
from crucible.pools.common.build_context import IGNORE_FILE, sent_files, staged_context


def test_our_own_files_are_those_that_docker_would_send() -> None:
    docker = pytest.importorskip("docker.utils.build")
    rules = [line.strip() for line in (PROJECT / IGNORE_FILE).read_text().splitlines()]
    wanted = docker.exclude_paths(str(PROJECT), [rule for rule in rules if rule and not rule.startswith("#")])
    assert {str(name) for name in sent_files(PROJECT)} == {
        name for name in wanted if (PROJECT / name).is_file() and name != IGNORE_FILE
    }


def test_a_context_is_made_once_for_the_same_content_and_has_nothing_else(tmp_path: Path) -> None:
    project = tmp_path / "project"
    for name in ("code/a.py", "code/__pycache__/a.pyc", "code/.secret", "private/key", ".venv/lib/big.py"):
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_text(name)
    (project / IGNORE_FILE).write_text("# what is sent\n*\n!code\n**/__pycache__\n**/.*\n")
    folder = staged_context(project, tmp_path / "cache")
    assert {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} == {
        IGNORE_FILE,
        "code/a.py",
    }
    assert staged_context(project, tmp_path / "cache") == folder
    (project / "code" / "a.py").write_text("changed")
    assert staged_context(project, tmp_path / "cache") != folder
    (project / IGNORE_FILE).write_text("private\n")
    with pytest.raises(ConfigError, match="first rule has to be"):
        list(sent_files(project))

"""A folder of root's that a container's user writes to."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from crucible.errors import ConfigError
from crucible.pools.docker.sharing import require_own, share

OTHER = 10001

pytestmark = pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")


def as_other(command: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a shell command as the other user."""

    def become() -> None:
        os.setgroups([])
        os.setgid(OTHER)
        os.setuid(OTHER)

    return subprocess.run(
        ["/bin/sh", "-c", command, "sh", *map(str, arguments)],
        preexec_fn=become,
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of root's with something in it; its parents can be passed through."""
    for parent in [tmp_path, *tmp_path.parents]:
        if parent.stat().st_mode & 0o005 != 0o005:
            parent.chmod(parent.stat().st_mode | 0o011)
    store = tmp_path / "store"
    (store / "jobs" / "first").mkdir(parents=True)
    (store / "jobs" / "first" / "job.json").write_text("{}")
    return store


def test_without_sharing_the_other_user_is_refused(folder: Path) -> None:
    assert as_other('touch "$1"', folder / "jobs" / "new").returncode != 0


def test_the_other_user_writes_beside_what_was_there_and_what_comes_later(folder: Path) -> None:
    share(folder, OTHER)
    (folder / "jobs" / "second").mkdir()
    for name in ("jobs/new", "jobs/first/outcome.json", "jobs/second/outcome.json"):
        assert as_other('echo x > "$1"', folder / name).returncode == 0, name
    assert as_other('echo x >> "$1"', folder / "jobs/first/job.json").returncode == 0
    assert (folder / "jobs/second/outcome.json").read_text() == "x\n"


def test_what_goes_while_the_folder_is_shared_is_passed_over(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs on this machine write to the store meanwhile: through files and folders that last a moment."""
    (folder / ".partial" / "upload").mkdir(parents=True)
    (folder / ".partial" / "upload" / "part").touch()
    walk = os.walk

    def as_jobs_go_on(top: Path, topdown: bool = True) -> list[tuple[str, list[str], list[str]]]:
        found = list(walk(top, topdown=topdown))
        shutil.rmtree(folder / ".partial" / "upload")
        return found

    monkeypatch.setattr(os, "walk", as_jobs_go_on)
    share(folder, OTHER)
    assert as_other('echo x >> "$1"', folder / "jobs/first/job.json").returncode == 0


def test_nobody_else_gains_anything(folder: Path) -> None:
    before = folder.stat().st_mode & 0o007
    share(folder, OTHER)
    assert folder.stat().st_mode & 0o007 == before
    assert (folder / "jobs/first/job.json").stat().st_mode & 0o007 == 0o004


def test_sharing_again_changes_nothing(folder: Path) -> None:
    share(folder, OTHER)
    late = folder / "jobs" / "late"
    late.touch()
    changed = late.stat().st_ctime_ns
    share(folder, OTHER)
    assert late.stat().st_ctime_ns == changed, "the whole store was walked again"


def test_only_a_store_or_an_empty_folder_is_shared(tmp_path: Path) -> None:
    require_own(tmp_path / "new", "store")
    (tmp_path / "store" / "jobs").mkdir(parents=True)
    require_own(tmp_path / "store", "store")
    (tmp_path / "store" / "thesis.tex").touch()
    with pytest.raises(ConfigError, match=r"neither empty nor a store \(it has thesis.tex\)"):
        require_own(tmp_path / "store", "store")
    with pytest.raises(ConfigError, match="nope does not exist"):
        require_own(tmp_path / "nope" / "x", "store")


def test_a_store_that_is_being_written_to_is_a_store(tmp_path: Path) -> None:
    for name in (".partial", "jobs", "probes"):
        (tmp_path / "store" / name).mkdir(parents=True)
    require_own(tmp_path / "store", "store")
    (tmp_path / "store" / "letters").mkdir()
    with pytest.raises(ConfigError, match="letters"):
        require_own(tmp_path / "store", "store")

"""Fixtures of the commit protocol's tests."""

from __future__ import annotations

from pathlib import Path

import pytest

import crucible.store.file
from crucible.jobs.job import Job
from crucible.store import Store
from tests.faults.small_jobs import new_job


@pytest.fixture
def fast_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves out fsync: power failures are not what these tests are about, and they make many small files."""
    monkeypatch.setattr(crucible.store.file, "_fsync", lambda path: None)


@pytest.fixture
def job(store: Store) -> Job:
    return new_job(store)


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    return tmp_path / "scratch"

"""Fixtures of the agent's tests."""

from __future__ import annotations

import pytest

import crucible.agent.uploads as uploads_module
from crucible.jobs.job import Job
from crucible.store import Store
from tests.faults.small_jobs import new_job


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads_module, "LOOK_SECONDS", 0.02)


@pytest.fixture
def job(store: Store) -> Job:
    return new_job(store)

"""The pool's worker with the bridge as it is, in front of an SDK that answers as SkyPilot 0.14.1 did."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.settings import PREFECT_API_URL, PREFECT_WORKER_QUERY_SECONDS, temporary_settings

FAKE = Path(__file__).with_name("fake")


class FakeSky:
    """What SkyPilot has, as files."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "clusters").mkdir()
        self.python = root / "python"
        self.python.write_text(
            f'#!/bin/sh\nFAKE_SKY={root} PYTHONPATH={FAKE} exec {sys.executable} "$@"\n', encoding="utf-8"
        )
        self.python.chmod(0o755)

    def trouble(self, call: str, kind: str, message: str, *history: str, from_nodes: int = 1) -> None:
        """Let a call of the SDK fail from now on, for clusters of at least so many nodes."""
        wanted = {"type": kind, "message": message, "history": history, "from_nodes": from_nodes}
        (self.root / "trouble.json").write_text(json.dumps({call: wanted}))

    def launched(self) -> list[Any]:
        return [json.loads(line) for line in self._lines("launched")]

    def downed(self) -> list[str]:
        return self._lines("downed")

    def clusters(self) -> list[str]:
        return [file.stem for file in (self.root / "clusters").glob("*.json")]

    def set(self, name: str, **values: Any) -> None:
        file = self.root / "clusters" / f"{name}.json"
        known = json.loads(file.read_text()) if file.exists() else {"status": "UP", "job": "RUNNING", "launched_at": 1}
        partial = file.with_suffix(".partial")
        partial.write_text(json.dumps(known | values))
        partial.replace(file)

    def lose(self, name: str) -> None:
        (self.root / "clusters" / f"{name}.json").unlink()

    def _lines(self, name: str) -> list[str]:
        file = self.root / name
        return file.read_text().splitlines() if file.exists() else []


@pytest.fixture
def sky(tmp_path: Path) -> FakeSky:
    (tmp_path / "sky").mkdir()
    return FakeSky(tmp_path / "sky")


@pytest.fixture(scope="module")
def client(prefect_server: Any) -> Iterator[SyncPrefectClient]:
    with (
        temporary_settings({PREFECT_API_URL: prefect_server.api_url, PREFECT_WORKER_QUERY_SECONDS: 0.1}),
        get_client(sync_client=True) as client,
    ):
        yield client

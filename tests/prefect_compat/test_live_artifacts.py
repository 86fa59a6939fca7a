"""An artifact that changes has one version, and its changes leave nothing in the table of events."""

from __future__ import annotations

from typing import Any
from uuid import UUID, uuid4

import pytest

from crucible.prefect_compat import live_artifacts
from crucible.prefect_compat.live_artifacts import LiveArtifact


class Row:
    def __init__(self, key: str) -> None:
        self.id, self.key, self.flow_run_id, self.data = uuid4(), key, None, None


class Server:
    """As far as artifacts go. `update_artifact`, which sends an event with the whole content, is missing on purpose."""

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self.changes = 0

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None: ...

    def read_artifacts(self, artifact_filter: Any, sort: Any, limit: int) -> list[Row]:
        return [row for row in reversed(self.rows) if row.key in artifact_filter.key.any_][:limit]

    def create_artifact(self, new: Any) -> Row:
        row = Row(new.key)
        row.data = new.data
        self.rows.append(row)
        return row

    def request(self, method: str, path: str, json: Any, path_params: dict[str, UUID]) -> None:
        assert (method, path) == ("PATCH", "/artifacts/{id}")
        (row,) = [row for row in self.rows if row.id == path_params["id"]]
        row.data = json["data"]
        self.changes += 1

    def delete_artifact(self, artifact: UUID) -> None:
        self.rows = [row for row in self.rows if row.id != artifact]


def test_one_version_over_many_changes_and_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server()
    server.rows = [Row("job-a"), Row("job-a"), Row("job-b")]  # an earlier release added a version at each change
    monkeypatch.setattr(live_artifacts, "get_client", lambda sync_client: server)
    for _ in range(2):
        artifact = LiveArtifact("job-a", "markdown")
        for number in range(5):
            artifact.publish(f"page {number}", "of a")
    assert [row.key for row in server.rows] == ["job-a", "job-b"] or [row.key for row in server.rows] == [
        "job-b",
        "job-a",
    ]
    assert next(row.data for row in server.rows if row.key == "job-a") == "page 4"
    changes = server.changes
    artifact.publish("page 4", "of a")
    assert server.changes == changes, "what has not changed is not sent"

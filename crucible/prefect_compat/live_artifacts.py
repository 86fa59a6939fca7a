"""An artifact that changes while work goes on, and of which there is one version.

Two things of Prefect 3.8 make the database grow with every change. `create_markdown_artifact` adds a version each time,
for ever. `client.update_artifact` changes it in place, but sends an event with the whole new content, which stays in
the table of events for a week. So the request that it makes is made here without the event.

May go when the client can update an artifact without an event that repeats it.
"""

from __future__ import annotations

import json
from typing import Any, Literal
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import ArtifactCreate, ArtifactUpdate
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey
from prefect.client.schemas.objects import Artifact
from prefect.client.schemas.sorting import ArtifactSort
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError
from prefect.runtime import flow_run, task_run

Data = str | float | list[dict[str, Any]]
"""Markdown, the percentage of a progress artifact, or the rows of a table."""
OLD_VERSIONS = 200
"""That are deleted at a time; earlier releases left thousands."""


class LiveArtifact:
    """Publishes under one key. An earlier version is taken over, older ones are deleted.

    `moves`: a flow run that publishes makes the artifact its own, so that the run's page shows it; else it stays with
    the flow run that made it.
    """

    def __init__(self, key: str, kind: Literal["markdown", "table", "progress"], moves: bool = True) -> None:
        self.key, self._kind, self._moves = key, kind, moves
        self._id: UUID | None = None
        self._shown: tuple[Any, str] | None = None

    def publish(self, data: Data, description: str) -> UUID:
        """Show this from now on; returns the artifact's id. Raises what the Prefect client raises."""
        content = json.dumps(data) if self._kind == "table" else data
        with get_client(sync_client=True) as client:
            if self._id is None:
                self._id = self._take_over(client)
            if self._id is not None and self._shown != (content, description):
                update = ArtifactUpdate(data=content, description=description)
                try:
                    _patch(client, self._id, update)
                except PrefectHTTPStatusError as error:
                    if error.response.status_code != 404:
                        raise
                    self._id = None  # a person deleted it
            if self._id is None:
                self._id = self._create(client, content, description)
            self._shown = content, description
            return self._id

    def _create(self, client: SyncPrefectClient, content: Any, description: str) -> UUID:
        new = ArtifactCreate(
            key=self.key,
            type=self._kind,
            description=description,
            data=content,
            flow_run_id=UUID(flow_run.id) if flow_run.id else None,
            task_run_id=UUID(task_run.id) if task_run.id else None,
        )
        created = client.create_artifact(new)
        for old in self._versions(client):
            if old.id != created.id:
                _delete(client, old.id)
        return created.id

    def _take_over(self, client: SyncPrefectClient) -> UUID | None:
        """The newest version, unless it has to move here."""
        versions = self._versions(client)
        if not versions or (self._moves and str(versions[0].flow_run_id or "") != str(flow_run.id or "")):
            return None
        newest, *older = versions
        for old in older:
            _delete(client, old.id)
        return newest.id

    def _versions(self, client: SyncPrefectClient) -> list[Artifact]:
        """Newest first."""
        return client.read_artifacts(
            artifact_filter=ArtifactFilter(key=ArtifactFilterKey(any_=[self.key])),
            sort=ArtifactSort.CREATED_DESC,
            limit=OLD_VERSIONS,
        )


def _patch(client: SyncPrefectClient, artifact: UUID, update: ArtifactUpdate) -> None:
    content = update.model_dump(mode="json", exclude_unset=True)
    client.request("PATCH", "/artifacts/{id}", json=content, path_params={"id": artifact})


def _delete(client: SyncPrefectClient, artifact: UUID) -> None:
    try:
        client.delete_artifact(artifact)
    except ObjectNotFound:
        return

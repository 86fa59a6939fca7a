"""Trackio: a database on this machine that needs no account, a server of your own, or a Space on Hugging Face."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from crucible.errors import ServiceError
from crucible.formatting import url_label
from crucible.jobs.metrics import Row
from crucible.trackers.backends.base import RunEnd, RunRequest
from crucible.trackers.points import shown_metrics


class TrackioRun:
    """A job's run in a Trackio project, named by the job's id.

    Trackio has one open run at a time and sends in the background, so each batch opens the run and closes it: what
    `send` returns from is in the database.
    """

    def __init__(self, request: RunRequest) -> None:
        config = request.config
        if token := config.api_key.get_secret_value():
            os.environ["HF_TOKEN"] = token
        import trackio
        from trackio.sqlite_storage import SQLiteStorage

        self._trackio, self._storage = trackio, SQLiteStorage
        self._request = request
        at_server = config.url.startswith(("http://", "https://"))
        self._where = {"server_url": config.url} if at_server else {"space_id": config.url or None}
        self.run_id = request.spec.job_id
        remote = url_label(config.url) if at_server else f"https://huggingface.co/spaces/{config.url}"
        self.url = remote if config.url else f"trackio show --project {request.project}"
        self.newest_step: int | None = None if config.url else self._newest_step()

    def send(self, rows: Sequence[Row]) -> None:
        run = self._open()
        for row in rows:
            run.log(shown_metrics(row), step=int(row["step"]))
        run.finish()
        if not self._request.config.url and self._newest_step() < rows[-1]["step"]:  # it only warns of what goes wrong
            raise ServiceError(f"Trackio did not keep step {rows[-1]['step']:.0f} of {self.run_id}")

    def finish(self, end: RunEnd) -> None:
        """Each batch has closed the run; Trackio keeps no state of a run beyond its metrics."""

    def close(self) -> None:
        """Each batch has closed the run."""

    def _open(self) -> Any:
        request = self._request
        return self._trackio.init(
            request.project,
            name=self.run_id,
            group=request.spec.sweep or None,
            config=request.parameters | request.labels,
            resume="allow",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
            **self._where,
        )

    def _newest_step(self) -> int:
        newest = self._storage.get_last_step(self._request.project, self.run_id)
        return -1 if newest is None else int(newest)

"""One file a tracker; the library that it needs is imported when a run is opened."""

from __future__ import annotations

from crucible.errors import ConfigError
from crucible.extras import how_to_install
from crucible.trackers.backends.base import RunRequest, TrackedRun
from crucible.trackers.config import TrackerKind


def open_run(request: RunRequest) -> TrackedRun:
    """Open the job's run at the tracker, new or as it is there.

    Raises `ConfigError` where the tracker's library is not installed, and whatever that library raises.
    """
    try:
        match request.config.kind:
            case TrackerKind.TENSORBOARD:
                from crucible.trackers.backends.tensorboard import TensorBoardRun

                return TensorBoardRun(request.job.store.child("tensorboard"))
            case TrackerKind.MLFLOW:
                from crucible.trackers.backends.mlflow import MlflowRun

                return MlflowRun(request)
            case TrackerKind.WANDB:
                from crucible.trackers.backends.wandb import WandbRun

                return WandbRun(request)
            case TrackerKind.TRACKIO:
                from crucible.trackers.backends.trackio import TrackioRun

                return TrackioRun(request)
    except ImportError as error:
        raise ConfigError(how_to_install(error) or str(error)) from error

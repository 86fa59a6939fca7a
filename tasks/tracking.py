"""Trackers of a supervised job or sweep: from the names that a person gave to processes that follow its records."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from prefect.logging import get_logger, get_run_logger
from prefect.runtime import flow_run
from pydantic import SecretStr

from blocks.tracker import Tracker
from crucible.errors import ConfigError, ServiceError
from crucible.trackers.config import TrackerConfig, TrackerKind, split_names
from crucible.trackers.process import FINISH_SECONDS, TrackerProcess, finish_trackers, start_trackers
from tasks.scripts import read_secrets
from tasks.storage import store_settings

KEYS = {
    TrackerKind.WANDB: "WANDB_API_KEY",
    TrackerKind.MLFLOW: "MLFLOW_TRACKING_TOKEN",
    TrackerKind.TRACKIO: "HF_TOKEN",
}
"""The variable, and by its name the Secret block, with the key of a tracker that has none in its own block."""
STOPPED_SECONDS = 3.0
"""For trackers when this process has to go: what they miss now, they get from the next supervisor."""


class Tracking:
    """The trackers' processes, for the time of a `with` block; none until `start`."""

    def __init__(self, store: str, subject: Mapping[str, str], hurried: Callable[[], bool]) -> None:
        """`store`: the name or address of the store; `subject`: {"job": id} or {"sweep": id}.

        `hurried`: whether a person stops the work; the worker then kills this process after 30 seconds.
        """
        self._store, self._subject, self._hurried = store, subject, hurried
        self._logger = get_run_logger() if flow_run.id else get_logger("crucible")
        self._processes: list[TrackerProcess] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        seconds = FINISH_SECONDS if kind is None and not self._hurried() else STOPPED_SECONDS
        behind = finish_trackers(self._processes, seconds)
        subject = next(iter(self._subject.values()))
        for name in behind if kind is None else []:
            self._logger.warning("%s is behind; catch up: crucible track %s --tracker %s", name, subject, name)

    def start(self, names: Sequence[str] | str, begun: bool) -> None:
        """Start the trackers of those names.

        Raises `ConfigError` for a name that is neither a tracker nor a `Tracker` block. Where work has `begun`, that
        and a server that does not answer are logged instead: it goes on without.
        """
        try:
            configs = [read_tracker(name) for name in split_names(names)]
        except (ConfigError, ServiceError) as error:
            if not begun:
                raise
            self._logger.warning("%s; the training goes on without a tracker", error)
            return
        if configs:
            settings = store_settings(self._store)
            self._processes += start_trackers(settings, configs, self._subject, self._logger.info)


def read_tracker(name: str) -> TrackerConfig:
    """The tracker behind a kind's name (`wandb`) or a `Tracker` block's.

    Raises `ConfigError` when there is neither, `ServiceError` when the Prefect server does not answer.
    """
    if name in set(TrackerKind):
        config = TrackerConfig(name=name, kind=TrackerKind(name))
    else:
        try:
            block: Any = Tracker.load(name)
        except ValueError:
            raise ConfigError(
                f"tracker: there is no Tracker block named {name!r}; save one, or use {', '.join(TrackerKind)}"
            ) from None
        config = block.settings(name)
    variable = KEYS.get(config.kind)
    if variable is None or config.api_key.get_secret_value():
        return config
    try:
        key = read_secrets([variable], {})[variable]
    except ConfigError:  # the environment, which the tracker's process inherits, may have it, or none is needed
        return config
    return config.model_copy(update={"api_key": SecretStr(key)})

"""How often the workload saves: chosen by what saving costs, published in the control file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from crucible.contract import Control
from crucible.intervals import FIRST_INTERVAL_SECONDS, IntervalPolicy, SaveCosts


@dataclass(frozen=True)
class SavePolicy(IntervalPolicy):
    """What decides how often to save and what to keep."""

    keep_last: int = 3


@dataclass
class SaveFigures(SaveCosts):
    """What saving has cost lately, the bytes of the newest checkpoint, and the interval in force."""

    bytes: int = 0
    interval_seconds: float = FIRST_INTERVAL_SECONDS

    def as_record(self) -> dict[str, float]:
        """As the heartbeat and the outcome keep them."""
        return {
            "interval_seconds": round(self.interval_seconds, 3),
            "stall_seconds": round(self.stall, 6),
            "durable_seconds": round(self.durable, 3),
            "bytes": float(self.bytes),
        }


class SaveInterval:
    """Follows what saves cost and publishes the interval; `on_trouble(source, message)` receives what is wrong."""

    def __init__(self, policy: SavePolicy, control_file: Path, on_trouble: Callable[[str, str], None]) -> None:
        self.figures = SaveFigures()
        self._policy, self._control_file, self._on_trouble = policy, control_file, on_trouble
        self._publish(policy.first_seconds)

    def measured(self, stall_seconds: float, write_seconds: float) -> None:
        """The workload reported what its last save cost."""
        self.figures.stall_seconds.append(stall_seconds)
        self.figures.write_seconds.append(write_seconds)
        self._choose()

    def committed(self, upload_seconds: float, size_bytes: int) -> None:
        """A checkpoint arrived in the store."""
        self.figures.upload_seconds.append(upload_seconds)
        self.figures.bytes = size_bytes
        self._choose()

    def _choose(self) -> None:
        wanted, durable = self._policy.wanted_seconds(self.figures), self.figures.durable
        interval = self._policy.interval_seconds(self.figures)
        if interval > wanted:
            self._on_trouble(
                "saving",
                f"a save takes {durable:.1f} s to reach the store, longer than the interval of {wanted:.1f} s; "
                f"the interval grows to {interval:.1f} s",
            )
        if abs(interval - self.figures.interval_seconds) >= 0.05 * self.figures.interval_seconds or (
            not self._control_file.exists()
        ):
            self._publish(interval)

    def _publish(self, seconds: float) -> None:
        self.figures.interval_seconds = seconds
        try:
            Control(round(seconds, 3)).write(self._control_file)
        except OSError as error:
            self._on_trouble("scratch", f"the save interval cannot be published to the workload: {error}")

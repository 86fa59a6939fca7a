"""How often the workload saves: chosen by what saving costs, published in the control file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from crucible.contract import Control
from crucible.formatting import duration
from crucible.intervals import FIRST_INTERVAL_SECONDS, IntervalPolicy, SaveCosts

OWN_INTERVAL = "own_interval_seconds"
"""Name in the records of the interval at which a script saves by itself."""


@dataclass(frozen=True)
class SavePolicy(IntervalPolicy):
    """What decides how often to save and what to keep."""

    keep_last: int = 3


@dataclass
class SaveFigures(SaveCosts):
    """What saving has cost lately, the bytes of the newest checkpoint, and the interval in force."""

    bytes: int = 0
    interval_seconds: float = FIRST_INTERVAL_SECONDS
    own_interval_seconds: float | None = None
    """Between the saves of a script that decides by itself when to save, as measured."""

    def as_record(self) -> dict[str, float]:
        """As the heartbeat and the outcome keep them."""
        own = {} if self.own_interval_seconds is None else {OWN_INTERVAL: round(self.own_interval_seconds, 3)}
        return own | {
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

    def reported(self, figures: Mapping[str, float]) -> None:
        """The workload reported these metrics; some of them are what its saves cost."""
        own = figures.get("checkpoint_interval_seconds")
        if own is not None:
            self.measured_own_interval(own)
        if "checkpoint_stall_seconds" in figures or own is not None:
            stall = figures.get("checkpoint_stall_seconds", 0.0)
            self.measured(stall, figures.get("checkpoint_write_seconds", 0.0))

    def measured_own_interval(self, seconds: float) -> None:
        """A script that saves when it likes has saved again; `seconds` between its saves."""
        self.figures.own_interval_seconds = seconds
        mtbf = self._policy.mtbf_seconds
        if mtbf is not None and seconds > mtbf:
            self._on_trouble(
                "script's saves",
                f"the script saves every {duration(seconds)}, and machines like this one are taken away every "
                f"{duration(mtbf)} on average: most attempts will lose all that they did; let it save more often",
            )

    def committed(self, upload_seconds: float, size_bytes: int) -> None:
        """A checkpoint arrived in the store."""
        self.figures.upload_seconds.append(upload_seconds)
        self.figures.bytes = size_bytes
        self._choose()

    def _choose(self) -> None:
        wanted, durable = self._policy.wanted_seconds(self.figures), self.figures.durable
        interval = self._policy.interval_seconds(self.figures)
        if interval > wanted and self.figures.own_interval_seconds is None:
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

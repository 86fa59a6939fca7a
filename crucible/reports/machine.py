"""How busy a job's machines were, as a sentence, and a hint where a GPU waits; `picture.panels` has the curves."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from crucible.formatting import duration
from crucible.jobs.metrics import Row

GPU, CPU = "gpu_utilisation_percent", "cpu_utilisation_percent"
GOOD_PERCENT = 80.0
LEAST_SECONDS = 180.0
"""Of samples, before a low utilisation means anything."""


def machine_section(rows: Sequence[Row]) -> list[str]:
    """The parts of the report; none where nothing was sampled."""
    samples = [row for row in rows if GPU in row or CPU in row]
    if len(samples) < 2:
        return []
    return ["## Machine", *filter(None, [_summary(samples), low_utilisation(rows)])]


def low_utilisation(rows: Sequence[Row]) -> str:
    """A hint if the GPUs of the newest attempt waited for minutes; else empty."""
    samples = [row for row in rows if GPU in row and "time" in row]
    samples = [row for row in samples if row["attempt"] == samples[-1]["attempt"]]
    if len(samples) < 2 or (seconds := samples[-1]["time"] - samples[0]["time"]) < LEAST_SECONDS:
        return ""
    percent = statistics.median(row[GPU] for row in samples)
    if percent >= GOOD_PERCENT:
        return ""
    return (
        f"**The GPU waits**: its utilisation was {percent:.0f} % over {duration(seconds)} (median). Set "
        f"`micro_batch: auto` and `compile: true`, evaluate less often, or choose a smaller and cheaper GPU."
    )


def _summary(samples: Sequence[Row]) -> str:
    """The newest figures in one line."""
    newest: Row = {}
    for row in samples:
        newest.update(row)
    facts = [
        (GPU, "GPU {:.0f} %"),
        ("gpu_memory_gib", "{:.1f} GiB"),
        ("gpu_power_watts", "{:.0f} W"),
        ("gpu_temperature_celsius", "{:.0f} °C"),
        ("gpu_clock_mhz", "{:.0f} MHz"),
        (CPU, "CPU {:.0f} %"),
        ("memory_gib", "{:.1f} GiB of memory in use"),
    ]
    shown = [text.format(newest[name]) for name, text in facts if name in newest]
    slowed = sum(row.get("gpu_slowed_down", 0.0) > 0 for row in samples)
    shown += [f"slowed down in {slowed} of {len(samples)} samples"] if slowed else []
    return "At last: " + ", ".join(shown) + "."

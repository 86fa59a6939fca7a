"""The report shows how busy the machine was, and says so where a GPU waits."""

from __future__ import annotations

from pathlib import Path

import pytest

from crucible.jobs.metrics import Row
from crucible.reports import job_report
from crucible.reports.machine import low_utilisation, machine_section
from crucible.store import Store
from tests.reports.history import Past


def samples(percent: float, minutes: float, attempt: int = 1) -> list[Row]:
    count = int(minutes * 6) + 1
    return [
        {
            "step": 10 * n,
            "attempt": attempt,
            "time": 10.0 * n,
            "gpu_utilisation_percent": percent,
            "gpu_power_watts": 300,
        }
        for n in range(count)
    ]


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (samples(43, 12), "its utilisation was 43 % over 12 min"),
        (samples(43, 2), ""),
        (samples(92, 12), ""),
        (samples(20, 12, attempt=1) + samples(95, 12, attempt=2), ""),
        ([{"step": 1, "attempt": 1, "time": 1.0, "train_loss": 2.0}], ""),
        ([], ""),
    ],
)
def test_low_utilisation_over_minutes_is_a_hint(rows: list[Row], words: str) -> None:
    hint = low_utilisation(rows)
    assert words in hint
    assert bool(hint) == bool(words)


def test_a_page_has_its_curve_and_its_last_figures(store: Store, tmp_path: Path) -> None:
    past = Past(store, tmp_path)
    attempt = past.attempt(0, 100, [100])
    assert "## Machine" not in job_report(past.job)
    lines = b"".join(
        b'{"step": %d, "time": %d, "cpu_utilisation_percent": %d, "memory_gib": 3.5}\n' % (step, step, step)
        for step in (20, 40, 60)
    )
    attempt.append_metrics(99, lines)
    page = job_report(past.job)
    assert "## Machine\n\nAt last: CPU 60 %, 3.5 GiB of memory in use." in page
    assert page.count("data:image/png") == 2


def test_a_slowed_card_is_counted() -> None:
    rows = samples(90, 1)
    rows[2]["gpu_slowed_down"] = 1.0
    assert "slowed down in 1 of 7 samples" in machine_section(rows)[1]

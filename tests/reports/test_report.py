from __future__ import annotations

import base64
import html
import io
import random
import re
from datetime import UTC, datetime
from pathlib import Path

import pytest
from PIL import Image

from crucible.config import TrainConfig
from crucible.formatting import markdown_table, settings_table
from crucible.jobs.job import Job
from crucible.jobs.records import EndReason, JobSpec, Launch, Limits, Outcome
from crucible.jobs.status import JobState
from crucible.reports import Metrics, job_report, loss_curve
from crucible.reports.html import html_page
from crucible.reports.interval import interval_label
from crucible.reports.overview import OverviewReader
from crucible.reports.overview_page import overview_page
from crucible.reports.picture import panels
from crucible.reports.report import inexact_kernels
from crucible.reports.summary import summarise
from crucible.store import Store
from tests.reports.history import Past, interrupted_twice


def test_the_page_shows_attempts_checkpoints_interval_and_settings(store: Store, tmp_path: Path) -> None:
    page = job_report(interrupted_twice(store, tmp_path).job)

    assert "**Completed** · step 2,000 of 2,000 · validation loss 1.6175 · 3 min 36 s in 3 attempts · $0.0362" in page
    steps = "600 → 1,300<br>100 lost<br>recovered in 33 s"
    assert f"| **2**<br>ec2-spot<br>g5.xlarge | {steps} | lost (no sign of life) | $0.0072 |" in page
    assert re.search(r"\| \*\*2,000\*\*<br>newest<br>best \| 1\.6175 \| .* UTC<br>100\.0 kB, attempt 3 \|", page)
    fetch = f"```text\ncrucible checkpoints get shakespeare . --step 2000 --store {store.uri}\n"
    assert fetch in page, "to be copied as it is, and a long address does not widen a table"
    assert "Made every 38 s: a save stops training for 100 ms and is in the store after 1.5 s" in page
    assert "| `n_layer` | `4` |" in page


def test_a_job_that_waits_for_its_first_machine_has_no_time_yet(store: Store, tmp_path: Path) -> None:
    digest = "c8cebf36175a88ac14f6f23cc56f9958"
    job = Job.create(store, JobSpec(job_id="waits", config=TrainConfig(), dataset=digest))
    job.decide(Launch(number=1, pool="slurm", reason="first attempt"))
    page = job_report(job)
    assert " ms in " not in page
    assert "| `dataset` | `c8cebf36175a` |" in page, "the whole digest is wider than a telephone"


def test_the_picture_travels_in_the_page_and_is_small(store: Store, tmp_path: Path) -> None:
    page = job_report(interrupted_twice(store, tmp_path).job)

    match = re.search(r"!\[[^\]]*\]\(data:image/png;base64,([A-Za-z0-9+/=]+)\)", page)
    assert match
    png = base64.b64decode(match[1])
    assert Image.open(io.BytesIO(png)).size == (640, 288)
    assert len(png) < 40_000


def test_attempts_and_both_losses_are_drawn(store: Store, tmp_path: Path) -> None:
    rows = Metrics(interrupted_twice(store, tmp_path).job).rows()
    whole = loss_curve(rows, {1: 0, 2: 600, 3: 1200})

    assert whole == loss_curve(rows, {1: 0, 2: 600, 3: 1200}), "the same history must give the same picture"
    assert whole != loss_curve(rows, {1: 0, 2: 600})
    for name in ("train_loss", "val_loss"):
        assert whole != loss_curve(
            [{k: v for k, v in row.items() if k != name} for row in rows], {1: 0, 2: 600, 3: 1200}
        )


def test_a_long_jobs_picture_stays_small() -> None:
    noise = random.Random(1)
    rows = [{"step": step, "train_loss": noise.gauss(3, 0.3)} for step in range(1, 50_000)]

    assert len(loss_curve(rows)) < 40_000


def test_a_job_without_attempts_has_a_page(store: Store, tmp_path: Path) -> None:
    past = Past(store, tmp_path)
    past.job.set_limits(Limits(max_cost_usd=3))

    page = job_report(past.job)

    assert "**Not started** · step 0 of 2,000 · $0.00 of $3.00" in page
    assert "## Attempts" not in page


def test_a_job_that_failed_shows_what_it_printed_last_with_the_traceback_whole(store: Store, tmp_path: Path) -> None:
    past = Past(store, tmp_path)
    attempt = past.attempt(0, 10, [])
    frames = [f'  File "train.py", line {number}, in deeper' for number in range(30)]
    printed = ["loaded"] * 400 + ["Traceback (most recent call last):", *frames, "ValueError: no such column: ```"]
    attempt.output.write(0, "".join(f"{line}\n" for line in printed[:410]).encode())
    attempt.output.write(1, "".join(f"{line}\n" for line in printed[410:]).encode())
    past.status(JobState.FAILED, "ValueError: no such column")

    page = job_report(past.job)

    assert "\n".join(["``````text", *printed[-32:], "``````"]) in page
    assert f"`crucible logs shakespeare --attempt 1 --store {store.uri}`" in page


def test_an_attempt_that_never_started_is_listed(store: Store, tmp_path: Path) -> None:
    past = Past(store, tmp_path)
    first = past.attempt(0, 100, [])
    past.end(first, EndReason.KILLED, "out of memory | signal 9\nsecond line")
    launch = past.launch.model_copy(update={"number": 2})
    past.job.decide(launch)
    past.job.attempt(2).end(Outcome(end_reason=EndReason.NOT_STARTED, message="no capacity"))

    page = job_report(past.job)

    assert "| **2**<br>ec2-spot<br>g5.xlarge | – | never started | $0.00 |" in page
    assert "out of memory | signal 9 second line" in page  # a list line, where a bar is harmless and a break is not


def test_a_running_job_says_where_it_runs_and_how_long_it_will_take(store: Store, tmp_path: Path) -> None:
    past = Past(store, tmp_path)
    past.attempt(0, 1000, [500])
    past.status(JobState.RUNNING)

    page = job_report(past.job)

    assert "**Running** on ec2-spot (g5.xlarge), attempt 1 · step 1,000 of 2,000 (50%)" in page
    assert "about 1 min 40 s left" in page
    assert "Made every 38 s" in page


def test_the_reason_for_the_interval_follows_from_the_figures(store: Store, tmp_path: Path) -> None:
    past = Past(store, tmp_path)
    attempt = past.attempt(0, 600, [600])

    def reason(fixed: float | None = None, **saving: float) -> str:
        past.job.store.delete("attempts/0001/outcome.json")
        figures = {"interval_seconds": 38.0, "stall_seconds": 0.1, "durable_seconds": 1.5, "bytes": 1e6} | saving
        attempt.end(Outcome(end_reason=EndReason.COMPLETED, message="done", saving=figures))
        return interval_label(summarise(past.job).attempts, fixed)

    assert "loses least time (Young and Daly)" in reason()
    assert "set in the configuration" in reason(fixed=38.0)
    assert "do not queue up" in reason(interval_seconds=60.0, durable_seconds=40.0)
    assert "asks for 3.8 s: this is the shortest interval allowed" in reason(stall_seconds=0.001, interval_seconds=5.0)
    assert "the longest interval allowed" in reason(stall_seconds=30.0, interval_seconds=300.0)
    assert reason(own_interval_seconds=61.0).startswith("every 1 min 1 s, when the script saves")
    assert reason(bytes=0) == ""


def test_what_is_written_in_a_cell_cannot_break_the_table() -> None:
    rows = markdown_table(["a", "b"], [["one | two\nthree", "four"]]).splitlines()

    assert rows[2:] == [r"| one \| two three | four |"]


def test_a_run_with_a_kernel_that_is_not_deterministic_is_called_inexact(store: Store, tmp_path: Path) -> None:
    past = Past(store, tmp_path)
    past.attempt(0, 500, [500])
    (newest,) = past.checkpoints
    environment = {"exact": False, "not_exact_because": "put_ does not have a deterministic implementation"}

    assert inexact_kernels([newest]) == ""
    inexact = newest.model_copy(update={"state": {**newest.state, "environment": environment}})
    assert inexact_kernels([inexact]).startswith("**This run is not exact**: put_ does not have a determ")
    assert inexact_kernels([inexact.model_copy(update={"state": {"environment": {"exact": True}}})]) == ""


def test_names_of_python_in_messages_are_shown_as_they_are(store: Store, tmp_path: Path) -> None:
    past = Past(store, tmp_path, now=datetime.now(UTC))
    message = "TypeError: Net.__init__() got <class 'int'> | see `crucible logs __x__`"
    past.end(past.attempt(0, 10, []), EndReason.FAILED, message)
    past.status(JobState.FAILED, message)

    pages = [job_report(past.job), overview_page(OverviewReader(store).read())]
    for page in (html_page(page, "t") for page in pages):
        shown = html.unescape(re.sub("</?code>", "`", page))
        assert shown.count(message) == (2 if "Attempt 1" in page else 1)


def test_a_setting_with_backticks_stays_in_its_cell() -> None:
    page = html_page(settings_table({"command": "echo `date` | tee log", "empty": ""}), "t")

    assert "<code>echo `date` | tee log</code>" in page
    assert "``" not in page


@pytest.mark.filterwarnings("error")
def test_a_diverging_loss_and_many_attempts_at_one_step_leave_a_picture() -> None:
    rows = [{"step": step, "train_loss": 1.7e308, "val_loss": 1.7e308, "learning_rate": 1.7e308} for step in range(9)]

    assert loss_curve(rows, {})
    assert panels(rows)
    assert loss_curve([{"step": 10, "train_loss": 2.0}], dict.fromkeys(range(1, 51), 0))

"""A machine whose GPU is broken, throttled, taken or without its driver is left, for a reason that names it."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from crucible.agent.health import REHEARSED_UNFIT, card_problem, machine_problem, torch_cuda_version
from crucible.agent.machine_metrics import machine_sampler
from crucible.agent.nvml import Nvml
from crucible.jobs.job import Job
from crucible.jobs.records import EndReason
from tests.agent.fake_nvml import GIB, FakeCard, FakeNvml, NVMLError
from tests.agent.harness import Recorder, run


def fake(*cards: FakeCard, **fields: Any) -> Nvml:
    return Nvml(FakeNvml(list(cards) or [FakeCard()], **fields))


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        ({}, None),
        ({"reasons": 0x8}, "slowed down by its hardware"),
        ({"reasons": 0x20}, "slowed down by its driver because it is hot"),
        ({"reasons": 0x40}, "slowed down by its hardware because it is hot"),
        ({"reasons": 0x80 | 0x4}, "its power supply asks for it"),
        ({"uncorrected": 2}, "2 memory errors that could not be corrected"),
        ({"pending": 1}, "retired only after a restart"),
        ({"retired": [0] * 61}, "61 broken memory pages"),
        ({"retired": [0] * 5}, None),
        ({"rows": (3, 1, 0, 0)}, None),
        ({"rows": (0, 9, 0, 1)}, "memory rows that could not be replaced"),
        ({"used": 41 * GIB}, "other programs hold 41.0 of its 80.0 GiB"),
        # a card that knows nothing of all this
        ({"uncorrected": None, "retired": None, "pending": None, "rows": None, "reasons": None}, None),
    ],
)
def test_what_makes_a_card_unfit(broken: dict[str, Any], words: str | None) -> None:
    (card,) = fake(FakeCard(**broken)).cards()
    problem = card_problem(card, 12)
    assert (problem is None) == (words is None)
    assert words is None or (words in (problem or "") and "GPU 0 (NVIDIA H100 80GB HBM3)" in (problem or ""))


def test_a_driver_that_is_older_than_torchs_cuda() -> None:
    (card,) = fake(cuda=11080).cards()
    assert card_problem(card, 11) is None
    assert card_problem(card, None) is None, "a torch for CPUs"
    assert "its driver 570.86.15 supports CUDA 11, and torch needs 12" in (card_problem(card, 12) or "")


def test_torchs_cuda_is_read_without_torch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import torch

    wanted = int(torch.version.cuda.split(".")[0]) if torch.version.cuda else None
    assert torch_cuda_version() == wanted
    (tmp_path / "version.py").write_text("__version__ = '2.9'\ncuda: Optional[str] = '12.8'\n")
    spec = importlib.util.spec_from_file_location("torch", tmp_path / "__init__.py")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    assert torch_cuda_version() == 12


@pytest.mark.parametrize(
    ("visible", "found"), [(None, [0, 1]), ("1", [1]), ("GPU-22", [1]), ("0,1", [0, 1]), ("-1", []), ("", [])]
)
def test_only_the_gpus_that_the_attempt_sees_count(visible: str | None, found: list[int]) -> None:
    nvml = fake(FakeCard(uncorrected=1), FakeCard(uuid="GPU-2222"))
    assert list(nvml.handles(visible)) == found
    environment = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    assert (machine_problem(environment, nvml) is not None) == (0 in found)


def test_without_a_driver_nothing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    library = FakeNvml()
    monkeypatch.setitem(sys.modules, "pynvml", library)
    monkeypatch.setattr(library, "nvmlInit", lambda: None, raising=False)
    assert machine_problem({}) is None
    library.cards[0].uncorrected = 1
    assert "memory errors" in (machine_problem({}) or "")

    def no_driver() -> None:
        raise NVMLError("driver not loaded")

    monkeypatch.setattr(library, "nvmlInit", no_driver, raising=False)
    assert Nvml.load() is None
    monkeypatch.setitem(sys.modules, "pynvml", None)  # not installed
    assert Nvml.load() is None
    assert machine_problem({}) is None


def test_a_driver_that_hangs_is_a_problem() -> None:
    over = threading.Event()

    class Hangs(FakeNvml):
        def nvmlDeviceGetCount(self) -> int:  # noqa: N802
            over.wait()
            return 0

    assert machine_problem({}, Nvml(Hangs()), answer_seconds=0.05) == "the NVIDIA driver did not answer within 0.05 s"
    over.set()
    assert machine_problem({}, fake(FakeCard(uncorrected=1)), uses_gpus=False) is None


def test_utilisation_of_several_gpus_is_one_row() -> None:
    nvml = fake(FakeCard(), FakeCard(utilisation=41, temperature=80, power=None, clock=1200, reasons=0x40))
    assert machine_sampler(None, nvml)() == {
        "gpu_utilisation_percent": 69.0,
        "gpu_memory_gib": 1.0,
        "gpu_power_watts": 650.0,
        "gpu_temperature_celsius": 80.0,
        "gpu_clock_mhz": 1200.0,
        "gpu_slowed_down": 1.0,
    }
    assert machine_sampler("-1", nvml)().keys() == {"cpu_utilisation_percent", "memory_gib"}


def test_an_attempt_on_an_unfit_machine_ends_before_anything_is_downloaded(job: Job, tmp_path: Path) -> None:
    observer = Recorder()
    nvml = fake(FakeCard(uncorrected=7))
    outcome = run(job, 1, tmp_path, observer, machine_problem=lambda: machine_problem({}, nvml), steps=5, every=1)
    assert outcome.end_reason is EndReason.UNFIT
    assert "7 memory errors" in outcome.message
    assert outcome.label == "machine unfit"
    assert job.attempt(1).read_start() is None
    assert not observer.lines, "the workload ran"
    assert run(job, 2, tmp_path, steps=5, every=1).end_reason is EndReason.COMPLETED


def test_a_workload_may_find_its_machine_unfit_too(job: Job, tmp_path: Path) -> None:
    at = {"3": "say error: NVIDIA H100 multiplies wrongly", "4": "exit 69"}
    outcome = run(job, 1, tmp_path, steps=5, every=1, at=at)
    assert (outcome.end_reason, outcome.exit_code) == (EndReason.UNFIT, 69)
    assert outcome.message == "NVIDIA H100 multiplies wrongly"
    assert outcome.committed_step == 3, "what was saved counts"


def test_utilisation_is_among_the_metrics_of_steps(job: Job, tmp_path: Path) -> None:
    sampler = machine_sampler(None, fake())
    gate = tmp_path / "gate"
    reported: list[float] = []

    def sample() -> dict[str, float]:
        reported.append(1)
        if len(reported) == 3:
            gate.touch()
        return sampler()

    run(job, 1, tmp_path, steps=9, every=3, at={"6": f"wait {gate}"}, sample_machine=sample, sample_seconds=0.02)
    rows = [json.loads(line) for line in job.attempt(1).metrics()]
    samples = [row for row in rows if "gpu_utilisation_percent" in row]
    assert len(samples) >= 3
    assert all(row["step"] >= 1 and row["gpu_utilisation_percent"] == 97 for row in samples)


def test_a_driver_that_fails_does_not_cost_the_attempt(job: Job, tmp_path: Path) -> None:
    gate, observer = tmp_path / "gate", Recorder()
    observer.reactions["trouble"] = lambda *_: gate.touch()

    def broken() -> dict[str, float]:
        raise OSError("driver gone")

    options = {"steps": 9, "every": 3, "at": {"6": f"wait {gate}"}}
    outcome = run(job, 1, tmp_path, observer, sample_machine=broken, sample_seconds=0.02, **options)
    assert outcome.end_reason is EndReason.COMPLETED
    assert any("driver gone" in message for message in observer.messages("trouble"))


def test_a_drill_makes_a_machine_unfit_for_one_attempt(tmp_path: Path) -> None:
    file = tmp_path / "unfit"
    file.write_text("GPU 0: rehearsed\n")
    environment = {REHEARSED_UNFIT: str(file)}
    assert machine_problem(environment, fake()) == "GPU 0: rehearsed"
    assert machine_problem(environment, fake()) is None


def test_the_check_imports_no_torch() -> None:
    script = "import sys, crucible.agent.health as health; health.machine_problem({}); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], env=dict(os.environ), check=False).returncode == 0

"""Which of a script's files become checkpoints, and of which step."""

from __future__ import annotations

import io
import json
import os
import shutil
import struct
import time
import zipfile
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest

from crucible.adapter import steps as steps_module
from crucible.adapter import taking
from crucible.adapter.contract_saves import ContractSaves
from crucible.adapter.restoring import restore
from crucible.adapter.steps import FoundStep, Steps, StepSource
from crucible.adapter.taking import Save, Taking
from crucible.adapter.whole import is_whole
from crucible.errors import ConfigError
from crucible.script_config import CheckpointFiles

READ = Steps._read


@pytest.fixture(autouse=True)
def _no_look_into_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes torch in a process of its own, for seconds."""
    monkeypatch.setattr(Steps, "_read", lambda *_: None)


def archive(text: str = "x" * 500) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as file:
        file.writestr("data.pkl", text)
        file.writestr("version", "3")
    return data.getvalue()


def tensors() -> bytes:
    header = json.dumps({"w": {"dtype": "U8", "shape": [9], "data_offsets": [0, 9]}, "__metadata__": {"a": "b"}})
    return struct.pack("<Q", len(header)) + header.encode() + b"123456789"


class Script:
    """A script's folder, and what is taken from it; time passes when the test says so."""

    def __init__(self, root: Path, path: str, restored: FoundStep | None = None, **fields: Any) -> None:
        self.cwd, self.folder = root / "code", root / "checkpoints"
        for folder in (self.cwd, self.folder):
            folder.mkdir(parents=True, exist_ok=True)
        self.messages: list[str] = []
        self.now = time.time()
        self.files = CheckpointFiles.model_validate({"path": path, **fields})
        self.steps = Steps(self.files, restored, self.messages.append)
        self.taking = Taking(self.cwd, self.files, self.folder, self.steps, self.messages.append, lambda: self.now)

    def write(self, name: str, data: bytes | str = b"") -> None:
        path = self.cwd / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data.encode() if isinstance(data, str) else data or archive(name + str(self.now)))

    def look(self, **options: Any) -> Save | None:
        self.taking._next_look = 0.0
        return self.taking.look(list, **options)

    def look_later(self) -> Save | None:
        """Seen once, and again after it has been quiet for long."""
        found = self.look()
        self.now += 10
        return found or self.look()


def test_a_file_cut_off_anywhere_is_not_whole(tmp_path: Path) -> None:
    for name, data in {"ckpt.pt": archive(), "model.safetensors": tensors()}.items():
        path = tmp_path / name
        path.write_bytes(data)
        assert is_whole(path) is True
        for length in {0, 3, 8, 21, len(data) // 2, len(data) - 1}:
            path.write_bytes(data[:length])
            assert not is_whole(path), f"{name} with {length} of {len(data)} bytes"
    (tmp_path / "weights.bin").write_bytes(b"\x80\x02anything")
    assert is_whole(tmp_path / "weights.bin") is None


def test_a_file_overwritten_in_place_is_taken_each_time_and_never_half(tmp_path: Path) -> None:
    script = Script(tmp_path, "out/ckpt.pt", step_from=r"step (\d+)")
    script.write("out/ckpt.pt", archive()[:300])
    assert script.look_later() is None
    assert script.look(ended_well=True) is None, "not even of a script that ended well"
    for step in (100, 200):
        script.steps.handle_line(f"step {step}: train loss 2.0")
        script.write("out/ckpt.pt", archive(str(step) * 100))
        taken = script.look(facts=lambda step=step: {"val_loss": float(step)})
        assert taken is not None
        assert json.loads((taken.folder / "state.json").read_text()) == {
            "step": step,
            "step_source": "printed",
            "saved_as": "out/ckpt.pt",
            "val_loss": step,
        }
        assert script.look() is None
    first, second = sorted(script.folder.iterdir())
    assert (first.name, second.name) == ("step-00000100", "step-00000200")
    assert (first / "files" / "ckpt.pt").read_bytes() == archive("100" * 100), (
        "it shares nothing with the script's file"
    )


def test_a_link_to_nothing_that_is_there_before_the_script_is_named(tmp_path: Path) -> None:
    (tmp_path / "code" / "out").mkdir(parents=True)
    (tmp_path / "code" / "out" / "latest.pt").symlink_to("ckpt.pt")
    script = Script(tmp_path, "out/*.pt")
    assert "out/latest.pt cannot be carried: " in script.messages[0]
    script.write("out/other.pt")
    assert script.look() is not None


def test_what_vanishes_during_a_look_is_looked_for_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = Script(tmp_path, "out/*")
    script.write("out/step-1/weights.pt")
    (tmp_path / "code/out/step-1/empty.tmp").touch()

    def vanishes(path: Path) -> bool | None:
        whole = is_whole(path)
        if path.name == "empty.tmp":
            path.unlink()
        return whole

    with monkeypatch.context() as patched:
        patched.setattr(taking, "is_whole", vanishes)
        assert script.look() is None
    with monkeypatch.context() as patched:
        patched.setattr(Path, "glob", lambda *_: iter(os.scandir("/nowhere")))  # a folder removed while it is listed
        assert script.look() is None
    assert script.look_later() is not None


def test_a_disk_that_is_full_for_a_moment_does_not_end_the_script(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = Script(tmp_path, "ckpt.pt")
    script.write("ckpt.pt")

    def full(*_: object, **__: object) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_text", full)
        assert script.look() is None
    assert script.messages == ["ckpt.pt cannot be kept: [Errno 28] No space left on device"]
    taken = script.look()
    assert taken is not None
    assert [path.name for path in script.folder.iterdir()] == [taken.folder.name]


def test_checkpoints_are_kept_where_there_are_no_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object, **__: object) -> None:
        raise PermissionError(1, "Operation not permitted")  # exFAT, many network file systems

    monkeypatch.setattr(os, "link", refused)
    saves = ContractSaves(tmp_path, keep=True)
    (saves.own / "step-00000005").mkdir()
    (saves.own / "step-00000005" / "weights").write_text("w")
    assert saves.look() is not None
    assert (saves.kept / "weights").read_text() == "w"


def test_a_file_rewritten_while_it_is_copied_is_no_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = Script(tmp_path, "ckpt.pt")
    script.write("ckpt.pt")
    copy = taking.copy

    def meanwhile(source: Path, target: Path) -> None:
        copy(source, target)
        script.write("ckpt.pt", archive("another" * 99))

    monkeypatch.setattr(taking, "copy", meanwhile)
    assert script.look() is None
    assert list(script.folder.iterdir()) == []
    monkeypatch.undo()
    assert script.look() is not None


def test_what_was_there_before_the_script_is_no_save_of_it(tmp_path: Path) -> None:
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "ckpt.pt").write_bytes(archive())
    script = Script(tmp_path, "ckpt.pt")
    assert script.look_later() is None


def test_a_folder_is_taken_whole_with_what_its_links_point_to(tmp_path: Path) -> None:
    script = Script(tmp_path, "out/checkpoint-*")
    script.write("data/vocab.json", "{}")
    for name in ("model.safetensors", "optimizer.pt", "training_args.bin"):
        script.write(f"out/checkpoint-500/{name}", tensors() if "safe" in name else b"")
    (script.cwd / "out/checkpoint-500/vocab.json").symlink_to("../../data/vocab.json")
    assert script.look_later() is None, "the Trainer writes trainer_state.json last"
    script.write("out/checkpoint-500/trainer_state.json", json.dumps({"global_step": 500}))
    assert script.look() is None, "it has just changed"
    taken = script.look_later()
    assert taken is not None
    assert taken.step == 500
    assert (taken.folder / "files/checkpoint-500/vocab.json").read_text() == "{}"
    assert not (taken.folder / "files/checkpoint-500/vocab.json").is_symlink()

    script.write("out/checkpoint-600/trainer_state.json", json.dumps({"global_step": 600}))
    (script.cwd / "out/checkpoint-600/gone").symlink_to("nowhere")
    assert script.look_later() is None
    assert "checkpoint-600/gone is a link to nothing" in script.messages[0]

    fresh = tmp_path / "fresh"
    fresh.mkdir()
    assert restore(taken.folder, fresh, script.files).path == "out/checkpoint-500"
    assert json.loads((fresh / "out/checkpoint-500/trainer_state.json").read_text()) == {"global_step": 500}
    elsewhere = CheckpointFiles(path="out/checkpoint-*", restore_to="start")
    assert restore(taken.folder, fresh, elsewhere).step == FoundStep(500, StepSource.FILE)
    assert (fresh / "start" / "vocab.json").exists()
    with pytest.raises(ConfigError, match="does not hold files that a script saved"):
        restore(script.cwd, fresh, script.files)


def test_of_an_unknown_format_only_what_is_quiet_and_closed(tmp_path: Path) -> None:
    import psutil

    script = Script(tmp_path, "weights-*.bin")
    with (script.cwd / "weights-7.bin").open("wb") as file:
        file.write(b"half of it")
        file.flush()
        script.look()
        script.now += 10
        script.taking._next_look = 0.0
        assert script.taking.look(lambda: [psutil.Process()]) is None, "this process has it open"
    script.taking._next_look = 0.0
    taken = script.taking.look(lambda: [psutil.Process()])
    assert taken is not None
    assert taken.step == 7


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["ckpts/epoch=1-step=1500.ckpt", "ckpts/epoch=2-step=2250.ckpt"], [1500, 2250]),
        (["ckpts/model_00020.pt", "ckpts/model_00040.pt"], [20, 40]),
        (["ckpts/iter-300-ckpt.pth"], [300]),
    ],
)
def test_steps_in_names(tmp_path: Path, names: list[str], expected: list[int]) -> None:
    script = Script(tmp_path, "ckpts/*")
    steps = []
    for name in names:
        script.write(name)
        taken = script.look()
        assert taken is not None
        steps.append(taken.step)
    assert steps == expected


def test_the_same_step_saved_again_after_a_restart_is_no_progress(tmp_path: Path) -> None:
    script = Script(tmp_path, "ckpt.pt", FoundStep(200, StepSource.PRINTED), step_from=r"step (\d+)")
    for step, expected in ((200, None), (300, 300), (300, 301), (400, 400)):
        script.steps.handle_line(f"step {step}")
        script.write("ckpt.pt", archive(f"{step} {expected}"))
        taken = script.look()
        assert (taken.step if taken else None) == expected
    assert script.messages == ["ckpt.pt is of step 200, no further than the step 200 that the script resumed from"]


def test_without_any_step_time_counts_on_over_attempts(tmp_path: Path) -> None:
    script = Script(tmp_path, "ckpt.pt", FoundStep(3600, StepSource.TIME))
    script.write("ckpt.pt")
    taken = script.look()
    assert taken is None or taken.step > 3600
    script.steps._began -= 30
    script.write("ckpt.pt", archive("later"))
    taken = script.look()
    assert taken is not None
    assert 3629 <= taken.step <= 3640


def test_the_step_in_a_file_is_read_without_executing_anything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(Steps, "_read", READ)
    monkeypatch.setattr(steps_module, "READ_SECONDS", 600.0)  # torch takes its time on a busy machine
    script = Script(tmp_path, "ckpt.pt")
    torch.save({"model": {"w": torch.zeros(3)}, "iter_num": 70}, script.cwd / "ckpt.pt")
    taken = script.look()
    assert taken is not None
    assert taken.step == 70
    torch.save({"step": 90, "trap": _Trap(tmp_path / "sprung")}, script.cwd / "ckpt.pt")
    assert script.look() is not None
    assert not (tmp_path / "sprung").exists()


class _Trap:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_too_little_room_is_said_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = Script(tmp_path, "ckpt-*.pt")
    script.write("ckpt-5.pt")
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(1000, 999, 1))
    assert script.look() is None
    assert script.look() is None
    (message,) = script.messages
    assert "checkpoints need about 3 times that" in message
    assert list(script.folder.iterdir()) == []
    monkeypatch.undo()
    assert script.look() is not None


def test_the_interval_is_measured_between_saves(tmp_path: Path) -> None:
    script = Script(tmp_path, "ckpt-*.pt")
    for number in range(1, 4):
        script.write(f"ckpt-{number}.pt")
        at = script.now + 60 * number + 1000  # the first after a slow start
        os.utime(script.cwd / f"ckpt-{number}.pt", (at, at))
        taken = script.look()
    assert taken is not None
    assert taken.interval_seconds == pytest.approx(60, abs=0.1)
    assert script.taking.next_save_at() == pytest.approx(script.now + 1240, abs=0.5)

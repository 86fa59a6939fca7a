"""`crucible init`: what a first crucible.yaml says about a folder."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from crucible.code.suggest import EXAMPLES, Suggestion, render, suggest
from crucible.run_config import RunConfig

NANOGPT = "import os, torch\ninit_from = 'scratch'\nout_dir = 'out'\ntorch.save({}, os.path.join(out_dir, 'ckpt.pt'))\n"
PLAIN = "import argparse\np = argparse.ArgumentParser()\np.add_argument('--resume')\n"
PLAIN += "save = 'out/model.pt'\nbest = 'best.pt'\n"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"train.py": NANOGPT}, {"command": "python train.py", "workload": "nanogpt"}),
        (
            {"src/train.py": PLAIN},
            {"command": "python src/train.py", "resume": "--resume", "checkpoint": {"path": "out/model.pt"}},
        ),
        (
            {"finetune.py": "from transformers import Trainer\nTrainer()\n"},
            {"command": "python finetune.py", "workload": "huggingface"},
        ),
        ({"only.py": "import lightning as L\n"}, {"command": "python only.py", "workload": "lightning"}),
        ({"run.sh": "python a.py\n", "a.py": "", "b.py": ""}, {"command": "bash run.sh"}),
        ({"train.py": "def broken(:\n", "data/a.txt": "x"}, {"command": "python train.py"}),
        (
            {"train.py": "import torch\nname = 'best.pt'\ntorch.save({}, 'model.pt')\n"},
            {"command": "python train.py", "checkpoint": {"path": "model.pt"}},
        ),
        ({"README.md": "x"}, {}),
        ({"train.py": "x = 1\n", ".env": "TOKEN=1\n"}, {"command": "python train.py"}),
    ],
)
def test_what_is_found(tmp_path: Path, files: dict[str, str], expected: dict[str, object]) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    found = suggest(tmp_path)
    assert found.settings == expected
    RunConfig.parse(yaml.safe_load(render(found)) or {})


def test_ignored_data_is_proposed(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text("")
    (tmp_path / ".gitignore").write_text("*.bin\n*.pkl\n*.log\n")
    (tmp_path / "data" / "chars").mkdir(parents=True)
    for name in ("train.bin", "val.bin", "meta.pkl", "a.log"):
        (tmp_path / "data" / "chars" / name).write_text("x")
    assert suggest(tmp_path).settings["data"] == ["data/chars"]


def test_every_setting_stands_in_the_file_and_works_without_its_comment_mark() -> None:
    assert set(EXAMPLES) == set(RunConfig.model_fields)
    text = render(Suggestion())
    assert yaml.safe_load(text) is None
    names = "|".join(EXAMPLES)
    opened = re.sub(rf"^# (?=({names}): )", "", text, flags=re.MULTILINE)
    values = yaml.safe_load(opened)
    assert set(values) == set(EXAMPLES)
    assert RunConfig.parse(values).command == ["python", "train.py"]


def test_the_name_of_a_script_may_hold_anything_and_is_proposed_where_it_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "train: it's #1.py").touch()
    written = yaml.safe_load(render(suggest(tmp_path)))
    assert RunConfig.parse(written).script().command == ["python", "train: it's #1.py"]
    (tmp_path / "train: it's #1.py").unlink()
    for name in ("tra\nin.py", "tr\udcffain.py"):
        (tmp_path / name).touch()
        found = suggest(tmp_path)
        assert "command" not in found.settings
        render(found).encode()

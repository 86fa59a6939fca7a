"""Metrics from what scripts print and write, and printed bytes as lines."""

from __future__ import annotations

import importlib.util
import json
import os
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from crucible.adapter.adapter import HOOKS
from crucible.adapter.lines import LONGEST_LINE, Line, Lines
from crucible.adapter.metrics import FileLooks, read_printed, written_metrics
from crucible.script_config import MetricsSource
from crucible.script_presets import with_preset

HUGGING_FACE = """
Map: 100%|##########| 1000/1000 [00:01<00:00, 812.11 examples/s]
  0%|          | 0/60 [00:00<?, ?it/s]
 17%|#6        | 10/60 [00:03<00:15,  3.2it/s]
{'loss': 2.3123, 'grad_norm': 1.5, 'learning_rate': 4.5e-05, 'epoch': 0.5}
 33%|###3      | 20/60 [00:06<00:12,  3.2it/s]
100%|##########| 13/13 [00:00<00:00, 40.0it/s]
{'eval_loss': '1.9', 'eval_runtime': '0.3', 'epoch': '1.0'}
{'train_runtime': 20.1, 'train_loss': 2.0, 'epoch': 3.0}
"""
LIGHTNING = """
Epoch 1:  10%|#         | 50/500 [00:05<00:45, 10.00it/s, v_num=0, train_loss=2.310, val_loss=nan]
Validation DataLoader 0: 100%|##########| 4/4 [00:00<00:00, 90it/s]
"""

LIGHTNING_RICH = """
Epoch 0/1                                                     0/40 0:00:00 • -:--:-- 0.00it/s
Epoch 1/1  ━━━━━━━━━━━━━━━━━━ 20/40 0:00:01 • 0:00:00 55.43it/s v_num: 0.000 train_loss: 0.322 val/acc: 0.500
"""


@pytest.mark.parametrize(
    ("source", "text", "points"),
    [
        (
            {"format": "nanogpt"},
            "step 0: train loss 4.28, val loss 4.27\niter 0: loss 4.2652, time 3.1ms, mfu -100.00%\niter 1: loss ...",
            [(0, {"val_loss": 4.27}), (0, {"train_loss": 4.2652})],
        ),
        (
            {"format": "huggingface"},
            HUGGING_FACE,
            [
                (10, {"train_loss": 2.3123, "grad_norm": 1.5, "learning_rate": 4.5e-05, "epoch": 0.5}),
                (20, {"val_loss": 1.9, "eval_runtime": 0.3, "epoch": 1.0}),
            ],
        ),
        ({"format": "lightning"}, LIGHTNING, [(550, {"train_loss": 2.31, "val_loss": float("nan")})]),
        ({"format": "lightning"}, LIGHTNING_RICH, [(60, {"train_loss": 0.322, "val/acc": 0.5})]),
        (
            {"format": "pattern", "pattern": r"batch (?P<step>\d+) acc (?P<accuracy>\S+)"},
            "batch 7 acc 0.5\nbatch 8 acc high\nbatch 99 acc 1e999",
            [(7, {"accuracy": 0.5}), (99, {"accuracy": float("inf")})],
        ),
        ({"format": "contract"}, "iter 3: loss 1.0", []),
    ],
    ids=lambda value: value.get("format") if isinstance(value, dict) else "",
)
def test_printed(source: dict[str, Any], text: str, points: list[Any]) -> None:
    found = list(read_printed(MetricsSource.model_validate(source), text.splitlines()))
    assert repr(found) == repr(points)


def test_json_lines_and_lightnings_csv_as_they_grow(tmp_path: Path) -> None:
    reader = written_metrics(MetricsSource(format="jsonl", path="log*.jsonl"), tmp_path)
    assert reader is not None
    assert list(reader.read_new()) == []
    path = tmp_path / "log.jsonl"
    path.write_text('{"_step": 5, "train/loss": 2.5, "note": "x", "ok": true}\nno json\n{"loss": 2.4}\n{"step": 7, "lo')
    assert list(reader.read_new()) == [(5, {"train_loss": 2.5}), (2, {"train_loss": 2.4})]
    with path.open("a") as file:
        file.write('ss": 2.3}\n')
    assert list(reader.read_new()) == [(7, {"train_loss": 2.3})]

    reader = written_metrics(MetricsSource(format="lightning"), tmp_path)
    assert reader is not None
    path = tmp_path / "lightning_logs" / "version_0" / "metrics.csv"
    path.parent.mkdir(parents=True)
    path.write_text("epoch,step,train_loss\n0,9,2.5\n")
    assert list(reader.read_new()) == [(9, {"epoch": 0.0, "train_loss": 2.5})]
    path.write_text("epoch,step,train_loss,val_loss\n0,9,2.5,\n0,19,,2.2\n")
    assert list(reader.read_new()) == [(19, {"epoch": 0.0, "val_loss": 2.2})]


def test_a_row_is_read_once_it_is_whole(tmp_path: Path) -> None:
    reader = written_metrics(MetricsSource(format="lightning", path="metrics.csv"), tmp_path)
    assert reader is not None
    whole = "step,train_loss,note\n1,2.0,é\n200,1.0034,é\n".encode()
    (tmp_path / "metrics.csv").write_bytes(whole[:-2])  # in the middle of a letter
    assert list(reader.read_new()) == [(1, {"train_loss": 2.0})]
    (tmp_path / "metrics.csv").write_bytes(whole)
    assert list(reader.read_new()) == [(200, {"train_loss": 1.0034})]


def test_metrics_that_came_with_the_code_are_not_this_runs(tmp_path: Path) -> None:
    old = '{"step": 1000, "loss": 0.1}\n'
    for name in ("added.jsonl", "anew.jsonl", "same.jsonl", "left.jsonl"):
        (tmp_path / name).write_text(old)
    (tmp_path / "metrics.csv").write_text("step,loss\n1000,0.1\n")
    (tmp_path / "tfevents.old").write_bytes(event(1000, "loss", simple=0.5))
    lines, rows, events = (
        written_metrics(MetricsSource.model_validate({"format": kind, "path": path}), tmp_path)
        for kind, path in (("jsonl", "*.jsonl"), ("lightning", "metrics.csv"), ("tensorboard", "tfevents*"))
    )
    assert lines is not None
    assert rows is not None
    assert events is not None
    assert [*lines.read_new(), *rows.read_new(), *events.read_new()] == []
    with (tmp_path / "added.jsonl").open("a") as file:
        file.write('{"step": 1, "loss": 2.0}\n')
    (tmp_path / "anew.jsonl").write_text('{"step": 2, "loss": 2.0, "and": 1}\n')
    os.utime(tmp_path / "same.jsonl", (1, 1))  # a deterministic script writes the same again
    (tmp_path / "metrics.csv").write_text("step,loss\n3,2.0\n")
    (tmp_path / "tfevents.new").write_bytes(event(4, "loss", simple=2.0))
    assert [step for step, _ in lines.read_new()] == [1, 2, 1000]
    assert [step for step, _ in [*rows.read_new(), *events.read_new()]] == [3, 4]


def test_the_last_line_of_a_file_needs_no_line_end(tmp_path: Path) -> None:
    looks = FileLooks(written_metrics(MetricsSource(format="jsonl", path="results.json"), tmp_path))
    (tmp_path / "results.json").write_text('{"step": 10, "val_loss": 1.5}')
    assert list(looks.look()) == [], "it may be half written"
    assert list(looks.look(last=True)) == [(10, {"val_loss": 1.5})]
    assert list(looks.look(last=True)) == []


def event(step: int, tag: str, simple: float | None = None, double: float | None = None) -> bytes:
    """A record of an event file, as `SummaryWriter.add_scalar` or tf.summary writes it."""

    def field(number: int, wire: int, data: bytes) -> bytes:
        return bytes([number << 3 | wire]) + (bytes([len(data)]) + data if wire == 2 else data)

    value = field(1, 2, tag.encode())
    if simple is not None:
        value += field(2, 5, struct.pack("<f", simple))
    if double is not None:
        value += field(8, 2, field(1, 0, b"\x02") + field(4, 2, struct.pack("<d", double)))
    step_bytes = bytes([step >> 7 * place & 0x7F | 0x80 for place in range(9)] + [step >> 63 & 1])
    data = field(1, 1, struct.pack("<d", 1.0)) + field(2, 0, step_bytes) + field(5, 2, field(1, 2, value))
    return struct.pack("<Q", len(data)) + b"crc." + data + b"crc."


def test_tensorboard_files_as_they_grow(tmp_path: Path) -> None:
    reader = written_metrics(MetricsSource(format="tensorboard", path="runs"), tmp_path)
    assert reader is not None
    path = tmp_path / "runs" / "a" / "events.out.tfevents.1.host"
    path.parent.mkdir(parents=True)
    later = event(400, "eval/loss", double=1.25)
    before = event(-1, "eval/loss", double=9.0)  # measured before the training, by some
    path.write_bytes(before + event(300, "train/loss", simple=1.5) + event(300, "lr", simple=0.5) + later[:20])
    assert list(reader.read_new()) == [(300, {"train_loss": 1.5, "learning_rate": 0.5})]
    assert list(reader.read_new()) == []
    with path.open("ab") as file:
        file.write(later[20:])
    assert list(reader.read_new()) == [(400, {"val_loss": 1.25})]


def test_progress_bars_and_endless_lines_stay_small() -> None:
    now = [0.0]
    lines = Lines(lambda: now[0])
    found: list[Line] = []
    for number in range(1000):
        now[0] += 0.1
        found += lines.feed(f"\r{number}/1000".encode())
    assert [line.text for line in found] == [f"{number}/1000" for number in range(999)]
    assert 45 <= sum(line.passed_on for line in found) <= 51
    found = list(lines.feed(b"\r          \r{'loss': 2.0}\nplain\r\nfirst\nsec"))
    assert [line.text for line in found if line.passed_on][-3:] == ["{'loss': 2.0}", "plain", "first"]
    assert [line.text for line in lines.end()] == ["sec"]
    assert [line.text for line in Lines().feed(b"step 1\r\nstep 2\r\n")] == ["step 1", "step 2"]

    below = "\n\r{0}%|#| {0}/100 [00:01<00:01]\x1b[A"  # tqdm's second bar
    found = [line for n in range(100) for line in lines.feed(below.format(n).encode())]
    assert sum(line.passed_on for line in found) <= 3
    bar, line = lines.feed(b"\r\x1b[A{'eval_loss': 1.0}\n")
    assert (bar.text, line.text) == ("99%|#| 99/100 [00:01<00:01]", "{'eval_loss': 1.0}")

    (bar, began) = lines.feed(b"\r99%|#| 99/100 [00:01<00:01]Traceback (most recent call last):\n")
    assert (bar.text, began.text) == ("99%|#| 99/100 [00:01<00:01]", "Traceback (most recent call last):")

    for _ in range(100):
        assert not list(lines.feed(b"x" * 10_000))
    (line,) = lines.feed(b"\n")
    assert line.text.startswith("x" * LONGEST_LINE)
    assert line.text.endswith(f"[{1_000_000 - LONGEST_LINE:,} more bytes in this line]")


def test_a_script_may_print_an_empty_line_first() -> None:
    assert [line.text for line in Lines().feed(b"\nstep 0\n")] == ["", "step 0"]


def test_lightning_chooses_the_bar_that_prints_as_it_moves(tmp_path: Path) -> None:
    """Against a package of Lightning's shape: importing the real one takes seconds."""
    module = tmp_path / "lightning" / "pytorch" / "trainer" / "connectors" / "callback_connector.py"
    module.parent.mkdir(parents=True)
    for folder in list(module.parents)[:4]:
        (folder / "__init__.py").touch()  # without it, an installed Lightning comes before this one
    module.write_text("class RichProgressBar: pass\nclass TQDMProgressBar: pass\n")
    shown = (
        "from lightning.pytorch.trainer.connectors import callback_connector as c; print(c.RichProgressBar.__name__)"
    )

    def chosen(wanted: str) -> str:
        environment = {**os.environ, "PYTHONPATH": f"{HOOKS}{os.pathsep}{tmp_path}", "CRUCIBLE_PRINTED_BAR": wanted}
        command = [sys.executable, "-c", shown]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.strip()

    assert chosen("1") == "TQDMProgressBar"
    assert chosen("") == "RichProgressBar"


def test_lightning_still_chooses_its_bar_there() -> None:
    """If it does not, the hook finds nothing to change; found without importing it."""
    spec = importlib.util.find_spec("lightning")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("pip install 'crucible[examples]'")
    folder = Path(spec.submodule_search_locations[0])
    text = (folder / "pytorch" / "trainer" / "connectors" / "callback_connector.py").read_text()
    assert "RichProgressBar() if" in text
    assert "TQDMProgressBar()" in text


def test_reseeding_shifts_seeds_and_runs_the_environments_own_sitecustomize(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("print('own')")
    program = "import random; random.seed(7); a = random.random(); random.seed('x'); print(a, random.random())"

    def drawn(reseed: str) -> list[str]:
        environment = {**os.environ, "PYTHONPATH": f"{HOOKS}{os.pathsep}{tmp_path}", "CRUCIBLE_RESEED": reseed}
        ended = subprocess.run(
            [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
        )
        return ended.stdout.split()

    first, second, third = drawn(""), drawn("2"), drawn("2")
    assert first[0] == second[0] == "own"
    assert first[1] != second[1] == third[1]
    assert first[2] == second[2], "what is no number is left alone"


def test_presets_give_way_to_what_is_set_beside_them() -> None:
    given = with_preset("nanogpt", {"checkpoint": {"path": "run/ckpt.pt"}, "resume": ["--resume"], "command": ["x"]})
    assert given["checkpoint"] == {"path": "run/ckpt.pt", "step_from": r"step (\d+): train loss"}
    assert (given["resume"], given["metrics"]) == (["--resume"], {"format": "nanogpt"})
    with pytest.raises(Exception, match="did you mean lightning"):
        with_preset("lightnin", {})
    assert json.dumps(given)

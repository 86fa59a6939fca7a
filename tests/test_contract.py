"""The files between agent and workload: what one side writes the other reads; anything else is named and refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from crucible.contract import Control, StopReason, finished_folders, metrics_line


def test_what_is_written_is_read(tmp_path: Path) -> None:
    for content in (Control(42.0), StopReason("ec2-spot", "reclaim", 17.0), StopReason("person", "cancelled")):
        content.write(tmp_path / "file.json")
        assert type(content).read(tmp_path / "file.json") == content
        assert [path.name for path in tmp_path.iterdir()] == ["file.json"]


@pytest.mark.parametrize("kind", [Control, StopReason])
@pytest.mark.parametrize(
    "text",
    [
        "",
        '{"checkpoint_sec',
        "[]",
        "null",
        "3",
        "{}",
        '{"checkpoint_seconds": "soon", "source": 1, "reason": "x"}',
        '{"checkpoint_seconds": NaN, "source": "x", "reason": "x", "deadline": "soon"}',
        '{"checkpoint_seconds": -1, "source": "x"}',
        '{"checkpoint_seconds": true, "source": "x", "reason": "x", "deadline": true}',
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, kind: type[Control] | type[StopReason], text: str) -> None:
    (tmp_path / "file.json").write_text(text)
    with pytest.raises(ValueError, match=r"file\.json"):
        kind.read(tmp_path / "file.json")


def test_checkpoint_folders_come_in_the_order_of_their_steps(tmp_path: Path) -> None:
    for name in ("step-00000009", "step-100", "step-00000010.partial", "step-", "step-x", "other"):
        (tmp_path / name).mkdir()
    (tmp_path / "step-7").touch()
    assert [path.name for path in finished_folders(tmp_path)] == ["step-00000009", "step-100"]
    assert finished_folders(tmp_path / "nowhere") == []


def test_a_metrics_line_is_one_json_object() -> None:
    line = metrics_line(3, 1.5, {"train_loss": 2.25})
    assert line.endswith("\n")
    assert json.loads(line) == {"step": 3, "time": 1.5, "train_loss": 2.25}


def test_the_contract_needs_nothing_but_python() -> None:
    """The checkpoint writer and a container's first process import it; pydantic or torch would slow their start."""
    heavy = "{'torch', 'numpy', 'pydantic', 'boto3', 'prefect'}"
    script = f"import sys, crucible.contract; assert not {heavy} & set(sys.modules), sorted({heavy} & set(sys.modules))"
    subprocess.run([sys.executable, "-c", script], check=True, timeout=300)

"""A user's own script: what is read from its source, and what has to be stated."""

from __future__ import annotations

from pathlib import Path

import pytest

from crucible.errors import ConfigError
from crucible.estimate.ranking import Preferences, recommend
from crucible.estimate.script import read_script, script_needs
from tests.catalog.offers import ALL, BIG, LOCAL, SPOT

DDP = """
import torch
import torch.distributed as dist
from transformers import AutoModel

dist.init_process_group("nccl")
model = AutoModel.from_pretrained("x").cuda()
with torch.autocast("cuda", dtype=torch.bfloat16):
    pass
"""


def write(folder: Path, source: str) -> Path:
    script = folder / "train.py"
    script.write_text(source)
    return script


def test_imports_and_device_calls_are_found_with_their_lines(tmp_path: Path) -> None:
    facts = read_script(write(tmp_path, DDP))
    assert facts.uses_gpu
    assert facts.distributed
    assert facts.frameworks == ("torch", "transformers")
    assert facts.precision == "bfloat16"
    assert "framework transformers: imported in line 4" in facts.inferred
    assert any(sentence.startswith("GPU: ") and "line 7" in sentence for sentence in facts.inferred)
    assert any(sentence.startswith("several GPUs: ") and "line 6" in sentence for sentence in facts.inferred)


def test_a_script_without_a_gpu_says_so(tmp_path: Path) -> None:
    facts = read_script(write(tmp_path, "import torch\nprint(torch.ones(2))\n# .cuda() in a comment does not count\n"))
    assert not facts.uses_gpu
    assert facts.inferred[-1] == "no mention of CUDA: runs on CPUs as well"


def test_the_stated_hours_are_scaled_by_the_peaks(tmp_path: Path) -> None:
    facts = read_script(write(tmp_path, DDP))
    needs = script_needs(facts, 3.0, "g.small", list(ALL), gpu_memory_gib=20)
    found = recommend(needs, ALL, Preferences())
    by_key = {entry.estimate.offer.key: entry.estimate for entry in found.ranked}
    assert by_key[SPOT.key].speed.seconds_per_step == 3 * 3600
    assert by_key[BIG.key].speed.seconds_per_step == pytest.approx(3 * 3600 * 120 / 990)
    assert {entry.offer.key: entry.reason for entry in found.rejected} == {LOCAL.key: "the script calls for a GPU"}


def test_memory_that_nobody_stated_is_that_of_the_machine_it_ran_on(tmp_path: Path) -> None:
    facts = read_script(write(tmp_path, DDP))
    needs = script_needs(facts, 3.0, BIG.key, list(ALL))
    assert needs.gpu_memory_gib == 80
    reasons = {entry.offer.key: entry.reason for entry in recommend(needs, ALL, Preferences()).rejected}
    assert reasons[SPOT.key] == "needs 80.0 GiB of GPU memory, L4 has 22.0"


@pytest.mark.parametrize(
    ("hours", "machine", "message"),
    [
        (None, "g.small", "hours and measured_on are needed"),
        (3.0, None, "hours and measured_on are needed"),
        (-1.0, "g.small", "hours is -1.0"),
        (3.0, "g9.huge", "measured_on is 'g9.huge', which the catalog does not have"),
    ],
)
def test_what_has_to_be_stated(tmp_path: Path, hours: float | None, machine: str | None, message: str) -> None:
    facts = read_script(write(tmp_path, "x = 1\n"))
    with pytest.raises(ConfigError, match=message):
        script_needs(facts, hours, machine, list(ALL))


def test_files_that_are_no_python(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="line 1 is not valid Python"):
        read_script(write(tmp_path, "def (:\n"))
    with pytest.raises(ConfigError, match="cannot be read"):
        read_script(tmp_path / "none.py")


def test_a_script_with_a_byte_order_mark_is_python(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_bytes(b"\xef\xbb\xbf" + DDP.encode())
    assert read_script(script).frameworks == ("torch", "transformers")


@pytest.mark.parametrize("source", ["x = 1\0", "(" * 5000, "x = " + "-" * 100_000 + "1"])
def test_what_cannot_be_parsed_is_refused_in_one_sentence(tmp_path: Path, source: str) -> None:
    with pytest.raises(ConfigError, match=r"train\.py"):
        read_script(write(tmp_path, source))

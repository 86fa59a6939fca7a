"""Jobs side by side, and pages that need no other file."""

from __future__ import annotations

import json
import tarfile
from datetime import timedelta
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from typer.testing import CliRunner

from crucible.checkpoints.commits import Checkpoints
from crucible.checkpoints.sharing import share_checkpoint, share_model
from crucible.cli.main import build_app
from crucible.config import TrainConfig
from crucible.errors import CheckpointError, ConfigError
from crucible.jobs.records import EndReason
from crucible.jobs.status import JobState
from crucible.reports.compare import compare, comparison_page
from crucible.reports.html import html_page
from crucible.store import FileStore, Store
from tests.reports.history import Past, interrupted_twice


@pytest.fixture
def two(tmp_path: Path) -> FileStore:
    """Jobs `slow` and `fast`, which differ in their learning rate."""
    store = FileStore(tmp_path / "store")
    interrupted_twice(store, tmp_path / "a", "slow")
    past = Past(store, tmp_path / "b", "fast", TrainConfig(learning_rate=2e-3))
    past.end(past.attempt(0, 1000, [1000], shift=-0.2, pool="local", usd_per_hour=0.0), EndReason.COMPLETED, "done")
    past.status(JobState.COMPLETED, "done")
    return store


def crucible(*arguments: str) -> str:
    result = CliRunner().invoke(build_app(), list(arguments), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_what_differs_and_only_that(two: FileStore, tmp_path: Path) -> None:
    out = tmp_path / "compare.html"
    printed = crucible("compare", "slow", "fast", "--store", two.uri, "--json", "--out", str(out))

    found = json.loads(printed)
    assert found["settings_that_differ"] == {
        "learning_rate": {"slow": 1e-3, "fast": 2e-3},
        "pool": {"slow": "ec2-spot, ec2-on-demand", "fast": "local"},
    }
    assert found["jobs"]["slow"]["attempts"] == 3
    assert found["jobs"]["slow"]["cost_usd"] > found["jobs"]["fast"]["cost_usd"] == 0
    assert found["jobs"]["fast"]["best_val_loss"] < found["jobs"]["slow"]["val_loss"]
    page = out.read_text()
    assert page.count('<img src="data:image/png;base64,') == 1
    assert page.count("<tr>") == 3 + 3
    assert 'src="http' not in page


def test_equal_jobs_have_no_difference(two: FileStore) -> None:
    slow = compare([Past(two, Path(), "slow").job, Past(two, Path(), "slow").job])

    assert slow.differing() == {}


def test_a_report_in_one_file(two: FileStore, tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    crucible("report", "slow", "--out", str(out), "--store", two.uri)

    page = out.read_text()
    assert "<h1>slow</h1>" in page
    assert "data:image/png;base64," in page
    assert "<h2>Attempts</h2>" in page


def test_share_prints_where_the_file_is(two: FileStore, tmp_path: Path) -> None:
    printed = crucible("share", "slow", "--step", "2000", "--expires", "2d", "--out", str(tmp_path), "--store", two.uri)

    assert printed == f"{tmp_path}/slow-step-00002000.attempt-0003.tar\n"
    assert Path(printed.strip()).stat().st_size > 100_000


def test_text_of_others_is_no_html() -> None:
    page = html_page("# a\n\n<script>alert(1)</script> [x](javascript:alert(1)) ![p](http://a/b)\n", "<b>")
    table = html_page("| a |\n| --- |\n| one<br>two `<br>` |\n", "a")
    assert "one<br />\ntwo <code>&lt;br&gt;</code>" in table

    assert "<script>" not in page
    assert 'href="javascript' not in page
    assert "<title>&lt;b&gt;</title>" in page


@pytest.mark.parametrize("kind", ["store", "s3_store"])
def test_a_checkpoint_and_a_model_are_shared_whole(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    store: Store = request.getfixturevalue(kind)
    past = Past(store, tmp_path)
    past.attempt(0, 20, [20])
    checkpoint = Checkpoints(past.job).list()[0]
    past.job.store.write("models/step-00000020/README.md", b"# card")

    shared = [
        share_checkpoint(past.job, checkpoint, timedelta(hours=1), tmp_path / "out"),
        share_model(past.job, "step-00000020", timedelta(days=7), tmp_path / "out"),
    ]

    for entry, name in zip(shared, ("model.safetensors", "README.md"), strict=True):
        if store.uri.startswith("s3:"):
            assert entry.expires_at is not None
            assert int(parse_qs(urlsplit(entry.where).query).get("X-Amz-Expires", ["3600"])[0]) in (3600, 7 * 86400)
            packed = tmp_path / "got.tar"
            packed.write_bytes(httpx.get(entry.where, trust_env=False).raise_for_status().content)
        else:
            packed = Path(entry.where)
        with tarfile.open(packed) as archive:
            assert f"{entry.name}/{name}" in archive.getnames()
    if store.uri.startswith("s3:"):
        with pytest.raises(ConfigError, match="7 days"):
            share_checkpoint(past.job, checkpoint, timedelta(days=8), tmp_path)
    past.job.store.write(f"checkpoints/{checkpoint.name}/model.safetensors", bytes(100_000 - 1) + b"x")
    with pytest.raises(CheckpointError, match="damaged"):
        share_checkpoint(past.job, checkpoint, timedelta(hours=1), tmp_path)


@pytest.mark.filterwarnings("error")
def test_jobs_that_report_no_loss_are_compared_without_a_warning(store: Store, tmp_path: Path) -> None:
    past = Past(store, tmp_path)
    past.attempt(0, 0, []).append_metrics(1, b'{"step": 1, "files": 3}')

    assert comparison_page(compare([past.job, past.job]))

"""When the deployments of a project are made again."""

from __future__ import annotations

from pathlib import Path

from crucible.local.provision import source_digest


def test_the_digest_follows_the_sources_and_passes_over_an_editors_lock(tmp_path: Path) -> None:
    (tmp_path / "prefect.yaml").write_text("deployments: []")
    (tmp_path / "flows").mkdir()
    flow = tmp_path / "flows" / "train.py"
    flow.write_text("first")
    first = source_digest(tmp_path)
    (tmp_path / "flows" / ".#train.py").symlink_to("user@host.4242:1764363000")
    assert source_digest(tmp_path) == first
    flow.write_text("second")
    assert source_digest(tmp_path) != first

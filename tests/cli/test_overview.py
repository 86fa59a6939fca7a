"""`crucible overview --watch` where the store is away for a moment."""

from __future__ import annotations

from pathlib import Path

import pytest

from crucible.cli import overview
from crucible.errors import StoreUnavailable
from crucible.reports.overview import Overview, OverviewReader


def test_a_watch_goes_on_when_the_store_answers_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = [None, StoreUnavailable("503 SlowDown"), None, KeyboardInterrupt()]
    read = OverviewReader.read

    def reading(reader: OverviewReader) -> Overview:
        if (error := answers.pop(0)) is not None:
            raise error
        return read(reader)

    monkeypatch.setattr(OverviewReader, "read", reading)
    monkeypatch.setattr(overview, "WATCH_SECONDS", 0.01)
    with pytest.raises(KeyboardInterrupt):
        overview.overview(watch=True, store=tmp_path.as_uri())
    assert not answers
    assert "Nothing is running" in capsys.readouterr().out

"""The documentation as a site: every page has its place, every picture is there."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from crucible.local.state import PROJECT

DOCS = PROJECT / "docs"
PAGES = sorted(path.name for path in DOCS.glob("*.md"))


def files_in(nav: Any) -> list[str]:
    """The pages of a menu, in its order."""
    if isinstance(nav, str):
        return [nav]
    return [file for part in (nav.values() if isinstance(nav, dict) else nav) for file in files_in(part)]


def test_every_page_is_in_the_menu_once_and_in_the_index() -> None:
    nav = tomllib.loads((PROJECT / "zensical.toml").read_text(encoding="utf-8"))["project"]["nav"]
    assert sorted(files_in(nav)) == PAGES
    index = (DOCS / "index.md").read_text(encoding="utf-8")
    assert [page for page in PAGES if page != "index.md" and f"]({page}" not in index] == []


def test_every_picture_and_every_page_that_is_named_is_there() -> None:
    missing = []
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#\s]+)", (DOCS / page).read_text(encoding="utf-8")):
            if "://" not in target and not (DOCS / target).is_file():
                missing.append(f"{page}: {target}")
    assert missing == []


@pytest.mark.skipif(find_spec("zensical") is None, reason="the extra `docs` is not installed: make docs")
def test_the_site_is_built_without_a_broken_link(tmp_path: Path) -> None:
    copy = tmp_path / "zensical.toml"
    copy.write_text((PROJECT / "zensical.toml").read_text(encoding="utf-8"))
    shutil.copytree(DOCS, tmp_path / "docs")
    command = [sys.executable, "-m", "zensical", "build", "--strict"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr

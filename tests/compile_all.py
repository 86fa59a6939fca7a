"""Compile the project and its tests once, before several pytest processes do it at the same time, each for itself.

    python -m tests.compile_all

pytest compiles test files in its own way and has no public function for it. If a later version does that differently,
this leaves the test files to its processes, which only takes longer.
"""

from __future__ import annotations

import compileall
from pathlib import Path
from types import SimpleNamespace
from typing import Any

ROOT = Path(__file__).parents[1]
FOLDERS = ("crucible", "flows", "tasks", "blocks", "scripts", "benchmarks", "tests")


def compile_test_files() -> int:
    """Compile what pytest would, as it would; returns how many files were not compiled before."""
    from _pytest.assertion import rewrite

    config: Any = SimpleNamespace(getini=lambda name: False)
    state: Any = SimpleNamespace(trace=lambda message: None)
    compiled = 0
    for pattern in ("conftest.py", "test_*.py"):
        for file in (ROOT / "tests").rglob(pattern):
            folder = rewrite.get_cache_dir(file)
            pyc = folder / (file.name.removesuffix(".py") + rewrite.PYC_TAIL)
            if rewrite.try_makedirs(folder) and rewrite._read_pyc(file, pyc) is None:
                source, code = rewrite._rewrite_test(file, config)
                compiled += rewrite._write_pyc(state, code, source, pyc)
    return compiled


if __name__ == "__main__":
    for folder in FOLDERS:
        compileall.compile_dir(ROOT / folder, quiet=2)
    try:
        compile_test_files()
    except (ImportError, AttributeError, TypeError) as error:
        print(f"pytest's processes compile the test files themselves: {error}")

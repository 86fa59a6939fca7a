"""No circle of imports, of files or of packages; imports inside functions and under TYPE_CHECKING count."""

import ast
import subprocess
import sys
from collections.abc import Iterable
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[1]
KNOWN: set[tuple[str, str]] = set()
"""Imports that close a circle today. The list only gets shorter."""


def imports() -> set[tuple[str, str]]:
    """(file, file that it imports) by module name, for every file of the library, flows, tasks and blocks."""
    files = {
        name(file): file for room in ("crucible", "flows", "tasks", "blocks") for file in ROOT.glob(f"{room}/**/*.py")
    }
    found = set()
    for module, file in files.items():
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            targets: Iterable[str] = ()
            if isinstance(node, ast.Import):
                targets = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert node.module, f"{file}:{node.lineno}: a relative import"
                inside = [f"{node.module}.{alias.name}" for alias in node.names]
                targets = [target if target in files else node.module for target in inside]
            found |= {(module, target) for target in targets if target in files and target != module}
    return found


def name(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def package(module: str) -> str:
    """`crucible.store` of `crucible.store.s3`; the pools are packages of their own."""
    parts = module.split(".")
    if parts[0] != "crucible":
        return parts[0]
    return ".".join(parts[: 3 if parts[:2] == ["crucible", "pools"] else 2])


def circle(edges: set[tuple[str, str]]) -> list[str]:
    """The modules of one circle, in order; empty where there is none."""
    sorter: TopologicalSorter[str] = TopologicalSorter()
    for importer, imported in sorted(edges):
        sorter.add(importer, imported)
    try:
        sorter.prepare()
    except CycleError as error:
        return error.args[1][::-1]
    return []


def test_no_file_imports_itself_by_way_of_others() -> None:
    assert circle(imports() - KNOWN) == []


def test_no_package_imports_itself_by_way_of_others() -> None:
    edges = {(package(importer), package(imported)) for importer, imported in imports() - KNOWN}
    assert circle({(importer, imported) for importer, imported in edges if importer != imported}) == []


def test_what_is_known_to_close_a_circle_is_still_there() -> None:
    assert sorted(KNOWN - imports()) == [], "fixed: take it from KNOWN"


def test_a_circle_is_found_and_named() -> None:
    assert set(circle({("a", "b"), ("b", "c"), ("c", "a"), ("d", "a")})) == {"a", "b", "c"}


def test_a_flow_run_that_only_waits_holds_no_torch() -> None:
    """A supervisor and an agent live as long as their job; torch would take 150 MB of each, and seconds to start.

    Prefect's workers and numpy would be a quarter of what these flows load beside Prefect.
    """
    script = (
        "import sys, flows.train_script, flows.train; found = {'numpy'} & sys.modules.keys()\n"
        "import flows.train_nanogpt, flows.tune\n"
        "found |= {'torch', 'pandas', 'matplotlib', 'prefect.workers'} & sys.modules.keys()\n"
        "sys.exit(', '.join(found) or None)"
    )
    found = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True, text=True)
    assert (found.returncode, found.stderr) == (0, "")

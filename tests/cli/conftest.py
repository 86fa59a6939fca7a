"""What the tests of the command line share."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from typer.testing import CliRunner

from crucible.cli.main import build_app
from crucible.store import Store

Run = Callable[..., Any]


@pytest.fixture
def run(store: Store) -> Run:
    """Runs `crucible …` on the test's store and returns what it printed; with --json, parsed. Errors are raised."""

    def run(*arguments: str) -> Any:
        result = CliRunner().invoke(build_app(), [*arguments, "--store", store.uri], catch_exceptions=True)
        if isinstance(result.exception, Exception):
            raise result.exception
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout) if "--json" in arguments else result.stdout

    return run

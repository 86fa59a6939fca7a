"""Tests that need an NVIDIA GPU: `python -m pytest tests/gpu`. Everywhere else they are skipped.

Where Prefect is not installed, add `--confcutdir=tests/gpu`: `tests/conftest.py` imports it.
"""

from __future__ import annotations

from pathlib import Path

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    mine = [item for item in items if here in item.path.parents]
    if not mine:
        return
    import torch

    for item in mine:
        item.add_marker(pytest.mark.gpu)
        if not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU"))


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.training.conftest import write_dataset

    return write_dataset(tmp_path_factory.mktemp("walk"), train=300_000, val=20_000)

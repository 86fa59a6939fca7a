"""Crucible's own image on Modal: built once, then known by its id."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import modal
import pytest

from crucible.pools.modal import sandboxes
from crucible.pools.modal.configuration import ModalJobConfiguration
from crucible.pools.modal.sandboxes import Sandboxes
from crucible.pools.modal.worker import ModalWorker
from crucible.rehearsal.modal import FakeModal


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeModal]:
    """A Modal, and a small checkout to build from."""
    project = tmp_path / "project"
    (project / "images").mkdir(parents=True)
    (project / "images" / "Dockerfile").write_text("FROM python:3.11-slim\nCOPY code /opt/\n")
    (project / "code").mkdir()
    (project / "code" / "a.py").touch()
    (project / ".dockerignore").write_text("*\n!code\n")
    monkeypatch.setattr(sandboxes, "_CHECKOUT", project)
    monkeypatch.setenv("CRUCIBLE_HOME", str(tmp_path / "home"))
    with FakeModal(grace_seconds=1) as fake:
        for name, value in fake.env.items():
            monkeypatch.setenv(name, value)
        yield fake


def start(fake: FakeModal, client: modal.Client, **variables: Any) -> list[str]:
    """Create a sandbox and end it; returns the calls that its image took."""

    async def created() -> None:
        template = ModalWorker.get_default_base_job_template()
        configuration = await ModalJobConfiguration.from_template_and_values(
            template, {"command": "true", **variables}, client=object()
        )
        here = Sandboxes(client, configuration, logging.getLogger("test"))
        sandbox = await here.create(f"run-{len(fake.sandboxes())}", 0)
        await here.end_of(sandbox)

    before = len(fake.calls())
    asyncio.run(created())
    return [name for name in fake.calls()[before:] if name.startswith(("Image", "Mount"))]


def test_a_second_sandbox_sends_nothing_again(fake: FakeModal, tmp_path: Path) -> None:
    client = modal.Client.from_credentials(fake.env["MODAL_TOKEN_ID"], fake.env["MODAL_TOKEN_SECRET"])
    assert "MountGetOrCreate" in start(fake, client)
    assert set(start(fake, client)) == {"ImageFromId"}
    assert "ImageGetOrCreate" in start(fake, client, gpu="T4"), "another variant is another image"

    for changed in ("code/a.py", "images/Dockerfile"):
        with (tmp_path / "project" / changed).open("a") as file:
            file.write("# changed\n")
        assert "ImageGetOrCreate" in start(fake, client), f"another {changed} is another image"

    fake.forget_images()
    again = start(fake, client)
    assert again[0] == "ImageFromId"
    assert "ImageGetOrCreate" in again, "deleted on Modal: built again"

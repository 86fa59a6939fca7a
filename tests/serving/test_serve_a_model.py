"""`crucible serve` on the quickstart's model, asked through OpenAI's own client."""

from __future__ import annotations

import re
from pathlib import Path

import httpx
import psutil
import pytest

from crucible.jobs.job import Job
from crucible.jobs.records import EndReason
from crucible.jobs.status import JobState, status_of
from crucible.rehearsal.drill.stage import local_stage
from tests.conftest import unused_port
from tests.waiting import until


def healthy(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/health", timeout=5, trust_env=False).is_success
    except httpx.HTTPError:
        return False


def servers(port: int) -> list[psutil.Process]:
    """The processes of `transformers serve` on that port, the guard before it included."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        command = process.info["cmdline"] or []
        if str(port) in command and "transformers.cli.transformers" in command:
            found.append(process)
    return found


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_quickstarts_model_answers_comes_back_and_stops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    openai = pytest.importorskip("openai")
    monkeypatch.setenv("CRUCIBLE_HOME", str(tmp_path / "stage"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    port = unused_port()
    with local_stage(tmp_path / "stage") as stage:
        printed = stage.crucible("quickstart", "--preset", "debug")
        [name] = re.findall(r"^report +.* (\S+)$", printed, re.MULTILINE)
        stage.crucible("serve", name, "--port", str(port), "--idle", "20min", "--name", "served", "--detach")
        until(lambda: healthy(port), 600)
        client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none")

        answer = client.completions.create(model=name, prompt="def ", max_tokens=8)
        assert answer.usage.completion_tokens == 8
        assert len(answer.choices[0].text) == 8, "a token of this model is a character"
        parts = client.completions.create(model=name, prompt="def ", max_tokens=8, stream=True)
        assert len([part for part in parts if part.choices[0].text]) > 1

        job = Job(stage.store, "served")
        for process in servers(port):
            process.kill()
        until(lambda: len(job.attempts()) == 2 and healthy(port), 600)
        outcome = job.attempt(1).read_outcome()
        assert outcome is not None
        assert outcome.end_reason is EndReason.KILLED
        assert client.completions.create(model=name, prompt="def ", max_tokens=8).choices[0].text

        stage.crucible("jobs", "stop", "served")
        until(lambda: (status := status_of(job)) and status.state is JobState.CANCELLED, 300)
        assert not healthy(port)
        assert servers(port) == []

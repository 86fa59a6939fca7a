"""`crucible run` up to the moment where something would start: what it prints, asks, refuses and would send."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import typer
from typer.testing import CliRunner

from crucible.cli import init, run, tune
from crucible.cli import script_options as options
from crucible.cli.inputs import check_all
from crucible.errors import ConfigError, ServiceError
from crucible.jobs.job import Job
from crucible.jobs.records import JobSpec, Launch
from crucible.local.follow import Standing
from crucible.local.run_script import plan_run, require_reachable, require_ready, start_run
from crucible.run_config import RunConfig
from crucible.script_config import ScriptConfig
from crucible.store import Store
from flows.parameters import TrainScriptRequest, TuneScriptRequest
from tests.conftest import PrefectServer


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository whose data git ignores; the current folder of the test."""
    project = tmp_path / "my-model"
    (project / "data").mkdir(parents=True)
    (project / "train.py").write_text("print('x')\n")
    (project / "data" / "train.bin").write_bytes(b"12345")
    (project / ".gitignore").write_text("*.bin\n")
    subprocess.run(["git", "init", "-q"], cwd=project, check=True)
    monkeypatch.chdir(project)
    return project


def crucible(line: str, **options: Any) -> Any:
    app = typer.Typer()
    run.register(app)
    tune.register(app)
    init.register(app)
    check_all(app)
    return CliRunner().invoke(app, shlex.split(line), catch_exceptions=True, **options)


def refusal(line: str) -> str:
    done = crucible(line)
    assert isinstance(done.exception, ConfigError), done.output
    return str(done.exception)


def planned(line: str) -> dict[str, Any]:
    done = crucible(f"run --dry-run --json {line}")
    assert done.exit_code == 0, (done.output, done.exception)
    values: dict[str, Any] = json.loads(done.stdout)
    return values


def test_a_dry_run_shows_what_would_travel_and_starts_nothing(folder: Path) -> None:
    done = crucible("run --dry-run -- python train.py --steps 3")
    assert done.exit_code == 0
    for shown in ("python train.py --steps 3", "2 files", "data/train.bin", "Crucible's own environment", "local"):
        assert shown in done.stderr


def test_the_command_line_takes_precedence_over_the_file_and_both_reach_the_flow(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "crucible.yaml").write_text(
        "command: python train.py --steps 3\n"
        "checkpoint: out/ckpt.pt\n"
        "resume: --resume --fast\n"
        "metrics: nanogpt\n"
        "env: {DEBUG: 1, MODE: file}\n"
        "data: data/\n"
        "project: paper\n"
        "max_hours: 2\n"
    )
    monkeypatch.setenv("FROM_SHELL", "here")
    sent = planned("--max-hours 1 --env MODE=line --env FROM_SHELL --secret HF_TOKEN --gpus 0 --name first")
    assert sent["command"] == "python train.py --steps 3"
    assert sent["job"] == "first"
    assert sent["script"]["env"] == {"DEBUG": "1", "MODE": "line", "FROM_SHELL": "here"}
    assert sent["script"]["resume"] == ["--resume", "--fast"]
    assert sent["script"]["checkpoint"] == {"path": "out/ckpt.pt"}
    assert sent["script"]["metrics"]["format"] == "nanogpt"
    assert list(sent["data"]) == ["data"]
    request = TrainScriptRequest.model_validate(sent)
    assert request.resources.gpus == 0
    assert request.given()["secrets"] == ["HF_TOKEN"]
    assert (request.project, request.max_hours) == ("paper", 1.0)
    sent = planned("-- python train.py 'two words'")
    assert TrainScriptRequest.model_validate(sent).command == "python train.py 'two words'"
    assert sent["job"].startswith("my-model-")


def test_a_file_of_another_name_is_used_instead_of_the_folders(folder: Path) -> None:
    (folder / "crucible.yaml").write_text("command: python other.py\n")
    (folder / "small.yaml").write_text("command: python train.py --small\nproject: paper\n")
    sent = planned("--config small.yaml")
    assert (sent["command"], sent["project"]) == ("python train.py --small", "paper")
    assert "there is no file large.yaml" in refusal("run --dry-run --config large.yaml")


def test_a_search_is_checked_and_sent_as_the_flow_takes_it(folder: Path) -> None:
    (folder / "crucible.yaml").write_text(
        "command: python train.py --lr={lr}\ntotal_steps: 90\ntune: {space: {lr: [1, 2]}, metric: accuracy}\n"
    )
    done = crucible("tune --dry-run --json --goal max --name mine --max-cost-usd 2")
    assert done.exit_code == 0, (done.output, done.exception)
    assert "rungs at step 10, 30, 90" in done.stderr
    sent = json.loads(done.stdout)
    sent.pop("code")
    request = TuneScriptRequest.model_validate(sent)
    assert (request.sweep, request.max_cost_usd, request.command) == ("mine", 2.0, "python train.py '--lr={lr}'")
    assert request.search() == {"space": {"lr": {"choice": [1, 2]}}, "metric": "accuracy", "goal": "max"}
    assert "there is no file space.yaml" in refusal("tune --dry-run --space space.yaml")
    assert "'rl' stands nowhere" in refusal("tune --dry-run --space 'rl: [1]'")
    (folder / "wide:1.yaml").write_text("rl: [1]\n")
    assert "'rl' stands nowhere" in refusal("tune --dry-run --space wide:1.yaml")
    assert "'seconds' is a column" in refusal("tune --dry-run --metric seconds")
    assert "'lr' is a column" in refusal("tune --dry-run --metric lr")
    assert "there is no file xxx" in refusal(f"tune --dry-run --space {'x' * 300}")
    (folder / "crucible.yaml").unlink()
    assert "space: there is none" in refusal("tune --dry-run -- python train.py")


REFUSED = {
    "no command": ("run --dry-run", "command: there is none"),
    "a file that is not there": ("run -- python trian.py", "no file trian.py .*did you mean train.py"),
    "auto": ("run --pool auto -- python train.py", "pool: auto compares estimates"),
    "no such gpu": ("run --pool modal --gpus 9 -- python train.py", "no machine .*9 GPUs on modal"),
    "memory on local": ("run -- python train.py", "memory_gib: the pool local cannot choose"),
    "over already": ("run --finish-by 2020-01-01T00:00Z -- python train.py", "finish_by"),
    "no such variable": ("run --env NO_SUCH_VARIABLE -- python train.py", "no variable NO_SUCH_VARIABLE"),
    "a variable of ours": ("run --env CRUCIBLE_HOME=x -- python train.py", "CRUCIBLE_HOME belongs to Crucible"),
    "an impossible name": ("run --name a/b -- python train.py", "'a/b' is no usable name"),
    "a broken pattern": ("run --metrics 'loss (' -- python train.py", "not a regular expression"),
    "no such data": ("run --data corpus -- python train.py", "there is no corpus"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_mistakes_are_one_message_before_anything_is_sent(folder: Path, case: str) -> None:
    line, message = REFUSED[case]
    if case == "memory on local":
        (folder / "crucible.yaml").write_text("resources: {memory_gib: 4}\n")
    assert re.search(message, refusal(line)), refusal(line)


def test_every_mistake_in_the_file_is_named_at_once(folder: Path) -> None:
    (folder / "crucible.yaml").write_text("comand: python train.py\nmax_hours: -1\ntotal_steps: many\n")
    message = refusal("run")
    assert "comand = 'python train.py' is not a known setting; did you mean command?" in message
    (folder / "crucible.yaml").write_text("max_hours: -1\ntotal_steps: many\n")
    message = refusal("run")
    assert message.startswith("crucible.yaml: ")
    assert "max_hours = -1" in message
    assert "total_steps = 'many'" in message


def test_an_ignored_file_that_the_command_names_is_a_message_without_a_terminal(folder: Path) -> None:
    message = refusal("run -- python train.py --data=data")
    assert "it names data, and git ignores data/train.bin" in message
    assert "--data data" in message
    assert list(planned("--data data -- python train.py --data=data")["data"]) == ["data"]
    (folder / ".crucibleignore").write_text("data/\n")
    assert planned("-- python train.py --data=data")["data"] == {}


@pytest.mark.parametrize(("answer", "travels"), [("d", ["data"]), ("i", []), ("l", [])])
def test_on_a_terminal_it_is_a_question(
    folder: Path, monkeypatch: pytest.MonkeyPatch, answer: str, travels: list[str]
) -> None:
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    config = RunConfig.parse({"command": "python train.py data/train.bin"})
    monkeypatch.setattr("typer.prompt", lambda *_, **__: answer)
    found = options.ask_about_left_out(config, folder, ask=True)
    assert found.data == (["data/train.bin"] if travels else [])
    assert found.include == (["data/train.bin"] if answer == "i" else [])


def test_metrics_can_be_tried_on_a_sample_of_printed_lines(folder: Path) -> None:
    (folder / "sample.log").write_text("".join(f"step {n} loss {1 / n:.3f}\rsaved at {n}\n" for n in range(1, 11)))
    (folder / "crucible.yaml").write_text("checkpoint: {path: out, step_from: 'saved at (\\d+)'}\n")
    line = "run --sample-log sample.log --metrics '{}' -- python train.py"
    done = crucible(line.format(r"step (?P<step>\d+) loss (?P<train_loss>[\d.]+)"))
    assert done.exit_code == 0, (done.output, done.exception)
    assert "10 reports in 20 lines" in done.stderr
    assert "step 10: train_loss 0.1" in done.stderr
    assert "10 lines match step_from, the last at step 10" in done.stderr
    assert crucible(line.format("nanogpt")).exit_code == 1, "nothing was found"
    assert "reads a file" in refusal("run --sample-log sample.log --metrics jsonl:m.jsonl -- python train.py")


def test_the_written_file_is_the_one_that_run_reads(folder: Path) -> None:
    done = crucible("init")
    assert done.exit_code == 0, done.output
    assert "train.py is here" in done.stdout
    sent = planned("")
    assert sent["command"] == "python train.py"
    assert list(sent["data"]) == ["data"]
    assert "exists" in refusal("init")


def test_the_schema_takes_the_short_forms(folder: Path) -> None:
    schema = json.loads(crucible("init --schema").stdout)
    assert {"type": "string"} in schema["properties"]["command"]["anyOf"]
    assert schema["additionalProperties"] is False


def test_a_clouds_pool_cannot_read_a_folder_of_this_machine(store: Store) -> None:
    require_reachable(store, "docker-gpu")
    with pytest.raises(ConfigError, match="which modal cannot reach"):
        require_reachable(store, "modal")


def test_the_server_is_asked_before_anything_is_uploaded(
    folder: Path, prefect_server: PrefectServer, store: Store
) -> None:
    user, _, password = prefect_server.env["PREFECT_API_AUTH_STRING"].partition(":")
    with httpx.Client(base_url=prefect_server.api_url, auth=(user, password), timeout=60) as api:
        for pool, message in [
            ("elsewhere", "no pool 'elsewhere'"),
            ("modal", "no pool 'modal'; crucible modal pool makes it"),
        ]:
            here = plan_run(RunConfig.parse({"command": "python train.py"}), folder)
            with pytest.raises(ConfigError, match=message):
                require_ready(api, replace(here, config=here.config.model_copy(update={"pool": pool})))
        with pytest.raises(ConfigError, match="no Store block 'nowhere'"):
            start_run(api, plan_run(RunConfig.parse({"command": "python train.py", "store": "nowhere"}), folder))
    assert store.list() == []
    with (
        httpx.Client(base_url="http://127.0.0.1:9/api") as api,
        pytest.raises(ServiceError, match="check PREFECT_API_URL"),
    ):
        require_ready(api, plan_run(RunConfig.parse({"command": "python train.py"}), folder))


@pytest.mark.parametrize(("state", "code"), [("COMPLETED", 0), ("CANCELLED", 75), ("FAILED", 1), ("CRASHED", 1)])
def test_the_exit_code_says_how_it_ended(
    store: Store, state: str, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    standing = Standing(state, "the reason", None)
    if code == 0:
        run.conclude(standing, store, "mine", "a-run", as_json=True)
    else:
        with pytest.raises(typer.Exit) as ended:
            run.conclude(standing, store, "mine", "a-run", as_json=True)
        assert ended.value.exit_code == code
        assert "the reason" in capsys.readouterr().err
        return
    assert json.loads(capsys.readouterr().out)["state"] == state


def test_a_missing_package_names_the_file_that_installs_it(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    missing = "the workload failed with exit code 1: ModuleNotFoundError: No module named 'einops'"
    with pytest.raises(typer.Exit):
        run.conclude(Standing("FAILED", missing, None), store, "mine", "a-run", as_json=False)
    assert "requirements.txt" in capsys.readouterr().err


def test_a_terminal_keeps_the_whole_traceback_of_a_script_that_failed(
    store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The lines under the bar are eight, cut at the terminal's width, and go away with it."""
    job = Job.create(store, JobSpec(job_id="mine", script=ScriptConfig(command=["true"])))
    job.decide(Launch(number=1, pool="local", reason="test"))
    frames = [f'  File "/a/{"long/" * 40}train.py", line {number}, in deeper' for number in range(30)]
    printed = ["loaded"] * 400 + ["Traceback (most recent call last):", *frames, "ValueError: no such column"]
    job.attempt(1).output.write(0, "".join(f"{line}\n" for line in printed).encode())
    monkeypatch.setattr(
        "crucible.local.follow.follow", lambda *_: iter([Standing("FAILED", "exit code 1: ValueError", None)])
    )
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes it for a terminal
    run.follow_run("a-run", store, "mine")
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", capsys.readouterr().err).rpartition("Traceback")[2].splitlines()
    assert [line[2:] for line in shown[1:]] == printed[-31:]


@pytest.mark.parametrize("answer", ["d", "s"])
def test_ctrl_c_asks_whether_to_detach_or_to_stop(
    folder: Path, store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], answer: str
) -> None:
    """Stopping goes on following until the job has saved; detaching leaves it alone."""
    job = Job.create(store, JobSpec(job_id="mine", script=ScriptConfig(command=["true"])))
    job.decide(Launch(number=1, pool="local", reason="test"))
    looks = iter([KeyboardInterrupt, Standing("CANCELLED", "stopped by a person", None)])

    def follow(*_: object) -> Iterator[Standing]:
        if (found := next(looks)) is KeyboardInterrupt:
            raise KeyboardInterrupt
        assert isinstance(found, Standing)
        yield found

    monkeypatch.setattr("crucible.local.follow.follow", follow)
    monkeypatch.setattr("crucible.cli.following.Screen.ask_stop", lambda _: answer == "s")
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    if answer == "d":
        with pytest.raises(typer.Exit) as ended:
            run.follow_run("a-run", store, "mine")
        assert ended.value.exit_code == 130
        assert job.attempt(1).read_stop_request() is None
    else:
        assert run.follow_run("a-run", store, "mine").state == "CANCELLED"
        request = job.attempt(1).read_stop_request()
        assert request is not None
        assert request.reason == "stopped by a person"


def test_runs_that_start_in_the_same_second_have_names_of_their_own(tmp_path: Path) -> None:
    folder = tmp_path / ("a long folder " * 5).strip()
    folder.mkdir()
    (folder / "train.py").write_text("print(1)")
    config = RunConfig.parse({"command": ["python", "train.py"]})
    names = {plan_run(config, folder).job for _ in range(3)}
    assert len(names) == 3
    assert all(name.startswith("a-long-folder-") and len(name) < 63 for name in names)

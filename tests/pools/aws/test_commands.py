"""`crucible aws …` against the rehearsed AWS: what a user types, and what is said when something is missing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from crucible.cli import aws as commands
from crucible.cli import rehearse
from crucible.errors import ConfigError, CrucibleError
from crucible.pools.aws import stack
from crucible.pools.aws.diagnosis import diagnose, lost_machine, of_task
from crucible.pools.aws.parameters import stack_parameters
from crucible.pools.aws.stack import StackState
from crucible.rehearsal.aws.client import AwsRehearsal
from crucible.rehearsal.aws.session import STATE_FILE


@pytest.fixture
def at_the_cloud(cloud: AwsRehearsal, stack_state: StackState, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in cloud.environment.items():
        monkeypatch.setenv(name, value)


def run(*arguments: str) -> Result:
    app = typer.Typer()
    commands.register(app)
    return CliRunner().invoke(app, ["aws", *arguments])


def error_of(*arguments: str) -> str:
    """The message that `crucible` would print as `error: …` before it exits with 1."""
    result = run(*arguments)
    assert isinstance(result.exception, CrucibleError), result.output
    return str(result.exception)


@pytest.mark.usefixtures("at_the_cloud")
def test_a_stack_is_planned_made_looked_at_and_taken_down() -> None:
    options = ["--stack", "typed", "--types", "g5.xlarge,g6.xlarge", "--max-spot", "2", "--cidr", "10.7.0.0/16"]
    planned = run("plan", *options)
    assert "+ SpotGroup" in planned.output
    assert "to add" in planned.output
    made = run("up", *options, "--yes")
    assert made.exit_code == 0, made.output
    assert "CREATE_COMPLETE" in made.output
    assert "crucible up" in made.output  # no Prefect server is selected here, and that is said
    again = run("up", "--stack", "typed", "--max-spot", "3", "--yes")
    assert "~ SpotGroup" in again.output
    assert "0 to add, 1 to change, 0 to remove" in again.output
    told = json.loads(run("status", "--stack", "typed", "--json").output)
    assert [group["maximum"] for group in told["groups"]] == [3, 1]
    assert next(check for check in told["checks"] if check["name"] == "image")["ok"] is False
    gone = run("down", "--stack", "typed", "--yes")
    assert gone.exit_code == 0, gone.output
    assert "is kept" in gone.output
    assert "There is no stack" in run("down", "--stack", "typed", "--yes").output


@pytest.mark.parametrize("answer", ["n\n", ""])  # "": nobody is there to ask
def test_a_refused_plan_leaves_nothing_behind(at_the_cloud: None, cloud: AwsRehearsal, answer: str) -> None:
    app = typer.Typer()
    commands.register(app)
    result = CliRunner().invoke(app, ["aws", "up", "--stack", "unwanted"], input=answer)
    assert result.exit_code == 1
    assert stack.describe(cloud.session(), "unwanted") is None
    assert "no such stack" in error_of("status", "--stack", "unwanted")


@pytest.mark.usefixtures("at_the_cloud")
def test_pools_need_a_prefect_server_that_answers() -> None:
    from prefect.settings import PREFECT_API_URL, temporary_settings

    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}):
        assert "http://127.0.0.1:9/api" in error_of("pools")
        assert "crucible up" in error_of("pools")


@pytest.mark.usefixtures("at_the_cloud")
def test_what_is_missing_is_named_with_its_mend(
    cloud: AwsRehearsal, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert "did you mean us-east-1?" in error_of("status", "--region", "us-east-11")
    assert "'crucible'" in error_of("status", "--region", "eu-west-1")
    assert "crucible aws up --region eu-west-1" in error_of("status", "--region", "eu-west-1")
    cloud.fault("expired_credentials", whose="worker")
    try:
        assert "have expired" in error_of("status")
    finally:
        cloud.fault("expired_credentials", whose="worker", on=False)
    assert "--profile" in error_of("status", "--profile", "nobody")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    assert "aws sso login" in error_of("status")
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name)
    assert "--region" in error_of("status")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"types": "g5.xlarge,g5.xlarge"}, "twice"),
        ({"types": "big"}, "'big'"),
        ({"types": ",".join(f"g{n}.xlarge" for n in range(7))}, "one to 6"),
        ({"cidr": "10.42.0.0/33"}, "10.42.0.0/33"),
        ({"cidr": "10.42.0.0/28"}, "/24 or larger"),
        ({"vpc": "vpc-1"}, "--subnets"),
        ({"settings": ["DiskGiB"]}, "Name=value"),
    ],
)
def test_options_that_cannot_be_meant_are_refused_by_name_and_value(options: dict[str, str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        stack_parameters(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "words", "permanent"),
    [
        ("CannotPullContainerError: manifest for x not found: manifest unknown", "image does not exist", True),
        ("ECS was unable to assume the role 'arn:aws:iam::1:role/x' that was provided", "role", True),
        (
            "Could not launch Spot Instances. MaxSpotInstanceCountExceeded - Max spot instance count exceeded",
            "quota",
            True,
        ),
        ("There is no Spot capacity available that matches your request.", "no such instance free", False),
        ("TaskFailedToStart: RESOURCE:GPU", "no machine", False),
        ("An error occurred (ExpiredTokenException) when calling RunTask", "expired", True),
        ("Failed to run ECS task, cluster 'x' not found.", "cluster", True),
        ("something AWS has never said before", "AWS says", False),
    ],
)
def test_what_aws_says_is_told_with_its_meaning(text: str, words: str, permanent: bool) -> None:
    diagnosis = diagnose(text)
    assert words in diagnosis.summary
    assert diagnosis.permanent is permanent


def test_a_task_that_died_with_its_machine_is_not_its_own_fault() -> None:
    lost = {
        "lastStatus": "STOPPED",
        "stoppedReason": "Host EC2 (instance i-0123456789abcdef0) terminated.",
        "containers": [{"name": "prefect"}],
    }
    assert lost_machine(lost)
    assert of_task(lost) is not None
    finished = {"lastStatus": "STOPPED", "stopCode": "EssentialContainerExited", "containers": [{"exitCode": 0}]}
    assert not lost_machine(finished)
    assert of_task(finished) is None


def test_faults_are_listed_and_need_a_rehearsal_that_runs(
    cloud: AwsRehearsal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CRUCIBLE_HOME", str(tmp_path))
    app = typer.Typer()
    rehearse.register(app)
    runner = CliRunner()
    listed = runner.invoke(app, ["rehearse", "fault"]).output
    assert all(name in listed for name in ("notice", "reclaim", "drought", "late_stop"))
    refused = runner.invoke(app, ["rehearse", "fault", "drought"]).exception
    assert "crucible rehearse aws" in str(refused)
    (tmp_path / STATE_FILE).write_text(json.dumps({"control_url": cloud.control_url}))
    assert "spot" in runner.invoke(app, ["rehearse", "fault", "drought"]).output
    assert "[]" in runner.invoke(app, ["rehearse", "fault", "drought", "on=false"]).output
    assert "lifecycle = 'free'" in str(runner.invoke(app, ["rehearse", "fault", "drought", "lifecycle=free"]).exception)
    assert "'name'" in str(runner.invoke(app, ["rehearse", "fault", "drought", "name=3"]).exception)
    assert "not JSON" in str(runner.invoke(app, ["rehearse", "fault", "notice", "seconds=NaN"]).exception)
    for left_by_a_killed_one, words in (
        ({"control_url": "http://127.0.0.1:9/x"}, "does not answer"),
        ([], "no rehearsal is running"),
    ):
        (tmp_path / STATE_FILE).write_text(json.dumps(left_by_a_killed_one))
        refused = runner.invoke(app, ["rehearse", "fault", "drought"]).exception
        assert isinstance(refused, CrucibleError)
        assert words in str(refused)


def test_the_emergency_stop_goes_on_whatever_answers_for_the_prefect_server(monkeypatch: pytest.MonkeyPatch) -> None:
    def login_page() -> list[str]:
        return list(json.loads("<html>"))

    stopped = []
    monkeypatch.setattr("crucible.pools.aws.pools.pause", login_page)
    monkeypatch.setattr("crucible.pools.aws.emergency_stop.stop_all", lambda *given: stopped.append(given))
    monkeypatch.setattr(commands, "_prefect_api_url", lambda: "https://prefect.example.com/api")
    commands._emergency_stop(None, None)  # type: ignore[arg-type]
    assert len(stopped) == 1

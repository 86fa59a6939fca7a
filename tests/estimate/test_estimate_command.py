"""`crucible estimate` and `crucible prices` as a user meets them, without any account."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from crucible.cli import estimate as commands
from crucible.config import TrainConfig
from crucible.errors import ConfigError, CrucibleError
from crucible.estimate import history
from crucible.estimate.needs import needs_of
from crucible.estimate.probe import ProbeError, probe
from crucible.estimate.request import parse_count
from crucible.moments import hours_until
from crucible.store import store_at
from tests.training.conftest import write_gpt2


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CRUCIBLE_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("CRUCIBLE_STORE", raising=False)
    return tmp_path / "home"


def run(*arguments: str) -> str:
    app = typer.Typer()
    commands.register(app)
    return CliRunner().invoke(app, list(arguments), catch_exceptions=False).stdout


def ask(*arguments: str) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(run("estimate", *arguments, "--json"))
    return answer


def test_gpt2_on_a_billion_tokens_has_many_places_to_go() -> None:
    answer = ask("--preset", "gpt2-124m", "--tokens", "1B")
    assert answer["needs"]["tokens"] >= 10**9
    assert len(answer["ranked"]) >= 12
    assert [entry["rank"] for entry in answer["ranked"]] == list(range(1, len(answer["ranked"]) + 1))
    best = answer["ranked"][0]
    assert best["hours"]["low"] < best["hours"]["likely"] < best["hours"]["high"]
    assert best["usd"]["low"] < best["usd"]["likely"] < best["usd"]["high"]
    assert any("older than 30 days" in warning for warning in answer["warnings"])
    assert "vocabulary: 50257, GPT-2's" in answer["needs"]["inferred"][0]


def test_weights_to_start_from_have_a_shape_of_their_own(tmp_path: Path) -> None:
    gpt2 = write_gpt2(tmp_path / "gpt2", 300, block_size=48, n_layer=3, n_head=2, n_embd=16)
    needs = ask("--preset", "gpt2-124m", "--set", f"init_from={gpt2}")["needs"]
    shape = ["n_layer=3", "n_head=2", "n_embd=16", "bias=true", "block_size=48"]
    stated = ask("--preset", "gpt2-124m", "--vocab-size", "300", *(part for s in shape for part in ("--set", s)))
    assert needs["parameters"] == stated["needs"]["parameters"]
    assert needs["inferred"] == ["vocabulary: 300, of the weights in init_from"]
    with pytest.raises(ConfigError, match=r"n_layer = 12, but .* has 3"):
        ask("--preset", "gpt2-124m", "--set", f"init_from={gpt2}", "--set", "n_layer=12")


def test_it_answers_without_torch_prefect_or_a_cloud_library() -> None:
    heavy = "{'torch', 'prefect', 'boto3', 'modal', 'matplotlib', 'pandas'}"
    code = (
        "import sys, typer; from crucible.cli import estimate; app = typer.Typer(); estimate.register(app);"
        "app(['estimate', '--preset', 'gpt2-124m', '--json'], standalone_mode=False);"
        f"assert not {heavy} & set(sys.modules), {heavy} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, env=dict(os.environ))


def test_the_tables_can_be_read() -> None:
    table = run("estimate", "--preset", "shakespeare-char", "--all")
    assert "ec2-spot/g6.xlarge" in table
    assert "not docker-gpu/own-gpu" in table or "docker-gpu/own-gpu" in table
    assert "g4dn.xlarge" in run("prices", "ls")
    assert len(json.loads(run("prices", "ls", "--json"))) >= 40


def test_a_dataset_says_its_own_vocabulary(tmp_path: Path) -> None:
    split = {"tokens": 5000, "bytes": 5000, "shards": [{"file": "a", "tokens": 5000, "sha256": "0"}]}
    meta = {"schema_version": 1, "digest": "d", "source": {"kind": "text"}, "vocab_size": 321, "dtype": "uint16"}
    meta |= {"tokenizer": {"kind": "char", "file": "t", "sha256": "0"}, "splits": {"train": split, "val": split}}
    (tmp_path / "meta.json").write_text(json.dumps(meta))
    answer = ask("--preset", "cpu-small", "--dataset", str(tmp_path))
    assert answer["needs"]["vocab_size"] == 321
    assert answer["needs"]["dataset_bytes"] == 20_000
    assert answer["needs"]["inferred"] == []


def test_past_runs_decide_the_speed(home: Path) -> None:
    arguments = ("--preset", "gpt2-124m", "--tokens", "1B", "--pools", "modal")
    before = ask(*arguments)
    l4 = next(entry for entry in before["ranked"] if entry["instance"] == "L4")
    assert l4["speed_source"] == "peak"
    from crucible.catalog.offers import load_catalog
    from crucible.estimate.speed import speed_record

    offer = next(offer for offer in load_catalog() if offer.key == "modal/L4")
    needs = needs_of(TrainConfig.preset("gpt2-124m"), 50257)
    history.remember_speed(store_at(str(home / "store")), speed_record(needs, offer, 1.5, 50))
    after = ask(*arguments)
    assert next(entry for entry in after["ranked"] if entry["instance"] == "L4")["seconds_per_step"] == 1.5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "one of --preset .* is needed; none is given"),
        (("--preset", "gpt5"), "preset = 'gpt5' does not exist"),
        (("--preset", "debug", "--script", "x.py"), "preset and script are given"),
        (("--preset", "debug", "--tokens", "many"), "tokens is 'many'"),
        (("--preset", "debug", "--tokens", "0"), "tokens is '0'"),
        (("--preset", "debug", "--set", "n_layer"), "not of the form key=value"),
        (("--preset", "debug", "--set", "n_layers=3"), "n_layers = '3' is not a known setting; did you mean n_layer"),
        (("--preset", "debug", "--set", "n_embd=-4"), "n_embd"),
        (("--preset", "debug", "--optimize-for", "fun"), "optimize_for = 'fun'"),
        (("--preset", "debug", "--pools", "mars"), "pools has 'mars'"),
        (("--preset", "debug", "--max-cost-usd", "-2"), "max_cost_usd = -2.0"),
        (("--preset", "debug", "--finish-by", "soon"), "finish_by is 'soon'"),
        (("--preset", "debug", "--finish-by", "2001-01-01"), "which is over"),
        (("--preset", "debug", "--vocab-size", "0"), "vocab_size = 0"),
        (("--preset", "gpt2-124m", "--max-cost-usd", "0.01"), "no offer fits"),
        (("--preset", "debug", "--offers", "none.csv"), "none.csv does not exist"),
        (("--preset", "debug", "--dataset", "none"), "is not a finished dataset"),
        (("--preset", "debug", "--dataset", "x" * 5000), "is not a finished dataset"),
        (("--preset", "debug", "--offers", "x" * 5000), "cannot be read"),
        (("--preset", "debug", "--store", "~nouser/x"), "the home of a user who does not exist"),
        (("--preset", "debug", "--finish-by", "99999999999d"), "finish_by is '99999999999d'"),
        (("--preset", "debug", "--finish-by", "0001-01-01T00:00+14:00"), "finish_by is"),
        (("--preset", "debug", "--tokens", "1e99999"), "tokens is '1e99999'"),
        (("--script", "x.py", "--hours", "inf"), "hours = inf is not valid"),
        (("--script", "x.py", "--hours", "1e300"), "hours = 1e[+]300 is not valid"),
        (("--script", "x.py", "--gpu-memory-gib", "nan"), "gpu_memory_gib = nan is not valid"),
        (("--preset", "debug", "--longest-hours", "nan"), "longest_hours = nan is not valid"),
    ],
)
def test_nonsense_is_refused_in_one_sentence(arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises(CrucibleError, match=message) as refused:
        ask(*arguments)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("text", "count"), [("300M", 300_000_000), ("1.5b", 1_500_000_000), ("1e9", 10**9), ("2_000_000", 2_000_000)]
)
def test_counts_as_people_write_them(text: str, count: int) -> None:
    assert parse_count(text, "tokens") == count


def test_deadlines_as_people_write_them() -> None:
    now = datetime(2026, 5, 7, 12, tzinfo=UTC)
    assert hours_until("12h", now) == 12
    assert hours_until("90min", now) == 1.5
    assert hours_until("2d", now) == 48
    assert hours_until("2026-05-07T18:00", now) == 6
    assert hours_until("2026-05-07T18:00+02:00", now) == 4


def test_accuracy_without_and_with_a_past(home: Path) -> None:
    assert "no job with an estimate has ended yet" in run("estimate", "--accuracy")
    plan = history.PlannedCost(
        offer="local/x", speed_source="probe", low_hours=1, hours=2, high_hours=3, low_usd=0, usd=0, high_usd=0
    )
    record = history.EstimateRecord(job_id="past", planned=plan, hours=1.6, usd=0.0)
    store_at(str(home / "store")).create_json("history/estimates/past.json", record.model_dump(mode="json"))
    told = json.loads(run("estimate", "--accuracy", "--json"))
    assert told["median_error"] == pytest.approx(0.25)
    assert told["estimates"][0]["hours_error"] == pytest.approx(0.25)
    assert "+25%" in run("estimate", "--accuracy")


def test_a_probe_measures_the_real_trainer_and_is_remembered(home: Path) -> None:
    answer = ask("--preset", "debug", "--set", "threads=1", "--probe")
    local = next(entry for entry in answer["ranked"] if entry["pool"] == "local")
    assert local["speed_source"] in ("probe", "history")
    assert 0 < local["seconds_per_step"] < 5
    (record,) = history.speeds(store_at(str(home / "store")))
    assert record.source == "probe"
    assert record.seconds_per_step == pytest.approx(local["seconds_per_step"])


def test_a_probe_that_takes_too_long_is_given_up() -> None:
    needs = needs_of(TrainConfig.preset("debug", threads=1), 65)
    with pytest.raises(ProbeError, match=r"was not done after 0\.01 s"):
        probe(needs, timeout_seconds=0.01)


def test_refresh_without_credentials_says_who_was_not_asked(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE", "MODAL_TOKEN_ID", "MODAL_TOKEN_SECRET"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(home / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(home / "none"))
    monkeypatch.setattr("modal.config.config.get", lambda name: None)
    with pytest.raises(ConfigError, match="no price could be refreshed"):
        run("prices", "refresh")

"""A configuration is refused before anything starts, with a message a person can act on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from crucible.config import NOT_IN_DIGEST, ConfigDraft, TrainConfig, preset_names
from crucible.errors import ConfigError

DIGEST_OF_0_1 = "ef30462349fe2d41b2ab98fe723c4b79c0e194558756b626f5bb3521632fdfaf"
"""Of the defaults, as version 0.1 computed it."""


@pytest.mark.parametrize("name", preset_names())
def test_every_shipped_preset_loads(name: str) -> None:
    assert TrainConfig.preset(name).max_iters > 0


def test_presets_are_the_documented_runs() -> None:
    assert preset_names() == ["cpu-small", "debug", "gpt2-124m", "shakespeare-char"]
    small = TrainConfig.preset("cpu-small")
    assert (small.n_layer, small.n_head, small.n_embd, small.block_size, small.batch_size) == (4, 4, 128, 64, 12)
    assert (small.max_iters, small.learning_rate, small.min_lr, small.beta2) == (2000, 1e-3, 1e-4, 0.99)
    gpt2 = TrainConfig.preset("gpt2-124m")
    assert gpt2.batch_size * gpt2.block_size * gpt2.gradient_accumulation_steps == 491_520


@pytest.mark.parametrize(
    ("values", "parts"),
    [
        ({"n_layers": 4}, ["n_layers = 4", "did you mean n_layer?"]),
        (
            {
                "eval_only": True,
                "always_save_checkpoint": True,
                "out_dir": "out",
                "betas": [0.9, 0.99],
                "n_layers": 4,
            },
            ["evaluate flow", "always saved", "checkpoints get", "set beta1 and beta2", "did you mean n_layer?"],
        ),
        ({"max_iters": 10**30}, ["max_iters", "less than or equal to 100000000"]),
        ({"zzz": 1}, ["zzz = 1", "known settings", "n_layer"]),
        ({"max_iters": -5}, ["max_iters = -5", "greater than or equal to 1"]),
        ({"learning_rate": float("nan")}, ["learning_rate = nan"]),
        ({"dtype": "fp8"}, ["dtype = 'fp8'", "bfloat16"]),
        ({"n_embd": 100, "n_head": 6}, ["n_embd = 100", "n_head = 6", "96 or 102"]),
        ({"min_lr": 1.0}, ["min_lr = 1.0", "learning_rate = 0.001", "lower it"]),
        ({"warmup_iters": 3000}, ["warmup_iters = 3000", "max_iters = 2000"]),
        ({"lr_decay_iters": 50}, ["lr_decay_iters = 50", "warmup_iters = 100"]),
        ({"micro_batch": "all"}, ["micro_batch = 'all' must be 'auto' or a number of sequences"]),
        ({"micro_batch": True}, ["micro_batch = True must be"]),
        ({"init_from": "resume"}, ["init_from", "resume:OUT_DIR/ckpt.pt"]),
        ({"n_layer": 0, "batch_size": "many"}, ["n_layer = 0", "batch_size = 'many'"]),
    ],
)
def test_wrong_value_names_field_value_and_mend(values: dict[str, object], parts: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        TrainConfig.parse(values)
    message = str(caught.value)
    assert all(part in message for part in parts), message
    assert "\n" not in message


def test_overrides_parse_command_line_strings() -> None:
    config = TrainConfig().with_overrides(
        {"learning_rate": "6e-4", "bias": "true", "max_iters": "500", "lr_decay_iters": "none", "threads": "2"}
    )
    assert (config.learning_rate, config.bias, config.max_iters) == (6e-4, True, 500)
    assert (config.lr_decay_iters, config.threads) == (None, 2)


def test_overrides_are_checked_like_everything_else() -> None:
    with pytest.raises(ConfigError, match="did you mean dropout"):
        TrainConfig().with_overrides({"droput": "0.1"})


def test_whole_numbers_may_be_written_as_yaml_cannot_read_them(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("max_iters: 6e5\nlr_decay_iters: 1.5e3\nwarmup_iters: 2E+2\nlearning_rate: 6e-4\n")
    config = TrainConfig.from_file(tmp_path / "a.yaml")
    assert (config.max_iters, config.lr_decay_iters, config.warmup_iters) == (600_000, 1500, 200)
    assert config.learning_rate == 6e-4
    with pytest.raises(ConfigError, match=r"n_layer = '1\.5e0' is not valid"):
        TrainConfig.parse({"n_layer": "1.5e0"})


FINETUNE = """
# in the manner of nanoGPT's own files
import time

out_dir = 'out-shakespeare'
eval_interval = 5
wandb_log = False
wandb_run_name = 'ft-' + str(time.time())
dataset = 'shakespeare'
init_from = 'gpt2-xl'
always_save_checkpoint = False
batch_size = 1
gradient_accumulation_steps = 5 * 8
max_iters = 20
lr_decay_iters = max_iters
learning_rate = 3e-5 / 10
decay_lr = False
block_size: int = 2 * (500 + 12)
"""


def test_a_config_file_of_nanogpt_is_read(tmp_path: Path) -> None:
    path = tmp_path / "finetune.py"
    path.write_text(FINETUNE)
    draft = ConfigDraft.from_file(path)
    config = draft.config()
    assert (config.gradient_accumulation_steps, config.lr_decay_iters, config.block_size) == (40, 20, 1024)
    assert config.learning_rate == pytest.approx(3e-6)
    assert config.init_from == "gpt2-xl"
    assert (config.n_embd, config.warmup_iters, config.beta2) == (768, 2000, 0.95), "as nanoGPT's train.py has them"
    assert "n_embd" not in draft.stated, "so that the weights of init_from decide it"
    assert set(draft.left_out) == {"out_dir", "wandb_log", "wandb_run_name", "dataset", "always_save_checkpoint"}
    for part in (str(path), "out_dir: ", "dataset: give the dataset", "always_save_checkpoint: "):
        assert part in draft.remark

    path.write_text("\ufeffinit_from = 'resume'\nout_dir = 'out-x'\n", encoding="utf-8")  # with a byte-order mark
    assert ConfigDraft.from_file(path).init_from == "resume:out-x/ckpt.pt"


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        (
            "import os\nmax_iters = int(os.environ['N'])\nprint('x')\nn_layer = 2\nfor i in []: pass\n",
            ["line 2: max_iters is computed; write its value out", "line 3 is no assignment", "line 5 is no"],
        ),
        ("max_iters = 'a' * 10**9\n", ["line 1: max_iters is computed"]),
        ("n_layer = 2 / 0\n", ["line 1: n_layer is computed"]),
        ("n_layer = (\n", ["is not Python"]),
        ("eval_only = True\n", ["eval_only = True trains nothing"]),
        ("n_layers = 2\nbatchsize = 4\n", ["did you mean n_layer?", "did you mean batch_size?"]),
    ],
)
def test_a_config_file_of_nanogpt_is_not_executed(tmp_path: Path, text: str, parts: list[str]) -> None:
    (tmp_path / "a.py").write_text(text)
    with pytest.raises(ConfigError) as caught:
        TrainConfig.from_file(tmp_path / "a.py")
    assert all(part in str(caught.value) for part in parts), caught.value


def test_file_reads_yaml_and_json(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("n_layer: 2\n")
    (tmp_path / "a.json").write_text(json.dumps({"n_layer": 2}))
    (tmp_path / "empty.yaml").write_text("")
    assert TrainConfig.from_file(tmp_path / "a.yaml") == TrainConfig.from_file(tmp_path / "a.json")
    assert TrainConfig.from_file(tmp_path / "empty.yaml") == TrainConfig()


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("- 1\n", "key: value"),
        ("a: [", "not valid YAML"),
        ("seed: 2026-02-30", "day is out of range"),
        (None, "No such"),
    ],
)
def test_bad_file_is_named(tmp_path: Path, text: str | None, complaint: str) -> None:
    path = tmp_path / "c.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match=complaint) as caught:
        TrainConfig.from_file(path)
    assert str(path) in str(caught.value)


def test_round_trip_through_json_keeps_the_digest() -> None:
    config = TrainConfig.preset("gpt2-124m")
    again = TrainConfig.parse(json.loads(config.model_dump_json()))
    assert again == config
    assert again.digest() == config.digest()


def test_digest_follows_what_decides_the_weights_and_nothing_else() -> None:
    base = TrainConfig()
    other = {
        "dtype": "bfloat16",
        "bias": True,
        "init_from": "weights:1",
        "decay_lr": False,
        "lr_decay_iters": 1500,
        "dropout": 0.1,
        "n_embd": 256,
        "n_head": 8,
        "grad_clip": 0.5,
        "beta1": 0.8,
        "beta2": 0.9,
        "min_lr": 0.0,
    }
    watching = {
        "device": "cpu",
        "compile": True,
        "fast_gemm": "off",
        "exact": "off",
        "micro_batch": 7,
        "chunked_loss": "on",
    }
    for name in TrainConfig.model_fields:
        value = getattr(base, name)
        changed = {**other, **watching}.get(name, 7 if value is None else value * 2)
        same = base.with_overrides({name: changed}).digest() == base.digest()
        assert same == (name in NOT_IN_DIGEST), name


def test_a_digest_is_the_one_that_version_0_1_gave() -> None:
    """A job of an earlier version is continued only while its configuration has its digest."""
    assert TrainConfig.parse({"init_from": "scratch"}).digest() == DIGEST_OF_0_1


def test_naming_the_default_decay_end_does_not_change_the_digest() -> None:
    assert TrainConfig(lr_decay_iters=2000).digest() == TrainConfig().digest()


def test_every_field_explains_itself_in_the_form() -> None:
    schema = TrainConfig.model_json_schema()
    assert schema["additionalProperties"] is False
    for name, field in schema["properties"].items():
        assert field.get("description"), name
        assert "default" in field, name
    assert schema["properties"]["device"]["enum"] == ["auto", "cpu", "cuda", "mps"]


@pytest.mark.parametrize(
    ("gpus", "micro_batches", "used", "others"),
    [(6, 40, 5, "36 or 42"), (4, 40, 4, "40 or 44"), (3, 40, 2, "39 or 42"), (8, 1, 1, "8"), (0, 5, 1, None)],
)
def test_as_many_gpus_train_as_share_the_micro_batches(
    gpus: int, micro_batches: int, used: int, others: str | None
) -> None:
    config = TrainConfig(gradient_accumulation_steps=micro_batches)
    assert config.processes_on(gpus) == used
    if others is not None:
        assert config.multiples_near(gpus) == others


def test_warm_up_is_not_judged_where_the_rate_does_not_decay() -> None:
    """nanoGPT's finetune_shakespeare.py: 20 steps at a constant rate, warmup_iters left alone."""
    assert TrainConfig.parse({"max_iters": 20, "decay_lr": False}).warmup_iters == 100


def test_every_preset_trains_on_whatever_device_there_is() -> None:
    assert {TrainConfig.preset(name).device for name in preset_names()} == {"auto"}


def test_the_rows_of_a_step_are_shared_by_nodes_or_refused_before_the_start() -> None:
    config = TrainConfig(batch_size=12, gradient_accumulation_steps=1)
    config.require_nodes(3)
    assert (config.nodes_on(5), config.processes_on(8, nodes=3)) == (4, 4)
    with pytest.raises(
        ConfigError, match=r"nodes = 5: the 12 rows of a step .* cannot be divided among 5 nodes; use 4 or 6"
    ):
        config.require_nodes(5)

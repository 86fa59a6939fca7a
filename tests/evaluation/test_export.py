from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from crucible.config import TrainConfig
from crucible.datasets.tokenizers import load_tokenizer
from crucible.datasets.tokenizers.bpe import BpeTokenizer, train_bpe
from crucible.evaluation.checkpoint import load_trained
from crucible.evaluation.huggingface import export_huggingface
from crucible.evaluation.nanogpt import export_nanogpt
from crucible.evaluation.tokenizer import write_tokenizer
from crucible.training.initial_files import read_initial
from crucible.training.model import GPT
from crucible.training.optimizer import FlatAdamW
from tests.evaluation.conftest import BEYOND_PADDING, Trained

TEXT = "Line 3: naïve –  9 words,\n\n dddd3   "
BEYOND_THE_CORPUS = "\tit's 日本 "
"""Has characters for which a vocabulary of characters would have to be asked."""


@pytest.mark.parametrize(("tokenizer", "bias"), [("char", False), ("byte", True), ("bpe", False)])
def test_transformers_loads_the_model_and_its_tokenizer(
    trained: Callable[..., Trained], tmp_path: Path, tokenizer: str, bias: bool
) -> None:
    from transformers import AutoTokenizer, GPT2LMHeadModel

    example = trained(tokenizer, bias)
    ours = load_trained(example.checkpoints[-1])
    encoder = load_tokenizer(example.data)
    with torch.no_grad():
        for name, parameter in ours.model.named_parameters():  # six steps leave biases near the zeros they began at
            if name.endswith("bias"):
                parameter.add_(torch.linspace(-1, 1, parameter.numel()))
    export_huggingface(ours, encoder, tmp_path)

    theirs, report = GPT2LMHeadModel.from_pretrained(tmp_path, output_loading_info=True)

    assert not any(report.values()), report
    tokens = torch.randint(0, encoder.vocab_size, (3, example.config.block_size))
    with torch.inference_mode():
        torch.testing.assert_close(theirs(tokens).logits, ours.model(tokens), rtol=1e-5, atol=1e-5)
    assert theirs.config.vocab_size == encoder.vocab_size
    read = AutoTokenizer.from_pretrained(tmp_path)
    text = TEXT if tokenizer == "char" else TEXT + BEYOND_THE_CORPUS
    assert read(text).input_ids == encoder.encode(text).tolist()
    assert read.decode(read(text).input_ids) == text
    assert (read.eos_token_id is not None) == (tokenizer == "bpe")


def test_a_gpt2_that_transformers_wrote_computes_the_same_here(tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    size = {"n_positions": 32, "n_embd": 16, "n_layer": 2, "n_head": 2, "bos_token_id": 0, "eos_token_id": 0}
    theirs = GPT2LMHeadModel(GPT2Config(vocab_size=BEYOND_PADDING, activation_function="gelu", **size)).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape))
    theirs.save_pretrained(tmp_path)

    initial = read_initial(tmp_path)
    config = TrainConfig.parse(initial.settings({}, {"block_size": 24}))
    ours = GPT(config, BEYOND_PADDING)
    initial.copy_into(FlatAdamW(ours, config), BEYOND_PADDING)

    tokens = torch.randint(0, BEYOND_PADDING, (3, 25))
    with torch.inference_mode():
        expected = theirs(tokens[:, :-1]).logits
        torch.testing.assert_close(ours(tokens[:, :-1]), expected, rtol=1e-5, atol=1e-5)
        loss = torch.nn.functional.cross_entropy(expected.flatten(0, 1), tokens[:, 1:].flatten())
        more = float(ours(tokens[:, :-1], tokens[:, 1:]) - loss)
    rows = ours.transformer.wte.num_embeddings
    assert rows > BEYOND_PADDING
    assert 0 <= more <= rows / BEYOND_PADDING - 1, "rows that stand for no token hardly count"


def test_an_exported_character_tokenizer_takes_any_text(trained: Callable[..., Trained], tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    example = trained("char", False)
    write_tokenizer(load_tokenizer(example.data), tmp_path, example.config.block_size)
    read = AutoTokenizer.from_pretrained(tmp_path)
    assert read.decode(read("Line 日 9").input_ids) == "Line   9", "a space stands for what the corpus does not have"


def test_an_exported_tokenizer_puts_nothing_around_a_text(tmp_path: Path) -> None:
    """Published ones put a start token before each text; the model was trained without."""
    from tokenizers.processors import TemplateProcessing
    from transformers import AutoTokenizer

    made = train_bpe([TEXT], 300)
    made._slow.post_processor = TemplateProcessing(
        "<|endoftext|> $A", special_tokens=[("<|endoftext|>", made.vocab_size - 1)]
    )
    given = BpeTokenizer(made._slow.to_str())
    write_tokenizer(given, tmp_path, 16)
    assert AutoTokenizer.from_pretrained(tmp_path)(TEXT).input_ids == given.encode(TEXT).tolist()


def test_nanogpt_finds_every_weight_under_its_own_name(trained: Callable[..., Trained], tmp_path: Path) -> None:
    ours = load_trained(trained("bpe", False).checkpoints[-1])
    export_nanogpt(ours, tmp_path, best_val_loss=1.5)

    checkpoint = torch.load(tmp_path / "ckpt.pt", weights_only=True)

    block = ["ln_1", "attn.c_attn", "attn.c_proj", "ln_2", "mlp.c_fc", "mlp.c_proj"]
    blocks = [f"transformer.h.{layer}.{part}" for layer in (0, 1) for part in block]
    names = ["transformer.wte", "transformer.wpe", *blocks, "transformer.ln_f", "lm_head"]
    assert list(checkpoint["model"]) == [f"{name}.weight" for name in names]
    assert checkpoint["model_args"] == {
        "n_layer": 2,
        "n_head": 2,
        "n_embd": 16,
        "block_size": 16,
        "bias": False,
        "dropout": 0.0,
        "vocab_size": 1152,  # nanoGPT makes an embedding of exactly this size
    }
    assert BEYOND_PADDING < 1152
    assert (checkpoint["iter_num"], checkpoint["best_val_loss"]) == (6, 1.5)

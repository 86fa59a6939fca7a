"""Fine-tune a GPT-2 of Hugging Face with Crucible's own trainer: `init_from` takes its weights and its shape.

python train.py                                                          # a tiny GPT-2 and a text that it makes itself
python train.py --init-from gpt2 --text corpus.txt --tokenizer gpt2      # the real one, on a GPU
"""

import argparse
import os
import random
from pathlib import Path

from crucible.contract import Variable
from crucible.datasets.build import build_dataset
from crucible.datasets.config import DatasetConfig
from crucible.store import store_at
from crucible.training.__main__ import main
from crucible.workload.stop import leave

parser = argparse.ArgumentParser()
parser.add_argument("--init-from", default="gpt2-tiny", help="a folder, or a model of the Hub, such as gpt2")
parser.add_argument("--text", default="corpus.txt")
parser.add_argument("--tokenizer", default="char", help="char or gpt2; it must be the model's")
parser.add_argument("--steps", type=int, default=100)
parser.add_argument("--batch", type=int, default=16)
parser.add_argument("--learning-rate", type=float, default=1e-3)
parser.add_argument("--device", default="auto")
args = parser.parse_args()

ALPHABET = "\n abcdefghijklmnopqrstuvwxyz.,!"
resumed = Variable.RESUME_FROM in os.environ


def make_text(path):
    """Sentences that follow a small grammar, after a line with every character, so that each has its token."""
    words = random.Random(0)
    parts = ("the cat|a dog|my old friend|the rain", "likes|sees|follows|forgets", "the moon|a river|bread|music")
    lines = [" ".join(words.choice(part.split("|")) for part in parts) + words.choice(".,!") for _ in range(4000)]
    path.write_text("\n".join([ALPHABET.strip("\n"), *lines]) + "\n")


def make_gpt2(folder):
    """A GPT-2 as transformers saves it, with random weights and one token for each character."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    size = {"n_layer": 3, "n_head": 4, "n_embd": 96, "n_positions": 64}
    config = GPT2Config(vocab_size=len(ALPHABET), bos_token_id=None, eos_token_id=None, **size)
    GPT2LMHeadModel(config).save_pretrained(folder)


text = Path(args.text)
if not text.exists():
    make_text(text)
if args.init_from == "gpt2-tiny" and not Path(args.init_from).exists() and not resumed:
    make_gpt2(args.init_from)

data = Path("data").absolute()
dataset = build_dataset(DatasetConfig(source=str(text.absolute()), tokenizer=args.tokenizer), store_at(data.as_uri()))
settings = {
    "init_from": args.init_from,
    "max_iters": args.steps,
    "batch_size": args.batch,
    "learning_rate": args.learning_rate,
    "min_lr": args.learning_rate / 10,
    "warmup_iters": args.steps // 20,
    "eval_interval": max(1, args.steps // 5),
    "log_interval": 5,
    "dropout": 0.1,
    "device": args.device,
}
command = ["--data", str(data / "datasets" / dataset.digest), "--out", "out"]
leave(main([*command, "--set", *(f"{name}={value}" for name, value in settings.items())]))

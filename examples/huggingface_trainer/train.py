"""Hugging Face's Trainer on a small classifier of made-up sentences; `CrucibleCallback` makes it resumable anywhere.

python train.py --steps 200
"""

import argparse

import torch
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

from crucible.workload.huggingface import CrucibleCallback

parser = argparse.ArgumentParser()
parser.add_argument("--steps", type=int, default=200)
parser.add_argument("--batch", type=int, default=16)
parser.add_argument("--width", type=int, default=64)
parser.add_argument("--layers", type=int, default=2)
parser.add_argument("--sentences", type=int, default=2000)
args = parser.parse_args()


def sentences(count):
    """Sixteen words of a hundred; the class is whether words of the first half are the majority."""
    words = torch.randint(0, 100, (count, 16))
    labels = ((words < 50).sum(1) > 8).long()
    return [{"input_ids": row, "labels": label} for row, label in zip(words, labels, strict=True)]


torch.manual_seed(0)
config = BertConfig(
    vocab_size=100,
    hidden_size=args.width,
    num_hidden_layers=args.layers,
    num_attention_heads=4,
    intermediate_size=4 * args.width,
    max_position_embeddings=16,
)
settings = TrainingArguments(
    output_dir="out",
    max_steps=args.steps,
    per_device_train_batch_size=args.batch,
    learning_rate=1e-3,
    logging_steps=5,
    save_strategy="no",  # Crucible says when
    report_to=[],
    disable_tqdm=True,
)
callback = CrucibleCallback()
trainer = Trainer(
    BertForSequenceClassification(config), settings, train_dataset=sentences(args.sentences), callbacks=[callback]
)
trainer.train(resume_from_checkpoint=callback.resume_from)

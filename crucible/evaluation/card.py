"""The model card: README.md with the front matter that model hubs read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from crucible.datasets.meta import DatasetMeta
from crucible.formatting import UNKNOWN, counted, duration, fenced, markdown_table, money, settings_table
from crucible.reports.evaluation import LONGEST_SAMPLE

NANOGPT_DATASET = "crucible"
"""The data's name for nanoGPT: the folder below its `data/`."""


def model_card(
    metrics: Mapping[str, Any],
    config: Mapping[str, Any],
    data: DatasetMeta,
    samples: Sequence[str],
    job: Mapping[str, Any] | None = None,
    store: str | None = None,
) -> str:
    """The card. `metrics` is what metrics.json holds; `job` (its name, `attempts`, `seconds`, `cost_usd`) is left out
    for a model that was trained without one. `store`: the data's, where it is not the default store.
    """
    facts = {
        "job": job["job"] if job else None,
        "step": metrics["step"],
        "data_digest": data.digest,
        "data_source": data.source_name(),
        "config_digest": metrics["config_digest"],
        "weights_sha256": metrics["weights_sha256"],
        "metrics": {name: metrics[name] for name in ("val_loss", "perplexity", "bits_per_byte")},
        "attempts": len(job["attempts"]) if job else None,
        "training_seconds": round(job["seconds"], 1) if job else None,
        "cost_usd": round(job["cost_usd"], 4) if job else None,
        "config": dict(config),
    }
    front = {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["gpt2", "nanogpt", "crucible"],
        "crucible": {name: value for name, value in facts.items() if value is not None},
    }
    title = job["job"] if job else f"GPT trained for {metrics['step']:,} steps"
    parts = [
        f"---\n{yaml.safe_dump(front, sort_keys=False, allow_unicode=True)}---",
        f"# {title}",
        _introduction(metrics, config, data),
        "## Evaluation",
        markdown_table(
            ["loss (nats per token)", "perplexity", "bits per byte", "tokens"],
            [
                [
                    f"{metrics['val_loss']:.4f}",
                    f"{metrics['perplexity']:.3f}",
                    f"{metrics['bits_per_byte']:.4f}",
                    f"{metrics['tokens']:,}",
                ]
            ],
            numbers=(0, 1, 2, 3),
        ),
        "Measured in float32 over every token of the validation split except the first.",
        *(["## Training", _training(job)] if job else []),
        *(["## Sample", fenced(samples[0][:LONGEST_SAMPLE])] if samples else []),
        "## Loading it",
        _loading(metrics["formats"], _export_command(data.digest, store), config["block_size"]),
        "## Configuration",
        settings_table(config),
    ]
    return "\n\n".join(parts) + "\n"


def _introduction(metrics: Mapping[str, Any], config: Mapping[str, Any], data: DatasetMeta) -> str:
    return (
        f"A GPT-2-style language model: {metrics['parameters']:,} parameters, {config['n_layer']} layers, "
        f"{config['n_head']} heads, width {config['n_embd']}, context {config['block_size']} tokens. Trained for "
        f"{metrics['step']:,} of {config['max_iters']:,} steps on {data.source_name()}: "
        f"{data.splits['train'].tokens:,} tokens of a {data.tokenizer.kind} vocabulary of {data.vocab_size:,}."
    )


def _training(job: Mapping[str, Any]) -> str:
    rows = [
        [
            str(a["number"]),
            a["pool"],
            a["instance"] or UNKNOWN,
            f"{a['from_step'] or 0:,} → {a['to_step'] or 0:,}",
            a["end"],
        ]
        for a in job["attempts"]
    ]
    table = markdown_table(["attempt", "pool", "instance", "steps", "end"], rows, numbers=(0,))
    return f"{duration(job['seconds'])} in {counted(len(rows), 'attempt')}, {money(job['cost_usd'])}.\n\n{table}"


def _export_command(digest: str, store: str | None) -> str:
    command = f"crucible data export-nanogpt {digest[:12]} data/{NANOGPT_DATASET}"
    return f"{command} --store {store}" if store else command


def _loading(formats: Sequence[str], export_command: str, context: int) -> str:
    parts = []
    if "huggingface" in formats:
        parts.append(
            "```python\n"
            "from transformers import AutoTokenizer, GPT2LMHeadModel\n\n"
            'folder = "."  # where this file is\n'
            "tokenizer = AutoTokenizer.from_pretrained(folder)\n"
            "model = GPT2LMHeadModel.from_pretrained(folder)\n"
            'ids = tokenizer("\\n", return_tensors="pt").input_ids\n'
            f"longer = model.generate(ids, max_new_tokens={min(context // 2, 200)}, do_sample=True)\n"
            "print(tokenizer.decode(longer[0]))\n"
            "```"
        )
    if "nanogpt" in formats:
        parts.append(
            "With nanoGPT: copy `nanogpt/ckpt.pt` to its `out` folder and write the data it was trained on with "
            f"`{export_command}`. Then `python sample.py "
            f"--out_dir=out` samples, and `python train.py --init_from=resume --out_dir=out "
            f"--dataset={NANOGPT_DATASET}` trains on."
        )
    return "\n\n".join(parts) or "Only the metrics were asked for; this model was not exported."

"""Train a small GPT on characters, in the manner of nanoGPT: one file that knows nothing of Crucible.

python train.py                                       # starts afresh
python train.py --init_from=resume                    # goes on from out/ckpt.pt
python train.py --max_iters=5000 --n_embd=384 --device=cuda

It makes its own text. One checkpoint, out/ckpt.pt, is overwritten in place at every evaluation.
"""

import math
import os
import pickle
import random
import sys
import time

import numpy as np
import torch
import torch.nn as nn
from torch.nn import functional as F

# settings; each can be changed with --name=value
out_dir = "out"
data_dir = "data"
init_from = "scratch"  # or "resume"
eval_interval = 50
eval_iters = 5
log_interval = 10
batch_size = 16
block_size = 64
n_layer = 3
n_head = 4
n_embd = 96
dropout = 0.0
learning_rate = 2e-3
min_lr = 2e-4
warmup_iters = 20
max_iters = 300
weight_decay = 0.1
grad_clip = 1.0
device = "cpu"
seed = 1337

for argument in sys.argv[1:]:
    name, _, text = argument.removeprefix("--").partition("=")
    if name not in globals() or name.startswith("_"):
        raise SystemExit(f"unknown setting {argument}")
    globals()[name] = type(globals()[name])(text)


def prepare():
    """Write train.bin, val.bin and meta.pkl: sentences that follow a small grammar."""
    words = random.Random(0)
    who, does, what = (
        "the cat|a dog|my old friend|the rain",
        "likes|sees|follows|forgets",
        "the moon|a river|bread|music",
    )
    text = ""
    while len(text) < 200_000:
        subject, verb, thing = (words.choice(part.split("|")) for part in (who, does, what))
        text += f"{subject} {verb} {thing}{words.choice(['.', '!', ', and'])}\n"
    letters = sorted(set(text))
    ids = np.array([letters.index(letter) for letter in text], dtype=np.uint16)
    os.makedirs(data_dir, exist_ok=True)
    ids[: len(ids) * 9 // 10].tofile(f"{data_dir}/train.bin")
    ids[len(ids) * 9 // 10 :].tofile(f"{data_dir}/val.bin")
    with open(f"{data_dir}/meta.pkl", "wb") as file:
        pickle.dump({"vocab_size": len(letters), "itos": dict(enumerate(letters))}, file)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm_1, self.norm_2 = nn.LayerNorm(n_embd), nn.LayerNorm(n_embd)
        self.qkv, self.project = nn.Linear(n_embd, 3 * n_embd), nn.Linear(n_embd, n_embd)
        self.mlp = nn.Sequential(
            nn.Linear(n_embd, 4 * n_embd), nn.GELU(), nn.Linear(4 * n_embd, n_embd), nn.Dropout(dropout)
        )

    def forward(self, x):
        batch, time_, width = x.shape
        q, k, v = (
            part.view(batch, time_, n_head, width // n_head).transpose(1, 2)
            for part in self.qkv(self.norm_1(x)).split(width, dim=2)
        )
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=dropout if self.training else 0.0)
        x = x + self.project(y.transpose(1, 2).reshape(batch, time_, width))
        return x + self.mlp(self.norm_2(x))


class GPT(nn.Module):
    def __init__(self, vocab_size):
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocab_size, n_embd), nn.Embedding(block_size, n_embd)
        self.blocks = nn.Sequential(*(Block() for _ in range(n_layer)))
        self.norm, self.head = nn.LayerNorm(n_embd), nn.Linear(n_embd, vocab_size, bias=False)

    def forward(self, x, y):
        h = self.tokens(x) + self.positions(torch.arange(x.shape[1], device=x.device))
        logits = self.head(self.norm(self.blocks(h)))
        return F.cross_entropy(logits.flatten(0, 1), y.flatten())


def get_batch(split):
    data = np.memmap(f"{data_dir}/{split}.bin", dtype=np.uint16, mode="r")
    starts = torch.randint(len(data) - block_size, (batch_size,))
    rows = torch.stack([torch.from_numpy(data[i : i + block_size + 1].astype(np.int64)) for i in starts]).to(device)
    return rows[:, :-1], rows[:, 1:]


@torch.no_grad()
def estimate_loss():
    model.eval()
    losses = {s: sum(model(*get_batch(s)).item() for _ in range(eval_iters)) / eval_iters for s in ("train", "val")}
    model.train()
    return losses


def get_lr(step):
    if step < warmup_iters:
        return learning_rate * (step + 1) / (warmup_iters + 1)
    share = min((step - warmup_iters) / max(1, max_iters - warmup_iters), 1.0)
    return min_lr + 0.5 * (1 + math.cos(math.pi * share)) * (learning_rate - min_lr)


torch.manual_seed(seed)  # also when it resumes: it draws the same batches again
os.makedirs(out_dir, exist_ok=True)
if not os.path.exists(f"{data_dir}/meta.pkl"):
    prepare()
with open(f"{data_dir}/meta.pkl", "rb") as file:
    meta = pickle.load(file)

model = GPT(meta["vocab_size"]).to(device)
optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.9, 0.95), weight_decay=weight_decay)
iter_num, best_val_loss = 0, 1e9
if init_from == "resume":
    checkpoint = torch.load(f"{out_dir}/ckpt.pt", map_location=device)
    model.load_state_dict(checkpoint["model"])
    optimizer.load_state_dict(checkpoint["optimizer"])
    iter_num, best_val_loss = checkpoint["iter_num"], checkpoint["best_val_loss"]
    print(f"resuming from {out_dir} at iteration {iter_num}")
print(f"{sum(p.numel() for p in model.parameters()):,} parameters")

began = time.time()
while True:
    for group in optimizer.param_groups:
        group["lr"] = get_lr(iter_num)
    if iter_num % eval_interval == 0:
        losses = estimate_loss()
        print(f"step {iter_num}: train loss {losses['train']:.4f}, val loss {losses['val']:.4f}", flush=True)
        best_val_loss = min(best_val_loss, losses["val"])
        if iter_num > 0:
            print(f"saving checkpoint to {out_dir}")
            state = {
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "iter_num": iter_num,
                "best_val_loss": best_val_loss,
            }
            torch.save(state, f"{out_dir}/ckpt.pt")
    if iter_num >= max_iters:
        break
    loss = model(*get_batch("train"))
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), grad_clip)
    optimizer.step()
    if iter_num % log_interval == 0:
        now = time.time()
        print(f"iter {iter_num}: loss {loss.item():.4f}, time {1000 * (now - began):.2f}ms", flush=True)
        began = now
    iter_num += 1

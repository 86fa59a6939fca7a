"""A BERT-style encoder: pretrained on masked words, then fine-tuned on sentences of another subject.

python train.py --steps 300              # the first two thirds are pretraining, the rest is fine-tuning
"""

import argparse

import torch
from torch import nn
from torch.nn import functional as F

import crucible.workload

parser = argparse.ArgumentParser()
parser.add_argument("--steps", type=int, default=300)
parser.add_argument("--batch", type=int, default=32)
parser.add_argument("--width", type=int, default=64)
parser.add_argument("--layers", type=int, default=2)
parser.add_argument("--eval-every", type=int, default=50)
parser.add_argument("--device", default="cpu")
args = parser.parse_args()

TOPICS, WORDS_OF_TOPIC, LENGTH, MASK = 8, 12, 24, 0
WORDS = 1 + TOPICS * WORDS_OF_TOPIC
PRETRAINING = 2 * args.steps // 3


def sentences(count, subject):
    """Each sentence is about one topic and has its words; the second subject knows half of them: (count, LENGTH)."""
    topic = torch.randint(0, TOPICS, (count, 1))
    word = torch.randint(0, WORDS_OF_TOPIC // (1 + subject), (count, LENGTH))
    return (1 + topic * WORDS_OF_TOPIC + word).to(args.device)


def mask(words):
    """15 % of the words are to be found; of these, 80 % are masked and 10 % replaced: (input, chosen)."""
    chosen = torch.rand(words.shape, device=words.device) < 0.15
    how = torch.rand(words.shape, device=words.device)
    shown = torch.where(chosen & (how < 0.8), MASK, words)
    return torch.where(chosen & (how > 0.9), torch.randint_like(words, 1, WORDS), shown), chosen


class Encoder(nn.Module):
    def __init__(self, width, layers):
        super().__init__()
        self.words, self.positions = nn.Embedding(WORDS, width), nn.Embedding(LENGTH, width)
        for table in (
            self.words,
            self.positions,
        ):  # alike, or positions would drown the words
            nn.init.normal_(table.weight, std=0.02)
        layer = nn.TransformerEncoderLayer(width, 4, 4 * width, 0.1, "gelu", batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, layers, nn.LayerNorm(width), enable_nested_tensor=False)

    def forward(self, words):
        h = self.layers(self.words(words) + self.positions.weight)
        return h @ self.words.weight.T


def masked_loss(words):
    shown, chosen = mask(words)
    return F.cross_entropy(model(shown)[chosen], words[chosen])


@torch.no_grad()
def validation_loss():
    """Over the same sentences and masks every time, without a trace in the random generator."""
    model.eval()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        loss = masked_loss(val_sentences).item()
    model.train()
    return loss


torch.manual_seed(0)
val_sentences = sentences(200, subject=1)
model = Encoder(args.width, args.layers).to(args.device)
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1, (step + 1) / 20))

run = crucible.workload.resume_or_start(model, optimizer, scheduler)
for step in run.steps(args.steps):
    if step == PRETRAINING + 1:
        for group in optimizer.param_groups:
            group["initial_lr"] /= 4
        scheduler.base_lrs = [group["initial_lr"] for group in optimizer.param_groups]
    loss = masked_loss(sentences(args.batch, subject=int(step > PRETRAINING)))
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    scheduler.step()
    if step % 10 == 0:
        print(f"step {step}: loss {loss.item():.4f}", flush=True)
    run.log(step, loss=loss.item())
    if step % args.eval_every == 0:
        run.maybe_save(step, val_loss=validation_loss())
    else:
        run.maybe_save(step)

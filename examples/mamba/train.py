"""A Mamba-style selective state-space model in plain PyTorch, on the task its paper uses: selective copying.

Among filler there are a few marked tokens; at the end the model must repeat them in order. What a token does to the
state depends on the token itself (the selection), so that the model can skip the filler.

python train.py --steps 300

Gu and Dao, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces", 2023, section 3.
"""

import argparse

import torch
from torch import nn
from torch.nn import functional as F

import crucible.workload

parser = argparse.ArgumentParser()
parser.add_argument("--steps", type=int, default=300)
parser.add_argument("--batch", type=int, default=16)
parser.add_argument("--width", type=int, default=32)
parser.add_argument("--layers", type=int, default=2)
parser.add_argument("--length", type=int, default=16, help="of the part before the answer")
parser.add_argument("--device", default="cpu")
args = parser.parse_args()

TOKENS, MARKED, FILLER, ASK = 8, 4, 8, 9


def batch(count):
    """Input and target, (count, length + MARKED); the target counts only in the last MARKED places."""
    answer = torch.randint(TOKENS, (count, MARKED))
    places = torch.rand(count, args.length).argsort(dim=1)[:, :MARKED].sort(dim=1).values
    shown = torch.full((count, args.length), FILLER).scatter(1, places, answer)
    inputs = torch.cat([shown, torch.full((count, MARKED), ASK)], dim=1)
    return inputs.to(args.device), answer.to(args.device)


class SelectiveStateSpace(nn.Module):
    """h[t] = exp(Δ A) h[t-1] + Δ B x[t], y[t] = C h[t] + D x[t], where Δ, B and C depend on x[t]."""

    def __init__(self, width, state=8):
        super().__init__()
        inner = 2 * width
        self.norm, self.enter, self.leave = nn.RMSNorm(width), nn.Linear(width, 2 * inner), nn.Linear(inner, width)
        self.conv = nn.Conv1d(inner, inner, 4, padding=3, groups=inner)
        self.select, self.delta = nn.Linear(inner, 2 * state), nn.Linear(inner, inner)
        self.log_a = nn.Parameter(torch.arange(1, state + 1).float().log().repeat(inner, 1))
        self.d = nn.Parameter(torch.ones(inner))
        nn.init.constant_(self.delta.bias, -3.0)  # a slow state to begin with

    def forward(self, u):
        x, gate = self.enter(self.norm(u)).chunk(2, dim=2)
        x = F.silu(self.conv(x.transpose(1, 2))[:, :, : u.shape[1]].transpose(1, 2))
        delta = F.softplus(self.delta(x))[..., None]
        b, c = self.select(x).chunk(2, dim=2)
        decay, drive = torch.exp(-delta * self.log_a.exp()), delta * b[:, :, None] * x[..., None]
        h, outputs = torch.zeros_like(drive[:, 0]), []
        for t in range(u.shape[1]):
            h = decay[:, t] * h + drive[:, t]
            outputs.append((h * c[:, t, None]).sum(2))
        y = torch.stack(outputs, dim=1) + self.d * x
        return u + self.leave(y * F.silu(gate))


torch.manual_seed(0)
layers = [SelectiveStateSpace(args.width) for _ in range(args.layers)]
model = nn.Sequential(nn.Embedding(10, args.width), *layers, nn.RMSNorm(args.width), nn.Linear(args.width, TOKENS)).to(
    args.device
)
optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3, weight_decay=0.01)

run = crucible.workload.resume_or_start(model, optimizer)
for step in run.steps(args.steps):
    inputs, answer = batch(args.batch)
    logits = model(inputs)[:, -MARKED:]
    loss = F.cross_entropy(logits.flatten(0, 1), answer.flatten())
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    right = (logits.argmax(2) == answer).float().mean().item()
    if step % 10 == 0:
        print(f"step {step}: loss {loss.item():.4f}, {right:.0%} right", flush=True)
    run.log(step, loss=loss.item(), accuracy=right)
    run.maybe_save(step)

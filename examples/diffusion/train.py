"""A small diffusion model (DDPM) that draws 16×16 pictures of discs and squares; the pictures are made here.

python train.py --steps 300              # writes samples.pgm at the end
"""

import argparse
import copy

import torch
from torch import nn
from torch.nn import functional as F

import crucible.workload

parser = argparse.ArgumentParser()
parser.add_argument("--steps", type=int, default=300)
parser.add_argument("--batch", type=int, default=64)
parser.add_argument("--width", type=int, default=32)
parser.add_argument("--levels", type=int, default=100, help="of noise")
parser.add_argument("--device", default="cpu")
args = parser.parse_args()

SIZE = 16


def pictures(count):
    """White discs and squares on black, -1 to 1: (count, 1, SIZE, SIZE)."""
    y, x = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    middle = torch.randint(5, SIZE - 5, (2, count, 1, 1))
    down, right = (y - middle[0]).abs(), (x - middle[1]).abs()
    distance = torch.where(torch.rand(count, 1, 1) < 0.5, (down**2 + right**2).sqrt(), torch.maximum(down, right))
    return ((distance <= torch.randint(2, 5, (count, 1, 1))).float() * 2 - 1)[:, None].to(args.device)


class Denoiser(nn.Module):
    """Guesses the noise in a picture: down to half the size and up again, with a skip connection."""

    def __init__(self, width):
        super().__init__()
        self.time = nn.Sequential(nn.Linear(2, width), nn.SiLU(), nn.Linear(width, 2 * width))
        self.enter = nn.Conv2d(1, width, 3, padding=1)
        self.down = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
        self.middle = nn.Sequential(
            nn.GroupNorm(4, 2 * width), nn.SiLU(), nn.Conv2d(2 * width, 2 * width, 3, padding=1), nn.SiLU()
        )
        self.up = nn.ConvTranspose2d(2 * width, width, 4, stride=2, padding=1)
        self.leave = nn.Sequential(nn.GroupNorm(4, 2 * width), nn.SiLU(), nn.Conv2d(2 * width, 1, 3, padding=1))

    def forward(self, noisy, level):
        angle = level[:, None] * torch.pi / 2
        time = self.time(torch.cat([angle.sin(), angle.cos()], dim=1))[:, :, None, None]
        entered = F.silu(self.enter(noisy))
        h = self.down(entered) + time
        return self.leave(torch.cat([self.up(h + self.middle(h)), entered], dim=1))


@torch.no_grad()
def draw(count):
    """Start from noise and take it away level by level."""
    picture = torch.randn(count, 1, SIZE, SIZE, device=args.device)
    for level in reversed(range(args.levels)):
        guess = average(picture, torch.full((count,), level / args.levels, device=args.device))
        picture = (picture - betas[level] / (1 - kept[level]).sqrt() * guess) / (1 - betas[level]).sqrt()
        if level:
            picture = picture + betas[level].sqrt() * torch.randn_like(picture)
    return picture.clamp(-1, 1)


torch.manual_seed(0)
betas = torch.linspace(1e-4, 2 / args.levels, args.levels, device=args.device)
kept = torch.cumprod(1 - betas, 0)
model = Denoiser(args.width).to(args.device)
average = copy.deepcopy(model).requires_grad_(False)  # of the weights over time; it draws better than the model itself
optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)

run = crucible.workload.resume_or_start(model, optimizer, average=average)
for step in run.steps(args.steps):
    clean = pictures(args.batch)
    level = torch.randint(args.levels, (args.batch,), device=args.device)
    noise = torch.randn_like(clean)
    share = kept[level][:, None, None, None]
    loss = F.mse_loss(model(share.sqrt() * clean + (1 - share).sqrt() * noise, level / args.levels), noise)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    for slow, fast in zip(average.parameters(), model.parameters(), strict=True):
        slow.lerp_(fast.detach(), 0.02)
    if step % 10 == 0:
        print(f"step {step}: loss {loss.item():.4f}", flush=True)
    run.log(step, loss=loss.item())
    run.maybe_save(step)

rows = (127.5 * (draw(8)[:, 0] + 1)).byte().cpu()
with open("samples.pgm", "wb") as file:
    file.write(f"P5 {8 * SIZE} {SIZE} 255\n".encode() + torch.cat(list(rows), dim=1).numpy().tobytes())

"""A ResNet that learns to tell ten kinds of 32×32 images apart; the images are made here.

python train.py --steps 150
"""

import argparse

import torch
from torch import nn
from torch.nn import functional as F

import crucible.workload

parser = argparse.ArgumentParser()
parser.add_argument("--steps", type=int, default=150)
parser.add_argument("--batch", type=int, default=32)
parser.add_argument("--width", type=int, default=8)
parser.add_argument("--blocks", type=int, default=1, help="per stage; 3 is ResNet-20, 9 is ResNet-56")
parser.add_argument("--images", type=int, default=2000)
parser.add_argument("--eval-every", type=int, default=50)
parser.add_argument("--device", default="cpu")
args = parser.parse_args()


def make_images(count):
    """Stripes in ten directions, each image with its own colours, phase and noise: (images, classes)."""
    labels = torch.randint(10, (count,))
    angle = labels * torch.pi / 10
    y, x = torch.meshgrid(torch.linspace(-1, 1, 32), torch.linspace(-1, 1, 32), indexing="ij")
    along = torch.cos(angle)[:, None, None] * x + torch.sin(angle)[:, None, None] * y
    waves = torch.sin(8 * along + 6.3 * torch.rand(count, 1, 1))[:, None]
    return waves * torch.rand(count, 3, 1, 1) + 0.3 * torch.randn(count, 3, 32, 32), labels


class Block(nn.Module):
    def __init__(self, before, after):
        super().__init__()
        stride = 1 if before == after else 2
        self.conv1 = nn.Conv2d(before, after, 3, stride, padding=1, bias=False)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.norm1, self.norm2 = nn.BatchNorm2d(after), nn.BatchNorm2d(after)
        self.skip = nn.Identity() if before == after else nn.Conv2d(before, after, 1, stride, bias=False)

    def forward(self, x):
        y = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        return F.relu(y + self.skip(x))


def resnet(width, blocks):
    stages, before = [], width
    for after in (width, 2 * width, 4 * width):
        for _ in range(blocks):
            stages.append(Block(before, after))
            before = after
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, 10)]
    return nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(), *stages, *head
    )


def augment(images):
    """Each batch is shifted by up to four pixels, and half of them are turned around."""
    down, right = torch.randint(-4, 5, (2,)).tolist()
    return torch.roll(images if torch.rand(()) < 0.5 else images.flip(2, 3), (down, right), (2, 3))


@torch.no_grad()
def validation_loss():
    model.eval()
    loss = F.cross_entropy(model(val_images), val_labels).item()
    model.train()
    return loss


torch.manual_seed(0)
images, labels = (part.to(args.device) for part in make_images(args.images))
val_images, val_labels = (part.to(args.device) for part in make_images(200))
model = resnet(args.width, args.blocks).to(args.device)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)
scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=args.steps)

run = crucible.workload.resume_or_start(model, optimizer, scheduler)
for step in run.steps(args.steps):
    rows = torch.randint(args.images, (args.batch,))
    loss = F.cross_entropy(model(augment(images[rows])), labels[rows])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    scheduler.step()
    if step % 10 == 0:
        print(f"step {step}: loss {loss.item():.4f}", flush=True)
    run.log(step, loss=loss.item(), learning_rate=scheduler.get_last_lr()[0])
    if step % args.eval_every == 0:
        run.maybe_save(step, val_loss=validation_loss())
    else:
        run.maybe_save(step)

"""A LightningModule on a made-up regression; `CrucibleCallback` makes it resumable anywhere, exactly.

python train.py --steps 300
"""

import argparse

import lightning
import torch
from torch import nn
from torchdata.stateful_dataloader import StatefulDataLoader

from crucible.workload.lightning import CrucibleCallback

parser = argparse.ArgumentParser()
parser.add_argument("--steps", type=int, default=300)
parser.add_argument("--batch", type=int, default=32)
parser.add_argument("--width", type=int, default=64)
parser.add_argument("--rows", type=int, default=2000)
args = parser.parse_args()


class Regression(lightning.LightningModule):
    def __init__(self, width):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, width), nn.GELU(), nn.Dropout(0.1), nn.Linear(width, 1))

    def training_step(self, batch, index):
        inputs, targets = batch
        return nn.functional.mse_loss(self.net(inputs)[:, 0], targets)

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=3e-3)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, args.steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


lightning.seed_everything(0)
inputs = torch.randn(args.rows, 8)
data = torch.utils.data.TensorDataset(inputs, (inputs**2).sum(1).sqrt())
loader = StatefulDataLoader(data, batch_size=args.batch, shuffle=True)  # a plain DataLoader has no position to save

callback = CrucibleCallback()
trainer = lightning.Trainer(
    max_steps=args.steps,
    callbacks=[callback],
    accelerator="auto",
    log_every_n_steps=5,
    enable_checkpointing=False,
    enable_progress_bar=False,
    logger=False,
)
trainer.fit(Regression(args.width), loader, ckpt_path=callback.resume_from)

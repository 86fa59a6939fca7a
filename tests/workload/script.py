"""A script without torch, and with two lines for Crucible; the test kills it at any moment."""

import random
import sys
import time
from pathlib import Path

import numpy as np

from crucible.workload import resume_or_start

random.seed(1)
np.random.seed(2)
inputs = np.random.normal(size=(20, 6))
targets = inputs @ np.random.normal(size=(6, 2))
model = {"weights": np.zeros((6, 2)), "momentum": np.zeros((6, 2))}

run = resume_or_start(model=model, folder=Path(sys.argv[1]), every_seconds=0.0)
for step in run.steps(12):
    rows = np.random.permutation(20)[:5]
    error = inputs[rows] @ model["weights"] - targets[rows] + random.gauss(0, 0.1)
    model["momentum"] = 0.9 * model["momentum"] + inputs[rows].T @ error / 5
    model["weights"] = model["weights"] - 0.05 * model["momentum"]
    time.sleep(float(sys.argv[2]))
    run.maybe_save(step, val_loss=np.mean(error**2))
    print("step", step, flush=True)

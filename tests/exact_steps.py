"""Each step for two batches, without random augmentation; see test_distributed.py.

python exact_steps.py RESULTS OUT: each step starts from RESULTS and works in OUT/STEP; the gradients of
its first batch go to OUT/STEP/gradients.pt. OUT/cached takes the clustering step on cached features.
"""

import os
import sys
from pathlib import Path

import torch
from steps import STEPS, run

import data
from utils.run.script import run_script

torch.set_num_threads(1)
data.build_train_transform = data.build_eval_transform
# Rounding makes a few of ten million ReLUs jump, each with a visible part in the gradients; this one cannot.
torch.nn.functional.relu = lambda x, inplace=False: torch.nn.functional.silu(x)
SETTINGS = ["batch_size=718", "epochs=1", "optimizer=sgd", "optimizer_kwargs.lr=0.01", "precision=fp32"]


def main(results, out):
    train = torch.optim.SGD.step
    for name in STEPS:
        folder = out / name
        record = folder / "gradients.pt"

        def step(self, *args, record=record, **kwargs):
            if os.environ.get("RANK", "0") == "0" and not record.exists():
                torch.save([p.grad for group in self.param_groups for p in group["params"]], record)
            return train(self, *args, **kwargs)

        torch.optim.SGD.step = step
        run(name, folder, *SETTINGS)
    torch.optim.SGD.step = train
    run("scan", out / "cached", *SETTINGS, "precision=bf16", "cache_features=2")


def prepare(results, out):
    for name, place in [*zip(STEPS, range(3), strict=True), ("cached", 1)]:
        (out / name / "digits").mkdir(parents=True)
        for earlier in list(STEPS)[:place]:
            (out / name / "digits" / earlier).symlink_to(results / earlier)


if __name__ == "__main__":
    results, out = map(Path, sys.argv[1:])
    if os.environ.get("LOCAL_RANK", "0") == "0":
        prepare(results, out)
    run_script(lambda: main(results, out))

"""Each step for two batches, without random augmentation; see test_distributed.py."""

import os

import torch
from digits_steps import STEPS, run

import data

SETTINGS = ["batch_size=718", "epochs=1", "optimizer=sgd", "optimizer_kwargs.lr=0.01", "precision=fp32"]


def main(out):
    """Each step works in OUT/STEP; the gradients of its first batch go to OUT/STEP/gradients.pt.

    OUT/cached takes the clustering step on cached features, OUT/voted self-labeling by neighbors' votes.
    """
    data.build_train_transform = data.build_eval_transform
    # Rounding makes a few of ten million ReLUs jump, each visible in the gradients; this one cannot.
    torch.nn.functional.relu = lambda x, inplace=False: torch.nn.functional.silu(x)
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
    voting = "criterion=neighbor-vote-cross-entropy", "criterion_kwargs.agreement=0.3"
    run("selflabel", out / "voted", *SETTINGS, *voting)


def prepare(results, out):
    """Let each step start from the results of the ones before."""
    for name, place in [*zip(STEPS, range(3), strict=True), ("cached", 1), ("voted", 2)]:
        (out / name / "digits").mkdir(parents=True)
        for earlier in list(STEPS)[:place]:
            (out / name / "digits" / earlier).symlink_to(results / earlier)

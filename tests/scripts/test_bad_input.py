"""Mistakes through the real scripts: each ends in one line that names it, and exit status 1.

Here are those that only a whole script meets, and one or two of each kind that are tested beside the file
which finds them: run/test_config_mistakes.py, run/test_weights.py, data/sets/test_npz.py, ...
"""

import numpy as np
import pytest
import torch
from digits_steps import STEPS, arguments, eval_arguments, fails
from mistakes import assert_holds

import eval as evaluation
from utils.run import checkpoint

# Each of these gives a function that takes the folder of the finished steps' results, which it may damage. It
# returns what to append to the command line.


def huge(step, *argv):
    """A file of a step's weights, finite ones, that give outputs which are not."""

    def write(folder):
        weights = checkpoint.load(folder / step / "model.pth.tar")
        weights = dict(weights.get("model", weights))
        weights["backbone.conv1.weight"] = weights["backbone.conv1.weight"] * 0 + 1e38
        torch.save({"model": weights, "head": 0}, folder / "weights.pth.tar")
        return [*argv, str(folder / "weights.pth.tar")]

    return write


IMAGES = np.zeros((30, 8, 8, 3), np.uint8)


def arrays(test, batch_size=256):
    """An .npz file with these test images."""

    def write(folder):
        np.savez(folder / "mine.npz", train_images=IMAGES, test_images=test)
        names = ["train_db_name=mine", "val_db_name=mine", f"data_dir={folder}"]
        return ["--set", *names, f"batch_size={batch_size}"]

    return write


def missing(name):
    def remove(folder):
        (folder / name).unlink()
        return []

    return remove


NOT_FINITE = "network's outputs are not finite for"
MISTAKES = [
    # settings and command lines
    ("pretext", ["--set", "epochs=ten"], "--set: epochs must be a whole number", "'ten'"),
    ("scan", ["--set", "cache_features=100000000"], "cache_features 100000000", "GB", "lower it"),
    ("selflabel", ["--set", "batch_size=1"], "batch_size 1", "2 or more"),
    ("selflabel", ["--set", "num_heads=3"], "num_heads must be 1 for self-labeling, found 3"),
    ("pretext", ["--set", "root_dir=README.md"], "README.md/digits/pretext: cannot write results there"),
    ("eval", ["--output", "README.md"], "README.md: cannot write results there", "--output"),
    ("eval", ["--features", "/proc/none/features.npy"], "/proc/none: cannot be used (No such file or"),
    # datasets
    ("pretext", arrays(IMAGES[:3]), "cannot mine 5 neighbors among 3 images"),
    ("pretext", arrays(IMAGES[:10, :4, :4], 20), "crop_size 8 is larger than the images (4 x 4)"),
    # what an earlier step or somebody else left
    ("scan", missing("pretext/model.pth.tar"), "run simclr.py, moco.py or pretrained.py first"),
    ("selflabel", missing("scan/model.pth.tar"), "scan/model.pth.tar: no such file; run scan.py"),
    ("pretext", huge("pretext", "--run", "new", "--pretrained"), NOT_FINITE),
    ("eval", huge("scan", "--model"), NOT_FINITE),
]


@pytest.mark.parametrize(("script", "prepare", "words"), [(s, f, w) for s, f, *w in MISTAKES])
def test_mistake(copied, capsys, script, prepare, words):
    more = prepare(copied / "digits") if callable(prepare) else prepare
    if script == "eval":
        main, argv = evaluation.main, eval_arguments("scan", copied / "digits/scan/model.pth.tar", flags=more)
    else:
        main, argv = STEPS[script][0].main, arguments(script, copied, flags=more)
    assert_holds(fails(capsys, main, argv), words)

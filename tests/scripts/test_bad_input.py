"""Mistakes through the real scripts: each ends in one line that names it, and exit status 1.

Here are those that only a whole script meets, and one or two of each kind that are tested beside the file
which finds them: run/test_config_mistakes.py, run/test_bad_weights.py, data/sets/test_npz.py, ...
"""

import shutil
import warnings

import numpy as np
import pytest
import torch
from digits_steps import STEPS, arguments
from mistakes import assert_holds

import eval as evaluation
import moco
from utils.run import checkpoint
from utils.run.script import run_script

MAIN = {
    **{name: script.main for name, (script, *_) in STEPS.items()},
    "eval": evaluation.main,
    "moco": moco.main,
}
SMALL_MOCO = ["backbone=resnet10_narrow", "train_db_name=digits", "val_db_name=digits"]
SMALL_MOCO += ["transformation_kwargs.crop_size=8"]


class Place:
    """What a mistake is made in: a folder with the results of the steps before the one that is run."""

    def __init__(self, script, results, folder):
        self.script, self.results, self.folder, self.root = script, results, folder, folder / "results"
        (self.root / "digits").mkdir(parents=True)
        for step in {"scan": ["pretext"], "selflabel": ["pretext", "scan"]}.get(script, []):
            (self.root / "digits" / step).symlink_to(results / step)

    def argv(self):
        if self.script == "eval":
            model = str(self.results / "scan/model.pth.tar")
            argv = ["--config_exp", STEPS["scan"][1], "--model", model]
            return [*argv, "--output", str(self.folder / "out"), "--set", "num_heads=2"]
        if self.script == "moco":
            config = "configs/pretext/moco_imagenet50.yml"
            return ["--config_exp", config, "--set", f"root_dir={self.root}", *SMALL_MOCO]
        return arguments(self.script, self.root)

    def own(self, step):
        """A copy of a step's results, to be damaged."""
        path = self.root / "digits" / step
        path.unlink(missing_ok=True)
        shutil.copytree(self.results / step, path)
        return path


# Each of these gives a function Place -> what to append to the command line.


def sets(*overrides):
    return lambda place: ["--set", *overrides]


def flags(*argv):
    return lambda place: list(argv)


def huge(step, flag="--pretrained"):
    """A file of a step's weights, finite ones, that give outputs which are not."""

    def write(place):
        weights = checkpoint.load(place.results / step / "model.pth.tar")
        weights = dict(weights.get("model", weights))
        weights["backbone.conv1.weight"] = weights["backbone.conv1.weight"] * 0 + 1e38
        torch.save({"model": weights, "head": 0}, place.folder / "weights.pth.tar")
        return [flag, str(place.folder / "weights.pth.tar")]

    return write


IMAGES = np.zeros((30, 8, 8, 3), np.uint8)


def arrays(batch_size=256, train=IMAGES, test=IMAGES[:10]):
    """An .npz file of these images."""

    def write(place):
        np.savez(place.folder / "mine.npz", train_images=train, test_images=test)
        names = ["train_db_name=mine", "val_db_name=mine", f"data_dir={place.folder}"]
        return ["--set", *names, f"batch_size={batch_size}"]

    return write


def taken(place):
    (place.folder / "taken").touch()
    return ["--set", f"root_dir={place.folder / 'taken'}"]


def damaged(name, step="pretext"):
    def write(place):
        (place.own(step) / name).write_bytes(b"")
        return []

    return write


def missing(name):
    def remove(place):
        (place.own("pretext") / name).unlink()
        return []

    return remove


def without(step):
    def remove(place):
        (place.root / "digits" / step).unlink()
        return []

    return remove


def trained(*overrides):
    """Other settings than those that the results of the step were trained with."""

    def copy(place):
        place.own("pretext")
        return ["--set", *overrides]

    return copy


NOT_FINITE = "network's outputs are not finite for"
MISTAKES = [
    # settings and command lines
    ("pretext", sets("epochs=ten"), "--set: epochs must be a whole number", "'ten'"),
    ("pretext", sets(f"val_db_name={'x' * 300}"), "xxx"),
    ("pretext", sets("device=cuda:63"), "cuda:63", "no such GPU", "set device to auto or cpu"),
    ("scan", sets("backbone=vit"), "backbone: unknown name 'vit'", "known: resnet18"),
    ("scan", sets("cache_features=100000000"), "cache_features 100000000", "GB", "lower it"),
    ("selflabel", sets("batch_size=1"), "batch_size 1", "2 or more"),
    ("selflabel", sets("num_heads=3"), "num_heads must be 1 for self-labeling, found 3"),
    ("selflabel", sets("num_classes=12"), "scan/model.pth.tar: does not fit", "--set num_classes=10"),
    ("pretext", taken, "taken/digits/pretext: cannot write results there"),
    ("eval", flags("--model", "nowhere.pth.tar"), "nowhere.pth.tar: no such file"),
    ("eval", flags("--output", "README.md"), "README.md: cannot write results there", "--output"),
    ("eval", flags("--config_exp", STEPS["pretext"][1]), "a clustering model", "but a pretext model"),
    ("eval", sets("num_heads=3"), "scan/model.pth.tar: does not fit this model", "--set num_heads=2"),
    ("eval", flags("--features", "features.txt"), "expected a file FILE.npy, found 'features.txt'"),
    ("eval", flags("--features", "/proc/none/features.npy"), "No such file or directory: '/proc/none'"),
    # datasets
    ("pretext", sets("train_db_name=faces", "data_dir=nowhere"), "dataset 'faces': unknown"),
    ("pretext", arrays(train=IMAGES[:1]), "cannot mine 20 neighbors among 1 images"),
    ("pretext", arrays(test=IMAGES[:3]), "cannot mine 5 neighbors among 3 images"),
    ("pretext", arrays(20, test=IMAGES[:10, :4, :4]), "crop_size 8 is larger than the images (4 x 4)"),
    # what an earlier step or somebody else left
    ("scan", damaged("topk-train-neighbors.npy"), "not a readable .npy file; mine the neighbors again"),
    ("scan", missing("topk-val-neighbors.npy"), "topk-val-neighbors.npy", "run the pretext step"),
    ("scan", sets("backbone=resnet18"), "does not fit", "its backbone is not this configuration's"),
    ("scan", missing("model.pth.tar"), "run simclr.py, moco.py or pretrained.py first"),
    ("selflabel", without("scan"), "scan/model.pth.tar: no such file; run scan.py"),
    ("pretext", huge("pretext"), NOT_FINITE),
    ("eval", huge("scan", "--model"), NOT_FINITE),
    ("moco", flags("--pretrained", "README.md"), "README.md: not a readable checkpoint"),
    ("pretext", damaged("checkpoint.pth.tar"), "checkpoint.pth.tar: not a readable checkpoint", "empty"),
    ("pretext", trained("seed=4"), "seed: 0 -> 4", "--fresh"),
]


def refusal(capsys, main, argv):
    """Run a script as its command would; return its last line of output, which must tell the mistake."""
    with warnings.catch_warnings(), pytest.raises(SystemExit) as exit_:
        run_script(lambda: main(argv))
    output = capsys.readouterr().err
    assert exit_.value.code == (2 if output.startswith("usage:") else 1), output  # argparse's is 2
    assert "Traceback" not in output
    last = output.strip().splitlines()[-1]
    assert "error:" in last, output
    return last


@pytest.mark.parametrize(
    "number",
    range(len(MISTAKES)),
    ids=[f"{i}-{row[0]}-{row[2][:40]}" for i, row in enumerate(MISTAKES)],
)
def test_mistake(number, results, tmp_path, capsys):
    script, prepare, *words = MISTAKES[number]
    place = Place(script, results, tmp_path)
    assert_holds(refusal(capsys, MAIN[script], place.argv() + prepare(place)), words)


def test_eval_with_torchrun(results, tmp_path, capsys, monkeypatch):
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "0")):
        monkeypatch.setenv(name, value)
    place = Place("eval", results, tmp_path)
    assert "works in one process: start it with python" in refusal(capsys, evaluation.main, place.argv())

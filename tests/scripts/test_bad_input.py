"""Mistakes through the real scripts: each ends in one line that names it, and exit status 1.

Here are those that only a whole script meets, and one or two of each kind that are tested beside the file
which finds them: run/test_config_mistakes.py, run/test_bad_weights.py, data/sets/test_npz.py, ...
"""

import io
import shutil
import warnings

import numpy as np
import pytest
import torch
from digits_steps import STEPS, arguments
from mistakes import assert_holds
from PIL import Image

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

    def file(self, name, content):
        path = self.folder / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return str(path)


# Each of these gives a function Place -> what to append to the command line.


def sets(*overrides):
    return lambda place: ["--set", *overrides]


def flags(*argv):
    return lambda place: list(argv)


def given(content, flag="--pretrained"):
    """A file of weights: bytes, or a function of the results' folder to what torch.save takes."""

    def write(place):
        made = content
        if not isinstance(made, bytes):
            file = io.BytesIO()
            torch.save(content(place.results), file)
            made = file.getvalue()
        return [flag, place.file("weights.pth.tar", made)]

    return write


def huge(step):
    """A step's weights, finite ones, that give outputs which are not."""

    def read(results):
        weights = checkpoint.load(results / step / "model.pth.tar")
        weights = dict(weights.get("model", weights))
        weights["backbone.conv1.weight"] = weights["backbone.conv1.weight"] * 0 + 1e38
        return {"model": weights, "head": 0} if step == "scan" else weights

    return read


def mine(place):
    return ["--set", "train_db_name=mine", "val_db_name=mine", f"data_dir={place.folder}"]


IMAGES = np.zeros((30, 8, 8, 3), np.uint8)


def arrays(*without, batch_size=256, **changes):
    """An .npz file that would be good but for these arrays."""

    def write(place):
        content = {"train_images": IMAGES, "train_labels": np.arange(30) % 3,
                   "test_images": IMAGES[:10], "test_labels": np.arange(10) % 3, **changes}  # fmt: skip
        np.savez(place.folder / "mine.npz", **{k: v for k, v in content.items() if k not in without})
        return [*mine(place), f"batch_size={batch_size}"]

    return write


def images(train, test):
    """A dataset of so many image files."""

    def write(place):
        for split, count in (("train", train), ("test", test)):
            (place.folder / "mine" / split).mkdir(parents=True)
            for i in range(count):
                Image.new("RGB", (20, 20), (i, 0, 0)).save(place.folder / f"mine/{split}/{i}.png")
        return mine(place)

    return write


def damaged(name, content, step="pretext"):
    def write(place):
        (place.own(step) / name).write_bytes(content)
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


def eval_pretext(*argv):
    return lambda place: [
        *("--config_exp", STEPS["pretext"][1]),
        *("--model", str(place.results / "pretext/model.pth.tar"), *argv),
    ]


NONE = "not a readable checkpoint"
NOT_FINITE = "network's outputs are not finite for"
MISTAKES = [
    # settings
    ("pretext", sets("epochs=ten"), "--set: epochs must be a whole number", "'ten'"),
    ("scan", sets("batch_size=1"), "batch_size 1", "2 or more"),
    ("selflabel", sets("batch_size=1"), "batch_size 1", "2 or more"),
    ("pretext", sets("batch_size=1"), "batch_size 1", "2 or more"),
    ("pretext", sets(f"val_db_name={'x' * 300}"), "xxx"),
    ("pretext", sets("backbone=resnet_18"), "backbone", "known: resnet18", "did you mean 'resnet18'?"),
    ("scan", sets("backbone=vit"), "backbone: unknown name 'vit'", "known: resnet18"),
    ("scan", sets("cache_features=100000000"), "cache_features 100000000", "GB", "lower it"),
    ("pretext", sets("batch_size=2000"), "batch_size 2000 is larger than the training split (1437 images)"),
    ("scan", sets("num_neighbors=21"), "num_neighbors 21 is more than the 20 neighbors that were mined"),
    (
        "selflabel",
        sets("confidence_threshold=0.999999"),
        "none of the 1437 training images",
        "lower confidence_threshold",
    ),
    ("selflabel", sets("num_heads=3"), "num_heads must be 1 for self-labeling, found 3"),
    ("selflabel", sets("num_classes=12"), "scan/model.pth.tar: does not fit", "--set num_classes=10"),
    ("selflabel", flags("--config_exp", STEPS["scan"][1]), "setup is 'scan', this script needs selflabel"),
    ("moco", flags("--config_exp", STEPS["pretext"][1]), "setup is 'simclr', this script needs moco"),
    ("pretext", sets("device=cuda:63"), "cuda:63", "no such GPU", "set device to auto or cpu"),
    # command lines
    ("pretext", flags("--run", "a/b"), "--run", "found 'a/b'"),
    ("pretext", lambda place: ["--config_exp", place.file("mine.yml", "a: [")], "line 1: not valid YAML"),
    (
        "pretext",
        lambda place: ["--set", f"root_dir={place.file('taken', '')}"],
        "taken/digits/pretext: cannot write results there",
    ),
    ("eval", flags("--model", "nowhere.pth.tar"), "nowhere.pth.tar: no such file"),
    ("eval", flags("--model", "http://host/m.pth"), "--model", "a file on this machine"),
    ("eval", flags("--kmeans"), "--kmeans clusters a pretext model's features, but setup is scan"),
    (
        "eval",
        eval_pretext("--visualize_prototypes"),
        "--visualize_prototypes needs clusters, but setup is simclr",
    ),
    ("eval", flags("--output", "README.md"), "README.md: cannot write results there", "--output"),
    ("eval", flags("--config_exp", STEPS["pretext"][1]), "a clustering model", "but a pretext model"),
    ("eval", sets("num_heads=3"), "scan/model.pth.tar: does not fit this model", "--set num_heads=2"),
    ("eval", sets("num_classes=11"), "does not fit this model", "--set num_classes=10"),
    (
        "eval",
        eval_pretext("--kmeans", "--set", "num_classes=2000"),
        "k-means needs at least 2000 training images",
    ),
    ("eval", flags("--features", "features.txt"), "expected a file FILE.npy, found 'features.txt'"),
    ("eval", flags("--features", "/proc/none/features.npy"), "No such file or directory: '/proc/none'"),
    ("moco", flags("--pretrained", "nowhere.pth.tar"), "nowhere.pth.tar: no such file"),
    # datasets
    (
        "pretext",
        lambda place: ["--set", "train_db_name=faces", f"data_dir={place.folder / 'none'}"],
        "dataset 'faces': unknown",
    ),
    ("pretext", arrays("train_images"), "mine.npz: has no array 'train_images', only", "test_images"),
    ("pretext", arrays("train_labels", train_images=IMAGES[:1]), "cannot mine 20 neighbors among 1 images"),
    ("pretext", arrays("test_labels", test_images=IMAGES[:3]), "cannot mine 5 neighbors among 3 images"),
    (
        "pretext",
        arrays(test_images=IMAGES[:10, :4, :4], batch_size=20),
        "crop_size 8 is larger than the images (4 x 4)",
    ),
    ("pretext", images(train=0, test=30), "mine/train: no images found", ".png"),
    ("pretext", images(train=1, test=30), "cannot mine 20 neighbors among 1 images"),
    ("pretext", images(train=30, test=1), "cannot mine 5 neighbors among 1 images"),
    # what an earlier step or somebody else left
    ("scan", damaged("topk-train-neighbors.npy", b""), "not a readable .npy file; mine the neighbors again"),
    ("scan", missing("topk-val-neighbors.npy"), "topk-val-neighbors.npy", "run the pretext step"),
    (
        "scan",
        sets("backbone=resnet18"),
        "pretext/model.pth.tar: does not fit",
        "its backbone is not this configuration's",
    ),
    ("scan", lambda place: ["--pretrained", str(place.results)], "a folder, not a checkpoint file"),
    ("scan", damaged("model.pth.tar", b""), "pretext/model.pth.tar: " + NONE),
    ("scan", missing("model.pth.tar"), "run simclr.py, moco.py or pretrained.py first"),
    ("scan", without("pretext"), "pretext/model.pth.tar: no such file; run simclr.py"),
    ("selflabel", without("scan"), "scan/model.pth.tar: no such file; run scan.py"),
    ("pretext", given(huge("pretext")), NOT_FINITE),
    ("eval", given(huge("scan"), "--model"), NOT_FINITE),
    (
        "eval",
        lambda place: eval_pretext("--kmeans")(place) + given(huge("pretext"), "--model")(place),
        NOT_FINITE,
    ),
    ("eval", given(b"", "--model"), NONE, "it is empty"),
    ("moco", given(b"<html>"), NONE, "a web page"),
    ("pretext", damaged("checkpoint.pth.tar", b""), "checkpoint.pth.tar: " + NONE),
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

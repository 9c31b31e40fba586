"""No label reaches the training or the choice of a model."""

import numpy as np
import pytest
import torch
from digits_files import neighbor_table, write_digits
from digits_steps import STEPS, epochs, figures, run, same, weights

from steps.clustering_inputs import choose_splits
from steps.pretext_results import MinedNeighbors
from utils.run import checkpoint


def noise(labels):
    return np.random.default_rng(len(labels)).integers(0, 10, len(labels))


def one_class(labels):
    return np.full_like(labels, 3)


@pytest.mark.parametrize("labels", [noise, one_class, None])
def test_other_labels_give_the_same_models_and_the_same_choice(results, tmp_path, labels):
    write_digits(tmp_path, labels=labels)
    own = tmp_path / "digits"
    for step in STEPS:
        run(step, tmp_path, f"data_dir={tmp_path}")
        for name in ("model.pth.tar", "checkpoint.pth.tar"):
            assert same(weights(own / step / name), weights(results / step / name)), (step, name)
    for name in ("train", "val"):
        mined = [np.load(root / f"pretext/topk-{name}-neighbors.npy") for root in (own, results)]
        np.testing.assert_array_equal(*mined)
    for name, key in (("model", "head"), ("checkpoint", "best_loss")):
        chosen = [checkpoint.load(root / f"scan/{name}.pth.tar")[key] for root in (own, results)]
        assert chosen[0] == chosen[1]
    for step in ("scan", "selflabel") if labels is None else ():
        for other, line in zip(epochs(own / step), epochs(results / step), strict=True):
            assert other.keys() == line.keys() - {"val_acc"}
            same_keys = other.keys() - {"seconds", "images_per_second"}
            assert all(other[key] == line[key] for key in same_keys)
    acc = [figures(root / "selflabel").get("acc") for root in (own, results)]
    assert acc[0] != acc[1]  # the figures, of course, do depend on them


def test_held_out_images_choose_without_their_labels(results, after, tmp_path_factory):
    root, noisy = after("pretext"), tmp_path_factory.mktemp("noisy")
    write_digits(noisy, labels=noise)
    (noisy / "digits").mkdir()
    (noisy / "digits/pretext").symlink_to(results / "pretext")
    run("scan", root, "validation=train_holdout")
    run("scan", noisy, "validation=train_holdout", f"data_dir={noisy}")
    a, b = (checkpoint.load(folder / "digits/scan/model.pth.tar") for folder in (root, noisy))
    assert a["head"] == b["head"] and same(a["model"], b["model"])
    log = (root / "digits/scan/log.txt").read_text()
    assert "143 images held out of the training split choose the model" in log
    assert sum(epochs(root / "digits/scan")[-1]["cluster_sizes"]) == 143
    published = weights(results / "scan/model.pth.tar")
    assert not same(a["model"], published)  # it trained on fewer images


def test_held_out_images_do_not_train():
    neighbors = neighbor_table(torch.randint(100, (100, 5), generator=torch.Generator().manual_seed(1)))
    mined = MinedNeighbors(neighbors, neighbors[:9, :4])
    split = choose_splits("train_holdout", "the training split", "the test split", mined)
    assert split.val_set == "the training split"
    anchors, kept, held = split.anchors, split.neighbors, split.val_images
    assert len(held) == 10 and len(anchors) == 90
    assert sorted([*anchors.tolist(), *held.tolist()]) == list(range(100))
    assert not set(kept[anchors].flatten().tolist()) & set(held.tolist())
    unchanged = kept == neighbors
    assert torch.equal(kept[~unchanged], torch.arange(100).unsqueeze(1).expand(-1, 6)[~unchanged])
    assert torch.equal(split.val_neighbors, neighbors[held, :4])

"""The settings that change how a step trains."""

import copy
import shutil

import numpy as np
import pytest
import torch
from digits_steps import config_of, epochs, figures, run, same, weights

import data
import selflabel
from losses import NO_VOTE, ConfidenceBasedCE
from models import build_model
from steps.load_model import load_model
from utils.run import checkpoint
from utils.training import features

HEADS_ONLY = "update_cluster_head_only=True"


def test_heads_only(results, after):
    root = after("pretext")
    run("scan", root, HEADS_ONLY, "augmentation_kwargs.num_strong_augs=1", "num_classes=13")
    pretext = weights(results / "pretext/model.pth.tar")
    clustering = weights(root / "digits/scan/model.pth.tar")
    backbone = [key for key in clustering if key.startswith("backbone.")]
    assert backbone
    assert all(torch.equal(clustering[key], pretext[key]) for key in backbone)
    found = figures(root / "digits/scan")
    assert (found["num_clusters"], found["num_classes"]) == (13, 10)
    assert found["acc"] <= found["majority_vote_acc"]


@pytest.fixture
def same_heads(results, after, tmp_path_factory):
    """Function: trains the heads on images without random augmentations, and on cached features.

    Returns both folders of the clustering step.
    """

    def train(cache_features, *settings):
        roots = after("pretext"), tmp_path_factory.mktemp("cached")
        shutil.copytree(results / "pretext", roots[1] / "digits/pretext")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(data, "build_train_transform", data.build_eval_transform)
            for root, more in zip(roots, ([], [cache_features]), strict=True):
                run("scan", root, HEADS_ONLY, *settings, *more)
        return [root / "digits/scan" for root in roots]

    return train


def test_features_without_augmentation(same_heads, monkeypatch):
    """They train the same heads as the images, and are computed once for all that needs them."""
    plain, cached = same_heads("cache_features=0", "precision=fp32")
    files = list((cached.parent / "pretext").glob("features-*.npy"))
    assert sorted(np.load(file).shape for file in files) == [(360, 128), (1437, 128)]
    a, b = figures(plain), figures(cached)
    assert b["cluster_sizes"] == a["cluster_sizes"]
    assert b["mean_confidence"] == pytest.approx(a["mean_confidence"], abs=1e-3)
    a, b = (weights(folder / "model.pth.tar") for folder in (plain, cached))
    assert all(torch.allclose(a[key], b[key], atol=1e-3) for key in a)

    def again(*more):
        settings = [HEADS_ONLY, "precision=fp32", "cache_features=0", *more]
        run("scan", cached.parents[1], *settings, flags=["--fresh"])

    def fail(*_):
        raise AssertionError("features computed again")

    with monkeypatch.context() as patch:
        patch.setattr(features, "infer_to_file", fail)
        again("num_classes=5")
    again("transformation_kwargs.normalize.mean=[0,0,0]")
    assert len(list((cached.parent / "pretext").glob("features-*.npy"))) == 4


def test_cached_features_train_the_same_heads(same_heads):
    """Without random augmentations all views are one, so that only the half precision differs."""
    plain, cached = same_heads("cache_features=2", "precision=fp32")
    for a, b in zip(epochs(plain), epochs(cached), strict=True):
        for name in ("loss", "val_loss"):
            assert b[name] == pytest.approx(a[name], abs=2e-3)
    a, b = (weights(folder / "model.pth.tar") for folder in (plain, cached))
    assert list(a) == list(b)
    assert all(torch.equal(a[key], b[key]) for key in a if "backbone" in key)


def test_cached_views_differ_and_are_drawn(results, after):
    root = after("pretext")
    run("scan", root, HEADS_ONLY, "cache_features=3")
    assert "features of 3 views of 1437 images, 0.00 GB" in (root / "digits/scan/log.txt").read_text()
    views = torch.rand(3, 50, 4)
    drawn = next(data.CachedFeatures(views).fetch([torch.zeros(200, 2, dtype=torch.int64)], "cpu"))
    assert drawn.shape == (200, 2, 4)
    assert {*map(tuple, drawn.flatten(0, 1).tolist())} == {*map(tuple, views[:, 0].tolist())}


@pytest.mark.parametrize(
    "settings", [("cache_features=1", "validation=train_holdout"), ()], ids=["cached", "images"]
)
def test_heads_start_from_the_neighbor_graph(after, settings):
    """On cached features, and on images; a rate of nearly 0 leaves them as they start."""
    root, losses = after("pretext"), {}
    for head_init in ("random", "graph"):
        fixed = HEADS_ONLY, "num_heads=2", "epochs=1", "optimizer_kwargs.lr=1.0e-9"
        run("scan", root, *fixed, *settings, f"head_init={head_init}", "precision=fp32", flags=["--fresh"])
        losses[head_init] = epochs(root / "digits/scan")[-1]["val_loss"]
    assert losses["graph"] < losses["random"] - 0.3


def test_ema(results, after):
    root = after("pretext", "scan")
    run("selflabel", root, "use_ema=True", "ema_alpha=0.9")
    start = checkpoint.load(results / "scan/model.pth.tar")
    final = weights(root / "digits/selflabel/model.pth.tar")
    saved = checkpoint.load(root / "digits/selflabel/checkpoint.pth.tar")
    statistics = [key for key in final if "running" in key or "num_batches" in key]
    assert all(torch.equal(final[key], start["model"][key]) for key in statistics)
    assert same(saved["ema"], final)
    assert not torch.equal(final["backbone.conv1.weight"], start["model"]["backbone.conv1.weight"])


def test_neighbors_vote_by_the_features_before_each_epoch(after, monkeypatch):
    root = after("pretext", "scan")
    seen = []
    step = selflabel.selflabel_step

    def watched(network, criterion, batch):
        seen.append((batch[0], batch[2]))
        return step(network, criterion, batch)

    monkeypatch.setattr(selflabel, "selflabel_step", watched)
    settings = ["criterion=neighbor-vote-cross-entropy", "criterion_kwargs.num_neighbors=7", "precision=fp32"]
    run("selflabel", root, *settings, "criterion_kwargs.agreement=0.7", "epochs=1")

    config = config_of("selflabel")
    model = load_model(config, root / "digits/scan/model.pth.tar", best_head_only=True).model.eval()
    images = data.build_eval_transform(config)(data.build_dataset(config, "train").images)
    with torch.no_grad():
        features = model.backbone(images)
        probabilities = model.cluster_head(features)[0].softmax(1)
    features = torch.nn.functional.normalize(features, dim=1)
    nearest = (features @ features.T).topk(8).indices
    voted = probabilities[nearest].mean(1).argmax(1)
    agreement = (probabilities.argmax(1)[nearest] == voted.unsqueeze(1)).float().mean(1)
    expected = torch.where(agreement >= 0.7, voted, NO_VOTE)
    assert 0.1 < (expected != NO_VOTE).float().mean() < 0.99

    kept = checkpoint.load(root / "digits/selflabel/checkpoint.pth.tar")["votes"]["votes"]
    assert (kept == expected).float().mean() > 0.99
    places = {image.numpy().tobytes(): i for i, image in enumerate(images)}
    for weak, votes in seen:
        assert votes.tolist() == [kept[places[image.numpy().tobytes()]] for image in weak]


def test_batches_without_a_confident_sample_are_counted(after, monkeypatch):
    monkeypatch.setattr(selflabel, "require_pseudo_labels", lambda *_: None)  # it looks in eval mode
    root = after("pretext", "scan")
    few = ["batch_size=20", "epochs=1", "precision=fp32", "optimizer_kwargs.lr=1e-9"]
    run("selflabel", root, confidence_that_some_batches_miss(root), *few)
    (line,) = epochs(root / "digits/selflabel")
    assert 0 < line["skipped_batches"] < 71


def test_the_strong_view_of_a_batch_without_a_confident_sample_leaves_no_trace():
    model = build_model(config_of("selflabel")).train()
    weak_only, weak, strong = copy.deepcopy(model), torch.randn(20, 3, 8, 8), torch.randn(20, 3, 8, 8)
    with torch.no_grad():
        weak_only(weak)
    for threshold in (0.999, 0.0):  # nothing is above the first
        values = selflabel.selflabel_step(model, ConfidenceBasedCE(threshold, False), (weak, strong))
        assert values["trains"] == (threshold == 0)
        assert same(model.state_dict(), weak_only.state_dict()) == (threshold > 0)


def confidence_that_some_batches_miss(root):
    """A threshold that one training image in a hundred exceeds, in train mode and batches of 20."""
    config = config_of("scan")
    loaded = load_model(config, root / "digits/scan/model.pth.tar")
    images = data.build_eval_transform(config)(data.build_dataset(config, "train").images)
    with torch.no_grad():
        logits = [loaded.model.train()(batch)[loaded.head] for batch in images.split(20)]
    confidence = [part.softmax(1).amax(1) for part in logits]
    return f"confidence_threshold={torch.cat(confidence).quantile(0.99):.4f}"

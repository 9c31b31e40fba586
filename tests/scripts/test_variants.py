"""The settings that change how a step trains."""

import copy

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


def test_cached_features(copied, monkeypatch):
    """They train the same heads as the images, and are computed once for all that needs them."""
    pretext = copied / "digits/pretext"

    def train(name, *settings):
        run("scan", copied, HEADS_ONLY, "precision=fp32", *settings, flags=["--run", name])
        return copied / name / "digits/scan"

    with monkeypatch.context() as patch:  # without random augmentations all views are one
        patch.setattr(data, "build_train_transform", data.build_eval_transform)
        plain = train("images")
        unchanged, views = train("unchanged", "cache_features=0"), train("views", "cache_features=2")
    for cached in (unchanged, views):
        for a, b in zip(epochs(plain), epochs(cached), strict=True):
            assert all(b[name] == pytest.approx(a[name], abs=2e-3) for name in ("loss", "val_loss"))
    a, b = (weights(folder / "model.pth.tar") for folder in (plain, unchanged))
    assert all(torch.allclose(a[key], b[key], atol=1e-3) for key in a)
    assert figures(unchanged)["cluster_sizes"] == figures(plain)["cluster_sizes"]
    assert "features of 2 views of 1437 images, 0.00 GB" in (views / "log.txt").read_text()
    shapes = [np.load(file).shape for file in pretext.glob("features-*.npy")]
    assert sorted(shapes) == [(360, 128), (1437, 128)]

    def fail(*_):
        raise AssertionError("features computed again")

    with monkeypatch.context() as patch:
        patch.setattr(features, "infer_to_file", fail)
        train("five", "cache_features=0", "num_classes=5")
    train("others", "cache_features=0", "transformation_kwargs.normalize.mean=[0,0,0]")
    assert len(list(pretext.glob("features-*.npy"))) == 4


def test_cached_views_are_drawn():
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
    root, config = after("pretext", "scan"), config_of("scan")
    loaded = load_model(config, root / "digits/scan/model.pth.tar")
    images = data.build_eval_transform(config)(data.build_dataset(config, "train").images)
    with torch.no_grad():
        logits = [loaded.model.train()(batch)[loaded.head] for batch in images.split(20)]
    confidence = torch.cat([part.softmax(1).amax(1) for part in logits])
    threshold = f"confidence_threshold={confidence.quantile(0.99):.4f}"  # one image in a hundred exceeds it
    settings = ["batch_size=20", "epochs=1", "precision=fp32", "optimizer_kwargs.lr=1e-9"]
    run("selflabel", root, threshold, *settings)
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

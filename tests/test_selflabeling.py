"""benchmarks/selflabeling.py: the published way is selflabel.py, and each other way what it says."""

import json
import sys

import pytest
import torch
import torch.nn.functional as F
from digits_steps import ROOT, config_of, run, same, weights

sys.path.insert(0, str(ROOT / "benchmarks"))

import selflabeling

CONFIG = config_of("selflabel", "criterion_kwargs.apply_class_balancing=false")


def rows(n, c, seed=0):
    return 3 * torch.randn(n, c, generator=torch.Generator().manual_seed(seed))


def built(text, config=CONFIG, progress=0, predict=None):
    way = selflabeling.build_way(text, config)
    way.start_epoch(progress, predict)
    way.anchors = torch.arange(40)
    return way


def test_published_gives_the_weights_of_the_script(after, monkeypatch, capsys, tmp_path):
    root = after("pretext", "scan")
    run("selflabel", root, "precision=fp32")
    start = selflabeling.Start(config_of("selflabel"), root / "digits/scan/model.pth.tar")
    model, shares = start.train(selflabeling.build_way("published", start.config))
    assert same(model.state_dict(), weights(root / "digits/selflabel/model.pth.tar"))
    lines = (root / "digits/selflabel/metrics.jsonl").read_text().splitlines()
    assert shares == pytest.approx([json.loads(line)["confident"] for line in lines], abs=1e-4)

    rows = tmp_path / "rows.jsonl"
    flags = ["--clustering", str(root / "digits/scan/model.pth.tar"), "--output", str(rows)]
    flags += ["--ways", "published", "either:5,0.8", "--set", "epochs=1", "confidence_threshold=0.2"]
    experiment = ["--config_exp", "configs/selflabel/selflabel_digits.yml"]
    monkeypatch.setattr(sys, "argv", ["selflabeling.py", *experiment, *flags])
    selflabeling.main()
    capsys.readouterr()
    monkeypatch.setattr(sys, "argv", ["selflabeling.py", "--table", str(rows)])
    selflabeling.main()
    table = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in table] == ["published", "before", "either:5,0.8"]
    figures = {row["way"]: row["test"]["acc"] for row in map(json.loads, rows.read_text().splitlines())}
    gain = 100 * (figures["either:5,0.8"] - figures["published"])
    assert f"against {gain:+5.2f}, won {int(gain > 0)}, lost {int(gain < 0)} of 1" in table[2]


def test_threshold_and_share_go_from_first_to_last():
    logits = rows(40, 4)
    confidence, labels = logits.softmax(1).max(1)
    for progress, value in ((0, 0.9), (0.5, 0.7), (1, 0.5)):
        _, used = built("threshold:0.9,0.5", progress=progress).pseudo_labels(logits)
        assert torch.equal(used, confidence > value)
    for progress, value in ((0, 0.25), (1, 0.75)):
        _, used = built("share:0.25,0.75", progress=progress).pseudo_labels(logits)
        for cluster in range(4):
            members = labels == cluster
            assert used[members].sum() == round(value * int(members.sum()) + 0.5)
            if not used[members].all():
                assert confidence[members & used].min() >= confidence[members & ~used].max()


@pytest.mark.parametrize("balancing", [False, True])
def test_smooth_is_torchs_label_smoothing(balancing):
    weak, strong = rows(40, 4), rows(40, 4, seed=1)
    config = config_of("selflabel", f"criterion_kwargs.apply_class_balancing={balancing}")
    way = built("smooth:0.1,0.8", config)
    labels, used = way.pseudo_labels(weak)
    losses = F.cross_entropy(strong[used], labels[used], label_smoothing=0.1, reduction="none")
    counts = labels[used].bincount(minlength=4)
    factors = 1 / counts[labels[used]] if balancing else torch.ones_like(losses)
    torch.testing.assert_close(way(weak, strong), (factors * losses).sum() / factors.sum())
    assert 0 < used.sum() < 40


def groups():
    """Two groups of 20 similar images each; image 0 is predicted as the other group's, without doubt."""
    features = torch.eye(2).repeat_interleave(20, 0) + 0.01 * torch.rand(40, 2)
    probabilities = torch.tensor([[0.9, 0.1], [0.2, 0.8]]).repeat_interleave(20, 0)
    probabilities[0] = torch.tensor([0.01, 0.99])
    return features, probabilities


@pytest.mark.parametrize("way", ["vote:10,0.5", "either:10,0.5", "once:10,0.5", "prototypes:10,0.5,15"])
def test_neighbors_correct_a_label(way):
    found, used = built(way, predict=groups).pseudo_labels(groups()[1].log())
    assert found.tolist() == [0] * 20 + [1] * 20
    assert used.all()


def test_neighbors_that_disagree_are_not_used():
    labels, used = built("vote:19,1", predict=groups).pseudo_labels(groups()[1].log())
    assert not used[:20].any()  # image 0 is a neighbor of all of them
    assert used[20:].all()
    either = config_of("selflabel", "confidence_threshold=0.85")
    labels, used = built("either:19,1", either, predict=groups).pseudo_labels(groups()[1].log())
    assert used.all()
    assert labels[0] == 1  # the confident prediction, where no vote is reliable


def test_refine_mixes_first_label_and_prediction():
    config = config_of("selflabel", "confidence_threshold=0.85")
    way = built("refine:10,0.5,0.5,1", config, progress=0, predict=groups)
    assert not way.clean[0]
    assert way.clean[1:20].all()
    assert not way.clean[20:].any()  # 0.8 is not above the threshold
    way.start_epoch(0.5, groups)
    way.anchors = torch.tensor([1, 30])
    weak, strong = torch.tensor([[0.6, 0.4], [0.3, 0.7]]).log(), rows(2, 2, seed=1)
    clean = 0.4 * torch.tensor([0.75, 0.25]) + 0.6 * torch.tensor([0.6, 0.4])
    targets = torch.stack([clean, torch.tensor([0.3, 0.7])]) ** 2
    targets /= targets.sum(1, keepdim=True)
    losses = -(targets * strong.log_softmax(1)).sum(1)
    # one image a cluster: balanced, both count the same
    torch.testing.assert_close(way(weak, strong), losses.mean())
    way.apply_class_balancing = False
    torch.testing.assert_close(way(weak, strong), (losses[0] + 0.5 * losses[1]) / 1.5)


def test_once_keeps_the_first_vote():
    def others():
        features, probabilities = groups()
        return features, probabilities.flip(1)

    for name, first in (("once", 0), ("either", 1)):
        way = built(f"{name}:10,0.5", predict=groups)
        way.start_epoch(0.5, others)
        assert way.labels.tolist() == [first] * 20 + [1 - first] * 20

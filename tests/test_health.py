"""Warnings from hand-made clusters and neighbors; then what the real steps log, warn of and refuse."""

import json
import logging

import numpy as np
import pytest
import torch
from steps import STEPS, arguments, fails, run, same, weights

import selflabel
from errors import UserError
from utils.analysis import health, neighbor_quality
from utils.run.folder import Run

ALL_ADVICE = {trouble: f"advice on {trouble}" for trouble in health.SELFLABEL_ADVICE}


@pytest.fixture(autouse=True)
def info(caplog):
    caplog.set_level(logging.INFO, logger="utils.analysis.health")


def warnings(caplog):
    found = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    caplog.clear()
    return found


def predictions(clusters, num_clusters, confidence=0.9):
    """Probabilities (N, C) with the given argmax and maximum, a number or one per image."""
    clusters = torch.as_tensor(clusters)
    confidence = torch.as_tensor(confidence).expand(len(clusters))
    rest = (1 - confidence) / (num_clusters - 1)
    probabilities = rest.unsqueeze(1).repeat(1, num_clusters)
    return probabilities.scatter_(1, clusters.unsqueeze(1), confidence.unsqueeze(1))


# --- the clusters of an epoch --------------------------------------------------------------------


def test_healthy_clusters(caplog):
    clusters = torch.arange(40) % 4
    watch = health.Watch(ALL_ADVICE, 0.8, start=(clusters + 1) % 4)
    confidence = torch.full((40,), 0.9)
    confidence[clusters == 2] = 0.7
    confidence[2] = 0.9
    values = watch(1, predictions(clusters, 4, confidence))
    assert values["cluster_sizes"] == [10, 10, 10, 10]
    assert values["dead_clusters"] == 0
    assert values["mean_confidence"] == pytest.approx((31 * 0.9 + 9 * 0.7) / 40)
    assert values["confident_shares"] == [1, 1, 0.1, 1]
    assert warnings(caplog) == []
    json.dumps(values)


def test_values_of_a_dead_cluster_and_no_threshold():
    values = health.Watch(ALL_ADVICE)(1, predictions([0, 0, 2], 3))
    assert (values["cluster_sizes"], values["dead_clusters"]) == ([2, 0, 1], 1)
    assert "confident_shares" not in values
    assert health.Watch(ALL_ADVICE, 0.5)(1, predictions([0, 0, 2], 3))["confident_shares"] == [1, 0, 1]


def test_a_confidence_at_the_threshold_does_not_count():
    watch = health.Watch(ALL_ADVICE, 0.75)
    assert watch(1, predictions([0, 1], 2, 0.75))["confident_shares"] == [0, 0]


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((7, 2, 1), "epoch 3: cluster 0 of 3 takes 70 % of the validation images; advice on dominant"),
        ((6, 2, 2), None),
        ((6, 2, 1, 1), "epoch 3: cluster 0 of 4 takes 60 % of the validation images; advice on dominant"),
        ((9, 1), None),  # of two clusters one always has half
        ((4, 4, 0), "epoch 3: 1 of 3 clusters are dead: no validation image is in them; advice on dead"),
    ],
)
def test_warning_of_sizes(caplog, sizes, message):
    clusters = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    health.Watch(ALL_ADVICE)(3, predictions(clusters, len(sizes)))
    assert warnings(caplog) == ([message] if message else [])


def test_no_warning_while_clusters_form(caplog):
    watch = health.Watch(ALL_ADVICE, patience=3)
    for epoch in (1, 3, 4):
        watch(epoch, predictions([0, 0, 1, 1], 3))
        assert len(warnings(caplog)) == (epoch == 4)


def test_warning_of_uncovered_clusters(caplog):
    clusters = torch.arange(50) % 5
    for covered, warned in ((2, True), (3, False)):
        health.Watch(ALL_ADVICE, 0.8)(1, predictions(clusters, 5, 0.7 + 0.2 * (clusters < covered)))
        found = warnings(caplog)
        assert len(found) == warned
    health.Watch(ALL_ADVICE)(1, predictions(clusters, 5, 0.3))
    assert warnings(caplog) == []


def test_warning_of_merged_clusters(caplog):
    start = torch.arange(4).repeat_interleave(10)
    now = start.clone()
    now[start == 1] = 3
    health.Watch(ALL_ADVICE, start=start)(1, predictions(now, 4))
    found = warnings(caplog)
    assert "1 of 4 clusters are dead" in found[0]
    assert found[1].startswith("epoch 1: self-labeling merges clusters") and len(found) == 2
    assert "1, 3 are now in 3" in found[1] and "advice on merged" in found[1]


def test_what_is_merged():
    start = torch.arange(4).repeat_interleave(10)
    swapped = start.roll(20)
    assert health.merged(start, swapped, 4) == {}
    half = start.clone()
    half[10:15] = 0  # half of cluster 1 is no majority
    assert health.merged(start, half, 4) == {}
    half[15] = 0
    assert health.merged(start, half, 4) == {0: [0, 1]}
    # one of less than half the mean size may go where it likes; of half of it, it may not
    assert (
        health.merged(torch.tensor([0] * 17 + [1] * 4 + [2] * 6), torch.tensor([0] * 21 + [2] * 6), 3) == {}
    )
    start, now = torch.tensor([0] * 12 + [1] * 4 + [2] * 8), torch.tensor([0] * 16 + [2] * 8)
    assert health.merged(start, now, 3) == {0: [0, 1]}


def test_a_run_is_warned_of_each_trouble_once(caplog):
    logged = []

    def warned(watch, dead, dominant=False):
        clusters = torch.arange(100) % (10 - dead)
        clusters[: 90 * dominant] = 0
        logged.append(watch(len(logged) + 1, predictions(clusters, 10)))
        return len(warnings(caplog))

    watch = health.Watch(ALL_ADVICE, history=lambda: logged)
    assert [warned(watch, dead) for dead in (0, 2, 2, 3, 0, 5, 1)] == [0, 1, 0, 0, 0, 0, 0]
    assert warned(watch, 5, dominant=True) == 1
    assert [line.get("warned_of") for line in logged if "warned_of" in line] == [["dead"], ["dominant"]]
    resumed = health.Watch(ALL_ADVICE, history=lambda: logged)
    assert warned(resumed, 5, dominant=True) == 0
    repeated = health.Watch(ALL_ADVICE, history=lambda: logged[:3])  # before the second one
    assert warned(repeated, 5, dominant=True) == 1


def test_a_broken_network_is_not_blamed_on_the_clusters(caplog):
    values = health.Watch(ALL_ADVICE, 0.5)(1, torch.full((9, 3), torch.nan))
    assert values["mean_confidence"] != values["mean_confidence"]
    assert warnings(caplog) == []


def test_many_clusters_are_not_listed(caplog):
    start = torch.arange(1000)
    health.Watch(ALL_ADVICE, start=start)(1, predictions(torch.zeros(1000, dtype=torch.int64), 1000))
    assert max(map(len, warnings(caplog))) < 500
    pairs = torch.arange(1000) // 20 * 20
    health.Watch(ALL_ADVICE, start=start)(1, predictions(pairs, 1000))
    assert max(sum(word.strip(",;").isdigit() for word in line.split()) for line in warnings(caplog)) < 65
    health.require_confident(torch.ones(1000), start, 1000, 0.5)
    assert len(caplog.messages[0]) < 200


# --- before self-labeling ------------------------------------------------------------------------


def test_confident_images_are_told(caplog):
    confidence, clusters = torch.tensor([0.9, 0.8, 0.7, 0.95]), torch.tensor([0, 0, 1, 2])
    health.require_confident(confidence, clusters, 3, 0.8)
    assert caplog.messages == [
        "2 of 4 training images (50.0 %) have a confidence above 0.8; per cluster: [1, 0, 1]"
    ]
    health.require_confident(confidence, clusters, 5, 0.8)
    (found,) = warnings(caplog)
    assert "2 of 5 have a confident training image; lower confidence_threshold" in found


def test_no_confident_image_is_an_error():
    with pytest.raises(UserError, match=r"none of the 2 .* 0\.95, the highest is 0\.90000.*lower conf.*scan"):
        health.require_confident(torch.tensor([0.9, 0.8]), torch.tensor([0, 1]), 2, 0.95)


# --- the neighbors -------------------------------------------------------------------------------


def nearest(points, k):
    """Each row's own index and its k nearest."""
    return torch.cdist(points, points).topk(k + 1, largest=False).indices


def random_neighbors(n, k):
    others = torch.rand(n, n).fill_diagonal_(-1).topk(k).indices
    return torch.cat([torch.arange(n).unsqueeze(1), others], 1)


def pairs_with_repetitions(table):
    return [(i, j) for i, row in enumerate(table.tolist()) for j in row if j != i]


def test_figures_against_a_slow_loop():
    torch.manual_seed(0)
    table = torch.randint(60, (60, 8))  # with repetitions, and some images in their own list
    lists = [{j for j in row if j != i} for i, row in enumerate(table.tolist())]
    pairs = [(i, j) for i in range(60) for j in lists[i]]
    degree = np.array([sum(j in others for others in lists) for j in range(60)])
    before = table.clone()
    found = neighbor_quality.neighbor_quality(table)
    assert torch.equal(table, before)
    assert found["mutual"] == pytest.approx(sum(i in lists[j] for i, j in pairs) / len(pairs))
    assert found["by_chance"] == pytest.approx(len(pairs) / 60 / 59)
    theirs = [(i, x) for i, j in pairs_with_repetitions(table) for x in table[j].tolist() if x not in (i, j)]
    assert found["transitive"] == pytest.approx(sum(x in lists[i] for i, x in theirs) / len(theirs))
    assert found["nobodys"] == (degree == 0).mean()
    skewness = ((degree - degree.mean()) ** 3).mean() / degree.std() ** 3
    assert found["in_degree_skewness"] == pytest.approx(skewness)
    json.dumps(found)


@pytest.mark.parametrize(("n", "k"), [(1500, 5), (400, 20), (1000, 1), (100, 50)])
def test_random_neighbors_are_no_go(caplog, n, k):
    torch.manual_seed(0)
    found = neighbor_quality.neighbor_quality(random_neighbors(n, k))
    assert found["mutual"] == pytest.approx(k / n, abs=0.03)
    assert found["transitive"] == pytest.approx(k / n, abs=0.03)
    assert found["nobodys"] == pytest.approx((1 - k / (n - 1)) ** (n - 1), abs=0.05)
    assert found["verdict"] == "no-go"
    (message,) = warnings(caplog)
    assert "no-go: hardly more of them are mutual" in message
    assert "train the pretext longer" in message


@pytest.mark.parametrize("itself", [True, False])
def test_collapsed_neighbors_are_no_go(caplog, itself):
    """Everybody has the same ones, which mining lists before or after the image itself."""
    table = torch.arange(10).repeat(1000, 1)
    if itself:
        table = torch.cat([torch.arange(1000).unsqueeze(1), table], 1)
    found = neighbor_quality.neighbor_quality(table)
    assert found["nobodys"] == 0.99
    assert found["in_degree_skewness"] > 5
    assert found["verdict"] == "no-go"
    assert "no-go: most images are nobody's neighbor" in warnings(caplog)[0]


@pytest.mark.parametrize("k", [1, 5, 50])
def test_neighbors_with_structure_are_go(caplog, k):
    torch.manual_seed(0)
    points = torch.randn(10, 8).repeat_interleave(100, 0) + 0.3 * torch.randn(1000, 8)
    found = neighbor_quality.neighbor_quality(nearest(points, k))
    assert found["verdict"] == "go"
    assert caplog.messages[-1] == "neighbors: go"
    assert warnings(caplog) == []


def test_neighbors_among_noise_are_no_go(caplog):
    """They are mutual, as all neighbors by a symmetric similarity, but not each other's."""
    torch.manual_seed(0)
    features = torch.nn.functional.normalize(torch.randn(2000, 512), dim=1)
    found = neighbor_quality.neighbor_quality(nearest(features, 5))
    assert found["mutual"] > 0.5
    assert found["verdict"] == "no-go"
    assert "as if the features were noise" in warnings(caplog)[0]


def test_neighbors_of_two_images():
    assert neighbor_quality.neighbor_quality(torch.tensor([[0, 1], [1, 0]]))["verdict"] == "no-go"
    assert neighbor_quality.neighbor_quality(torch.tensor([[0, 0], [1, 1]]))["verdict"] == "no-go"


def test_the_advice_names_uneven_classes():
    for advice in (health.SCAN_ADVICE, health.SELFLABEL_ADVICE):
        assert advice["dominant"].startswith("if one class has most of your images, leave it")


# --- the real steps ------------------------------------------------------------------------------


def epochs(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_digits_neighbors_are_go(results):
    mined = torch.from_numpy(np.load(results / "pretext/topk-train-neighbors.npy"))
    figures = json.loads((results / "scan/metrics.json").read_text())["train_neighbors"]
    assert figures == neighbor_quality.neighbor_quality(mined[:, :6])
    assert figures["verdict"] == "go"
    assert min(figures["mutual"], figures["transitive"]) > 10 * figures["by_chance"]
    assert "neighbors: go" in (results / "scan/log.txt").read_text()


def check_epochs(folder, step, num_images):
    for line in epochs(folder):
        sizes = line["cluster_sizes"]
        assert (len(sizes), sum(sizes)) == (10, num_images)
        assert line["dead_clusters"] == sizes.count(0)
        assert 0.1 <= line["mean_confidence"] <= 1
        if step == "selflabel":
            assert len(line["confident_shares"]) == 10
            assert all(0 <= share <= 1 for share in line["confident_shares"])
        else:
            assert "confident_shares" not in line
    summary = [line for line in (folder / "log.txt").read_text().splitlines() if "images/s" in line]
    assert summary
    assert all("mean_confidence" in line and "[" not in line for line in summary)


@pytest.mark.parametrize("step", ["scan", "selflabel"])
def test_every_epoch_tells_its_clusters(results, step):
    assert [line["epoch"] for line in epochs(results / step)] == [1, 2]
    check_epochs(results / step, step, 360)
    assert epochs(results / step)[-1]["val_acc"] > 0.1


def test_a_resumed_run_is_not_warned_again(after, monkeypatch):
    """30 clusters for ten sorts of digits: some are dead from the first epoch on."""
    root = after("pretext")
    argv = "epochs=3", "num_classes=30", "num_heads=1"
    log_epoch = Run.log_epoch

    def crash_in_the_third_epoch(self, metrics):
        if metrics["epoch"] == 3:
            raise MemoryError
        log_epoch(self, metrics)

    monkeypatch.setattr(Run, "log_epoch", crash_in_the_third_epoch)
    with pytest.raises(MemoryError):
        run("scan", root, *argv)
    log = root / "digits/scan/log.txt"
    assert log.read_text().count("clusters are dead") == 1
    monkeypatch.setattr(Run, "log_epoch", log_epoch)
    run("scan", root, *argv)
    assert epochs(root / "digits/scan")[-1]["dead_clusters"] > 0
    assert log.read_text().count("clusters are dead") == 1


def test_held_out_images_are_the_ones_that_are_told(after):
    root = after("pretext")
    run("scan", root, "validation=train_holdout", "epochs=1")
    check_epochs(root / "digits/scan", "scan", 143)


@pytest.fixture(scope="module")
def unlabelled(results, tmp_path_factory):
    """Folder of the three steps on the digits' images without their labels."""
    from data.digits import build_digits

    root = tmp_path_factory.mktemp("unlabelled")
    arrays = {}
    for split in ("train", "test"):
        arrays[f"{split}_images"] = build_digits("", split, 8).images.permute(0, 2, 3, 1).numpy()
    np.savez(root / "digits.npz", **arrays)
    for step in STEPS:
        run(step, root, f"data_dir={root}")
    return root / "digits"


@pytest.mark.parametrize("step", ["scan", "selflabel"])
def test_without_labels_only_the_accuracy_is_missing(results, unlabelled, step):
    check_epochs(unlabelled / step, step, 360)
    measured = {"val_acc", "seconds", "images_per_second"}
    for with_, without in zip(epochs(results / step), epochs(unlabelled / step), strict=True):
        assert without.keys() == with_.keys() - {"val_acc"}
        assert all(without[key] == with_[key] for key in with_.keys() - measured)
    assert same(weights(unlabelled / step / "model.pth.tar"), weights(results / step / "model.pth.tar"))


def test_nothing_confident_is_refused_before_the_training(after, capsys):
    root = after("pretext", "scan")
    argv = arguments("selflabel", root, "confidence_threshold=0.9999999")
    last = fails(capsys, selflabel.main, argv)
    assert "none of the 1437 training images" in last and "the highest is 0." in last
    assert not (root / "digits/selflabel/checkpoint.pth.tar").exists()
    assert (
        epochs(root / "digits/selflabel") == [] if (root / "digits/selflabel/metrics.jsonl").exists() else 1
    )


def test_the_refusal_loses_nothing(after, capsys):
    root = after("pretext", "scan")
    run("selflabel", root, "epochs=1")
    before = weights(root / "digits/selflabel/model.pth.tar")
    argv = arguments("selflabel", root, "confidence_threshold=0.9999999", flags=["--fresh"])
    assert "none of the 1437" in fails(capsys, selflabel.main, argv)
    assert same(weights(root / "digits/selflabel/model.pth.tar"), before)


def test_only_the_beginning_of_a_training_is_checked(after):
    root = after("pretext", "scan")
    run("selflabel", root, "epochs=1")
    log = root / "digits/selflabel/log.txt"
    assert log.read_text().count("training images (") == 1
    run("selflabel", root, "epochs=1")
    assert log.read_text().count("training images (") == 1
    run("selflabel", root, "epochs=1", flags=["--fresh"])
    assert log.read_text().count("training images (") == 2


def test_the_check_changes_nothing(results, after, monkeypatch):
    """The same weights as without it, BatchNorm's statistics included."""
    monkeypatch.setattr(selflabel, "look_at_the_start", lambda *_: lambda epoch, probabilities: {})
    root = after("pretext", "scan")
    run("selflabel", root)
    assert same(
        weights(root / "digits/selflabel/model.pth.tar"), weights(results / "selflabel/model.pth.tar")
    )

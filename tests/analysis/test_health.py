"""Warnings from hand-made clusters."""

import json
import logging

import pytest
import torch

from errors import UserError
from utils.analysis import health

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
    confidence = torch.where(clusters == 2, 0.7, 0.9)
    confidence[2] = 0.9
    values = health.ClusterMonitor(ALL_ADVICE, 0.8, start=(clusters + 1) % 4)(
        1, predictions(clusters, 4, confidence)
    )
    assert (values["cluster_sizes"], values["dead_clusters"]) == ([10] * 4, 0)
    assert values["mean_confidence"] == pytest.approx((31 * 0.9 + 9 * 0.7) / 40)
    assert values["confident_shares"] == [1, 1, 0.1, 1]
    assert warnings(caplog) == []
    json.dumps(values)


@pytest.mark.parametrize(("threshold", "shares"), [(None, None), (0.75, [1, 0, 0])])
def test_values_of_a_dead_cluster(threshold, shares):
    """A confidence at the threshold does not count."""
    probabilities = predictions([0, 0, 2], 3, torch.tensor([0.9, 0.9, 0.75]))
    values = health.ClusterMonitor(ALL_ADVICE, threshold)(1, probabilities)
    assert (values["cluster_sizes"], values["dead_clusters"]) == ([2, 0, 1], 1)
    assert values.get("confident_shares") == shares


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
    health.ClusterMonitor(ALL_ADVICE)(3, predictions(clusters, len(sizes)))
    assert warnings(caplog) == ([message] if message else [])


def test_no_warning_while_clusters_form(caplog):
    watch = health.ClusterMonitor(ALL_ADVICE, patience=3)
    for epoch in (1, 3, 4):
        watch(epoch, predictions([0, 0, 1, 1], 3))
        assert len(warnings(caplog)) == (epoch == 4)


@pytest.mark.parametrize(("threshold", "covered", "warned"), [(0.8, 2, 1), (0.8, 3, 0), (None, 0, 0)])
def test_warning_of_uncovered_clusters(caplog, threshold, covered, warned):
    clusters = torch.arange(50) % 5
    probabilities = predictions(clusters, 5, 0.7 + 0.2 * (clusters < covered))
    health.ClusterMonitor(ALL_ADVICE, threshold)(1, probabilities)
    assert len(warnings(caplog)) == warned


def test_warning_of_merged_clusters(caplog):
    start = torch.arange(4).repeat_interleave(10)
    now = start.clone()
    now[start == 1] = 3
    health.ClusterMonitor(ALL_ADVICE, start=start)(1, predictions(now, 4))
    found = warnings(caplog)
    assert "1 of 4 clusters are dead" in found[0]
    assert found[1].startswith("epoch 1: self-labeling merges clusters") and len(found) == 2
    assert "1, 3 are now in 3" in found[1] and "advice on merged" in found[1]


def test_what_is_merged():
    start = torch.arange(4).repeat_interleave(10)
    swapped = start.roll(20)
    assert health.find_merged(start, swapped, 4) == {}
    half = start.clone()
    half[10:15] = 0  # half of cluster 1 is no majority
    assert health.find_merged(start, half, 4) == {}
    half[15] = 0
    assert health.find_merged(start, half, 4) == {0: [0, 1]}
    # a cluster counts from half the mean size on
    start, now = torch.tensor([0] * 17 + [1] * 4 + [2] * 6), torch.tensor([0] * 21 + [2] * 6)
    assert health.find_merged(start, now, 3) == {}
    start, now = torch.tensor([0] * 12 + [1] * 4 + [2] * 8), torch.tensor([0] * 16 + [2] * 8)
    assert health.find_merged(start, now, 3) == {0: [0, 1]}


def test_a_run_is_warned_of_each_trouble_once(caplog):
    logged = []

    def warned(watch, dead, dominant=False):
        clusters = torch.arange(100) % (10 - dead)
        clusters[: 90 * dominant] = 0
        logged.append(watch(len(logged) + 1, predictions(clusters, 10)))
        return len(warnings(caplog))

    watch = health.ClusterMonitor(ALL_ADVICE, history=lambda: logged)
    assert [warned(watch, dead) for dead in (0, 2, 2, 3, 0, 5, 1)] == [0, 1, 0, 0, 0, 0, 0]
    assert warned(watch, 5, dominant=True) == 1
    assert [line.get("warned_of") for line in logged if "warned_of" in line] == [["dead"], ["dominant"]]
    resumed = health.ClusterMonitor(ALL_ADVICE, history=lambda: logged)
    assert warned(resumed, 5, dominant=True) == 0
    repeated = health.ClusterMonitor(ALL_ADVICE, history=lambda: logged[:3])  # before the second one
    assert warned(repeated, 5, dominant=True) == 1


def test_a_broken_network_is_not_blamed_on_the_clusters(caplog):
    values = health.ClusterMonitor(ALL_ADVICE, 0.5)(1, torch.full((9, 3), torch.nan))
    assert values["mean_confidence"] != values["mean_confidence"]
    assert warnings(caplog) == []


def test_many_clusters_are_not_listed(caplog):
    start = torch.arange(1000)
    health.ClusterMonitor(ALL_ADVICE, start=start)(1, predictions(torch.zeros(1000, dtype=torch.int64), 1000))
    assert max(map(len, warnings(caplog))) < 500
    pairs = torch.arange(1000) // 20 * 20
    health.ClusterMonitor(ALL_ADVICE, start=start)(1, predictions(pairs, 1000))
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

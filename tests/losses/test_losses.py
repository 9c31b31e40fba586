"""Each loss against a slow loop written from the formula, and against values known in closed form."""

import math

import pytest
import torch
import torch.nn.functional as F

from losses import NO_VOTE, ConfidenceBasedCE, NeighborVoteCE, SCANLoss, SimCLRLoss


def rows(*shape, seed=0, scale=3.0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale


# --- SimCLR --------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_simclr_loop(temperature):
    z = F.normalize(rows(7, 2, 5), dim=2)
    total = 0.0
    for i in range(7):
        similarity = {
            (k, view): math.exp(float(z[i, 0] @ z[k, view]) / temperature)
            for k in range(7)
            for view in range(2)
            if (k, view) != (i, 0)
        }
        total -= math.log(similarity[i, 1] / sum(similarity.values()))
    assert SimCLRLoss(temperature)(z).item() == pytest.approx(total / 7, rel=1e-5)


def test_simclr_is_float32_under_autocast():
    z = F.normalize(rows(16, 2, 8), dim=2)
    exact = SimCLRLoss(0.1)(z)
    with torch.autocast("cpu", torch.bfloat16):
        inside = SimCLRLoss(0.1)(z)
    assert inside.dtype == torch.float32
    assert torch.equal(inside, exact)


# --- SCAN ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("weight", [0.0, 5.0])
def test_scan_loop(weight):
    anchors, neighbors = rows(9, 4), rows(9, 4, seed=1)
    p, q = anchors.softmax(1).tolist(), neighbors.softmax(1).tolist()
    consistency = sum(
        -max(-100, math.log(sum(a * b for a, b in zip(x, y, strict=True)))) for x, y in zip(p, q, strict=True)
    )
    mean = [sum(column) / 9 for column in zip(*p, strict=True)]
    entropy = -sum(m * math.log(m) for m in mean)
    expected = (consistency / 9 - weight * entropy, consistency / 9, entropy)
    got = [value.item() for value in SCANLoss(weight)(anchors, neighbors)]
    assert got == pytest.approx(expected, rel=1e-5)


def test_scan_disagreement_is_clamped_and_its_gradient_finite():
    anchors = torch.tensor([[500.0, 0.0]], requires_grad=True)
    total, consistency, _ = SCANLoss(1.0)(anchors, torch.tensor([[0.0, 500.0]]))
    total.backward()
    assert consistency.item() == 100
    assert anchors.grad.isfinite().all()


# --- self-labeling -------------------------------------------------------------------------------


@pytest.mark.parametrize("balancing", [False, True])
def test_confidence_based_cross_entropy_loop(balancing):
    weak, strong = rows(60, 5), rows(60, 5, seed=1)
    p, log_s = weak.softmax(1), strong.log_softmax(1)
    chosen = [(i, int(p[i].argmax())) for i in range(60) if p[i].max() > 0.8]
    labels = [label for _, label in chosen]
    assert 0 < len(chosen) < 60
    weights = {c: len(labels) / labels.count(c) if balancing else 1.0 for c in set(labels)}
    total = sum(-weights[c] * float(log_s[i, c]) for i, c in chosen)
    expected = total / sum(weights[c] for _, c in chosen)
    assert ConfidenceBasedCE(0.8, balancing)(weak, strong).item() == pytest.approx(expected, rel=1e-5)


def test_threshold_is_strict():
    weak = torch.tensor([[0.0, 0.0]])  # confidence exactly 0.5
    _, confident = ConfidenceBasedCE(0.5, False).pseudo_labels(weak)
    assert not confident.any()


def test_no_confident_sample_gives_zero():
    strong = rows(6, 3).requires_grad_()
    loss = ConfidenceBasedCE(0.99, True)(torch.zeros(6, 3), strong)
    loss.backward()
    assert loss.item() == 0
    assert strong.grad.abs().sum() == 0


def test_no_gradient_through_the_weak_branch():
    weak, strong = rows(20, 3).requires_grad_(), rows(20, 3, seed=1).requires_grad_()
    ConfidenceBasedCE(0.5, True)(weak, strong).backward()
    assert weak.grad is None
    assert strong.grad.abs().sum() > 0


@pytest.mark.parametrize("balancing", [False, True])
def test_votes_take_the_place_of_predictions(balancing):
    weak, strong, log_s = rows(60, 5), rows(60, 5, seed=1), rows(60, 5, seed=1).log_softmax(1)
    votes = torch.tensor([NO_VOTE, 0, 1, NO_VOTE, 3]).repeat(12)
    labels = {}
    for i, vote in enumerate(votes.tolist()):
        if vote != NO_VOTE:
            labels[i] = vote
        elif weak[i].softmax(0).max() > 0.8:
            labels[i] = int(weak[i].argmax())
    assert 36 < len(labels) < 60
    found = list(labels.values())
    weights = {c: 1 / found.count(c) if balancing else 1.0 for c in found}
    expected = sum(-weights[c] * float(log_s[i, c]) for i, c in labels.items())
    expected /= sum(weights[c] for c in found)
    loss = NeighborVoteCE(0.8, balancing)(weak, strong, votes)
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    none = torch.full_like(votes, NO_VOTE)
    published = ConfidenceBasedCE(0.8, balancing)(weak, strong)
    assert torch.equal(NeighborVoteCE(0.8, balancing)(weak, strong, none), published)


# --- arguments -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [
        lambda: SimCLRLoss(0),
        lambda: SCANLoss(-1),
        lambda: ConfidenceBasedCE(1.0, True),
        lambda: NeighborVoteCE(0.9, True, agreement=0),
        lambda: SimCLRLoss(0.1)(torch.zeros(4, 3, 8)),
        lambda: SCANLoss(5)(torch.zeros(4, 3), torch.zeros(4, 2)),
        lambda: ConfidenceBasedCE(0.9, True)(torch.zeros(4, 3), torch.zeros(3, 3)),
    ],
)
def test_wrong_arguments(make):
    with pytest.raises(ValueError, match="must"):
        make()

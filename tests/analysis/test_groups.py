"""Whether features show groups, on clouds, mixtures and series."""

import numpy as np
import pytest
import torch

from utils.analysis.groups import find_groups

RANDOM = np.random.RandomState(0)


def normal(*shape):
    return RANDOM.standard_normal(shape)


def mixture(n, d, k, apart):
    return apart * np.eye(d)[RANDOM.randint(k, size=n)] + normal(n, d)


def curve(n):
    """Images of a bright spot that moves."""
    return np.exp(-(((RANDOM.rand(n, 1) - np.linspace(0, 1, 64)) / 0.1) ** 2)) + 0.02 * normal(n, 64)


@pytest.mark.parametrize(
    ("features", "verdicts"),
    [
        (normal(400, 2), "none"),
        (normal(400, 5) @ normal(5, 384) + 0.5 * normal(400, 384), "none"),
        (RANDOM.standard_t(3, (400, 10)), "none unclear"),
        (normal(60, 16), "unclear"),
        (mixture(400, 8, 2, 5), "groups"),
        (mixture(400, 30, 8, 6), "groups"),
        (1e3 + 1e-2 * mixture(400, 30, 8, 6), "groups"),
        (curve(400), "series"),
        (mixture(20, 8, 2, 9), "few"),
        (np.ones((1, 4)), "few"),
        (normal(3, 4)[RANDOM.randint(3, size=400)], "few"),
    ],
)
def test_verdicts_on_features(features, verdicts):
    assert find_groups(torch.from_numpy(features))["verdict"] in verdicts.split()

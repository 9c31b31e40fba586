"""Published figures follow from the assignments in docs/assignments/."""

import numpy as np
import pytest
import torch
from steps import ROOT

from utils.analysis import metrics

# ACC, NMI, ARI in %, as in docs/LOG.md
FIGURES = {
    "cifar-10_h200_seed0": {"scan": (72.1, 59.8, 52.1), "selflabel": (81.5, 68.6, 65.1)},
}


@pytest.mark.parametrize("run", FIGURES)
def test_figures_follow_from_the_assignment(run):
    found = np.load(ROOT / f"docs/assignments/{run}.npz")
    labels = torch.from_numpy(found["labels"].astype(np.int64))
    for step, figures in FIGURES[run].items():
        one_hot = torch.eye(10)[torch.from_numpy(found[step].astype(np.int64))]
        again = metrics.clustering_metrics(one_hot, labels, 10)
        assert [round(100 * again[name], 1) for name in ("acc", "nmi", "ari")] == list(figures)

"""Clusters of frozen features: heads that start from several clusterings, and a judge that chooses one.

None of it uses labels. Of the paper it has the idea that heads train until an image and its neighbors agree.
Each head starts from another clustering, and keeps the sizes that the clusters have there: how even the
classes are is estimated, not assumed.
"""

import hashlib
import logging
import math
import time
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from sklearn.metrics import normalized_mutual_info_score

from errors import UserError
from losses.temi import TEMILoss
from utils.analysis import embedding, graph, neighbors, partitions
from utils.run.machine import threads_for

log = logging.getLogger(__name__)

COMPONENTS = 128  # principal ones of the features, which the heads see
HEAD_NEIGHBORS = 20
HEAD_ITERATIONS, HEAD_BATCH, HEAD_RATE, HEAD_TEMPERATURE = 300, 1024, 1e-3, 0.1
# of the score; chosen on development sets, see docs/CLUSTERING.md
WEIGHT_OF_STAYING, WEIGHT_OF_SMALLEST = 2.0, 0.15

_latest: dict[Any, "FeatureSpace"] = {}  # of `FeatureSpace.of`


@dataclass(frozen=True)
class Candidate:
    """A clustering, and what the judge sees of it.

    Attributes:
        probabilities: float32 (N, C), of its head.
        silhouette: in the embedding, see `partitions.silhouette`.
        staying: the normalized mutual information of the clustering and of what its head has made of it; low
            if neighbors or a linear boundary contradict it.
        sizes: of the C clusters.
    """

    name: str
    probabilities: torch.Tensor
    silhouette: float
    staying: float
    sizes: list[int]

    @property
    def score(self) -> float:
        """Higher is better. A cluster much smaller than the mean has to pay for itself, an empty one more."""
        smallest = max(min(self.sizes), 0.5) * len(self.sizes) / sum(self.sizes)
        empty = self.sizes.count(0) / len(self.sizes)
        kept = WEIGHT_OF_STAYING * self.staying
        return self.silhouette + kept + WEIGHT_OF_SMALLEST * math.log(smallest) - empty

    def figures(self) -> dict[str, Any]:
        """For a JSON file."""
        names = "name", "score", "silhouette", "staying", "sizes"
        return {name: getattr(self, name) for name in names}


class FeatureSpace:
    """Features in the forms in which they are clustered; made once for all numbers of clusters."""

    def __init__(
        self, features: torch.Tensor, seed: int, device: torch.device | str = "cpu", library: str = "auto"
    ) -> None:
        """Embed features, float (N, D)."""
        start = time.perf_counter()
        self.seed = seed
        self.normalized = embedding.power_normalize(features)
        k = min(max(embedding.GRAPH_WIDTHS), len(features) - 1)
        mined = neighbors.nearest_neighbors(self.normalized, k, device, library, log.debug)
        self.neighbors = neighbors.without_itself(mined)
        with threads_for(len(self.normalized)):
            self.components = embedding.principal_components(self.normalized, COMPONENTS)
            self.embedded = embedding.embed(self.normalized, self.neighbors, seed)
        log.info("%d features embedded: %.1f s", len(features), time.perf_counter() - start)

    @classmethod
    def of(cls, features: torch.Tensor, *where: Any) -> "FeatureSpace":
        """A FeatureSpace of these arguments. The last one is kept: the steps of a command need the same."""
        content = features.detach().float().cpu().contiguous().numpy()
        key = hashlib.sha256(content.data).digest(), content.shape, where
        if key not in _latest:
            _latest.clear()
            _latest[key] = cls(features, *where)
        return _latest[key]

    def cluster(self, num_clusters: int) -> list[Candidate]:
        """Clusterings into `num_clusters`, the one of the highest score first.

        Raises UserError for fewer images than clusters.
        """
        n = len(self.normalized)
        if n < num_clusters:
            raise UserError(f"{n} images cannot form num_classes {num_clusters} clusters; lower num_classes")
        with threads_for(len(self.normalized)):
            found = partitions.partitions(self.embedded, self.normalized, num_clusters, self.seed)
            clusters = torch.stack(list(found.values()))
            k = max(2, min(HEAD_NEIGHBORS, n // (2 * num_clusters)))
            heads = train_heads(self.components, self.neighbors[:, :k], clusters, num_clusters, self.seed)
            candidates = [self._judge(*parts) for parts in zip(found, clusters, *heads, strict=True)]
        return sorted(candidates, key=lambda candidate: -candidate.score)

    def _judge(
        self, name: str, start: torch.Tensor, untrained: torch.Tensor, trained: torch.Tensor
    ) -> Candidate:
        """A candidate: its clustering, int64 (N,), and its head's probabilities, (N, C) each.

        A head that lost clusters in its training is put back to its start.
        """
        sizes, before = (p.argmax(1).bincount(minlength=p.size(1)).tolist() for p in (trained, untrained))
        staying = float(normalized_mutual_info_score(start, trained.argmax(1)))
        if sizes.count(0) > before.count(0):
            trained, sizes = untrained, before
        silhouette = partitions.silhouette(self.embedded, trained.argmax(1))
        return Candidate(name, trained, silhouette, staying, sizes)


def train_heads(
    features: torch.Tensor, mined: torch.Tensor, clusters: torch.Tensor, num_clusters: int, seed: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Train a linear head from each clustering so that an image and its neighbors agree.

    Args:
        features: float32 (N, D).
        mined: int64 (N, k), neighbors.
        clusters: int64 (H, N).

    Returns:
        float32 (H, N, C) twice, probabilities before and after the training.
    """
    n, generator = len(features), torch.Generator().manual_seed(seed)
    x = features / features.square().sum(1).mean().sqrt().clamp(min=1e-12)
    start = graph.fit_heads(x, F.one_hot(clusters, num_clusters))
    weights, biases = ((HEAD_TEMPERATURE * part).requires_grad_() for part in start)  # (H, C, D), (H, C)
    criterion = TEMILoss(F.one_hot(clusters, num_clusters).sum(1).clamp(min=1) / n)
    optimizer = torch.optim.Adam([weights, biases], HEAD_RATE)

    def logits(rows: torch.Tensor) -> torch.Tensor:
        flat = F.linear(rows, weights.flatten(0, 1), biases.flatten())
        return flat.unflatten(1, biases.shape).transpose(0, 1) / HEAD_TEMPERATURE

    with torch.no_grad():
        untrained = logits(x).softmax(2)
    for _ in range(HEAD_ITERATIONS):
        anchors = torch.randperm(n, generator=generator)[:HEAD_BATCH]
        column = torch.randint(mined.size(1), (len(anchors),), generator=generator)
        loss = criterion(logits(x[anchors]), logits(x[mined[anchors, column]]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        return untrained, logits(x).softmax(2)

"""The image that stands for a cluster (SCAN, section 3.4)."""

import torch


def find_prototypes(features: torch.Tensor, probabilities: torch.Tensor, n: int = 10) -> list[int | None]:
    """Per cluster: of its n most confident images, the one nearest to their mean feature.

    A smaller cluster gives all images that it has.

    Args:
        features: of the backbone.

    Returns:
        C image indices, None for an empty cluster.
    """
    confidence, assignment = probabilities.max(1)
    prototypes: list[int | None] = []
    for cluster in range(probabilities.size(1)):
        members = (assignment == cluster).nonzero().squeeze(1)
        if len(members) == 0:
            prototypes.append(None)
            continue
        best = members[confidence[members].topk(min(n, len(members))).indices]
        candidates = features[best].float()
        distance = (candidates - candidates.mean(0)).norm(dim=1)
        prototypes.append(int(best[distance.argmin()]))
    return prototypes

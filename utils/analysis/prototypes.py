"""The image that stands for a cluster (SCAN, section 3.4)."""


def find_prototypes(features, probabilities, n=10):
    """Per cluster: of its n most confident images, the one nearest to their mean feature.

    Args:
        features: (N, D) backbone features.
        probabilities: (N, C); an image belongs to its argmax.
        n: number of images to average; a smaller cluster gives all it has.

    Returns:
        list of C image indices, None for an empty cluster.
    """
    confidence, assignment = probabilities.max(1)
    prototypes = []
    for cluster in range(probabilities.size(1)):
        members = (assignment == cluster).nonzero().squeeze(1)
        if len(members) == 0:
            prototypes.append(None)
            continue
        best = members[confidence[members].topk(min(n, len(members))).indices]
        candidates = features[best].float()
        distance = (candidates - candidates.mean(0)).norm(dim=1)
        prototypes.append(best[distance.argmin()].item())
    return prototypes

"""Neighbors, metrics, health and pictures; imports neither utils.run nor utils.training.

In this package, unless a docstring says otherwise, for N images, C clusters and K classes:

    features       float (N, D)
    probabilities  float (N, C); an image's cluster is the argmax, its confidence is the maximum
    confidence     float (N,)
    clusters       int64 (N,)
    labels         int64 (N,), the true classes
    neighbors      int64 (N, 1 + k); each row normally starts with the image itself, which does not count
    first          int64 (N,), for each image the first one with the same content, see duplicates.first_copies
    matches        pairs (cluster, class), see metrics.hungarian_match
    table          int64 (C, K), see metrics.contingency
"""

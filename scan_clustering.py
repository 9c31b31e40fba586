"""Cluster images without labels, from Python: docs/PYTHON.md."""

from estimator import ImageClusterer, cluster

__all__ = ["ImageClusterer", "cluster"]

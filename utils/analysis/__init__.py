"""Neighbors, metrics, health and pictures; imports neither utils.run nor utils.training."""

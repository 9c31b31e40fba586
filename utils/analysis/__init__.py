"""Neighbors, metrics, health and pictures: knows nothing of runs and trainings."""

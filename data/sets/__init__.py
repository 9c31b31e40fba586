"""Builders of the datasets, and of those in memory."""

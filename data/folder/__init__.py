"""Anybody's folder of images."""

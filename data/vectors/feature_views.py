"""Cached features in place of images, to train heads on a frozen backbone."""

import torch

from ..device import moved_if_it_fits, to_device


class FeatureViews:
    """Features of several augmented views of each image; each use draws one view at random.

    It has only what a Loader needs of a dataset: no labels, names or pixels.

    Args:
        views: float (V, N, D), V views of N images.
    """

    def __init__(self, views):
        self.views = views

    def __len__(self):
        return self.views.size(1)

    def to(self, device):
        """Move the features to `device` if they fit there; if not, `fetch` copies each batch."""
        self.views = moved_if_it_fits(self.views, device, f"the features of {len(self)} images")

    def fetch(self, index_batches, device, num_workers=0):
        """Yield the features of each int64 index batch, (*index.shape, D), on `device`."""
        for index in index_batches:
            view = torch.randint(len(self.views), index.shape)
            at = self.views.device
            yield self.views[to_device(view, at), to_device(index, at)].to(device, non_blocking=True)


def unchanged(features):
    """The transform of features: none."""
    return features

"""Features that are kept: of which images, and of which way to read them."""

from types import SimpleNamespace

import numpy as np
import pytest
from image_folders import config
from PIL import Image
from torch import nn

import data
from utils.training.features import backbone_features

TRANSFORM = {"crop_size": 28, "normalize": {"mean": [0.0] * 3, "std": [1.0] * 3}}
SIZES = {"transformation_kwargs": TRANSFORM, "crop_ratio": 0.875, "resize": "crop"}
READ = {"pages": "first", "channels": None, "black_level": 0}
OTHERS = {"backbone": "mean", "white_level": None, "features_file": None, "runtime": "torch"}


class Mean(nn.Module):
    """Its features are the means of the channels."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())


@pytest.mark.parametrize("other", [{"channels": [3, 2, 1]}, {"pages": "middle"}])
def test_other_channels_or_pages_of_the_same_files_have_other_features(tmp_path, other):
    first, second = (Image.new("RGB", (32, 32), color) for color in ((200, 100, 50), (50, 100, 200)))
    (tmp_path / "photos").mkdir()
    first.save(tmp_path / "photos/a.tif", save_all=True, append_images=[second, second])

    def features(**read):
        settings = config("photos", tmp_path, **SIZES, **OTHERS, **{**READ, **read})
        given = {key: value for key, value in settings.items() if value is not None}
        loader = data.eval_loader(data.build_dataset(given, "train"), given, batch_size=8)
        run = SimpleNamespace(config=SimpleNamespace(**settings), folder=tmp_path, main=True)
        return backbone_features(run, tmp_path, Mean().eval(), loader, "features").clone()

    before, after = features(), features(**other)
    np.testing.assert_allclose(after, before.flip(1), atol=1e-6)
    assert len(list(tmp_path.glob("features-*.npy"))) == 2

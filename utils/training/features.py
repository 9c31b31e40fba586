"""Features of a frozen backbone, computed once and kept in a file for the steps that follow."""

import hashlib
import json
from contextlib import nullcontext

import numpy as np
import torch

from utils.files import atomic
from utils.run import distributed
from utils.run.config import to_dict
from utils.run.identity import of_backbone

from .inference import infer


def backbone_features(run, folder, model, loader, title):
    """The backbone's features of all images of an evaluation loader, in float32.

    They are read from a file if an earlier run computed them: with these weights, of these images, with this
    evaluation transform.

    Args:
        run: the Run.
        folder: pathlib.Path of the pretext step's results, which holds the files.
        model: on the run's device, with its backbone in eval mode.
        loader: batches of a split, in order.
        title: for the progress bar.

    Returns:
        float32 (N, D), not normalized, mapped from the file.

    Raises:
        UserError: features that are not finite, or a full disk.
    """
    made_of = (
        of_backbone(model.state_dict()),
        loader.dataset.fingerprint(),
        to_dict(run.config.transformation_kwargs),
        run.config.get("resize"),
    )
    name = hashlib.sha256(json.dumps(made_of).encode()).hexdigest()[:16]
    path = folder / f"features-{name}.npy"
    if not path.exists():
        with atomic(path) if run.main else nullcontext(path) as file:
            infer(model.backbone, loader, title, file)
        distributed.barrier()
    return torch.from_numpy(np.load(path, mmap_mode="r+"))  # "r+": see infer

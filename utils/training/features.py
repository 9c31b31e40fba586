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

FOLDER = "features"  # beside the folders of the steps


def backbone_features(run, model, loader, title):
    """The backbone's features of all images of an evaluation loader, in float32.

    They are read from a file if an earlier step computed them: with these weights, of these images, with this
    evaluation transform.

    Args:
        run: the Run.
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
    path = run.folder.parent / FOLDER / f"{name}.npy"
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        with atomic(path) if run.main else nullcontext(path) as file:
            infer(model.backbone, loader, title, file)
        distributed.barrier()
    return torch.from_numpy(np.load(path, mmap_mode="r+"))  # "r+": see infer

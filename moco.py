"""Step 1 for ImageNet: take the official MoCo v2 weights as the pretext model, then mine neighbors.

python moco.py --config_exp configs/pretext/moco_imagenet50.yml [--pretrained moco_v2_800ep_pretrain.pth.tar]
"""

import hashlib
import logging
from http.client import HTTPException
from pathlib import Path
from typing import cast

import torch

from errors import UserError
from models import ContrastiveModel, build_model
from steps.mining import mine, pretext_splits
from steps.options import StepOptions, open_run
from utils.run import distributed
from utils.run.config import Config, load_config
from utils.run.fingerprint import Fingerprint
from utils.run.script import parse_arguments, run_script
from utils.run.weights import load_weights, read_weights
from utils.training import resume

log = logging.getLogger("moco")

URL = "https://dl.fbaipublicfiles.com/moco/moco_checkpoints/moco_v2_800ep/moco_v2_800ep_pretrain.pth.tar"
MD5 = "a04e12f8"  # the first eight digits, which the authors publish beside the link


def main(argv: list[str] | None = None) -> None:
    help_ = "the official checkpoint, or one of this step (default: download the official)"
    args = parse_arguments(argv, __doc__, pretrained_help=help_)
    run_step(load_config(args, ["moco"], training=False), StepOptions.from_arguments(args))


def run_step(config: Config, options: StepOptions) -> None:
    """Take given weights as the pretext model, and mine the neighbors of both splits."""
    run = open_run(config, "pretext", options)
    model = cast(ContrastiveModel, build_model(config))
    with distributed.main_first():
        source = options.pretrained or download_checkpoint()
    weights, _ = read_weights(source, ["moco", "pretext"])
    load_weights(model, convert(weights), source)
    model = run.machine.place(model)
    splits = pretext_splits(run, model, options)
    fingerprint = Fingerprint(config, splits.datasets)
    resume.use_given_weights(run, fingerprint, source, model)
    mine(run, fingerprint, model, splits, source)


def download_checkpoint() -> Path:
    """Fetch the official checkpoint into torch.hub's cache folder, once; returns its path."""
    path = Path(torch.hub.get_dir()) / "checkpoints" / URL.rsplit("/", 1)[1]
    if not path.is_file():
        log.info("downloading %s to %s", URL, path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(URL, str(path))
            with open(path, "rb") as file:
                found = hashlib.file_digest(file, "md5").hexdigest()
            if not found.startswith(MD5):
                raise UserError(f"its MD5 sum is {found[:8]}..., not {MD5}...")
        except (OSError, HTTPException, UserError) as error:
            path.unlink(missing_ok=True)  # the next run must not find a partial file
            raise UserError(
                f"{URL}: cannot be downloaded ({error}); give the file with --pretrained"
            ) from None
    return path


def convert(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Official MoCo v2 state dict -> that of our ContrastiveModel, without the key encoder and the queue.

    Any other state dict is returned unchanged.
    """
    prefix = "encoder_q."
    converted = {}
    for key, value in weights.items():
        if key.startswith(prefix):
            name = key.removeprefix(prefix)
            head = name.startswith("fc.")
            converted["contrastive_head." + name[3:] if head else "backbone." + name] = value
    return converted or weights


if __name__ == "__main__":
    run_script(main)

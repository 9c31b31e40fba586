"""Step 1 for ImageNet: take the official MoCo v2 weights as the pretext model, then mine neighbors.

python moco.py --config_exp configs/pretext/moco_imagenet50.yml [--pretrained moco_v2_800ep_pretrain.pth.tar]
"""

import logging
from pathlib import Path

import torch

import data
from errors import UserError
from eval import evaluate_neighbors, pretext_features
from models import build_model
from utils import checkpoint, engine, neighbors
from utils.config import load_config, parse_arguments
from utils.run import Run, results_folder, run_script

log = logging.getLogger("moco")

URL = "https://dl.fbaipublicfiles.com/moco/moco_checkpoints/moco_v2_800ep/moco_v2_800ep_pretrain.pth.tar"


def main(argv=None):
    args = parse_arguments(argv, __doc__, add_arguments)
    config = load_config(args, ["moco"])
    run = Run(config, results_folder(config, "pretext"))

    model = build_model(config)
    source = args.pretrained or download()
    checkpoint.load_weights(model, convert(checkpoint.load(source), source), source)
    run.save_config()
    checkpoint.save(model.state_dict(), run.folder / "model.pth.tar")
    features = pretext_features(run.place(model).eval(), config.setup)

    evaluation = data.PlainView(data.build_eval_transform(config))
    loading = {"batch_size": config.batch_size, "device": run.device, "num_workers": config.num_workers}
    for split, name, k in (("train", "train", 50), ("test", "val", 5)):
        images = data.build_dataset(config, split)
        neighbors.require_enough(len(images), k)
        found = engine.infer(features, data.Loader(images, evaluation, train=False, **loading), split)
        neighbors.mine_and_save(found, images.labels, k, run.folder / f"topk-{name}-neighbors.npy")
    if images.labels is not None:
        about = {"setup": config.setup, "dataset": config.val_db_name, "split": "test"}
        evaluate_neighbors(run, found, images.labels, about)


def add_arguments(parser):
    parser.add_argument("--pretrained", help="the official checkpoint file (default: download it)")


def download():
    """Fetch the official checkpoint into torch.hub's cache folder, once; returns its path."""
    path = Path(torch.hub.get_dir()) / "checkpoints" / URL.rsplit("/", 1)[1]
    if not path.is_file():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(URL, str(path))
        except OSError as error:
            raise UserError(
                f"{URL}: cannot be downloaded ({error}); give the file with --pretrained"
            ) from None
    return path


def convert(official, source):
    """Official MoCo v2 checkpoint -> state dict of our ContrastiveModel; the rest is left out."""
    prefix = "module.encoder_q."
    weights = official.get("state_dict", {}) if isinstance(official, dict) else {}
    converted = {}
    for key, value in weights.items():
        if key.startswith(prefix):
            name = key.removeprefix(prefix)
            head = name.startswith("fc.")
            converted["contrastive_head." + name[3:] if head else "backbone." + name] = value
    if not converted:
        raise UserError(f"{source}: not an official MoCo v2 checkpoint (no state_dict with {prefix}*)")
    return converted


if __name__ == "__main__":
    run_script(main)

"""The final model of a results folder in formats that other programs read.

python export.py results/PHOTOS [--input float] [--output DIR]

model.onnx: squares in, the clusters' probabilities out; normalization is inside, a batch has any size. It is
compared with the model before it is kept. model.safetensors: the weights. model.json: what another program
needs to know to use either of them. docs/PREDICT.md says more.
"""

import argparse
import importlib.util
import json
import logging
import os
import platform
import tempfile
import warnings
from importlib import metadata
from pathlib import Path

import numpy as np
import torch
from torch import nn

import data
from data.augment.transforms import center_crop
from errors import UserError
from predict import load_trained, read_names
from utils.files import write_json
from utils.run import distributed
from utils.run.machine import dtype_name
from utils.run.script import file_argument, run_script

PACKAGES = ("onnx", "onnxruntime", "onnxscript", "safetensors")
FILES = ("model.onnx", "model.safetensors", "model.json")
FORMAT = "scan-clusters-1"  # in model.json
TOLERANCE = 1e-4  # largest difference of a probability
LARGE = 1.5e9  # bytes of weights, which go to a file of their own: an ONNX file is limited to 2 GB
REAL = 16  # images that the comparison reads, if the training images are there


def main(argv=None):
    args = read_arguments(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    require_packages()
    from safetensors.torch import save

    trained = load_trained(args.results)
    names = args.results / "names.csv"
    names = read_names(names, trained.config.num_classes) if names.exists() else None
    output = args.output or args.results / "export"
    require_replaceable(output)
    network = Probabilities(trained, args.input).eval()
    inputs = [*random_inputs(trained), *real_inputs(trained)]
    if args.input == "float" and trained.width is None:
        inputs = [images.float() / 255 for images in inputs]
    try:
        output.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=output, prefix=".export-") as scratch:
            scratch = Path(scratch)
            write_onnx(network, inputs[0], scratch / "model.onnx")
            difference = compare(network, inputs, scratch / "model.onnx")
            (scratch / "model.safetensors").write_bytes(save(weights_of(trained), {"format": "pt"}))
            about = describe(trained, network, inputs[0], names, difference)
            write_json(about, scratch / "model.json")
            for path in sorted(scratch.iterdir(), key=lambda path: path.name == "model.json"):
                os.replace(path, output / path.name)  # model.json last
    except OSError as error:
        raise UserError(
            f"{output}: cannot be written ({error.strerror}); free some space, or give another --output"
        ) from None
    print(f"largest difference from torch: {difference:.1e}, on {sum(map(len, inputs))} inputs")
    print(*(output / name for name in FILES), sep="\n")


def read_arguments(argv):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "results", metavar="RESULTS", type=file_argument, help="results/NAME, or the folder of a step in it"
    )
    parser.add_argument(
        "--output", metavar="DIR", type=file_argument, help="folder for the files (default: RESULTS/export)"
    )
    parser.add_argument(
        "--input",
        choices=["uint8", "float"],
        default="uint8",
        help="values of the ONNX file's images: uint8, 0 to 255, or float32, 0 to 1 (default: %(default)s)",
    )
    args = parser.parse_args(argv)
    distributed.require_one_process("export.py")
    return args


def require_packages():
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"export.py needs packages that are not installed: pip install {' '.join(missing)}")


def require_replaceable(output):
    """Raise UserError if a file would be overwritten that is not of an earlier export."""
    there = [name for name in FILES if os.path.lexists(output / name)]
    try:
        own = json.loads((output / "model.json").read_text())["format"] == FORMAT
    except (OSError, ValueError, KeyError, TypeError):
        own = False
    if there and not own:
        raise UserError(f"{output / there[0]}: exists and is not from export.py; give another --output")


# --- the network ---------------------------------------------------------------------------------


class Probabilities(nn.Module):
    """What is exported: squares -> probabilities (N, C) of the best head.

    Args:
        trained: predict.Trained.
        input_: "uint8", images (N, 3, S, S) of 0 to 255, or "float", of 0 to 1. For a model of features,
            vectors (N, D).
    """

    def __init__(self, trained, input_):
        super().__init__()
        self.backbone = trained.model.backbone
        self.head = trained.model.cluster_head[trained.head]
        self.name = "features" if trained.width else "images"
        if trained.width is None:
            normalize = trained.config.transformation_kwargs.normalize
            mean, std = (torch.tensor(normalize[key]).view(3, 1, 1) for key in ("mean", "std"))
            self.register_buffer("scale", 1 / ((255 if input_ == "uint8" else 1) * std))
            self.register_buffer("shift", -mean / std)

    def forward(self, inputs):
        if self.name == "images":
            inputs = inputs.float() * self.scale + self.shift
        return self.head(self.backbone(inputs)).softmax(1)


# --- writing -------------------------------------------------------------------------------------


def write_onnx(network, example, path):
    """Write the network as an ONNX graph, whose first dimension is free."""
    size = sum(tensor.nbytes for tensor in network.state_dict().values())
    batch = {0: torch.export.Dim("N")}
    with warnings.catch_warnings(action="ignore"):  # of the exporter's own future
        torch.onnx.export(
            network,
            (example,),
            path,
            input_names=[network.name],
            output_names=["probabilities"],
            dynamic_shapes=(batch,),
            dynamo=True,
            external_data=size > LARGE,
            verbose=False,
        )


def compare(network, inputs, path):
    """Largest difference between the file's probabilities and the network's on a list of batches.

    Raises UserError if it is above TOLERANCE.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    differences = []
    for batch in inputs:
        (found,) = session.run(None, {network.name: batch.numpy()})
        with torch.no_grad():
            differences.append((torch.from_numpy(found) - network(batch)).abs().max())
    largest = torch.stack(differences).max().item()
    if not largest <= TOLERANCE:
        raise UserError(
            f"the ONNX file's probabilities differ from torch's by {largest:.1e}, more than {TOLERANCE:g}; "
            "nothing was written; try other versions of torch, onnxscript or onnxruntime"
        )
    return largest


def random_inputs(trained):
    """Batches of several sizes: noise, and smooth images, which are nearer to real ones."""
    random = torch.Generator().manual_seed(0)
    if trained.width:
        return [torch.randn(n, trained.width, generator=random) for n in (2, 1, 7)]
    side = trained.config.transformation_kwargs.crop_size
    noise = torch.rand(2, 3, side, side, generator=random)
    smooth = [torch.rand(n, 3, 3, 3, generator=random) for n in (1, 7)]
    smooth = [nn.functional.interpolate(images, size=side, mode="bilinear") for images in smooth]
    return [(255 * images).byte() for images in (noise, *smooth)]


def real_inputs(trained):
    """A batch of a few training images, if their folder is there, else none."""
    config = trained.config
    if trained.width:
        return []
    folder = Path(config.get("image_folder") or Path(config.data_dir, config.train_db_name)).expanduser()
    try:
        files, _ = data.list_images(folder, but=(config.root_dir, trained.folder.parent, trained.folder))
    except UserError:  # no such folder, or it is empty
        return []
    some = files[:: max(1, len(files) // REAL)][:REAL]
    squares = torch.cat([part[1] for part in trained.stream(some)])
    return [center_crop(squares, config.transformation_kwargs.crop_size)] if len(squares) else []


def weights_of(trained):
    """State dict of the model with its best head only, as of a ClusteringModel with one head."""
    head = f"cluster_head.{trained.head}."
    weights = {}
    for key, value in trained.model.state_dict().items():
        if key.startswith(("backbone.", head)):
            weights[key.replace(head, "cluster_head.0.")] = value.contiguous()
    return weights


def describe(trained, network, example, names, difference):
    """What model.json says."""
    config = trained.config
    about = {
        "format": FORMAT,
        "onnx": {
            "file": "model.onnx",
            "input": tensor(network.name, example.dtype, ("N", *example.shape[1:])),
            "output": tensor("probabilities", torch.float32, ("N", config.num_classes)),
            "largest_difference_from_torch": difference,
        },
        "safetensors": {
            "file": "model.safetensors",
            "keys": "backbone.*: the backbone; cluster_head.0.weight (C, D) and .bias (C,): softmax(weight @ "
            "features + bias) are the probabilities",
        },
        "setup": config.setup,
        "trained_on": config.train_db_name,
        "backbone": config.backbone,
        "num_clusters": config.num_classes,
        "names": names,
        "head": trained.head,
        "versions": {
            "python": platform.python_version(),
            "numpy": np.__version__,
            **{name: metadata.version(name) for name in ("torch", *PACKAGES)},
        },
    }
    if trained.width is None:
        transformation = config.transformation_kwargs
        about |= {
            "crop_size": transformation.crop_size,
            "resize": config.get("resize", "crop"),
            "side": trained.side,
            "white_level": trained.white_level,
            **transformation.normalize,
            "images": "RGB, upright, transparency on white, 16 bits from 0 to `white_level` (null: not "
            "known); resized (with resize: crop, the shorter side to "
            "`side` pixels, bilinear, with antialiasing); the central square of `crop_size` pixels is "
            "the input of the ONNX file; the weights alone take (x - mean) / std of x from 0 to 1",
        }
    return about


def tensor(name, dtype, shape):
    return {"name": name, "dtype": dtype_name(dtype), "shape": shape}


if __name__ == "__main__":
    run_script(main, "nothing was written")

"""The final model of a results folder in formats that other programs read.

python export.py results/PHOTOS [--input float] [--output DIR]

model.onnx: images in, the clusters' probabilities out; normalization is inside, a batch has any size. It is
compared with the model before it is kept. model.safetensors: the weights. model.json: what another program
needs to know to use either of them. docs/PREDICT.md says more.
"""

import importlib.util
import logging
import os
import platform
import tempfile
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import nn

from errors import UserError
from steps.load_model import keep_head
from utils.files import read_json, write_json, writing
from utils.run.machine import dtype_name
from utils.run.processes import require_one_process
from utils.run.script import add_version, file_argument, run_script
from utils.training.runtimes import ONNX_PACKAGES, write_onnx
from workflows.cluster_names import read_names
from workflows.trained_model import TrainedModel, load_trained_model

PACKAGES = (*ONNX_PACKAGES, "safetensors")
EXPORTED = ("model.onnx", "model.safetensors", "model.json")
FORMAT = "scan-clusters-1"  # in model.json
TOLERANCE = 1e-4  # largest difference of a probability


def main(argv: list[str] | None = None) -> None:
    args = read_arguments(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    require_packages()
    from safetensors.torch import save

    trained = load_trained_model(args.results)
    file = args.results / "names.csv"
    names = read_names(file, trained.num_clusters, trained.clustering) if file.exists() else None
    output = args.output or args.results / "export"
    require_own_export(output)
    network = Probabilities(trained, args.input).eval()
    inputs = random_inputs(trained)
    if args.input == "float" and trained.vector_width is None:
        inputs = [images.float() / 255 for images in inputs]
    weights = keep_head(trained.model.state_dict(), trained.head)
    weights = {key: value.contiguous() for key, value in weights.items()}
    with writing(output, "give another --output"):
        output.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=output, prefix=".export-") as name:
            scratch = Path(name)
            write_onnx(network, inputs[0], scratch / "model.onnx", (network.name, "probabilities"))
            difference = largest_difference(network, inputs, scratch / "model.onnx")
            (scratch / "model.safetensors").write_bytes(save(weights, {"format": "pt"}))
            content = description(trained, network.name, inputs[0], names, difference)
            write_json(content, scratch / "model.json")
            for path in sorted(scratch.iterdir(), key=lambda path: path.name == "model.json"):
                os.replace(path, output / path.name)  # model.json last
    print(f"largest difference from torch: {difference:.1e}, on {sum(map(len, inputs))} inputs")
    print(*(output / name for name in EXPORTED), sep="\n")


def read_arguments(argv: list[str] | None) -> Namespace:
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("results", metavar="RESULTS", type=file_argument, help="results/NAME, or the folder of a step in it")
    add("--output", metavar="DIR", type=file_argument, help="folder for the files (default: RESULTS/export)")
    add(
        "--input", choices=["uint8", "float"], default="uint8",
        help="values of the ONNX file's images: uint8, 0 to 255, or float32, 0 to 1 (default: %(default)s)",
    )  # fmt: skip
    add_version(parser)
    args = parser.parse_args(argv)
    require_one_process("export.py")
    return args


def require_packages() -> None:
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"export.py needs packages that are not installed: pip install {' '.join(missing)}")


def require_own_export(output: Path) -> None:
    """Raise UserError if a file would be overwritten that is not of an earlier export."""
    there = [name for name in EXPORTED if os.path.lexists(output / name)]
    if there and read_json(output / "model.json").get("format") != FORMAT:
        raise UserError(f"{output / there[0]}: exists and is not from export.py; give another --output")


# --- the network ---------------------------------------------------------------------------------


class Probabilities(nn.Module):
    """What is exported: images -> probabilities (N, C) of the best head.

    Args:
        trained: the model.
        values: "uint8", images (N, 3, S, S) of 0 to 255, or "float", of 0 to 1. A model of features takes
            vectors (N, D) instead.
    """

    scale: torch.Tensor
    shift: torch.Tensor

    def __init__(self, trained: TrainedModel, values: str) -> None:
        super().__init__()
        self.backbone = trained.model.backbone
        self.head = trained.model.cluster_head[trained.head]
        self.name = "features" if trained.vector_width else "images"
        if trained.vector_width is None:
            normalize = trained.config.transformation_kwargs.normalize
            mean, std = (torch.tensor(normalize[key]).view(3, 1, 1) for key in ("mean", "std"))
            self.register_buffer("scale", 1 / ((255 if values == "uint8" else 1) * std))
            self.register_buffer("shift", -mean / std)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        if self.name == "images":
            inputs = inputs.float() * self.scale + self.shift
        return self.head(self.backbone(inputs)).softmax(1)


# --- the comparison ------------------------------------------------------------------------------


def largest_difference(network: Probabilities, inputs: list[torch.Tensor], path: Path) -> float:
    """Largest difference between the file's probabilities and the network's on some batches.

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


def random_inputs(trained: TrainedModel) -> list[torch.Tensor]:
    """Batches of several sizes: noise, and smooth images, which are nearer to real ones."""
    random = torch.Generator().manual_seed(0)
    if trained.vector_width:
        return [torch.randn(n, trained.vector_width, generator=random) for n in (2, 1, 7)]
    side = trained.config.transformation_kwargs.crop_size
    noise = torch.rand(2, 3, side, side, generator=random)
    smooth = [torch.rand(n, 3, 3, 3, generator=random) for n in (1, 7)]
    smooth = [nn.functional.interpolate(images, size=side, mode="bilinear") for images in smooth]
    return [(255 * images).byte() for images in (noise, *smooth)]


# --- model.json ----------------------------------------------------------------------------------


def description(
    trained: TrainedModel, name: str, example: torch.Tensor, names: list[str] | None, difference: float
) -> dict[str, Any]:
    """The content of model.json; `name`: of the network's input, `example`: such an input."""
    config = trained.config
    shape = ("N", *example.shape[1:])
    content = {
        "format": FORMAT,
        "onnx": {
            "file": "model.onnx",
            "input": {"name": name, "dtype": dtype_name(example.dtype), "shape": shape},
            "output": {"name": "probabilities", "dtype": "float32", "shape": ("N", trained.num_clusters)},
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
        "num_clusters": trained.num_clusters,
        "clustering": trained.clustering,
        "names": names,
        "head": trained.head,
        "versions": {
            "python": platform.python_version(),
            **{name: metadata.version(name) for name in ("numpy", "torch", *PACKAGES)},
        },
    }
    if trained.vector_width is None:
        transformation = config.transformation_kwargs
        content |= {
            "crop_size": transformation.crop_size,
            "resize": config.resize,
            "side": trained.side,
            "white_level": trained.white_level,
            **transformation.normalize,
            "images": "RGB, upright, transparency on white, 16 bits from 0 to `white_level` (null: not "
            "known); resized (with resize: crop, the shorter side to "
            "`side` pixels, bilinear, with antialiasing); the central square of `crop_size` pixels is "
            "the input of the ONNX file; the weights alone take (x - mean) / std of x from 0 to 1",
        }
    return content


def command() -> None:
    run_script(main, "nothing was written")


if __name__ == "__main__":
    command()

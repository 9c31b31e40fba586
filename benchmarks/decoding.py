"""Large photos: how fast the plain way decodes them, and ours, in the first epoch and in the later ones.

python benchmarks/decoding.py [--photos 48] [--megapixels 12] [--side 256]

The photos are JPEGs made on the fly, of smooth areas, finer structures and noise, about as large as a
camera's. The plain way opens, converts and resizes each of them in every epoch. Ours decodes them at a
reduced scale, in one worker process per core, writes the squares to a file, and has them from then on. All
ways take turns, and the fastest of their rounds counts. The table is also written to --output as JSON.
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))

import data
from data.folder import decode_pass
from data.folder.decode import ResizeSpec, decode_image
from utils.files import write_json

ROUNDS = 3


def photo(seed, width, height):
    """A picture with as much detail as a photo, roughly."""
    rng = np.random.default_rng(seed)

    def structure(pixels, strength):
        shape = height // pixels, width // pixels, 3
        image = Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8))
        return strength * (
            np.asarray(image.resize((width, height), Image.Resampling.BICUBIC), np.float32) - 128
        )

    image = 128 + structure(200, 1) + structure(30, 0.4) + structure(8, 0.25)
    image += rng.normal(0, 3, (height, width, 1)).astype(np.float32)
    return Image.fromarray(image.clip(0, 255).astype(np.uint8))


def plain(files, side):
    """Yield the squares, uint8 (side, side, 3)."""
    for path in files:
        with Image.open(path) as image:
            image = image.convert("RGB")
            short = min(image.size)
            image = image.resize([side * length // short for length in image.size], Image.Resampling.BILINEAR)
        left, top = ((length - side) // 2 for length in image.size)
        yield np.asarray(image.crop((left, top, left + side, top + side)))


def reduced(files, side):
    for path in files:
        yield decode_image(path, ResizeSpec(side), 65535)[0]


def epochs(config, many):
    """Seconds of the first epoch, with everything that a step does before it, and of a later one."""
    decode_pass._finished.clear()
    start = time.perf_counter()
    images = data.build_dataset(config, "train")
    once(images)
    first = time.perf_counter() - start
    start = time.perf_counter()
    for _ in range(many):
        once(images)
    return first, (time.perf_counter() - start) / many


def once(images):
    for _ in images.fetch(torch.randperm(len(images)).split(16), "cpu"):
        pass


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--photos", type=int, default=48)
    parser.add_argument("--megapixels", type=float, default=12)
    parser.add_argument("--side", type=int, default=256, help="of the squares")
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--output", default="results/benchmarks/decoding.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    height = round((args.megapixels * 1e6 * 3 / 4) ** 0.5)
    with tempfile.TemporaryDirectory() as folder:
        photos = Path(folder) / "photos"
        photos.mkdir()
        for seed in range(args.photos):
            photo(seed, height * 4 // 3, height).save(photos / f"{seed:04}.jpg", quality=90)
        files = sorted(map(str, photos.iterdir()))
        size = sum(map(os.path.getsize, files)) / len(files)
        seconds = measure(files, folder, args)
    rates = {way: args.photos / taken for way, taken in seconds.items()}
    about = {
        "photos": args.photos, "megapixels": args.megapixels, "MB per photo": size / 1e6, "side": args.side,
        "worker processes": args.workers,
    }  # fmt: skip
    print(", ".join(f"{key}: {value:.3g}" for key, value in about.items()))
    for way, rate in rates.items():
        print(f"{way:48}{rate:>10,.4g} images/s{rate / rates['plain']:>10.3g}x")
    Path(args.output).parent.mkdir(parents=True, exist_ok=True)
    ratios = {way: rate / rates["plain"] for way, rate in rates.items()}
    write_json({**about, "images per second": rates, "ratio": ratios}, Path(args.output))
    print(args.output)


def measure(files, folder, args):
    """Seconds that all photos take, the least of ROUNDS, for each way."""
    config = {
        "train_db_name": "photos", "image_folder": f"{folder}/photos", "num_workers": args.workers,
        "transformation_kwargs": {"crop_size": round(args.side * 224 / 256)},
    }  # fmt: skip
    taken = {}

    def note(way, seconds):
        taken.setdefault(way, []).append(seconds)

    for number in range(ROUNDS):
        for way, function in (("plain", plain), ("reduced scale", reduced)):
            start = time.perf_counter()
            for _ in function(files, args.side):
                pass
            note(way, time.perf_counter() - start)
        first, later = epochs({**config, "root_dir": f"{folder}/{number}"}, 20)
        note(f"first epoch: and {args.workers} processes, hashes, a file", first)
        note("later epochs: from memory", later)
        again, _ = epochs({**config, "root_dir": f"{folder}/{number}"}, 1)
        note("first epoch of a later step: from the file", again)
        seconds = {way: min(values) for way, values in taken.items()}
    ten = [way for way in seconds if way.startswith(("first epoch:", "later"))]
    seconds["ten epochs, each"] = (seconds[ten[0]] + 9 * seconds[ten[1]]) / 10
    return seconds


if __name__ == "__main__":
    main()

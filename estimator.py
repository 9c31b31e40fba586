"""cluster.py and predict.py in the manner of scikit-learn: docs/PYTHON.md."""

import importlib
import math
import os
import re
import shutil
import subprocess
import sys
import tempfile
from contextlib import suppress
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from PIL import Image, ImageOps
from sklearn.base import BaseEstimator, ClusterMixin
from sklearn.utils.validation import check_is_fitted, validate_data

import data
from data.csv_tables import read_table
from data.messages import shown
from errors import UserError
from predict import batches, classifier, find_images
from workflows.final_head import TABLE
from workflows.trained_model import load_trained_model


@dataclass(eq=False, repr=False)
class ImageClusterer(ClusterMixin, BaseEstimator):
    """Clusters of images, as cluster.py finds them. Bad input raises UserError or another ValueError.

    Images are a folder, or what else the command takes; a list of paths or of PIL images; or an array, uint8
    (N, H, W, 3) or (N, H, W). Vectors in their place are numbers (N, D).

    `labels_` and `confidence_`, (N,), are -1 and NaN where there is no cluster; `folder_` has the results.
    """

    n_clusters: int | str = "auto"
    _: KW_ONLY
    backbone: str | None = None  # network whose features are clustered; None: DINOv2, downloaded once
    from_scratch: bool = False  # learn the features from these images alone
    random_state: int = 0
    results: str | Path | None = None  # folder for them; None: a temporary one, which goes with this object
    verbose: bool = False  # print what the command prints
    options: list[str] | None = None  # other ones of the command: ["--size", "96", "--set", "num_workers=0"]

    def fit(self, images: Any, y: object = None) -> Self:
        """Find the clusters of at least 21 different images."""
        images = self._checked(images, 21)
        temporary = tempfile.TemporaryDirectory(prefix="scan-")
        self._temporary = None if self.results else temporary
        folder = Path(self.results or f"{temporary.name}/clusters").expanduser().absolute()
        folder.mkdir(parents=True, exist_ok=True)
        source, files = write_images(images, folder)
        argv = [source, "--clusters", self.n_clusters, "--seed", self.random_state, "--retrain"]
        argv += ["--root_dir", folder.parent, "--name", folder.name]
        argv += ["--from-scratch"] * self.from_scratch + ["--backbone", self.backbone] * bool(self.backbone)
        if getattr(images, "ndim", 0) == 2:
            np.save(folder / "given.npy", images)
            argv += ["--features", folder / "given.npy", "--set", "transformation_kwargs.crop_size=32"]
        run_command([*argv, *(self.options or ())], self.verbose)
        names = dict(zip(*data.images_of([source])[:2], strict=True)) if files else {}
        return self._read(folder, [shown(names.get(file, file)) for file in files])

    def predict(self, images: Any) -> np.ndarray:
        """The clusters of new images, as `labels_`; those of a folder in the order of their paths."""
        probabilities = self.predict_proba(images)
        return np.where(np.isnan(probabilities[:, 0]), -1, probabilities.argmax(1))

    def predict_proba(self, images: Any) -> np.ndarray:
        """The clusters' probabilities for new images, (N, C); NaN where there is no cluster."""
        check_is_fitted(self, "labels_")
        images, device = self._checked(images), "cuda" if torch.cuda.is_available() else "cpu"
        exactly = torch.backends.cudnn.flags(enabled=True, allow_tf32=False)
        with tempfile.TemporaryDirectory() as temporary, torch.random.fork_rng([]), exactly:
            source, files = Path(temporary, "given.npy"), list[Any]()
            if getattr(images, "ndim", 0) == 2:
                np.save(source, images)
            else:
                source, files = write_images(images, Path(temporary))
            trained = load_trained_model(self.folder_)
            new = find_images(source, trained, self.folder_)
            classify = classifier(trained, torch.device(device), len(new.files))
            found = dict.fromkeys(files or new.files, [np.nan] * trained.num_clusters)
            for some, inputs, unreadable in batches(new, 0, 64):
                rows = classify(inputs)[0].tolist() if len(inputs) else ()
                found |= zip((file for file in some if file not in unreadable), rows, strict=True)
        return np.array([found[file] for file in files or new.files])

    @property
    def table(self) -> Any:
        """file, cluster, confidence, name: a data frame of pandas, or of polars, or a list of dicts."""
        for library in ("pandas", "polars"):
            with suppress(ImportError):
                return importlib.import_module(library).DataFrame(self._rows)
        return self._rows

    def show(self) -> Path | None:
        """Display an image of each cluster, in a notebook; elsewhere return the picture's path."""
        if "ipykernel" not in sys.modules:
            return self.folder_ / "prototypes.png"
        display = importlib.import_module("IPython.display").display
        return display(Image.open(self.folder_ / "prototypes.png"))

    def save(self, folder: str | Path) -> None:
        """Copy the results to a new folder, without decoded images. Raises FileExistsError if it is there."""
        shutil.copytree(self.folder_, Path(folder).expanduser(), ignore=shutil.ignore_patterns("images"))

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """What `save` or cluster.py wrote, to predict; `labels_` are in the order of clusters.csv."""
        return cls(results=folder)._read(Path(folder).expanduser().absolute())

    def _read(self, folder: Path, names: list[str] | None = None) -> Self:
        table = read_table(folder / TABLE, ("file", "cluster", "confidence"), ("name",))
        found: dict[str, dict] = {row["file"]: row for _, row in table}
        none = {"cluster": -1, "confidence": "nan", "name": ""}
        self._rows = [{**found.get(name, none), "file": name} for name in names or found]
        for row in self._rows:
            row |= {"cluster": int(row["cluster"]), "confidence": float(row["confidence"])}
        self.folder_, self.labels_ = folder, np.array([row["cluster"] for row in self._rows])
        self.confidence_ = np.array([row["confidence"] for row in self._rows])
        return self

    def _checked(self, images: Any, fewest: int = 0) -> Any:
        """Images as they are, vectors as float32 (N, D). `fewest`: of vectors to fit to."""
        some = images[0] if isinstance(images, list) and images else images
        pixels = (
            getattr(images, "dtype", None) == np.uint8 and images.shape[2:] and images.shape[3:] in ((), (3,))
        )
        if pixels or isinstance(some, str | Path | Image.Image):
            return images
        return validate_data(self, images, dtype=np.float32, reset=fewest > 0, ensure_min_samples=fewest or 1)


def cluster(images: Any, clusters: int | str = "auto", **parameters: Any) -> ImageClusterer:
    """A fitted ImageClusterer."""
    return ImageClusterer(clusters, **parameters).fit(images)


def run_command(argv: list[Any], verbose: bool) -> None:
    """Run cluster.py in a process of its own, since it sets up logging, signals, threads and random numbers.

    Raises UserError with its message or, for what is no mistake of the user, RuntimeError.
    """
    command = [sys.executable, Path(__file__).with_name("cluster").with_suffix(".py"), *argv]
    out = None if verbose else subprocess.DEVNULL
    done = subprocess.run(list(map(str, command)), stdout=out, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        error = re.search(r"^(\S+: )?error: (.*)\Z", done.stderr.strip(), re.MULTILINE)
        raise UserError(error[2]) if error else RuntimeError(done.stderr)


def write_images(images: Any, folder: Path) -> tuple[Path, list[str]]:
    """A source for the commands, and the path of each image; of none if the images are a source already."""
    if isinstance(images, str | Path):
        return Path(images).expanduser().absolute(), []
    if isinstance(images[0], str | Path):
        files = [os.path.abspath(Path(path).expanduser()) for path in images]
        (folder / "given.txt").write_text("\n".join(files), "utf-8", "surrogateescape")
        return folder / "given.txt", files
    source = folder / "given"
    shutil.rmtree(source, ignore_errors=True)
    source.mkdir()
    files = [os.path.join(source, f"{number:07}.png") for number in range(len(images))]
    for file, image in zip(files, images, strict=True):
        if getattr(image, "ndim", 0) == 1:  # a vector becomes its bytes: only equal ones are copies
            side = math.isqrt(image.nbytes - 1) + 1
            image = np.resize(np.frombuffer(image.tobytes(), np.uint8), (side, side))
        picture = Image.fromarray(image) if isinstance(image, np.ndarray) else ImageOps.exif_transpose(image)
        picture.save(file, compress_level=1)
    return source, files

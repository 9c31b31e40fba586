"""The cluster of each new image, by a trained model: a table and, if asked for, a folder per cluster.

python predict.py results/PHOTOS NEW_IMAGES [--names names.csv] [--unsure 0.8] [--unlike 99] [--sort-into DIR]

RESULTS is the folder of a dataset's results, of which the last step's model is used, or the folder of a step.
NEW_IMAGES is a folder, read with everything below it, an image, or a text file of paths. The training images
are not needed. docs/PREDICT.md says more.
"""

import itertools
import logging
import os
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

import data
from data.messages import shown
from errors import UserError
from utils.analysis.unlikeness import unlike_text
from utils.files import read_json, write_csv, write_json, write_parquet, writing
from utils.run import machine
from utils.run.checks import DEVICE
from utils.run.folder import TRAINING_FEATURES
from utils.run.processes import require_one_process
from utils.run.script import add_version, file_argument, run_script
from utils.training.runtimes import fastest_features
from workflows.cluster_names import ClusterNames, cluster_names
from workflows.corrections import NONE
from workflows.sort_files import place_in, require_room, sort_files, sorting_folders
from workflows.trained_model import TrainedModel, load_trained_model
from workflows.user_edits import NAMES, changed_tables

log = logging.getLogger("predict")

TABLE_COLUMNS = ("file", "cluster", "confidence", "runner_up", "runner_up_confidence")
NAME_COLUMNS = ("name", "runner_up_name")
NOTES = "unsure", "unlike", NONE  # in the table, and the folders of these images
# where an image belongs: the number of its name, from NAMED, or
UNREADABLE, UNSURE_PLACE, UNLIKE_PLACE, NONE_PLACE, NAMED = -1, 0, 1, 2, 3
WORTH_WORKERS = 64  # images; fewer are decoded before the processes that would decode them have started


def main(argv: list[str] | None = None) -> None:
    args = read_arguments(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    trained = load_trained_model(args.results)
    if args.unlike is not None and trained.training is None:
        raise UserError(
            f"--unlike needs {trained.folder / TRAINING_FEATURES}, which scan.py writes if cache_features is "
            "0; for older results of that kind give its command again, else leave out --unlike"
        )
    if changed := changed_tables(trained.folder.parent):
        log.warning(
            "%s: changed since; give cluster.py's command again to use it here", " and ".join(changed)
        )
    names = find_names(args.names, trained)
    images = find_images(args.images, trained, args.results)
    output = args.output or default_table(args.results / "predictions", args.images.resolve())
    require_own_table(output)
    if args.sort_into:
        if trained.vector_width is not None:
            raise UserError(f"--sort-into sorts images, but {args.images} holds vectors; sort by the table")
        folders = sorting_folders(args.sort_into, [*NOTES, *names.names], args.images)
        if not args.link:
            require_room(map(str, images.files), args.sort_into)
    places = write_table(trained, names, images, output, args)
    print_summary(names, places, output, args)
    if args.sort_into:
        sort_images(images, places, folders, args)


def read_arguments(argv: list[str] | None) -> Namespace:
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("results", metavar="RESULTS", type=file_argument)
    add(
        "images",
        metavar="NEW_IMAGES",
        type=file_argument,
        help="or a file of vectors for a model of features",
    )
    add(
        "--output", metavar="FILE.csv", type=file_argument,
        help="the table (default: RESULTS/predictions/NEW_IMAGES.csv; with -2 if that is of another folder)",
    )  # fmt: skip
    add(
        "--names", metavar="names.csv", type=file_argument,
        help="columns cluster,name with a row for each cluster; clusters of one name are merged "
        "(default: names.csv in the results folder)",
    )  # fmt: skip
    add("--unsure", metavar="SHARE", type=float, default=0.0, help="note images of less confidence as unsure")
    add(
        "--unlike", metavar="PERCENT", type=float, help="note images that are so far from the training images"
    )
    add(
        "--sort-into", metavar="DIR", type=file_argument,
        help="also copy each image into DIR/CLUSTER/; nothing is moved or overwritten",
    )  # fmt: skip
    add("--link", action="store_true", help="with --sort-into: symbolic links, not copies")
    add("--batch_size", type=int, default=64, help="images at a time (default: %(default)s)")
    add("--num_workers", type=int, help="processes that decode images (default: half the cores)")
    add("--device", default="auto", help=f"{DEVICE.words} (default: %(default)s)")
    add_version(parser)
    args = parser.parse_args(argv)
    require_one_process("predict.py")
    if not 0 <= args.unsure <= 1:
        raise UserError(f"--unsure {args.unsure:g}: must be from 0 to 1")
    if args.unlike is not None and not 0 <= args.unlike <= 100:
        raise UserError(f"--unlike {args.unlike:g}: must be from 0 to 100")
    if args.batch_size < 1 or (args.num_workers or 0) < 0:
        raise UserError("--batch_size must be at least 1, and --num_workers at least 0")
    if args.link and not args.sort_into:
        raise UserError("--link needs --sort-into DIR, where the links go")
    if args.output and args.output.suffix.lower() != ".csv":
        raise UserError(f"--output {args.output}: expected a file FILE.csv")
    try:
        DEVICE.convert(args.device)
    except ValueError as expected:
        raise UserError(f"--device must be {expected}, found {args.device!r}") from None
    args.device = machine.choose_device(args.device)
    return args


def find_names(given: Path | None, trained: TrainedModel) -> ClusterNames:
    """The names of a given table, or those beside the results, if they are of this clustering.

    Raises UserError for a given one that is wrong.
    """
    own = trained.folder.parent / NAMES
    if given is None and own.exists():
        try:
            names = cluster_names(own, trained.num_clusters, trained.clustering)
            log.info("the clusters' names are those of %s", own)
            return names
        except UserError as error:
            log.warning("the clusters have only numbers: %s", error)
    return cluster_names(given, trained.num_clusters, trained.clustering)


# --- the images ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class NewImages:
    """New images, or vectors in their place."""

    files: Sequence[str] | range  # N paths, or row numbers of vectors
    decode: Callable[[int], Iterator[tuple[Sequence, torch.Tensor, dict]]]  # num_workers -> as data.stream
    names: Mapping[str, str] | None = None  # by path

    def name(self, file: str | int) -> str:
        """An image's name, or a vector's row."""
        return str(file) if self.names is None else self.names[str(file)]


def find_images(path: Path, trained: TrainedModel, results: Path | None = None) -> NewImages:
    """The images of a source, see `data.images_of`, without the pictures of `results`; or vectors.

    Raises UserError for anything else, and for what the model does not take.
    """
    if path.is_file() and (trained.vector_width is not None or path.suffix.lower() == ".npy"):
        return find_vectors(path, trained)
    if trained.vector_width is not None:
        raise UserError(
            f"{path}: {trained.folder} was trained on features, not on images; give a file of the features, "
            f"(N, {trained.vector_width}), of the same network"
        )
    files, names, left_out = data.images_of(
        [path], (results, trained.folder), trained.config.every, pages=trained.config.pages
    )
    if left_out:
        kinds = ", ".join(f"{suffix} {count}" for suffix, count in left_out.most_common(5))
        log.info("%s: %d other files left out (%s)", shown(str(path)), left_out.total(), kinds)
    return NewImages(
        files, lambda workers: trained.decode(files, workers), dict(zip(files, names, strict=True))
    )


def find_vectors(path: Path, trained: TrainedModel) -> NewImages:
    """The rows of a file of vectors, by their names if it has any.

    Raises UserError unless they are as long as those of the training.
    """
    if trained.vector_width is None:
        raise UserError(f"{path}: {trained.folder} was trained on images; give a folder of images")
    vectors, names = data.read_vectors(path)
    if vectors.shape[1] != trained.vector_width:
        raise UserError(
            f"{path}: expected numbers of shape (N, {trained.vector_width}), as in the training, found "
            f"{vectors.dtype} {vectors.shape}"
        )

    def read(_: int) -> Iterator[tuple[range, torch.Tensor, dict]]:
        for start in range(0, len(vectors), 1024):
            with np.errstate(over="ignore"):  # it is infinite then
                part = vectors[start : start + 1024].astype(np.float32)
            useless = data.say_nothing(part)
            inputs = torch.from_numpy(np.delete(part, list(useless), 0))
            reasons = {start + row: why for row, why in useless.items()}
            yield range(start, start + len(part)), inputs, reasons

    by_row = {str(row): name for row, name in enumerate(names)} if names else None
    return NewImages(range(len(vectors)), read, by_row)


# --- the table -----------------------------------------------------------------------------------


def default_table(folder: Path, images: Path) -> Path:
    """The table in `folder` for the images at a path: NAME.csv, or NAME-2.csv and so on if that is another's.

    `folders.json` says which table is of which images. Raises UserError if it cannot be written.
    """
    record = folder / "folders.json"
    known = read_json(record)
    source, name = shown(str(images)), images.name or "images"
    tables = (f"{name}{f'-{number}' if number > 1 else ''}.csv" for number in itertools.count(1))
    table = next(t for t in tables if known.get(t) == source or not os.path.lexists(folder / t))
    with writing(record, "give an --output"):
        folder.mkdir(parents=True, exist_ok=True)
        write_json({**known, table: source}, record)
    return folder / table


def require_own_table(output: Path) -> None:
    """Raise UserError if there is a file that is no table of this script."""
    if not os.path.lexists(output):
        return
    try:
        with open(output, "rb") as file:
            own = file.readline(200).startswith(",".join(TABLE_COLUMNS).encode())
    except OSError:  # a folder, or not ours to read
        own = False
    if not own:
        raise UserError(f"{output}: exists and is no table of predict.py; give another --output")


def write_table(
    trained: TrainedModel, names: ClusterNames, images: NewImages, output: Path, args: Namespace
) -> list[int]:
    """Write the table; returns where each image belongs, see NAMED.

    Raises UserError if none of the images can be read, or if the table cannot be written.
    """
    places: list[int] = []
    levels = (f"level_{number}" for number in range(1, 1 + len(trained.levels)))
    header = (*TABLE_COLUMNS, *(NAME_COLUMNS if names.from_file else ()), *levels, "unlike", "note")
    with writing(output, "give another --output"):
        output.parent.mkdir(parents=True, exist_ok=True)
        write_csv(header, table_rows(trained, names, images, places, args), output)
    write_parquet(output)
    return places


def table_rows(
    trained: TrainedModel, names: ClusterNames, images: NewImages, places: list[int], args: Namespace
) -> Iterator[list[Any]]:
    """Yield the rows of the table, in the order of the files; appends to `places`."""
    classify = classifier(trained, args.device, len(images.files))
    empty = [""] * (len(TABLE_COLUMNS) + len(NAME_COLUMNS) * names.from_file + len(trained.levels))
    with tqdm(total=len(images.files), unit="image", leave=False, disable=None) as progress:
        for files, inputs, unreadable in batches(images, workers_for(images, args), args.batch_size):
            found: Iterator[tuple] = iter(())
            said: dict = {}  # what the user moved
            if len(inputs):
                probabilities, unlike = classify(inputs)
                for index, file in enumerate(file for file in files if file not in unreadable):
                    if kept := trained.moved_by_user(images.name(file), file):
                        said[file] = kept
                        if kept.corrected != NONE:
                            probabilities[index] *= 1e-6
                            probabilities[index, kept.cluster] = 1
                columns = *names.best_two(probabilities), unlike
                found = zip(*(column.tolist() for column in columns), strict=True)
            for file in files:
                name = shown(images.name(file))
                if file in unreadable:
                    places.append(UNREADABLE)
                    yield [name, *empty, unreadable[file]]
                    continue
                (first, second), (confidence, runner_up), clusters, percent = next(found)
                place, note = NAMED + first, ""
                if file in said:
                    place, note = (NONE_PLACE, NONE) if said[file].corrected == NONE else (place, "corrected")
                elif args.unlike is not None and percent >= args.unlike:
                    place, note = UNLIKE_PLACE, NOTES[UNLIKE_PLACE]
                elif confidence < args.unsure:
                    place, note = UNSURE_PLACE, NOTES[UNSURE_PLACE]
                places.append(place)
                row = [name, clusters[0], f"{confidence:.4f}", clusters[1], f"{runner_up:.4f}"]
                row += [names.names[first], names.names[second]] if names.from_file else []
                row += [level["of_cluster"][clusters[0]] for level in trained.levels]
                yield [*row, unlike_text(percent), note]
            progress.update(len(files))
    if set(places) == {UNREADABLE}:
        how = "read as an image" if isinstance(file, str) else "used"
        raise UserError(f"{name}: cannot be {how} ({unreadable[file]}); there is none that can")


def batches(images: NewImages, num_workers: int, size: int) -> Iterator[tuple[list, torch.Tensor, dict]]:
    """Join what `images.decode` yields to batches of about `size` inputs.

    Yields the files; inputs of those that can be read, in their order, uint8 (B, 3, S, S) or float32 (B, D);
    and a dict from each other file to the reason.
    """
    files: list = []
    inputs: list[torch.Tensor] = []
    reasons: dict = {}
    for some, part, unreadable in images.decode(num_workers):
        files += some
        inputs.append(part)
        reasons |= unreadable
        if sum(map(len, inputs)) >= size or files[-1] == images.files[-1]:
            yield files, torch.cat(inputs), reasons
            files, inputs, reasons = [], [], {}


def workers_for(images: NewImages, args: Namespace) -> int:
    """Number of processes that decode; the network needs cores, too."""
    if args.num_workers is not None:
        return args.num_workers
    return min(16, (os.cpu_count() or 1) // 2) if len(images.files) > WORTH_WORKERS else 0


def classifier(
    trained: TrainedModel, device: torch.device, n: int
) -> Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]:
    """Function inputs (B, ...) -> the clusters' probabilities, float32 (B, C), on `device`; and what
    `TrainingFeatures.unlike` says, (B,), or NaN.
    """
    model = trained.model.to(device).to(memory_format=torch.channels_last)
    backbone = fastest_features(model.backbone, n, trained.config.runtime)
    transform = data.build_eval_transform(trained.config)

    @torch.no_grad()
    def classify(inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        features = backbone(transform(inputs.to(device)))
        probabilities = model.cluster_head(features)[trained.head].softmax(1)
        if not probabilities.isfinite().all():
            raise UserError(f"{trained.folder}: the model's outputs are not finite on these images")
        if trained.training is None:
            return probabilities, torch.full((len(inputs),), torch.nan)
        return probabilities, trained.training.unlike(features)

    return classify


def print_summary(names: ClusterNames, places: list[int], output: Path, args: Namespace) -> None:
    """Print the number of images of each name, and where the table is."""
    counts = Counter(places)
    print(f"images per {'name' if names.from_file else 'cluster'}:")
    width = max(map(len, names.names))
    for place, name in enumerate(names.names, NAMED):
        print(f"  {shown(name):{width}} {counts[place]:8}")
    if args.unlike is not None:
        print(f"unlike, from {args.unlike:g} %: {counts[UNLIKE_PLACE]}")
    if counts[NONE_PLACE]:
        print(f"in no cluster, as corrected: {counts[NONE_PLACE]}")
    if args.unsure:
        print(f"unsure, below {args.unsure:g}: {counts[UNSURE_PLACE]}")
    unreadable = f", {counts[UNREADABLE]} of them unreadable" * (counts[UNREADABLE] > 0)
    print(f"{len(places)} images{unreadable}: {shown(str(output))}")


def sort_images(images: NewImages, places: list[int], folders: list[Path], args: Namespace) -> None:
    """Copy or link each readable image into the folder of its place; print how many."""
    bar = tqdm(images.files, desc="sorting", unit="image", leave=False, disable=None)
    targets = (
        (file, place_in(folders[place], images.name(file)))
        for file, place in zip(map(str, bar), places, strict=True)
        if place != UNREADABLE
    )
    made, kept = sort_files(targets, args.link)
    kind, there = "links" if args.link else "copies", f", {kept} were there" if kept else ""
    print(f"{made} {kind} made in {shown(str(args.sort_into))}{there}")


def command() -> None:
    run_script(main, "the same command starts over; what was sorted stays, and will not be sorted twice")


if __name__ == "__main__":
    command()

"""The cluster of each new image, by a trained model: a table and, if asked for, a folder per cluster.

python predict.py results/PHOTOS NEW_IMAGES [--names names.csv] [--unsure 0.8] [--sort-into DIR]

RESULTS is the folder of a dataset's results, of which the last step's model is used, or the folder of a step.
NEW_IMAGES is a folder, read with everything below it, or one image. The training images are not needed.
docs/PREDICT.md says more.
"""

import argparse
import csv
import filecmp
import itertools
import json
import logging
import os
import re
import shutil
import unicodedata
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

import data
from data.messages import shown
from errors import UserError
from models import build_model
from utils.files import write_csv, write_json
from utils.run import distributed, machine
from utils.run.checks import DEVICE
from utils.run.config import read_resolved
from utils.run.fingerprint import read_fingerprint
from utils.run.script import file_argument, run_script
from utils.run.weights import choose_head, load_weights, read_weights

log = logging.getLogger("predict")

COLUMNS = ("file", "cluster", "confidence", "runner_up", "runner_up_confidence")
NAME_COLUMNS = ("name", "runner_up_name")
UNSURE = "unsure"
UNREADABLE = -1  # in place of the index of a class
FEW = 64  # images, for which starting processes that decode them takes longer than decoding


def main(argv=None):
    args = read_arguments(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    trained = load_trained(args.results)
    classes = Classes(trained, args.names)
    images = find_images(args.images, trained, args.results)
    output = args.output or default_table(args.results / "predictions", args.images.resolve())
    require_replaceable(output)
    folders = None
    if args.sort_into:
        if trained.width is not None:
            raise UserError(f"--sort-into sorts images, but {args.images} holds vectors; sort by the table")
        folders = folders_of(args.sort_into, classes.names, args.images)
        if not args.link:
            require_room(images.files, args.sort_into)
    placed = predict(trained, classes, images, output, args)
    summarize(classes, placed, output, args.unsure)
    if folders:
        sort_files(images, placed, folders, args.link)


def read_arguments(argv):
    """Parse and check the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", metavar="RESULTS", type=file_argument)
    parser.add_argument(
        "images", metavar="NEW_IMAGES", type=file_argument, help="or .npy, vectors for a model of features"
    )
    parser.add_argument(
        "--output",
        metavar="FILE.csv",
        type=file_argument,
        help="the table (default: RESULTS/predictions/NEW_IMAGES.csv, or NEW_IMAGES-2.csv if that is "
        "of another folder)",
    )
    parser.add_argument(
        "--names",
        metavar="names.csv",
        type=file_argument,
        help="columns cluster,name with a row for each cluster; clusters of one name are merged",
    )
    parser.add_argument(
        "--unsure", metavar="SHARE", type=float, default=0.0, help="note images of lower confidence as unsure"
    )
    parser.add_argument(
        "--sort-into",
        metavar="DIR",
        type=file_argument,
        help="also copy each image into DIR/CLUSTER/; nothing is moved or overwritten",
    )
    parser.add_argument("--link", action="store_true", help="with --sort-into: symbolic links, not copies")
    parser.add_argument("--batch_size", type=int, default=64, help="images at a time (default: %(default)s)")
    parser.add_argument(
        "--num_workers", type=int, help="processes that decode images (default: half the cores)"
    )
    parser.add_argument("--device", default="auto", help=f"{DEVICE.words} (default: %(default)s)")
    args = parser.parse_args(argv)
    distributed.require_one_process("predict.py")
    if not 0 <= args.unsure <= 1:
        raise UserError(f"--unsure {args.unsure:g}: must be from 0 to 1")
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


# --- the model -----------------------------------------------------------------------------------


class Trained(NamedTuple):
    """A model that a results folder holds.

    Attributes:
        folder: pathlib.Path of the step that trained it.
        config: that step's configuration.
        model: ClusteringModel, on the CPU, in eval mode.
        head: index of its best head.
        side: side in pixels of its training images, before the evaluation's crop.
        white_level: their value of white, if they have 16 bits; None if not known.
    """

    folder: Path
    config: dict
    model: torch.nn.Module
    head: int
    side: int
    white_level: int | None

    @property
    def width(self):
        """Width of the vectors that it takes in place of images; None if it takes images."""
        return self.model.cluster_head[0].in_features if self.config.get("features_file") else None

    def stream(self, files, workers=0):
        """`data.stream` of new files, which become squares as the training images did."""
        # results from before white_level was recorded: it is known to the training images, which are kept
        # beside the results, wherever those were moved to
        here = self.folder.resolve().parent
        config = {**self.config, "root_dir": str(here.parent), "train_db_name": here.name}
        if self.white_level:
            config["white_level"] = self.white_level
        return data.stream(files, config, workers, self.side)


def load_trained(results):
    """The final model of a results folder.

    Args:
        results: pathlib.Path of a dataset's results, `results/NAME`, or of one step's.

    Returns:
        Trained.

    Raises:
        UserError: no finished clustering or self-labeling in it, or files that do not belong together.
    """
    folder = final_step(results)
    config = read_resolved(folder / "config.yml")
    if config.setup not in ("scan", "selflabel"):
        raise UserError(
            f"{folder}: holds the results of setup {config.setup}, which has no clusters; train them with "
            "scan.py, and give the folder of its results"
        )
    source = folder / "model.pth.tar"
    weights, head = read_weights(source, ["clustering"])
    head = choose_head(weights, head, source)
    model = build_model(config)
    try:
        load_weights(model, weights, source)
    except UserError as error:
        raise UserError(
            f"{folder}: config.yml and model.pth.tar do not belong together; copy both from one run ({error})"
        ) from None
    try:
        figures = json.loads((folder / "metrics.json").read_text())
    except (OSError, ValueError):
        figures = {}
    # image files have a margin, arrays may have none; results from before it was recorded may be of either
    side = figures.get("image_side") or data.side(config)
    return Trained(folder, config, model.eval(), head, side, figures.get("white_level"))


def final_step(results):
    """Folder of the last finished step with clusters: `results` itself, or selflabel/ or scan/ in it."""
    if not results.is_dir():
        found = "is a file; give the folder that holds it" if results.exists() else "no such folder"
        raise UserError(f"{results}: {found}; expected results of scan.py or selflabel.py")
    own = (results / "config.yml").is_file()
    steps = [results] if own else [results / step for step in ("selflabel", "scan")]
    steps = [step for step in steps if step.is_dir()]
    for number, step in enumerate(steps):
        if read_fingerprint(step):
            if number:
                log.warning("%s: not finished, so the model in %s is used", steps[0], step)
            return step
    if steps:
        raise UserError(f"{steps[0]}: its training has not finished; give the same command again")
    within = sorted(path.parent.parent for path in results.glob("*/*/config.yml"))
    hint = f"; did you mean {within[0]}?" if within else ""
    raise UserError(f"{results}: holds no results of scan.py or selflabel.py{hint}")


class Classes:
    """What the model's clusters are called, and which of them are one.

    Args:
        trained: Trained.
        file: pathlib.Path of a table of names, see `read_names`; None: the clusters' numbers are their names.

    Attributes:
        names: list of M different names.
        named: whether they come from a file.
        of: int64 (C,), index of each cluster's name.
    """

    def __init__(self, trained, file):
        count = trained.config.num_classes
        names = read_names(file, count) if file else [str(cluster) for cluster in range(count)]
        self.named = file is not None
        self.names = list(dict.fromkeys(names))
        self.of = torch.tensor([self.names.index(name) for name in names])
        if len(self.names) < 2:
            raise UserError(f"{file}: all clusters have one name, so there is nothing to tell apart")

    def best(self, probabilities):
        """The best two classes of each image, by the sum of their clusters' probabilities.

        Args:
            probabilities: float (B, C).

        Returns:
            (B, 2) each: classes, their probabilities, and the most probable cluster in each class.
        """
        of = self.of.to(probabilities.device)
        merged = probabilities.new_zeros(len(probabilities), len(self.names)).index_add_(1, of, probabilities)
        confidence, classes = merged.topk(2)
        others = of != classes.unsqueeze(2)  # (B, 2, C)
        clusters = probabilities.unsqueeze(1).masked_fill(others, -1).argmax(2)
        return classes, confidence, clusters


def read_names(path, count):
    """The names of clusters 0 to count - 1, a list, from a CSV file with the columns cluster and name.

    Raises UserError for another header, and for a cluster that is unknown, missing or there twice.
    """
    names = {}
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:  # Excel's UTF-8 has a mark in front
            reader = csv.DictReader(file, strict=True)
            header = [column.strip().lower() for column in reader.fieldnames or ()]
            if header != ["cluster", "name"]:
                found = ",".join(header) or "nothing"
                raise UserError(f"{path}: its first line must be cluster,name, found {shown(found)}")
            reader.fieldnames = header
            for row in reader:
                where = f"{path}, line {reader.line_num}"
                text, name = ((row[column] or "").strip() for column in header)
                if None in row:
                    raise UserError(f'{where}: more than two columns; put a name with a comma in quotes ""')
                if not text.isdecimal() or int(text) >= count:
                    raise UserError(
                        f"{where}: {shown(text)!r} is no cluster; the model's are 0 to {count - 1}"
                    )
                if int(text) in names:
                    raise UserError(f"{where}: cluster {int(text)} has a name already; give each one once")
                if not name:
                    raise UserError(f"{where}: cluster {int(text)} has no name; give it one")
                names[int(text)] = name
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read as a CSV file in UTF-8 ({error})") from None
    missing = [str(cluster) for cluster in range(count) if cluster not in names]
    if missing:
        raise UserError(
            f"{path}: no name for cluster {', '.join(missing[:5])}{', ...' * (len(missing) > 5)}; give each "
            f"of the {count} clusters a row"
        )
    return [names[cluster] for cluster in range(count)]


# --- the images ----------------------------------------------------------------------------------


class Images(NamedTuple):
    """New images, or vectors in their place.

    Attributes:
        files: sequence of N paths as text, or of N row numbers.
        stream: function num_workers -> what `data.stream` yields.
        start: length of what the paths have in common; the rest of a path is the image's name.
    """

    files: object
    stream: object
    start: int = 0

    def within(self, file):
        """Path of an image within the folder."""
        return str(file)[self.start :]


def find_images(path, trained, results=None):
    """The Images of a folder, or one image file; of an .npy file for a model of features.

    The folder of the results, and that of the step, are left out if they are in it: they hold pictures.

    Raises UserError for anything else, and for what the model does not take.
    """
    if path.suffix.lower() == ".npy" and path.is_file():
        return find_vectors(path, trained)
    if trained.width is not None:
        raise UserError(
            f"{path}: {trained.folder} was trained on features, not on images; give an .npy file of the "
            f"features, (N, {trained.width}), of the same network"
        )
    if path.is_file():
        files, start = [os.path.join(path.parent, path.name)], len(os.path.join(path.parent, ""))
    else:
        files, left_out = data.list_images(path, but=(results, trained.folder))
        start = len(os.path.join(path, ""))
        if left_out:
            kinds = ", ".join(f"{suffix} {count}" for suffix, count in left_out.most_common(5))
            log.info("%s: %d other files left out (%s)", shown(str(path)), left_out.total(), kinds)
    return Images(files, lambda workers: trained.stream(files, workers), start)


def find_vectors(path, trained):
    if trained.width is None:
        raise UserError(f"{path}: {trained.folder} was trained on images; give a folder of images")
    try:
        vectors = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not a readable .npy file ({error})") from None
    if vectors.ndim != 2 or vectors.shape[1] != trained.width or vectors.dtype.kind not in "fiu":
        raise UserError(
            f"{path}: expected numbers of shape (N, {trained.width}), as in the training, found "
            f"{vectors.dtype} {vectors.shape}"
        )
    if not len(vectors):
        raise UserError(f"{path}: holds no rows")

    def stream(workers):
        for start in range(0, len(vectors), 1024):
            rows = np.array(vectors[start : start + 1024], np.float32)
            broken = ~np.isfinite(rows).all(1)
            if broken.any():
                raise UserError(f"{path}: row {start + broken.argmax()} holds NaN or infinity")
            yield range(start, start + len(rows)), torch.from_numpy(rows), {}

    return Images(range(len(vectors)), stream)


# --- the table -----------------------------------------------------------------------------------


def default_table(folder, images):
    """The table in `folder` for the images at a path: NAME.csv, or NAME-2.csv and so on if that is another's.

    `folders.json` says which table is of which images. Raises UserError if it cannot be written.
    """
    record = folder / "folders.json"
    try:
        known = json.loads(record.read_text())
    except (OSError, ValueError):
        known = {}
    source, name = shown(str(images)), images.name or "images"
    tables = (f"{name}{f'-{number}' if number > 1 else ''}.csv" for number in itertools.count(1))
    table = next(t for t in tables if known.get(t) == source or not os.path.lexists(folder / t))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_json({**known, table: source}, record)
    except OSError as error:
        raise UserError(f"{record}: cannot be written ({error.strerror}); give an --output") from None
    return folder / table


def require_replaceable(output):
    """Raise UserError if there is a file that is no table of this script."""
    if not os.path.lexists(output):
        return
    try:
        with open(output, "rb") as file:
            own = file.readline(200).startswith(",".join(COLUMNS).encode())
    except OSError:  # a folder, or not ours to read
        own = False
    if not own:
        raise UserError(f"{output}: exists and is no table of predict.py; give another --output")


def predict(trained, classes, images, output, args):
    """Write the table.

    Returns:
        int32 array (N,): the index of each image's class, len(classes.names) if unsure, UNREADABLE.

    Raises:
        UserError: none of the images can be read, or the table cannot be written.
    """
    placed = np.empty(len(images.files), np.int32)
    header = (*COLUMNS, *(NAME_COLUMNS if classes.named else ()), "note")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        write_csv(header, rows_of(trained, classes, images, placed, args), output)
    except OSError as error:
        raise UserError(
            f"{output}: cannot be written ({error.strerror}); free some space, or give another --output"
        ) from None
    return placed


def rows_of(trained, classes, images, placed, args):
    """Yield the rows of the table, in the order of the files; fills `placed`, see `predict`."""
    classify = classifier(trained, classes, args.device)
    names = (shown(images.within(file)) for file in images.files)
    empty = [""] * (len(COLUMNS) - 1 + len(NAME_COLUMNS) * classes.named)
    done = 0
    with tqdm(total=len(images.files), unit="image", leave=False, disable=None) as progress:
        for reasons, inputs in batches(images, workers_for(images, args), args.batch_size):
            found = classify(inputs) if len(inputs) else None
            for reason, name in zip(reasons, names, strict=False):
                if reason:
                    placed[done] = UNREADABLE
                    row = [name, *empty, reason]
                else:
                    (first, second), (confidence, runner_up), clusters = next(found)
                    unsure = confidence < args.unsure
                    placed[done] = len(classes.names) if unsure else first
                    row = [name, clusters[0], f"{confidence:.4f}", clusters[1], f"{runner_up:.4f}"]
                    row += [classes.names[first], classes.names[second]] if classes.named else []
                    row.append(UNSURE if unsure else "")
                done += 1
                yield row
            progress.update(len(reasons))
    if (placed == UNREADABLE).all():
        raise UserError(f"{row[0]}: cannot be read as an image ({row[-1]}); there is none that can")


def batches(images, workers, size):
    """Join what `images.stream` yields to batches of about `size` inputs.

    Yields:
        for a run of files, the reason why each cannot be read, "" for those that can, a list; and the inputs
        that these give, uint8 (B, 3, S, S) or float32 (B, D).
    """
    files = iter(images.files)
    reasons, parts = [], []
    for read, inputs, unread in images.stream(workers):
        reasons += [unread.get(file, "") for file in itertools.islice(files, len(read) + len(unread))]
        parts.append(inputs)
        if sum(map(len, parts)) >= size:
            yield reasons, torch.cat(parts)
            reasons, parts = [], []
    if reasons:
        yield reasons, torch.cat(parts)


def workers_for(images, args):
    """Processes that decode: none for vectors, nor for so few images that starting them takes longer."""
    if args.num_workers is not None:
        return args.num_workers
    return (
        min(16, (os.cpu_count() or 1) // 2) if len(images.files) > FEW else 0
    )  # the network needs cores, too


def classifier(trained, classes, device):
    """Function inputs (B, ...) -> iterator over what Classes.best says of each image, as lists."""
    model = trained.model.to(device, memory_format=torch.channels_last)
    transform = data.build_eval_transform(trained.config)

    @torch.no_grad()
    def classify(inputs):
        inputs = transform(inputs.to(device))
        probabilities = model(inputs)[trained.head].softmax(1)
        if not probabilities.isfinite().all():
            raise UserError(f"{trained.folder}: the model's outputs are not finite on these images")
        return zip(*(part.tolist() for part in classes.best(probabilities)), strict=True)

    return classify


def summarize(classes, placed, output, unsure):
    """Print the number of images of each class, and where the table is."""
    *counts, unsure_count = np.bincount(placed[placed != UNREADABLE], minlength=len(classes.names) + 1)
    print(f"images per {'name' if classes.named else 'cluster'}:")
    width = max(map(len, classes.names))
    for name, count in zip(classes.names, counts, strict=True):
        print(f"  {shown(name):{width}} {count:8}")
    if unsure:
        print(f"unsure, below {unsure:g}: {unsure_count}")
    unreadable = (placed == UNREADABLE).sum()
    print(
        f"{len(placed)} images"
        + f", {unreadable} of them unreadable" * bool(unreadable)
        + f": {shown(str(output))}"
    )


# --- sorting -------------------------------------------------------------------------------------


def folders_of(root, names, images):
    """The folder of each name, and the one of unsure images, a list of pathlib.Path.

    Args:
        root: pathlib.Path of all folders.
        names: list of different names.
        images: pathlib.Path of the new images.

    Raises:
        UserError: `root` is a file, or a folder and that of the images overlap.
    """
    if root.exists() and not root.is_dir():
        raise UserError(f"--sort-into {root}: is a file; give a folder")
    taken, folders = set(), []
    for name in (UNSURE, *names):
        plain = folder = folder_name(name)
        number = 1
        while unicodedata.normalize("NFC", folder).casefold() in taken:  # one folder on some file systems
            number += 1
            folder = f"{plain} ({number})"
        taken.add(unicodedata.normalize("NFC", folder).casefold())
        folders.append(root / folder)
    read = images.resolve()
    if read.is_dir():
        for folder in (root, *folders):
            above, own = folder == root, folder.resolve()
            if own.is_relative_to(read) or (not above and read.is_relative_to(own)):
                raise UserError(
                    f"--sort-into {root}: {folder} and the images' folder {images} overlap; give another"
                )
    return [*folders[1:], folders[0]]


def folder_name(name):
    """A name as that of a folder, on any system: in no other folder, neither hidden nor reserved."""
    name = re.sub(r'[\x00-\x1f\x7f<>:"/\\|?*]', "_", name).strip(" .")
    name = name.encode()[:200].decode(errors="ignore").strip(" .") or "_"
    return f"_{name}" if re.match(r"(con|prn|aux|nul|com\d|lpt\d)(\.|$)", name, re.I) else name


def require_room(files, root):
    """Raise UserError if copies of all files, without what is in `root` already, do not fit on its disk."""
    needed = sum(size_of(file) for file in files)
    existing = next(path for path in (root, *root.absolute().parents) if path.is_dir())
    there = sum(size_of(os.path.join(path, name)) for path, _, found in os.walk(root) for name in found)
    free = shutil.disk_usage(existing).free
    if needed - there > free:
        raise UserError(
            f"--sort-into {root}: copies of the images take {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB "
            "are free there; free some space, or sort links with --link"
        )


def size_of(path):
    try:
        return os.stat(path).st_size
    except OSError:  # a broken link, which will be noted as unreadable
        return 0


def sort_files(images, placed, folders, link):
    """Copy or link each image into the folder of its class, unless it is there already."""
    made = kept = 0
    progress = tqdm(images.files, desc="sorting", unit="image", leave=False, disable=None)
    for file, place in zip(progress, placed.tolist(), strict=True):
        if place == UNREADABLE:
            continue
        target = free_path(folders[place] / images.within(file), file)
        kept += target is None
        if target is not None:
            put(file, target, link)
            made += 1
    where = shown(str(folders[0].parent))
    print(f"{made} {'links' if link else 'copies'} made in {where}" + f", {kept} were there" * bool(kept))


def free_path(path, file):
    """`path`, or "NAME (2)" and so on if there is another file; None if this very file is there already."""
    candidate, number = path, 1
    while os.path.lexists(candidate):
        if candidate.is_file() and filecmp.cmp(file, candidate, shallow=False):
            return None
        number += 1
        candidate = path.with_name(f"{path.stem} ({number}){path.suffix}")
    return candidate


def put(file, target, link):
    """Copy or link a file. A copy has its name only when it is whole."""
    temporary = target.with_name(f".copying-{os.getpid()}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if link:
            target.symlink_to(os.path.abspath(file))
        else:
            shutil.copy2(file, temporary)
            temporary.rename(target)
    except OSError as error:
        raise UserError(
            f"{target}: cannot be written ({error.strerror}); the table is whole, what was sorted stays, and "
            "the same command goes on"
        ) from None
    finally:
        temporary.unlink(missing_ok=True)


if __name__ == "__main__":
    run_script(main, "the same command starts over; what was sorted stays, and will not be sorted twice")

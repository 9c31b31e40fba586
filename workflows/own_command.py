"""The command line of cluster.py, parsed before anything imports torch, so that --help answers at once."""

import argparse
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from errors import UserError
from utils.run.processes import require_one_process
from utils.run.script import CommandOptions, add_overrides, add_version, file_argument, is_name

BACKBONE = "timm/vit_small_patch14_dinov2.lvd142m"


@dataclass(frozen=True)
class ClusterOptions(CommandOptions):
    """The command line of cluster.py."""

    images: list[Path]  # folders and files
    added: list[Path]  # those that came later
    retrain: bool
    clusters: list[int]  # numbers of clusters to find, rising, each merged of the next; empty: choose one
    candidates: list[int]  # numbers to choose from; empty for auto
    name: str
    named: bool  # whether the command says the name
    root_dir: str | None
    config_env: Path | None  # None: the default
    backbone: str | None
    pretrained: Path | None
    features: Path | None
    from_scratch: bool
    size: int | None
    resize: str
    hours: float
    labels: str | None
    every: float | None
    pages: str | None
    channels: list[int] | None
    link_originals: bool
    corrections: Path | None
    seed: int
    overrides: list[str]

    def image_folder(self) -> str | list[str]:
        """The key of that name."""
        paths = list(map(str, self.images))
        return paths if len(paths) > 1 else paths[0]

    def source_keys(self) -> dict[str, Any]:
        """The keys that say where the images are, and how they are read, as far as that is given."""
        keys = {name: getattr(self, name) for name in ("every", "pages", "channels")}
        keys |= {"image_folder": self.image_folder(), "added_images": list(map(str, self.added))}
        keys["features_file"] = self.features and str(self.features.resolve())
        return {key: value for key, value in keys.items() if value}

    def training_arguments(self) -> dict[str, str]:
        """The arguments that were given and that decide what is trained, as text for cluster.json."""
        decides_nothing = {"labels", "link_originals", "corrections", "root_dir", "config_env"}
        decides_nothing |= {"name", "named", "added", "retrain"}
        given = {**vars(self), "images": self.image_folder(), "clusters": self.clusters[-1:]}
        return {key: str(value) for key, value in given.items() if value and key not in decides_nothing}


def read_arguments(argv: list[str] | None, description: str) -> ClusterOptions:
    """Parse and check the command line."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add(
        "images", metavar="PHOTOS", nargs="+", type=file_argument,
        help="folder of images, nested or not; an image; .zip, .tar, .parquet, .mp4, ... with images; a .txt "
        "file of paths; or several of these",
    )  # fmt: skip
    add(
        "--clusters", metavar="K", required=True, type=numbers_argument,
        help="number of clusters; several, K,K,..., to merge the most of them into the fewer; a range to "
        "choose one from, K:K; or auto, to choose one of many",
    )  # fmt: skip
    add(
        "--add", metavar="NEW", dest="added", nargs="+", default=[], type=file_argument,
        help="more images, for the clusters that were found; later commands remember them",
    )  # fmt: skip
    add("--retrain", action="store_true", help="if the images have changed, find the clusters anew")
    add("--name", help="name of the results folder (default: the name of PHOTOS)")
    add("--root_dir", help="folder of all results (default: that of configs/env.yml)")
    add("--config_env", metavar="FILE", type=file_argument, help="this machine (default: configs/env.yml)")
    add(
        "--backbone", metavar="NAME",
        help=f"network: timm/..., torchvision/... (default: {BACKBONE}); with --from-scratch also "
        "resnet18, ... (default: the best for which --hours are enough)",
    )  # fmt: skip
    add("--pretrained", metavar="FILE", type=file_argument, help="file of the backbone's weights")
    add(
        "--features", metavar="FILE", type=file_argument,
        help="cluster by these vectors from any model: .npz, .parquet, .csv, ... with the images' names, or "
        "without names one for each image, sorted by path",
    )  # fmt: skip
    add("--from-scratch", action="store_true", help="learn the features from these images alone")
    add("--size", metavar="PIXELS", type=int, help="side to which images are brought")
    add("--resize", choices=["crop", "pad", "squeeze"], default="crop", help="how they are")
    add("--hours", type=float, default=2.0, help="time for step 1 of --from-scratch (default: %(default)g)")
    add(
        "--labels", metavar="subfolders|FILE.csv",
        help="compare with the names of subfolders, or with a table of file,label, after clustering",
    )  # fmt: skip
    add(
        "--link-originals", action="store_true",
        help="the report opens the images wherever it lies on this machine; it then tells their path",
    )  # fmt: skip
    add(
        "--every",
        metavar="SECONDS",
        type=float,
        help="between the frames that are taken of a video (default: 1)",
    )
    add(
        "--corrections", metavar="FILE.csv", type=file_argument,
        help="what to correct, as report.html saves it (default: corrections.csv in the results folder)",
    )  # fmt: skip
    add(
        "--pages", choices=["first", "middle", "all"],
        help="of files of several pages or frames, the images (default: the middle one)",
    )  # fmt: skip
    add("--channels", metavar="1,2,3", type=channels_argument, help="channels to show as red, green and blue")
    add("--seed", type=int, default=0)
    add_overrides(
        parser, "override a key of all experiment files, or of one (pretext, scan, selflabel): scan.epochs=9"
    )
    add_version(parser)
    args = parser.parse_args(argv)

    import data
    from workflows.experiments import split_step
    from workflows.run_steps import SCRIPTS

    args.clusters, args.candidates = args.clusters
    require_one_process("cluster.py")
    sources = {
        "--features": args.features, "--pretrained": args.pretrained, "--from-scratch": args.from_scratch,
    }  # fmt: skip
    given = [flag for flag, value in sources.items() if value]
    if len(given) > 1:
        raise UserError(f"{' and '.join(given)}: give only one of them")
    if args.features and (args.backbone or args.size):
        raise UserError("--features replaces the network: leave out --backbone and --size")
    if args.corrections and not args.corrections.is_file():
        raise UserError(f"--corrections {args.corrections}: no such file")
    if args.hours <= 0:
        raise UserError(f"--hours {args.hours:g}: must be above 0")
    for source in (*args.images, *args.added):
        data.require_source(source)
    for override in args.overrides:
        of, dot, _ = override.partition("=")[0].partition(".")
        if dot and of not in SCRIPTS and not of.endswith("_kwargs"):
            raise UserError(f"--set {override}: {of} is no step; the steps are {', '.join(SCRIPTS)}")
        if split_step(override)[0] == "selflabel" and not args.from_scratch:
            raise UserError(f"--set {override}: this step runs only with --from-scratch")
        if flag := re.match(r"(\w+\.)?(every|pages)=", override):
            raise UserError(f"--set {override}: all steps read the same images; give --{flag[2]} instead")
    args.images = [source.resolve() for source in args.images]
    args.added = [source.resolve() for source in args.added]
    first = args.images[0]
    name = first.stem if first.is_file() else first.name
    args.named = args.name is not None
    args.name = args.name or re.sub(r"[^\w.-]+", "_", name).strip("._-") or "images"
    if not is_name(args.name):
        raise UserError(f"--name {args.name}: use letters, digits, '_', '-' and '.'")
    return ClusterOptions.from_arguments(args)


def channels_argument(text: str) -> list[int]:
    """argparse type of --channels."""
    if not re.fullmatch(r"[1-9]\d{0,3}(,[1-9]\d{0,3}){0,2}", text):
        raise argparse.ArgumentTypeError(f"expected one to three numbers from 1 on: 1,2,3; found {text!r}")
    return list(map(int, text.split(",")))


def numbers_argument(text: str) -> tuple[list[int], list[int]]:
    """argparse type of --clusters: `clusters` and `candidates` of ClusterOptions."""
    if text == "auto":
        return [], []
    known = re.fullmatch(r"\d+(:\d+|(,\d+)*)", text)
    numbers = [int(part) for part in re.split("[:,]", text)] if known else [0]
    if min(numbers) < 2:
        raise argparse.ArgumentTypeError(
            f"expected K; K,K,...; LOW:HIGH; or auto, with numbers of 2 or more; found {text!r}"
        )
    if ":" not in text:
        return sorted(set(numbers)), []

    from utils.analysis import choose_k, partitions

    low, high = numbers
    if not low < high <= partitions.GROUPS:
        raise argparse.ArgumentTypeError(f"expected LOW < HIGH <= {partitions.GROUPS}; found {text!r}")
    return [], choose_k.candidates(low, high)

"""A folder of one's own images: its experiment files, and earlier results."""

import itertools
import os
import platform
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from data import described, read_vectors
from errors import UserError
from steps.options import BuildDataset
from utils.files import atomic, read_json, write_json
from utils.run.config import differences, listed, read_yaml
from utils.run.fingerprint import FINGERPRINT, read_fingerprint
from utils.run.folder import lock
from utils.run.script import yaml_text
from utils.training.features import digest_of
from workflows import grown_images, run_steps
from workflows.experiments import settings_of
from workflows.own_command import ClusterOptions
from workflows.run_steps import SCRIPTS, DatasetCache, PlannedStep

TEMPLATES = Path(__file__).parents[1] / "configs/own"
FEWEST_IMAGES = 21  # so that each image has 20 neighbors
COMMAND_FILE = "cluster.json"  # in the results folder: what the experiment files were made for
OF_STEPS = re.compile(r"--(run|accept_changes|fresh|output)\b|--pretrained \S+ to ")
LOCK_FILE = ".lock"  # there, too: which process works in it
LEFT_OUT = "selflabel-left-out"  # there: a self-labeling that made nothing better
CLUSTER_FILES = (
    "report.html", "clusters.csv", "clusters", "prototypes.png", "metrics.json", "numbers.csv", "numbers.png",
    "predictions", "export", "head.npz", "new_kinds.csv", "new_kinds.png", "clusters.parquet",
    LEFT_OUT,
)  # fmt: skip


@dataclass
class CommandRecord:
    """The command and the images that the experiment files were made for: the content of COMMAND_FILE."""

    arguments: dict[str, str] = field(default_factory=dict)  # see ClusterOptions.training_arguments
    images: str = ""  # digest of the images that the steps train on
    distinct: int = 0  # number of distinct images
    contents: dict[str, dict[str, Any]] = field(default_factory=dict)  # of the experiment files, by step
    places: str = ""  # fingerprint of the images, which depends on their names; empty in older results
    trained: list[str] = field(default_factory=list)  # hashes of the images, see final_head.hashes_of
    added: list[str] = field(default_factory=list)  # by this command and earlier ones
    named: bool = True  # whether --name was given


@dataclass
class OwnExperiment:
    """The experiment files, in memory.

    They are kept in COMMAND_FILE, all at once. Each is also written when its step is to run, when it is
    final, so that the step can be repeated by hand.
    """

    options: ClusterOptions
    folder: Path  # of the results
    environment: dict[str, Any]  # what the environment file holds
    record: CommandRecord = field(default_factory=CommandRecord)
    grown: bool = False  # whether the images are others by now, and the steps stay as they were trained
    folders: dict[str, Path] = field(default_factory=dict)  # of the results of the steps that have run
    left_out: str = ""  # why self-labeling is, "" if it is not
    build_dataset: BuildDataset = field(default_factory=DatasetCache)

    def file(self, step: str) -> Path:
        """The experiment file of a step."""
        return self.folder / "configs" / f"{step}.yml"

    def plan(self, step: str) -> PlannedStep:
        """Check the configuration of a step, with the user's settings."""
        given, machine = self.options.pretrained if step == "pretext" else None, self.options.config_env
        flags = ["--pretrained", str(given)] if given else []
        flags += ["--config_env", str(machine)] if machine else []
        own = settings_of(step, self.options.overrides)
        settings = [f"root_dir={yaml_text(self.folder.parent)}", *own]
        white = read_json(self.folder / "scan/metrics.json").get("white_level") if self.grown else None
        settings += [f"white_level={white}"] * bool(white)  # so that known images look as they did
        arguments = [*flags, "--config_exp", str(self.file(step)), "--set", *settings]
        return run_steps.plan_step(step, self.environment, self.record.contents[step], arguments)

    def plan_all(self) -> list[PlannedStep]:
        """Check the configurations of all steps."""
        return [self.plan(step) for step in self.record.contents]

    def run(self, step: str) -> Path:
        """Write a step's file, and run the step unless it is finished; returns the folder of its results.

        Of a training that stays, a step that has not run is left out.
        """
        self.file(step).parent.mkdir(parents=True, exist_ok=True)
        with atomic(self.file(step)) as path:
            content = yaml.safe_dump(self.record.contents[step], sort_keys=False, allow_unicode=True)
            path.write_text(content, "utf-8")
        planned = self.plan(step)
        if self.grown:
            if read_fingerprint(planned.folder):
                print(f"kept as it was trained: {planned.folder}")
                self.folders[step] = planned.folder
            return planned.folder
        run_steps.require_same_settings(planned)
        try:
            self.folders |= run_steps.run_steps({step: planned}, self.build_dataset)
        except UserError as error:
            raise type(error)(in_words_of_cluster(str(error), self.folder)) from None
        return self.folders[step]

    def set_number(self, clusters: int) -> None:
        """Set the number of clusters, for all steps but the first."""
        self.record.contents["scan"]["num_neighbors"] = neighbors_to_use(clusters, self.record.distinct)
        for step in self.record.contents.keys() - {"pretext"}:
            self.record.contents[step]["num_classes"] = clusters
        self.save()

    def set_threshold(self, confidence: float) -> None:
        """Set the threshold of self-labeling."""
        self.record.contents["selflabel"]["confidence_threshold"] = confidence
        self.save()

    def save(self) -> None:
        """Write COMMAND_FILE. The files of the steps that did not run yet are no longer right."""
        for step in self.record.contents.keys() - self.folders.keys():
            self.file(step).unlink(missing_ok=True)
        added = read_json(self.folder / COMMAND_FILE).get("added", ())
        record, options = self.record, self.options
        record.arguments, record.named = options.training_arguments(), options.named
        record.added = list(dict.fromkeys([*added, *map(str, options.added)]))
        write_json(asdict(record), self.folder / COMMAND_FILE)


def take_earlier(experiment: OwnExperiment) -> bool:
    """Take the experiment files of an earlier command that has begun, if they are right for this one.

    With another number of clusters, the results of all steps but the first are moved aside. If the images
    have changed, a finished training is kept where `grown_images.can_keep` says so.

    Returns:
        whether there are such files; if not, they are to be made.

    Raises:
        UserError: results of other scripts. From scratch, where much may be lost: another command or images.
    """
    options, folder = experiment.options, experiment.folder
    if not has_begun(folder):
        return False
    apart = f"--name {free_name(folder)}"
    content = read_json(folder / COMMAND_FILE)
    if not content:
        raise UserError(f"{folder}: holds results of other scripts; give {apart}")
    known = {key.name: content[key.name] for key in fields(CommandRecord) if key.name in content}
    record, asked = CommandRecord(**known), options.training_arguments()
    changed = differences(record.arguments, asked)
    moved = changed.pop("images", None)  # `own_folder` says that they are the same
    if "features" in asked and "features" in record.arguments:  # they are compared with the images
        moved = changed.pop("features", moved)
    if changed.keys() - {"clusters", "candidates"}:
        if "from_scratch" in asked or "from_scratch" in record.arguments:
            raise UserError(
                f"{folder}: holds a training by another command ({listed(changed)}); give that again, or "
                f"keep this one apart with {apart}"
            )
        return False
    experiment.record = record
    files = {step: experiment.file(step) for step in templates(options.from_scratch)}
    written = {step: read_yaml(file) for step, file in files.items() if file.exists() or not record.contents}
    record.contents |= written
    backbone = record.contents["pretext"]["backbone"]
    if options.features and backbone != read_vectors(options.features).backbone:
        return False
    for step_content in record.contents.values():
        step_content.pop("added_images", None)
        step_content.update(options.source_keys())
    plan = experiment.plan_all()
    for step in plan * (not changed):
        run_steps.require_same_settings(step)
    dataset = experiment.build_dataset(plan[0].config, "train")
    places = record.places or read_fingerprint(plan[0].folder).get("data", {}).get("train")
    if digest_of(dataset) != record.images or places not in (None, dataset.fingerprint()):
        if options.retrain:
            return False
        experiment.grown = not changed and grown_images.can_keep(plan, record.trained, dataset)
        if options.from_scratch and not experiment.grown:
            raise UserError(
                f"{described(options.images)}: its images have changed since {folder} was made; train on "
                f"these with --retrain, which keeps the earlier results, or apart with {apart}"
            )
        if not experiment.grown:
            return False
    elif changed:  # the first step does not depend on the number of clusters
        move_to_earlier(folder, ["scan", "selflabel"])
        if options.clusters:
            experiment.set_number(options.clusters[-1])
    if changed or moved or experiment.grown:
        experiment.save()
    return True


def require_enough_images(options: ClusterOptions, n: int, copies: int = 0) -> None:
    """Raise UserError if n distinct images are too few for neighbors or for that many clusters."""
    needed = max([FEWEST_IMAGES, *options.clusters, *options.candidates])
    if n < needed:
        more = f" (and {copies} copies of them)" if copies else ""
        how = f"{needed} clusters need as many: lower --clusters, or add images"
        if needed == FEWEST_IMAGES:
            how = f"{needed} are needed, since each is compared with its {needed - 1} neighbors: add images"
        raise UserError(f"{described(options.images)}: {n} images{more} are too few; {how}")


def move_to_earlier(folder: Path, steps: list[str]) -> None:
    """Move these steps' results and what was made of them to earlier-N/; copy the experiment files."""
    for log in (folder / step / "log.txt" for step in steps):
        if log.exists():
            with open(log, "ab") as file:  # a step by hand may be writing there
                lock(file, log.parent, "--name NAME")
    # the steps at the end: has_begun() tells the next command that the rest is still to be moved
    names = [name for name in (*CLUSTER_FILES, *steps) if (folder / name).exists()]
    if not names:
        return
    number = next(n for n in itertools.count(1) if not (folder / f"earlier-{n}").exists())
    earlier = folder / f"earlier-{number}"
    shutil.copytree(folder / "configs", earlier / "configs")
    for name in names:
        (folder / name).rename(earlier / name)
    print(f"the earlier results are kept in {earlier}")


def free_name(folder: Path) -> str:
    """The name of a folder beside `folder` that does not exist, or in which a command left nothing."""
    for number in itertools.count(2):
        path = folder.with_name(f"{folder.name}-{number}")
        if not path.exists() or ((path / LOCK_FILE).exists() and not has_begun(path)):
            break
    return path.name


def in_words_of_cluster(message: str, folder: Path) -> str:
    """A step's message, without advice to use options that cluster.py does not have."""
    parts = re.split(r"(; |, or |, )", message)
    keep = [not OF_STEPS.search(part) for part in parts[::2]]
    if all(keep):
        return message
    kept = [parts[2 * i - 1] + parts[2 * i] if i else parts[0] for i, fits in enumerate(keep) if fits]
    return f"{''.join(kept)}; or keep this one apart with --name {free_name(folder)}"


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Context manager that keeps a second command out of a results folder. Raises UserError in that one."""
    try:
        file = open(folder / LOCK_FILE, "a+b", buffering=0)  # noqa: SIM115
    except OSError:  # read-only: whatever is to be changed there is refused later
        yield
        return
    with file:
        file.seek(0)
        lock(file, folder, "--name NAME", file.read().decode(errors="replace"))
        with suppress(OSError):  # a full disk
            file.truncate(0)
            file.write(f"process {os.getpid()} on {platform.node()}".encode())
        yield


def has_begun(folder: Path) -> bool:
    """Whether a step has results, or a training that can be resumed."""
    names = FINGERPRINT, "checkpoint.pth.tar"
    return any((folder / step / name).exists() for step in SCRIPTS for name in names)


def templates(from_scratch: bool) -> dict[str, Path]:
    """The files of configs/own/ by step."""
    names = {"pretext": "pretrained", "scan": "scan"}
    if from_scratch:
        names = {"pretext": "simclr", "scan": "scan", "selflabel": "selflabel"}
    return {step: TEMPLATES / f"{name}.yml" for step, name in names.items()}


def neighbors_to_use(clusters: int, distinct: int) -> int:
    """As many as the published 20, unless that is more than half of the average cluster."""
    return max(5, min(20, distinct // (2 * clusters)))

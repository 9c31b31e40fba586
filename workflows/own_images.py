"""What cluster.py starts from: new experiment files, or those of an earlier command and its results."""

import itertools
import json
import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import data
from errors import UserError
from steps.options import BuildDataset
from utils.files import write_json
from utils.run.config import differences, listed, read_yaml
from utils.run.fingerprint import FINGERPRINT
from utils.training.features import digest_of
from workflows import run_steps
from workflows.fit_to_images import fit, require_enough_images
from workflows.own_experiment import ClusterArguments, OwnExperiment, templates

PLAN = "cluster.json"  # in the results folder: what the experiment files were made for, see PlanRecord
CLUSTER_FILES = (
    "report.html", "clusters.csv", "clusters", "prototypes.png", "metrics.json", "numbers.csv", "numbers.png",
    "predictions", "export",
)  # fmt: skip


@dataclass(frozen=True)
class PlanRecord:
    """The content of PLAN."""

    arguments: dict[str, str]  # see ClusterArguments.of_training
    images: str  # digest of the images
    distinct: int  # number of distinct images


def prepare(
    arguments: ClusterArguments, folder: Path, environment: dict[str, Any], build_dataset: BuildDataset
) -> OwnExperiment:
    """Make the experiment files, or take those of an earlier command with these arguments and images.

    Results of another command or of other images are moved aside.

    Raises:
        UserError: bad images or settings. From scratch, where much may be lost: another command or images.
    """
    experiment = OwnExperiment(arguments, folder, environment, {})
    asked, plan = arguments.of_training(), folder / PLAN
    record = PlanRecord(**json.loads(plan.read_text())) if plan.exists() else None
    begun = has_begun(folder)
    if begun and not record:
        raise UserError(f"{folder}: holds results of other scripts; give --name {free_name(folder)}")
    n = len(data.list_images(arguments.images, but=(folder.parent, folder))[0])
    require_enough_images(arguments, n)
    if begun and record and take_earlier(experiment, record, build_dataset):
        record = replace(record, arguments=asked)
    else:
        files = templates(arguments.from_scratch)
        experiment.contents = {step: read_yaml(path) for step, path in files.items()}
        dataset = fit(experiment, n, build_dataset)
        if begun:
            move_to_earlier(folder, list(run_steps.SCRIPTS))
        experiment.write()
        record = PlanRecord(asked, digest_of(dataset), experiment.distinct)
    write_json(asdict(record), plan)
    return experiment


def take_earlier(experiment: OwnExperiment, record: PlanRecord, build_dataset: BuildDataset) -> bool:
    """Take the experiment files of an earlier command that has begun, if they are for these images.

    With another number of clusters, the results of all steps but the first are moved aside.

    Returns:
        whether the files fit; if not, they are to be made anew.

    Raises:
        UserError: from scratch, where much may be lost: another command or other images.
    """
    arguments, folder = experiment.arguments, experiment.folder
    asked = arguments.of_training()
    changed = differences(record.arguments, asked)
    if changed.keys() <= {"clusters"}:
        experiment.distinct = record.distinct
        steps = templates(arguments.from_scratch)
        experiment.contents = {step: read_yaml(experiment.file(step)) for step in steps}
    if changed.keys() == {"clusters"}:  # the first step does not depend on it
        move_to_earlier(folder, ["scan", "selflabel"])
        if len(arguments.clusters) == 1:
            experiment.set_number(arguments.clusters[0])
        return True
    apart = f"apart with --name {free_name(folder)}"
    if changed and ("from_scratch" in asked or "from_scratch" in record.arguments):
        raise UserError(
            f"{folder}: holds a training by another command ({listed(changed)}); give that again, or keep "
            f"this one {apart}"
        )
    if changed:
        return False
    plans = experiment.plans()
    for planned in plans:
        run_steps.require_same_settings(planned)
    if digest_of(build_dataset(plans[0].config, "train")) == record.images:
        return True
    if arguments.from_scratch:
        raise UserError(
            f"{arguments.images}: its images have changed since {folder} was made; keep a training on these "
            f"{apart}"
        )
    return False


def move_to_earlier(folder: Path, steps: list[str]) -> None:
    """Move these steps' results and what was made of them to earlier-N/; copy the experiment files."""
    number = next(n for n in itertools.count(1) if not (folder / f"earlier-{n}").exists())
    earlier = folder / f"earlier-{number}"
    shutil.copytree(folder / "configs", earlier / "configs")
    for name in (*steps, *CLUSTER_FILES):
        if (folder / name).exists():
            (folder / name).rename(earlier / name)
    print(f"the earlier results are kept in {earlier}")


def free_name(folder: Path) -> str:
    """The name of a results folder beside `folder` that does not exist yet."""
    names = (f"{folder.name}-{n}" for n in itertools.count(2))
    return next(name for name in names if not (folder.parent / name).exists())


def has_begun(folder: Path) -> bool:
    """Whether a step has results, or a training that can be resumed."""
    names = FINGERPRINT, "checkpoint.pth.tar"
    return any((folder / step / name).exists() for step in run_steps.SCRIPTS for name in names)

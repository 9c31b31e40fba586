"""What cluster.py starts from: new experiment files, or those of an earlier command and its results."""

import itertools
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import data
from errors import UserError
from utils.files import read_json, write_json
from utils.run.config import differences, listed, read_yaml
from utils.run.folder import FINGERPRINT
from utils.training.features import digest_of
from workflows.fit_to_images import fit, require_enough_images
from workflows.own_experiment import ClusterOptions, OwnExperiment, templates
from workflows.run_steps import SCRIPTS, require_same_settings

PLAN = "cluster.json"  # in the results folder: what the experiment files were made for
CLUSTER_FILES = (
    "report.html", "clusters.csv", "clusters", "prototypes.png", "metrics.json", "numbers.csv", "numbers.png",
    "predictions", "export",
)  # fmt: skip


@dataclass(frozen=True)
class PlanRecord:
    """The content of PLAN."""

    arguments: dict[str, str]  # see ClusterOptions.of_training
    images: str  # digest of the images
    distinct: int  # number of distinct images


def prepare(options: ClusterOptions, folder: Path) -> OwnExperiment:
    """Make the experiment files, or take those of an earlier command with these options and images.

    Results of another command or of other images are moved aside.

    Raises:
        UserError: bad images or settings. From scratch, where much may be lost: another command or images.
    """
    experiment = OwnExperiment(options, folder)
    kept = read_json(folder / PLAN)
    begun = has_begun(folder)
    if begun and not kept:
        raise UserError(f"{folder}: holds results of other scripts; give --name {free_name(folder)}")
    n = len(data.list_images(options.images, but=(folder.parent, folder))[0])
    require_enough_images(options, n)
    if begun and take_earlier(experiment, PlanRecord(**kept)):
        images = kept["images"]
    else:
        experiment.contents = {
            step: read_yaml(path) for step, path in templates(options.from_scratch).items()
        }
        images = digest_of(fit(experiment, n))
        if begun:
            move_to_earlier(folder, list(SCRIPTS))
        experiment.write()
    write_json(asdict(PlanRecord(options.of_training(), images, experiment.distinct)), folder / PLAN)
    return experiment


def take_earlier(experiment: OwnExperiment, record: PlanRecord) -> bool:
    """Take the experiment files of an earlier command that has begun, if they are right for this one.

    With another number of clusters, the results of all steps but the first are moved aside.

    Returns:
        whether they are right; if not, they are to be made anew.

    Raises:
        UserError: from scratch, where much may be lost: another command or other images.
    """
    options, folder = experiment.options, experiment.folder
    asked = options.of_training()
    changed = differences(record.arguments, asked)
    if changed.keys() - {"clusters"}:
        if "from_scratch" in asked or "from_scratch" in record.arguments:
            raise UserError(
                f"{folder}: holds a training by another command ({listed(changed)}); give that again, or "
                f"keep this one apart with --name {free_name(folder)}"
            )
        return False
    experiment.distinct = record.distinct
    experiment.contents = {step: read_yaml(experiment.file(step)) for step in templates(options.from_scratch)}
    if changed:  # the first step does not depend on the number of clusters
        move_to_earlier(folder, ["scan", "selflabel"])
        if len(options.clusters) == 1:
            experiment.set_number(options.clusters[0])
        return True
    plan = experiment.plan_all()
    for step in plan:
        require_same_settings(step)
    is_same = digest_of(experiment.build_dataset(plan[0].config, "train")) == record.images
    if options.from_scratch and not is_same:
        raise UserError(
            f"{options.images}: its images have changed since {folder} was made; keep a training on these "
            f"apart with --name {free_name(folder)}"
        )
    return is_same


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
    return any((folder / step / name).exists() for step in SCRIPTS for name in names)

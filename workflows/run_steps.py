"""Run the steps of the method in order. What is finished is skipped; what they share is built once."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import data
import moco
import pretrained
import scan
import selflabel
import simclr
from errors import UserError
from eval import EvalOptions, evaluate_checkpoint
from steps.options import BuildDataset, StepOptions
from utils.files import digest
from utils.run.config import (
    Config,
    differences,
    experiment_of,
    listed,
    merge_config,
    read_yaml,
    with_defaults,
)
from utils.run.fingerprint import Fingerprint, read_fingerprint
from utils.run.folder import find_earlier_folder, results_folder
from utils.run.machine import Machine
from utils.run.script import parse_arguments
from workflows.provenance import note_maker

# step: {setup of its experiment file: the script's module}
SCRIPTS: dict[str, dict[str, ModuleType]] = {
    "pretext": {"simclr": simclr, "moco": moco, "pretrained": pretrained},
    "scan": {"scan": scan},
    "selflabel": {"selflabel": selflabel},
}
# what data.build_dataset reads of a configuration, besides cache_features
DATASET_KEYS = (
    "train_db_name", "val_db_name", "data_dir", "root_dir", "image_folder", "added_images",
    "folder_labels", "features_file",
    "transformation_kwargs", "crop_ratio", "resize", "white_level", "max_unreadable", "num_workers",
    "backbone", "every",
    "pages", "channels", "black_level", "max_pixels",
)  # fmt: skip


class DatasetCache:
    """`data.build_dataset` for a command of several steps: each dataset is built once.

    Only datasets of the latest settings are kept, and not train+unlabeled, which one step alone uses. A
    dataset depends on DATASET_KEYS alone: it does not see other keys.
    """

    def __init__(self) -> None:
        self.settings: dict[str, Any] = {}
        self.built: dict[str, data.Dataset] = {}

    def __call__(self, config: Config, split: str) -> data.Dataset:
        settings = {key: config[key] for key in DATASET_KEYS if key in config}
        settings["cache_features"] = bool(config.cache_features)
        if split == "train+unlabeled":
            return data.build_dataset(settings, split)
        if settings != self.settings:
            self.settings, self.built = settings, {}
        if data.one_for_both_splits(config):
            split = "train"
        if split not in self.built:
            self.built[split] = data.build_dataset(settings, split)
        return self.built[split]


@dataclass(frozen=True)
class PlannedStep:
    """A step to run."""

    name: str  # pretext, scan or selflabel
    config: Config  # checked
    options: StepOptions
    arguments: Sequence[str]  # the command line of the step's script that does the same

    @property
    def script(self) -> ModuleType:
        """The module that has the step's `run_step`."""
        return SCRIPTS[self.name][self.config.setup]

    @property
    def folder(self) -> Path:
        """The folder of the step's results."""
        return results_folder(self.config, self.name)


def plan_step(
    name: str, environment: dict[str, Any], experiment: dict[str, Any], arguments: Sequence[str]
) -> PlannedStep:
    """Check the configuration of the step `name`. Raises UserError for an invalid key or setting.

    Args:
        environment, experiment: what the environment file and the experiment file hold.
        arguments: the command line of the step's script.
    """
    args = parse_arguments(arguments, "", pretrained_help="")
    config = merge_config(environment, experiment, args, list(SCRIPTS[name]))
    return PlannedStep(name, config, StepOptions.from_arguments(args), arguments)


def configs_of(plan: Mapping[str, PlannedStep]) -> dict[str, Config]:
    """The configurations by step."""
    return {name: step.config for name, step in plan.items()}


def require_same_settings(step: PlannedStep) -> None:
    """Raise UserError if the step's folder holds results of other settings."""
    earlier = step.folder / "config.yml"
    if not earlier.exists():
        return
    changed = differences(with_defaults(experiment_of(read_yaml(earlier))), experiment_of(step.config))
    if changed:
        raise UserError(
            f"{step.folder}: holds results of other settings ({listed(changed)}); undo the change, or give "
            "another --root_dir"
        )


def run_steps(plan: Mapping[str, PlannedStep], build_dataset: BuildDataset) -> dict[str, Path]:
    """Run the steps that are not finished; an interrupted one resumes. Returns the results' folders by step.

    `build_dataset`: a DatasetCache, to build nothing twice.
    """
    for step in plan.values():
        name = step.script.__name__
        script = f"-m {name}" if "." in name else f"{name}.py"  # in the installed package, in a checkout
        print(f"\n$ python {script} {shlex.join(step.arguments)}", flush=True)
        if is_finished(step, build_dataset):
            print(f"done before: {step.folder}", flush=True)
        else:
            machine = Machine.start(step.config)
            note_maker(step.folder, machine)
            options = replace(step.options, build_dataset=build_dataset, machine=machine)
            step.script.run_step(step.config, options)
    return {name: step.folder for name, step in plan.items()}


def make_report(step: PlannedStep, build_dataset: BuildDataset) -> Path:
    """Evaluate the model of a clustering step, as eval.py --report does, unless its report is there.

    Returns the path of report.html, which is missing if it could not be made, after a warning.
    """
    model = step.folder / "model.pth.tar"
    page = step.folder / "eval/model/report.html"
    if not page.exists() or page.stat().st_mtime < model.stat().st_mtime:
        arguments = [*step.arguments, "--model", str(model), "--visualize_prototypes", "--report"]
        print(f"\n$ python eval.py {shlex.join(arguments)}", flush=True)
        options = EvalOptions(model, visualize_prototypes=True, report=True, build_dataset=build_dataset)
        evaluate_checkpoint(step.config, options)
    return page


def is_finished(step: PlannedStep, build_dataset: BuildDataset) -> bool:
    """Whether a step's folder holds complete, up-to-date results of its configuration.

    Results are out of date if the images, an earlier step's model or a result file have changed since.
    """
    written = read_fingerprint(step.folder)
    if not written or any(digest(step.folder / name) != sum_ for name, sum_ in written["files"].items()):
        return False
    # a role is a path relative to the results, or an absolute path
    inputs = {
        role: find_earlier_folder(step.config, Path(role).parts[0], step.options.run).parent / role
        for role in written.get("inputs", ())
    }
    datasets = {
        split: build_dataset(step.config, "train+unlabeled" if split == "unlabeled" else split)
        for split in written["data"]
    }
    now = Fingerprint(step.config, datasets, inputs).content
    before = with_defaults(written)
    return all(before.get(key) == value for key, value in now.items())

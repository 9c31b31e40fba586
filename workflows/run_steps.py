"""Run the steps of the method in order. What is finished is skipped; what they share is built once."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import data
import eval as evaluation
import moco
import pretrained
import scan
import selflabel
import simclr
from errors import UserError
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
from utils.run.fingerprint import read_fingerprint
from utils.run.folder import find_earlier_folder, results_folder
from utils.run.machine import Machine
from utils.run.script import default_environment, parse_arguments
from workflows.provenance import note_maker

# step: {setup of its experiment file: the script}
SCRIPTS: dict[str, dict[str, ModuleType]] = {
    "pretext": {"simclr": simclr, "moco": moco, "pretrained": pretrained},
    "scan": {"scan": scan},
    "selflabel": {"selflabel": selflabel},
}
# what data.build_dataset reads of a configuration
DATASET_KEYS = (
    "train_db_name", "val_db_name", "data_dir", "root_dir", "image_folder", "folder_labels", "features_file",
    "transformation_kwargs", "resize", "white_level", "max_unreadable", "num_workers", "backbone",
    "cache_features",
)  # fmt: skip


class DatasetCache:
    """`data.build_dataset` for a command of several steps: each dataset is built once.

    Only datasets of the latest settings are kept. The split train+unlabeled is not: one step alone uses it.
    """

    def __init__(self) -> None:
        self.settings: dict[str, Any] = {}
        self.built: dict[str, data.Dataset] = {}

    def __call__(self, config: Config, split: str) -> data.Dataset:
        if split == "train+unlabeled":
            return data.build_dataset(config, split)
        settings = {key: config.get(key) or None for key in DATASET_KEYS}
        if settings != self.settings:
            self.settings, self.built = settings, {}
        one_folder = config.get("image_folder") and config.get("folder_labels") == "none"
        if one_folder and config.train_db_name == config.val_db_name:
            split = "train"  # both splits are all images of the folder
        if split not in self.built:
            self.built[split] = data.build_dataset(config, split)
        return self.built[split]


@dataclass(frozen=True)
class PlannedStep:
    """A step to run.

    Attributes:
        name: pretext, scan or selflabel.
        config: the checked configuration.
        arguments: the command line of the step's script that does the same.
        options: the choices of that command line that are not in `config`.
    """

    name: str
    config: Config
    arguments: list[str]
    options: StepOptions

    @property
    def script(self) -> ModuleType:
        """The module that has the step's `run_step`."""
        return SCRIPTS[self.name][self.config.setup]

    @property
    def folder(self) -> Path:
        """The folder of the step's results."""
        return results_folder(self.config, self.name)


def plan_step(
    name: str,
    file: Path | str,
    environment: dict[str, Any],
    experiment: dict[str, Any],
    settings: Sequence[str],
    run: str | None = None,
    pretrained: Path | None = None,
) -> PlannedStep:
    """Check a step's configuration.

    Args:
        name: of the step.
        file: the experiment file.
        environment, experiment: what the environment file and `file` hold.
        settings: KEY=VALUE strings, which override both.
        run: keep the results apart, as --run does; None: do not.
        pretrained: file of the weights to start from, as --pretrained.

    Raises:
        UserError: an invalid file or setting.
    """
    apart = ["--run", run] if run else []
    arguments = ["--config_exp", str(file), *apart, "--set", *settings]
    config = merge_config(environment, experiment, parse_arguments(arguments, ""), list(SCRIPTS[name]))
    given = ["--pretrained", str(pretrained)] if pretrained else []
    return PlannedStep(name, config, [*given, *arguments], StepOptions(run=run, pretrained=pretrained))


def plan_steps(
    files: Mapping[str, Path | str],
    settings: Sequence[str],
    step_settings: Mapping[str, Sequence[str]] | None = None,
    run: str | None = None,
) -> dict[str, PlannedStep]:
    """Read and check the configurations of several steps; returns the steps by name, in their order.

    Args:
        files: experiment files by step: pretext, scan and selflabel, or some of them, if the results of the
            earlier ones are there.
        settings: KEY=VALUE strings for all steps, root_dir among them.
        step_settings: KEY=VALUE strings by step, which override `settings`.
        run: as in `plan_step`.

    Raises:
        UserError: an invalid file or setting, or a results folder that was made with other settings.
    """
    environment = read_yaml(default_environment())
    plan = {}
    for name, file in files.items():
        own = [*settings, *(step_settings or {}).get(name, ())]
        plan[name] = plan_step(name, file, environment, read_yaml(file), own, run)
        require_same_settings(plan[name])
    return plan


def configs_of(plan: dict[str, PlannedStep]) -> dict[str, Config]:
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


def run_steps(plan: dict[str, PlannedStep], build_dataset: BuildDataset) -> dict[str, Path]:
    """Run the steps that are not finished; an interrupted one resumes.

    Args:
        plan: what `plan_steps` returned.
        build_dataset: as `data.build_dataset`; normally a DatasetCache.

    Returns:
        the folders of results by step.

    Raises:
        UserError: whatever a step raises.
    """
    for step in plan.values():
        print(f"\n$ python {step.script.__name__}.py {shlex.join(step.arguments)}", flush=True)
        if is_finished(step, build_dataset):
            print(f"done before: {step.folder}", flush=True)
        else:
            machine = Machine.start(step.config)
            note_maker(step.folder, machine)
            step.script.run_step(step.config, step.options, build_dataset, machine)
    return {name: step.folder for name, step in plan.items()}


def make_report(step: PlannedStep) -> Path:
    """Run eval.py on the model of a clustering step, if its report is not there yet.

    Returns:
        the path of report.html; it is missing if it could not be made, after a warning.
    """
    model = step.folder / "model.pth.tar"
    report = step.folder / "eval/model/report.html"
    if not report.exists() or report.stat().st_mtime < model.stat().st_mtime:
        arguments = [*step.arguments, "--model", str(model), "--visualize_prototypes", "--report"]
        print(f"\n$ python eval.py {shlex.join(arguments)}", flush=True)
        evaluation.main(arguments)
    return report


def is_finished(step: PlannedStep, build_dataset: BuildDataset) -> bool:
    """Whether a step's folder holds complete, up-to-date results of its configuration.

    Results are out of date if the images, an earlier step's model or a result file have changed since.
    """
    folder, config, run = step.folder, step.config, step.options.run
    written = read_fingerprint(folder)
    if not written:
        return False
    written = with_defaults(written)
    here = {
        **experiment_of(config),
        "inputs": {role: digest(_input(role, config, run)) for role in written.get("inputs", ())},
        "files": {name: digest(folder / name) for name in written.get("files", ())},
    }
    if any(written.get(key) != value for key, value in here.items()):
        return False
    splits = {split: "train+unlabeled" if split == "unlabeled" else split for split in written["data"]}
    images = {split: build_dataset(config, name).fingerprint() for split, name in splits.items()}
    return written["data"] == images


def _input(role: str, config: Config, run: str | None) -> Path:
    """The file that a step started from, by its role in the fingerprint.

    The role is such as pretext/model.pth.tar, or an absolute path, which stays what it is.
    """
    return find_earlier_folder(config, Path(role).parts[0], run).parent / role

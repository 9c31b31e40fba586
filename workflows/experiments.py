"""The experiment files of each dataset, and the steps that they describe."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from utils.run.config import Config, read_yaml
from utils.run.script import default_environment, own_file, yaml_text
from workflows.run_steps import SCRIPTS, PlannedStep, plan_step, require_same_settings

Plan = dict[str, PlannedStep]  # by name
Configs = dict[str, Config]  # by step

# DATASET: names of its files in configs/pretext/, configs/scan/ and configs/selflabel/
EXPERIMENTS = {
    "digits": ("simclr_digits", "scan_digits", "selflabel_digits"),
    "mnist": ("simclr_mnist", "scan_mnist", "selflabel_mnist"),
    "fashion-mnist": ("simclr_fashion_mnist", "scan_fashion_mnist", "selflabel_fashion_mnist"),
    "cifar-10": ("simclr_cifar10", "scan_cifar10", "selflabel_cifar10"),
    "cifar-10-cpu": ("simclr_cifar10_cpu", "scan_cifar10_cpu", "selflabel_cifar10_cpu"),
    "cifar-20": ("simclr_cifar20", "scan_cifar20", "selflabel_cifar20"),
    "stl-10": ("simclr_stl10", "scan_stl10", "selflabel_stl10"),
    "imagenet_50": ("moco_imagenet50", "scan_imagenet_50", "selflabel_imagenet_50"),
    "imagenet_100": ("moco_imagenet100", "scan_imagenet_100", "selflabel_imagenet_100"),
    "imagenet_200": ("moco_imagenet200", "scan_imagenet_200", "selflabel_imagenet_200"),
}


def experiment_files(dataset: str) -> dict[str, str]:
    """The experiment file of each step, for a dataset of EXPERIMENTS."""
    names = zip(SCRIPTS, EXPERIMENTS[dataset], strict=True)
    return {step: own_file(f"configs/{step}/{name}.yml") for step, name in names}


def split_step(override: str) -> tuple[str | None, str]:
    """scan.epochs=9 -> ("scan", "epochs=9"), epochs=9 -> (None, "epochs=9")."""
    step, _, setting = override.partition(".")
    return (step, setting) if step in SCRIPTS else (None, override)


def settings_of(step: str, overrides: Iterable[str]) -> list[str]:
    """The KEY=VALUE strings for a step, out of those for all steps and those for one."""
    return [setting for of, setting in map(split_step, overrides) if of in (step, None)]


@dataclass(frozen=True)
class DatasetExperiment:
    """The steps on a dataset, for any seed."""

    root: Path  # the results of a seed go to ROOT/seed-N/
    files: dict[str, str]  # experiment file by step
    settings: dict[str, list[str]]  # KEY=VALUE strings by step

    def plan(
        self,
        seed: int,
        steps: Iterable[str] | None = None,
        changes: Mapping[str, list[str]] | None = None,
        root: Path | None = None,
        run: str | None = None,
    ) -> Plan:
        """The steps of a seed, in order, with checked configurations.

        Args:
            steps: these only; the results of earlier ones must be in `root`.
            changes: further KEY=VALUE strings by step.
            root: in place of ROOT/seed-N.
            run: keep the results apart, as --run does.

        Raises:
            UserError: an invalid file or setting, or a results folder that was made with other settings.
        """
        environment, plan = read_yaml(default_environment()), {}
        apart = ["--run", run] if run else []
        shared = [f"root_dir={yaml_text(root or self.root / f'seed-{seed}')}", f"seed={seed}"]
        for step in steps or self.files:
            settings = [*shared, *self.settings[step], *(changes or {}).get(step, ())]
            arguments = ["--config_exp", self.files[step], *apart, "--set", *settings]
            plan[step] = plan_step(step, environment, read_yaml(self.files[step]), arguments)
            require_same_settings(plan[step])
        return plan

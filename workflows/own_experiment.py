"""The command line of cluster.py, and the experiment files that are made for it."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from steps.options import BuildDataset, CommandOptions
from utils.files import atomic
from utils.run.config import read_yaml
from utils.run.script import default_environment, yaml_text
from workflows.run_steps import DatasetCache, PlannedStep, plan_step, require_same_settings, run_steps

TEMPLATES = Path(__file__).parents[1] / "configs/own"


@dataclass(frozen=True)
class ClusterOptions(CommandOptions):
    """The command line of cluster.py."""

    images: Path
    clusters: list[int]  # numbers of clusters to compare; empty for auto
    name: str
    root_dir: str | None
    backbone: str | None
    pretrained: Path | None
    features: Path | None
    from_scratch: bool
    size: int | None
    resize: str
    hours: float
    labels: str | None
    seed: int
    overrides: list[str]

    def of_training(self) -> dict[str, str]:
        """The arguments that were given and that decide what is trained, as text for cluster.json."""
        decides_nothing = "labels", "root_dir", "name"
        return {key: str(value) for key, value in vars(self).items() if value and key not in decides_nothing}


@dataclass
class OwnExperiment:
    """The experiment files, in memory. They are also written, so that steps can be repeated by hand."""

    options: ClusterOptions
    folder: Path  # of the results
    contents: dict[str, dict[str, Any]] = field(default_factory=dict)  # of the files, by step
    distinct: int = 0  # number of distinct images
    folders: dict[str, Path] = field(default_factory=dict)  # of the results of the steps that have run
    environment: dict[str, Any] = field(default_factory=lambda: read_yaml(default_environment()))
    build_dataset: BuildDataset = field(default_factory=DatasetCache)

    def file(self, step: str) -> Path:
        """The experiment file of a step."""
        return self.folder / "configs" / f"{step}.yml"

    def plan(self, step: str) -> PlannedStep:
        """Check the configuration of a step, with the user's settings."""
        given = self.options.pretrained if step == "pretext" else None
        flags = ["--pretrained", str(given)] if given else []
        settings = [f"root_dir={yaml_text(self.folder.parent)}", *self.options.overrides]
        arguments = [*flags, "--config_exp", str(self.file(step)), "--set", *settings]
        return plan_step(step, self.environment, self.contents[step], arguments)

    def plan_all(self) -> list[PlannedStep]:
        """Check the configurations of all steps."""
        return [self.plan(step) for step in self.contents]

    def run(self, step: str) -> Path:
        """Run a step unless it is finished; returns the folder of its results."""
        planned = self.plan(step)
        require_same_settings(planned)
        self.folders |= run_steps({step: planned}, self.build_dataset)
        return self.folders[step]

    def set_number(self, clusters: int) -> None:
        """Set the number of clusters, for all steps but the first, and write the files."""
        self.contents["scan"]["num_neighbors"] = neighbors_to_use(clusters, self.distinct)
        for step in self.contents.keys() - {"pretext"}:
            self.contents[step]["num_classes"] = clusters
        self.write()

    def set_threshold(self, confidence: float) -> None:
        """Set the threshold of self-labeling, and write the files."""
        self.contents["selflabel"]["confidence_threshold"] = confidence
        self.write()

    def write(self) -> None:
        """Write the files."""
        self.file("scan").parent.mkdir(parents=True, exist_ok=True)
        for step, content in self.contents.items():
            with atomic(self.file(step)) as path:
                path.write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True), "utf-8")


def templates(from_scratch: bool) -> dict[str, Path]:
    """The files of configs/own/ by step."""
    names = {"pretext": "pretrained", "scan": "scan"}
    if from_scratch:
        names = {"pretext": "simclr", "scan": "scan", "selflabel": "selflabel"}
    return {step: TEMPLATES / f"{name}.yml" for step, name in names.items()}


def neighbors_to_use(clusters: int, distinct: int) -> int:
    """As many as the published 20, unless that is more than half of the average cluster."""
    return max(5, min(20, distinct // (2 * clusters)))

"""The command line of cluster.py, and the experiment files that are made for it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from steps.options import BuildDataset
from utils.files import atomic
from utils.run.script import yaml_text
from workflows import run_steps

TEMPLATES = Path(__file__).parents[1] / "configs/own"
NOT_OF_TRAINING = "labels", "root_dir", "name"  # arguments that change nothing of what is trained


@dataclass(frozen=True)
class ClusterArguments:
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
        """What decides the training, as text for cluster.json: the arguments that were given."""
        given = {name: value for name, value in vars(self).items() if value}
        return {name: str(value) for name, value in given.items() if name not in NOT_OF_TRAINING}


@dataclass
class OwnExperiment:
    """The experiment files, in memory. They are written to configs/ so that steps can be repeated by hand.

    Attributes:
        folder: of the results.
        environment: what the environment file holds.
        contents: what the experiment files hold, by step.
        distinct: number of distinct images.
    """

    arguments: ClusterArguments
    folder: Path
    environment: dict[str, Any]
    contents: dict[str, dict[str, Any]]
    distinct: int = 0

    def file(self, step: str) -> Path:
        """The experiment file of a step."""
        return self.folder / "configs" / f"{step}.yml"

    def plan(self, step: str) -> run_steps.PlannedStep:
        """Check the configuration of a step, with the user's settings."""
        settings = [f"root_dir={yaml_text(self.folder.parent)}", *self.arguments.overrides]
        pretrained = self.arguments.pretrained if step == "pretext" else None
        return run_steps.plan_step(
            step, self.file(step), self.environment, self.contents[step], settings, pretrained=pretrained
        )

    def plans(self) -> list[run_steps.PlannedStep]:
        """Check the configurations of all steps."""
        return [self.plan(step) for step in self.contents]

    def run(self, step: str, build_dataset: BuildDataset) -> Path:
        """Run a step unless it is finished; returns the folder of its results."""
        planned = self.plan(step)
        run_steps.require_same_settings(planned)
        return run_steps.run_steps({step: planned}, build_dataset)[step]

    def write(self) -> None:
        """Write the experiment files."""
        for step, content in self.contents.items():
            self.file(step).parent.mkdir(parents=True, exist_ok=True)
            with atomic(self.file(step)) as path:
                path.write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True), "utf-8")

    def set_number(self, clusters: int) -> None:
        """Set the number of clusters, for all steps but the first, and write the files."""
        neighbors = neighbors_to_use(clusters, self.distinct)
        self.contents["scan"].update(num_classes=clusters, num_neighbors=neighbors)
        if "selflabel" in self.contents:
            self.contents["selflabel"].update(num_classes=clusters)
        self.write()

    def set_threshold(self, threshold: float) -> None:
        """Set the confidence above which an image has a pseudo-label, and write the files."""
        self.contents["selflabel"].update(confidence_threshold=threshold)
        self.write()


def templates(from_scratch: bool) -> dict[str, Path]:
    """The files of configs/own/ by step."""
    names = {"pretext": "pretrained", "scan": "scan"}
    if from_scratch:
        names = {"pretext": "simclr", "scan": "scan", "selflabel": "selflabel"}
    return {step: TEMPLATES / f"{name}.yml" for step, name in names.items()}


def neighbors_to_use(clusters: int, distinct: int) -> int:
    """As many as the published 20, unless that is more than half of the average cluster."""
    return max(5, min(20, distinct // (2 * clusters)))

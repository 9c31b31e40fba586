"""What a step starts from: its options, its run and its images."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import data
from utils.run import distributed
from utils.run.config import Config
from utils.run.folder import Run, results_folder
from utils.run.machine import Machine
from utils.run.script import CommandOptions

log = logging.getLogger(__name__)

BuildDataset = Callable[[Config, str], data.Dataset]  # as data.build_dataset: configuration, split


@dataclass(frozen=True)
class StepOptions(CommandOptions):
    """What a step is given besides its configuration."""

    run: str | None = None  # name of --run, which keeps the results apart; `config.root_dir` has it already
    pretrained: Path | None = None  # file of the weights to start from; default: the earlier step's
    pretext: Path | None = None  # folder of the pretext step's results, for the clustering step
    fresh: bool = False  # start over instead of resuming
    accept_changes: bool = False  # resume although settings changed that may change
    build_dataset: BuildDataset = data.build_dataset  # a DatasetCache, if several steps run
    machine: Machine | None = None  # None: the step starts its own


def open_run(config: Config, step: str, options: StepOptions) -> Run:
    """The Run of a step: "pretext", "scan" or "selflabel"."""
    machine = options.machine or Machine.start(config)
    return Run(config, results_folder(config, step), machine, options.fresh, options.accept_changes)


def build_splits(config: Config, options: StepOptions) -> tuple[data.Dataset, data.Dataset]:
    """The train and the test split; of several processes, the main one builds them first."""
    with distributed.main_first():
        train_set, test_set = (options.build_dataset(config, split) for split in ("train", "test"))
    log.info("%d train and %d test images", len(train_set), len(test_set))
    return train_set, test_set

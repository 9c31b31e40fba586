"""The paper's ablations: variants that differ in one setting, beside the experiment files' own.

python reproduce.py DATASET --ablation NAME [--seeds 0 1 2] [--minutes 8] [--set KEY=VALUE ...]

Whatever variants have in common is trained once: the experiment files' own results are those of reproduce.py
without --ablation, in ROOT_DIR/seed-N/DATASET/; those of a variant are in ROOT_DIR/seed-N/NAME-VARIANT/. The
same command resumes. It writes ROOT_DIR/DATASET-ablation-NAME.md, .csv, .json and .png.
"""

import json
import re
from argparse import Namespace
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

from utils.analysis import plots
from utils.analysis.metrics import spread
from utils.files import read_json
from utils.run.config import to_dict
from utils.run.folder import FIGURES
from workflows import tables
from workflows.experiments import Configs, DatasetExperiment, Plan
from workflows.provenance import origin_of
from workflows.run_steps import DatasetCache, run_steps
from workflows.tables import METHODS, AblationSummary, Variant

METRIC_TITLES = {"acc": "ACC", "majority_vote_acc": "ACC by majority vote"}  # an ablation shows one of them

# Label -> step -> KEY=VALUE strings; {} for the files' own settings, which must be among the variants. A
# variant's changes are those of the whole pipeline: later steps start from what its earlier ones found.
Variants = dict[str, dict[str, list[str]]]


@dataclass(frozen=True)
class Ablation:
    """What differs between variants, and what is shown of them."""

    about: str
    steps: tuple[str, ...]  # the steps whose figures are shown; later ones do not run
    variants: Callable[[Configs], Variants]
    metric: str = "acc"
    note: str = ""


SCAN, SELFLABEL, BOTH = ("scan",), ("selflabel",), ("scan", "selflabel")


# --- the variants --------------------------------------------------------------------------------


def values_of(step: str, key: str, others: Iterable[float]) -> Callable[[Configs], Variants]:
    """Variants: the file's value of a key of a step, and the others, in ascending order."""

    def variants(configs: Configs) -> Variants:
        own: Any = configs[step]
        for part in key.split("."):
            own = own[part]
        return {
            f"{value:g}": {} if value == own else {step: [f"{key}={value:g}"]}
            for value in sorted({own, *others})
        }

    return variants


FACTORS = (1.5, 2, 3)  # more clusters than classes


def numbers_of_clusters(configs: Configs) -> Variants:
    own = configs["scan"].num_classes
    numbers = [own, *(round(factor * own) for factor in FACTORS)]
    return {str(n): {} if n == own else dict.fromkeys(BOTH, [f"num_classes={n}"]) for n in numbers}


STRATEGIES = {"strong": "ours", "SimCLR": "simclr", "standard": "standard", "none": "ours"}
NOTHING = {"num_strong_augs": 0, "cutout_kwargs": {"n_holes": 0}}  # but flips and crops, if the file has them


def augmentations(configs: Configs) -> Variants:
    """Each other augmentation in step 2 alone, and in steps 2 and 3."""
    given: dict[str, Any] = {}  # the settings of all strategies, which no single file has
    for config in configs.values():
        given |= to_dict(config.get("augmentation_kwargs", {}))
    names = {strategy: name for name, strategy in STRATEGIES.items() if name != "none"}
    own = {step: names[configs[step].augmentation_strategy] for step in BOTH}

    def settings(step: str, name: str) -> list[str]:
        lacks = {key: value for key, value in given.items() if key not in configs[step].augmentation_kwargs}
        kwargs = [*lacks.items(), *(NOTHING.items() if name == "none" else ())]
        groups = [f"augmentation_kwargs.{key}={json.dumps(value)}" for key, value in kwargs]
        return [f"augmentation_strategy={STRATEGIES[name]}", *groups]

    pairs = [tuple(own.values())]
    pairs += [pair for name in STRATEGIES for pair in ((name, own["selflabel"]), (name, name))]
    return {
        ", ".join(pair): {
            step: settings(step, name) for step, name in zip(BOTH, pair, strict=True) if name != own[step]
        }
        for pair in pairs
    }


def trained_parts(configs: Configs) -> Variants:
    """Heads only or the whole network, the latter also at a tenth of the rate."""
    own, key = configs["scan"], "update_cluster_head_only"
    slower = f"optimizer_kwargs.lr={own.optimizer_kwargs.lr / 10:g}"
    whole = [f"{key}=False", *(["cache_features=null"] if own.cache_features is not None else [])]
    return {
        "heads only": {} if own[key] else {"scan": [f"{key}=True"]},
        "all": {"scan": whole} if own[key] else {},
        "all, rate / 10": {"scan": [*whole, slower]},
    }


ABLATIONS = {
    "neighbors": Ablation("number of neighbors", SCAN, values_of("scan", "num_neighbors", (1, 2, 5, 10, 20))),
    "entropy_weight": Ablation(
        "entropy weight", SCAN, values_of("scan", "criterion_kwargs.entropy_weight", (0, 1, 2, 5, 10))
    ),
    "threshold": Ablation(
        "confidence threshold",
        SELFLABEL,
        values_of("selflabel", "confidence_threshold", (0.5, 0.8, 0.9, 0.95, 0.99)),
    ),
    "overclustering": Ablation(
        "number of clusters",
        BOTH,
        numbers_of_clusters,
        metric="majority_vote_acc",
        note="A cluster counts as the class that most of its test images have, which labels decide: cutting "
        "clusters in two alone never lowers this ACC.",
    ),
    "augmentation": Ablation("augmentation of steps 2, 3", BOTH, augmentations),
    "heads": Ablation("what step 2 trains", BOTH, trained_parts),
}


# --- the runs ------------------------------------------------------------------------------------


def run_ablation(args: Namespace, experiment: DatasetExperiment, configs: Configs) -> None:
    """Run the variants with each seed, and write what they found.

    Args:
        args: what reproduce.read_arguments returned.
        configs: of the experiment files, with any seed.

    Raises:
        UserError: as `run_steps`.
    """
    variants = ABLATIONS[args.ablation].variants(configs)
    plans = [plan_variants(args.ablation, variants, experiment, seed) for seed in args.seeds]
    for seed_plans in plans:  # all are made first, which shows mistakes
        build_dataset = DatasetCache()
        done: set[Path] = set()
        for plan in seed_plans.values():
            run_steps({name: step for name, step in plan.items() if step.folder not in done}, build_dataset)
            done |= {step.folder for step in plan.values()}
    summary = ablation_summary(args, variants, plans)
    path = experiment.root / f"{args.dataset}-ablation-{args.ablation}"
    tables.write_tables(summary, path)
    save_figure(summary, Path(f"{path}.png"))
    print("", *tables.console(summary), "", sep="\n")
    print(f"This table: {path}.md, .csv, .json; as a figure: {path}.png")


def plan_variants(name: str, variants: Variants, experiment: DatasetExperiment, seed: int) -> dict[str, Plan]:
    """The steps of each variant, the files' own first.

    A variant takes over the steps of an earlier one, up to where their settings differ.
    """
    steps = list(experiment.files)
    steps = steps[: steps.index(ABLATIONS[name].steps[-1]) + 1]

    def in_common(label: str, other: str) -> list[str]:
        return list(takewhile(lambda step: variants[label].get(step) == variants[other].get(step), steps))

    first, *others = sorted(variants, key=lambda label: bool(variants[label]))
    plans = {first: experiment.plan(seed, steps)}
    for label in others:
        base = max(plans, key=lambda other: len(in_common(label, other)))
        shared = in_common(label, base)
        plan = {step: plans[base][step] for step in shared}
        run = f"{name}-" + re.sub(r"[^\w.]+", "-", label.lower())
        root = Path(plans[base][steps[-1]].config.root_dir)
        plans[label] = plan | experiment.plan(seed, steps[len(shared) :], variants[label], root, run)
    return plans


def ablation_summary(args: Namespace, variants: Variants, plans: list[dict[str, Plan]]) -> AblationSummary:
    """What the table shows; `plans`: of each seed, what `plan_variants` returned."""
    ablation = ABLATIONS[args.ablation]
    rows: dict[str, Variant] = {}
    for label, changes in variants.items():
        rows[label] = {"settings": changes, "figures": {}}
        for step in ablation.steps:
            found = [read_json(seed_plans[label][step].folder / FIGURES) for seed_plans in plans]
            figures = {name: spread([metrics[name] for metrics in found]) for name in tables.ABLATION_METRICS}
            rows[label]["figures"][METHODS[step]] = figures
    folders = [step.folder for seed_plans in plans for plan in seed_plans.values() for step in plan.values()]
    lines = [
        f"Figures: {METRIC_TITLES[ablation.metric]}, and NMI.",
        ablation.note,
        "All variants of a seed share the pretext step.",
    ]
    return {
        **origin_of(args, folders, lines),
        "ablation": args.ablation,
        "about": ablation.about,
        "metric": ablation.metric,
        "methods": [METHODS[step] for step in ablation.steps],
        "variants": rows,
    }


def save_figure(summary: AblationSummary, path: Path) -> None:
    variants, metric = summary["variants"], summary["metric"]
    figures = {
        method: {label: variant["figures"][method][metric] for label, variant in variants.items()}
        for method in summary["methods"]
    }
    own = next(label for label, variant in variants.items() if not variant["settings"])
    plots.save_variants(figures, own, summary["about"], METRIC_TITLES[metric], path)

"""The paper's ablations: variants that differ in one setting, beside the experiment files' own.

python reproduce.py DATASET --ablation NAME [--seeds 0 1 2] [--minutes 8] [--set KEY=VALUE ...]

Whatever variants have in common is trained once: the experiment files' own results are those of reproduce.py
without --ablation, in ROOT_DIR/seed-N/DATASET/; those of a variant are in ROOT_DIR/seed-N/NAME-VARIANT/. The
same command resumes. It writes ROOT_DIR/DATASET-ablation-NAME.md, .csv, .json and .png.
"""

import json
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

from utils.analysis import plots
from utils.run.config import to_dict
from utils.run.script import yaml_text
from workflows import provenance, run_steps, tables
from workflows.tables import METHODS

METRICS = {"acc": "ACC", "majority_vote_acc": "ACC by majority vote"}  # of which an ablation shows one
NOT_IN_NAMES = r"[^\w.]+"  # of folders


class Ablation(NamedTuple):
    """What differs between variants, and what is shown of them."""

    about: str
    steps: tuple  # the steps whose figures are shown; later ones do not run
    # configurations by step -> dict label -> dict step -> KEY=VALUE strings; {} for the files' own settings,
    # which must be among the variants. A variant's changes are those of the whole pipeline: later steps start
    # from what its earlier ones found.
    variants: Callable
    metric: str = "acc"
    note: str = ""


SCAN, SELFLABEL, BOTH = ("scan",), ("selflabel",), ("scan", "selflabel")


# --- the variants --------------------------------------------------------------------------------


def values_of(step, key, others):
    """Variants: the file's value of a key of a step, and the others, in ascending order."""

    def variants(configs):
        own = configs[step]
        for part in key.split("."):
            own = own[part]
        return {
            f"{value:g}": {} if value == own else {step: [f"{key}={value:g}"]}
            for value in sorted({own, *others})
        }

    return variants


FACTORS = (1.5, 2, 3)  # more clusters than classes


def numbers_of_clusters(configs):
    own = configs["scan"].num_classes
    more = {str(number): [f"num_classes={number}"] for number in (round(factor * own) for factor in FACTORS)}
    return {str(own): {}} | {number: dict.fromkeys(BOTH, setting) for number, setting in more.items()}


AUGMENTATIONS = {"strong": "ours", "SimCLR": "simclr", "standard": "standard", "none": "ours"}
NOTHING = {"num_strong_augs": 0, "cutout_kwargs": {"n_holes": 0}}  # but flips and crops, if the file has them


def augmentations(configs):
    """Each other augmentation in step 2 alone, and in steps 2 and 3."""
    given = {}  # the settings of all strategies, which no single file has
    for config in configs.values():
        given |= to_dict(config.get("augmentation_kwargs", {}))
    names = {strategy: name for name, strategy in AUGMENTATIONS.items() if name != "none"}
    own = {step: names[configs[step].augmentation_strategy] for step in BOTH}

    def settings(step, name):
        lacks = {key: value for key, value in given.items() if key not in configs[step].augmentation_kwargs}
        kwargs = [*lacks.items(), *(NOTHING.items() if name == "none" else ())]
        groups = [f"augmentation_kwargs.{key}={json.dumps(value)}" for key, value in kwargs]
        return [f"augmentation_strategy={AUGMENTATIONS[name]}", *groups]

    pairs = [tuple(own.values())]
    pairs += [pair for name in AUGMENTATIONS for pair in ((name, own["selflabel"]), (name, name))]
    return {
        ", ".join(pair): {
            step: settings(step, name) for step, name in zip(BOTH, pair, strict=True) if name != own[step]
        }
        for pair in pairs
    }


def trained_parts(configs):
    """Heads only or the whole network, the latter also at a tenth of the rate."""
    own, key = configs["scan"], "update_cluster_head_only"
    slower = f"optimizer_kwargs.lr={own.optimizer_kwargs.lr / 10:g}"
    whole = [f"{key}=False", *(["cache_features=null"] if "cache_features" in own else [])]
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


def run(args, files, settings, step_settings, configs, root):
    """Run the variants of each seed, and write what they found.

    Args:
        args: what reproduce.read_arguments returned.
        files, step_settings: as run_steps.plan_steps takes them.
        settings: dict seed -> settings as run_steps.plan_steps takes them; root_dir is ROOT/seed-N.
        configs: dict step -> configuration, of any seed, with the experiment files' own settings.
        root: pathlib.Path.

    Raises:
        UserError: as run_steps.plan_steps and run_steps.run_steps.
    """
    variants = ABLATIONS[args.ablation].variants(configs)
    plans = {
        seed: plan(args.ablation, variants, files, own, step_settings, root / f"seed-{seed}")
        for seed, own in settings.items()
    }
    steps = {  # of each seed and variant; this reports mistakes now, not after the first variant
        seed: {label: run_steps.plan_steps(**arguments) for label, (_, arguments) in calls.items()}
        for seed, calls in plans.items()
    }
    found = {}
    for seed, calls in plans.items():
        folders, build_dataset = {}, run_steps.DatasetCache()
        for label, (base, _) in calls.items():
            own = run_steps.run_steps(steps[seed][label], build_dataset)
            folders[label] = {**folders.get(base, {}), **own}
        found[seed] = folders
    summary = summarize(args, variants, found)
    path = root / f"{args.dataset}-ablation-{args.ablation}"
    tables.write(summary, path)
    save_figure(summary, f"{path}.png")
    print("", *tables.console(summary), "", sep="\n")
    print(f"This table: {path}.md, .csv, .json; as a figure: {path}.png")


def plan(name, variants, files, settings, step_settings, folder):
    """What run_steps.plan_steps is to be called with for each variant of a seed, in this order.

    Args:
        variants: what the ablation's `variants` returned.
        folder: pathlib.Path, the root_dir in `settings`.

    Returns:
        dict label -> the label of the variant whose steps it shares, or None; and arguments by name.
    """
    steps = list(files)[: list(files).index(ABLATIONS[name].steps[-1]) + 1]

    def in_common(label, other):
        """How many steps two variants share: the first ones, up to where their settings differ."""
        same = [variants[label].get(step) == variants[other].get(step) for step in steps]
        return [*same, False].index(False)

    calls, places = {}, {}
    for label in sorted(variants, key=lambda label: bool(variants[label])):  # the files' own first
        base = max(calls, key=partial(in_common, label), default=None)
        own = steps[in_common(label, base) :] if base else steps
        run = f"{name}-{re.sub(NOT_IN_NAMES, '-', label.lower())}" if base else None
        places[label] = places[base] / run if base else folder
        elsewhere = base and places[base] != folder
        arguments = {
            "files": {step: files[step] for step in own},
            "settings": [*settings, *([f"root_dir={yaml_text(places[base])}"] if elsewhere else [])],
            "step_settings": {step: [*step_settings[step], *variants[label].get(step, ())] for step in own},
            "run": run,
        }
        calls[label] = base, arguments
    return calls


def summarize(args, variants, found):
    """The content of the table as plain values; figures are shares in [0, 1].

    Args:
        found: dict seed -> dict label -> dict step -> pathlib.Path of its results.
    """
    ablation, seeds = ABLATIONS[args.ablation], list(found)
    rows = {}
    for label, changes in variants.items():
        figures = {}
        for step in ablation.steps:
            contents = [json.loads((found[seed][label][step] / "metrics.json").read_text()) for seed in seeds]
            figures[METHODS[step]] = {
                metric: tables.spread([content[metric] for content in contents])
                for metric in (*tables.METRICS, "majority_vote_acc")
            }
        rows[label] = {"settings": changes, "figures": figures}
    folders = [folder for labels in found.values() for steps in labels.values() for folder in steps.values()]
    lines = [
        f"Figures: {METRICS[ablation.metric]}, and NMI.",
        ablation.note,
        "All variants of a seed share the pretext step.",
    ]
    return {
        **provenance.summary_of(args, folders, lines),
        "ablation": args.ablation,
        "about": ablation.about,
        "metric": ablation.metric,
        "methods": [METHODS[step] for step in ablation.steps],
        "variants": rows,
    }


def save_figure(summary, path):
    shown = {
        method: {
            label: variant["figures"][method][summary["metric"]]
            for label, variant in summary["variants"].items()
        }
        for method in summary["methods"]
    }
    own = next(label for label, variant in summary["variants"].items() if not variant["settings"])
    plots.save_variants(shown, own, summary["about"], METRICS[summary["metric"]], Path(path))

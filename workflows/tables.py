"""The tables of reproduce.py from its summaries: rows, text, Markdown, CSV."""

import textwrap
from pathlib import Path
from typing import Any, TypedDict, final

import numpy as np

from utils.analysis.metrics import Spread
from utils.files import atomic, write_csv, write_json
from workflows.provenance import Origin

METRICS = ("acc", "nmi", "ari")
ABLATION_METRICS = (*METRICS, "majority_vote_acc")
METHODS = {"scan": "SCAN loss", "selflabel": "self-labeling"}  # by step
# key of the pretext step's metrics.json: its name in the table
PRETEXT_NOTES = {
    "knn_accuracy": "k-NN accuracy",
    "train_neighbors_of_same_class": "neighbors of the same class",
}
Rows = list[list[str]]  # of a table, the header first
Figures = dict[str, dict[str, Spread]]  # by method and metric, shares in [0, 1]


class Published(TypedDict):
    """A published result, and the difference of our mean from it, both by metric and in %."""

    method: str
    of: str
    figures: dict[str, float]
    difference: dict[str, float]


@final
class Summary(Origin):
    """What the table of all steps shows; written as JSON."""

    methods: Figures
    published: list[Published]
    steps: dict[str, list[dict[str, Any]]]  # by step, what the step found with each seed


class Variant(TypedDict):
    """A row of an ablation."""

    settings: dict[str, list[str]]  # KEY=VALUE strings by step; {} as in the experiment files
    figures: Figures


@final
class AblationSummary(Origin):
    """What the table of an ablation shows; written as JSON."""

    ablation: str
    about: str
    metric: str
    methods: list[str]
    variants: dict[str, Variant]


def figure_rows(summary: Summary) -> Rows:
    """The table of figures, a row for each method and published result."""
    several, published = len(summary["seeds"]) > 1, summary["published"]
    rows = [[f"{summary['dataset']}, test split, %", *(name.upper() for name in METRICS)]]
    rows[0] += (["worst ACC"] if several else []) + (["published", "difference"] if published else [])
    for method, figures in summary["methods"].items():
        row = [method, *(mean_and_std(figures[name]) for name in METRICS)]
        row += [worst(figures["acc"])] if several else []
        theirs = [published_cells(entry) for entry in published if entry["method"] == method]
        first, *others = theirs or [["", ""] if published else []]
        rows.append([*row, *first])
        rows += [[""] * len(row) + cells for cells in others]
    return rows


def published_cells(entry: Published) -> list[str]:
    """A published result, and the difference of our mean from it."""
    figures = " / ".join(f"{value:.1f}" for value in entry["figures"].values())
    differences = " / ".join(f"{value:+.1f}" for value in entry["difference"].values())
    return [f"{figures} ({entry['of']})", differences]


def mean_and_std(figure: Spread) -> str:
    """Mean and standard deviation, in %."""
    mean, std = figure["mean"], figure["std"]
    return f"{100 * mean:.1f}" if std is None else f"{100 * mean:.1f} ± {100 * std:.1f}"


def worst(figure: Spread) -> str:
    """The lowest value, in %."""
    return f"{100 * min(figure['values']):.1f}"


def step_rows(summary: Summary) -> Rows:
    """The table of times, means over the seeds."""
    rows = [["step", "epochs", "minutes", "images/s", ""]]
    for step, runs in summary["steps"].items():
        speeds = [run["images_per_second"] for run in runs if run["images_per_second"]]
        shares = {text: [run[key] for run in runs] for key, text in PRETEXT_NOTES.items() if key in runs[0]}
        minutes = np.mean([run["training_minutes"] for run in runs])
        speed = f"{np.mean(speeds):.0f}" if speeds else ""
        note = ", ".join(f"{text} {100 * np.mean(values):.1f} %" for text, values in shares.items())
        rows.append([step, str(runs[0]["epochs"]), f"{minutes:.1f}", speed, note])
    total = f"total, {len(runs)} seed{'s' * (len(runs) > 1)}"
    return [*rows, [total, "", f"{training_minutes(summary):.1f}", "", ""]]


def training_minutes(summary: Summary) -> float:
    """Of all steps and seeds."""
    return sum(run["training_minutes"] for runs in summary["steps"].values() for run in runs)


def ablation_rows(summary: AblationSummary) -> Rows:
    """The table of an ablation, a row for each variant."""
    several = len(summary["seeds"]) > 1
    rows = [[f"{summary['dataset']}, test split, %: {summary['about']}"]]
    how = " (majority vote)" if summary["metric"] == "majority_vote_acc" else ""
    for method in summary["methods"]:
        rows[0] += [method + how, *(["worst"] if several else []), "NMI"]
    for label, variant in summary["variants"].items():
        row = [label if variant["settings"] else f"{label} (as in the files)"]
        for figures in variant["figures"].values():
            figure = figures[summary["metric"]]
            row += [mean_and_std(figure), *([worst(figure)] if several else []), mean_and_std(figures["nmi"])]
        rows.append(row)
    return rows


def summary_rows(summary: Summary | AblationSummary) -> list[Rows]:
    """The tables of a summary: of an ablation, or of all steps."""
    return [ablation_rows(summary)] if "variants" in summary else [figure_rows(summary), step_rows(summary)]


def notes(summary: Summary | AblationSummary) -> list[str]:
    """The lines under the tables."""
    makers = [
        f"Made with: {maker['machine']}; trained in {maker['precision']}, evaluated in float32; "
        f"Python {maker['python']}, torch {maker['torch']}; commit {maker['commit'][:12]}."
        for maker in summary["made_with"]
    ]
    return [*summary["protocol"], *dict.fromkeys(makers)]


def console(summary: Summary | AblationSummary) -> list[str]:
    """The lines to print."""
    wrapped = (textwrap.fill(line, 100, subsequent_indent="  ") for line in notes(summary))
    return [*(line for rows in summary_rows(summary) for line in (*aligned(rows), "")), *wrapped]


def aligned(rows: Rows) -> list[str]:
    """Lines of text with aligned columns, numbers to the right."""
    columns = []
    for header, *body in zip(*rows, strict=True):
        width = max(map(len, (header, *body)))
        text = any(character.isalpha() for cell in body for character in cell)
        columns.append([cell.ljust(width) if text else cell.rjust(width) for cell in (header, *body)])
    return ["   ".join(cells).rstrip() for cells in zip(*columns, strict=True)]


def markdown(summary: Summary | AblationSummary) -> str:
    """The table as a section of a Markdown file."""
    lines = [f"## {summary['dataset']}", "", f"`{summary['command']}`, finished on {summary['finished']}", ""]
    for rows in summary_rows(summary):
        lines += [*markdown_table(rows), ""]
    lines += [f"* {line}" for line in notes(summary)]
    return "\n".join(lines) + "\n"


def markdown_table(rows: Rows) -> list[str]:
    """Lines of a Markdown table."""
    header, *body = (f"| {' | '.join(row)} |" for row in rows)
    return [header, "|---" + "|--:" * (len(rows[0]) - 1) + "|", *body]


def csv_table(summary: Summary | AblationSummary) -> tuple[list[str], list[list]]:
    """All figures, not rounded: the header; a row for each seed and method (in an ablation, each variant)."""
    if "variants" in summary:
        groups = {label: variant["figures"] for label, variant in summary["variants"].items()}
        rows = [row for label, figures in groups.items() for row in csv_rows(summary, figures, label)]
        return ["dataset", "variant", "seed", "method", *ABLATION_METRICS], rows
    return ["dataset", "seed", "method", *METRICS], csv_rows(summary, summary["methods"])


def csv_rows(origin: Origin, figures: Figures, *label: str) -> list[list]:
    return [
        [origin["dataset"], *label, seed, method, *(spread["values"][number] for spread in metrics.values())]
        for number, seed in enumerate(origin["seeds"])
        for method, metrics in figures.items()
    ]


def write_tables(summary: Summary | AblationSummary, path: Path) -> None:
    """Write `path`.json, .md and .csv."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(summary, f"{path}.json")
    with atomic(f"{path}.md") as temporary:
        temporary.write_text(markdown(summary), encoding="utf-8")
    write_csv(*csv_table(summary), f"{path}.csv")

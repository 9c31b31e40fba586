"""The tables of reproduce.py and ablation.py, from their summaries: rows, text, Markdown."""

import textwrap

import numpy as np

from utils.files import atomic, write_csv, write_json

METRICS = ("acc", "nmi", "ari")
METHODS = {"scan": "SCAN loss", "selflabel": "self-labeling"}  # by step
# key of the pretext step's metrics.json: its name in the table
NOTES = {"knn_accuracy": "k-NN accuracy", "train_neighbors_of_same_class": "neighbors of the same class"}
ABOUT_RESULTS = """# Results

Made by `reproduce.py --record` from `docs/records/`; nothing is typed by hand. Test split, in %, mean ±
standard deviation (n - 1) over the seeds. The clusters that each seed found are in `docs/records/`, too, and
a test computes the figures again from them. [LOG.md](LOG.md) says how the settings of the experiment files
were chosen: by labels of the train split, or without any; self-labeling of cifar-10-cpu is the exception,
set after a look at the test split. The files of MNIST, Fashion-MNIST and cifar-10-cpu use two options
that are not of the paper, `head_init: graph` and `neighbor-vote-cross-entropy` ([RUNS.md](RUNS.md)).
k-means clusters the features that mining uses: the head's outputs or, where a file says `features:
backbone`, the backbone's. The CPUs were shared with other work. MNIST and Fashion-MNIST are not
downloaded by themselves: `python benchmarks/data/known.py mnist` makes the file, see
[IMAGES.md](IMAGES.md#array-files).
"""


def figure_rows(summary):
    """The table of figures: a list of rows, each a list of strings, the header first."""
    header = [f"{summary['dataset']}, test split, %", *(name.upper() for name in METRICS)]
    rows = [header]
    several, published = len(summary["seeds"]) > 1, summary["published"]
    if several:
        header.append("worst ACC")
    if published:
        header += ["published", "difference"]
    for method, figures in summary["methods"].items():
        row = [method, *(shown(figures[name]) for name in METRICS)]
        if several:
            row.append(worst(figures["acc"]))
        if not published:
            rows.append(row)
            continue
        entries = [compared(entry) for entry in published if entry["method"] == method] or [["", ""]]
        rows.append([*row, *entries[0]])
        rows += [[""] * len(row) + entry for entry in entries[1:]]
    return rows


def compared(entry):
    """Two cells of the table: a published result, and the difference of our mean from it."""
    figures = " / ".join(f"{value:.1f}" for value in entry["figures"].values())
    return [
        f"{figures} ({entry['of']})",
        " / ".join(f"{value:+.1f}" for value in entry["difference"].values()),
    ]


def spread(values):
    """Mean and standard deviation (n - 1) of values; the deviation of a single value is None."""
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return {"mean": float(np.mean(values)), "std": deviation, "values": values}


def shown(found):
    """What `spread` returned as text, in %."""
    mean = f"{100 * found['mean']:.1f}"
    return mean if found["std"] is None else f"{mean} ± {100 * found['std']:.1f}"


def worst(found):
    """The lowest of the values of what `spread` returned as text, in %."""
    return f"{100 * min(found['values']):.1f}"


def step_rows(summary):
    """The table of times, means over the seeds: rows as in `figure_rows`."""
    rows = [["step", "epochs", "minutes", "images/s", ""]]
    for step, runs in summary["steps"].items():
        speeds = [run["images_per_second"] for run in runs if run["images_per_second"]]
        notes = [
            f"{text} {100 * np.mean([run[key] for run in runs]):.1f} %"
            for key, text in NOTES.items()
            if key in runs[0]
        ]
        minutes = np.mean([run["training_minutes"] for run in runs])
        speed = f"{np.mean(speeds):.0f}" if speeds else ""
        rows.append([step, str(runs[0]["epochs"]), f"{minutes:.1f}", speed, ", ".join(notes)])
    total = sum(run["training_minutes"] for runs in summary["steps"].values() for run in runs)
    rows.append([f"total, {len(runs)} seed{'s' * (len(runs) > 1)}", "", f"{total:.1f}", "", ""])
    return rows


def ablation_rows(summary):
    """The table of an ablation (see ablation.summarize), a row for each variant; rows as in `figure_rows`."""
    several = len(summary["seeds"]) > 1
    rows = [[f"{summary['dataset']}, test split, %: {summary['about']}"]]
    how = " (majority vote)" if summary["metric"] == "majority_vote_acc" else ""
    for method in summary["methods"]:
        rows[0] += [method + how, *(["worst"] if several else []), "NMI"]
    for label, variant in summary["variants"].items():
        row = [label if variant["settings"] else f"{label} (as in the files)"]
        for figures in variant["figures"].values():
            found = figures[summary["metric"]]
            row += [shown(found), *([worst(found)] if several else []), shown(figures["nmi"])]
        rows.append(row)
    return rows


def notes(summary):
    """The lines under the tables."""
    makers = [
        f"Made with: {maker['machine']}; trained in {maker['precision']}, evaluated in float32; "
        f"Python {maker['python']}, torch {maker['torch']}; commit {maker['commit'][:12]}."
        for maker in summary["made_with"]
    ]
    return [*summary["protocol"], *dict.fromkeys(makers)]


def console(summary):
    """The lines to print."""
    wrapped = (textwrap.fill(line, 100, subsequent_indent="  ") for line in notes(summary))
    return [*(line for rows in row_groups(summary) for line in (*aligned(rows), "")), *wrapped]


def row_groups(summary):
    """The tables of a summary: of an ablation, or of all steps."""
    return [ablation_rows(summary)] if "variants" in summary else [figure_rows(summary), step_rows(summary)]


def aligned(rows):
    """Lines of text with aligned columns, numbers to the right."""
    columns = []
    for header, *body in zip(*rows, strict=True):
        width = max(map(len, (header, *body)))
        text = any(character.isalpha() for cell in body for character in cell)
        columns.append([cell.ljust(width) if text else cell.rjust(width) for cell in (header, *body)])
    return ["   ".join(cells).rstrip() for cells in zip(*columns, strict=True)]


def markdown(summary):
    """The table as a section of a Markdown file."""
    lines = [f"## {summary['dataset']}", "", f"`{summary['command']}`, finished on {summary['finished']}", ""]
    for rows in row_groups(summary):
        lines += [*markdown_table(rows), ""]
    lines += [f"* {line}" for line in notes(summary)]
    return "\n".join(lines) + "\n"


def markdown_table(rows):
    """Lines of a Markdown table, the first row its header."""
    header, *body = (f"| {' | '.join(row)} |" for row in rows)
    return [header, "|---" + "|--:" * (len(rows[0]) - 1) + "|", *body]


def csv_rows(summary):
    """All figures, not rounded: the header; a row for each seed and method (in an ablation, each variant)."""
    if "variants" in summary:
        header, names = ["dataset", "variant"], (*METRICS, "majority_vote_acc")
        groups = {(label,): variant["figures"] for label, variant in summary["variants"].items()}
    else:
        header, names, groups = ["dataset"], METRICS, {(): summary["methods"]}
    rows = [
        (summary["dataset"], *label, seed, method, *(figures[name]["values"][number] for name in names))
        for label, methods in groups.items()
        for number, seed in enumerate(summary["seeds"])
        for method, figures in methods.items()
    ]
    return [*header, "seed", "method", *names], rows


def write(summary, path):
    """Write the tables: `path`.json, .md and .csv."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(summary, f"{path}.json")
    with atomic(f"{path}.md") as temporary:
        temporary.write_text(markdown(summary), encoding="utf-8")
    write_csv(*csv_rows(summary), f"{path}.csv")


def results_page(summaries):
    """RESULTS.md: all recorded results, in Markdown."""
    rows = [["data", "method", "ACC", "worst", "NMI", "ARI", "seeds", "minutes a seed", "machine"]]
    for summary in summaries:
        minutes = sum(run["training_minutes"] for runs in summary["steps"].values() for run in runs)
        machines = dict.fromkeys(maker["machine"] for maker in summary["made_with"])
        for method, figures in summary["methods"].items():
            rows.append([
                summary["dataset"] + (" (other settings, see below)" if summary["settings"] else ""),
                method,
                shown(figures["acc"]),
                worst(figures["acc"]),
                *(shown(figures[name]) for name in METRICS[1:]),
                str(len(summary["seeds"])),
                f"{minutes / len(summary['seeds']):.0f}",
                ", ".join(machines),
            ])  # fmt: skip
    lines = [ABOUT_RESULTS, *markdown_table(rows), "", *map(markdown, summaries)]
    return "\n".join(lines)

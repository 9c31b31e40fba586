"""Pictures of results, written to files; nothing needs a display.

A picture is not a result: if drawing one fails, the run logs a warning and goes on without it.
"""

import functools
import logging
import math
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib import font_manager, rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image, ImageDraw

from utils.files import atomic

from . import health

log = logging.getLogger(__name__)
logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)  # a font without some weight will do

TICKS = 50  # with more rows or columns than this, names would not be legible
SHEET_COLUMNS = 10  # of a sheet of images
CONTACT_COLUMNS, CONTACT_SIDE = 20, 80  # of a contact sheet; the side of an image in pixels
LONGEST_TICK, LONGEST_TITLE = 40, 24  # characters; longer text is cut
# after matplotlib's own font, those that systems bring for Chinese, Japanese and Korean
CJK_FONTS = (
    "Noto Sans CJK SC", "Noto Sans CJK JP", "WenQuanYi Zen Hei", "Microsoft YaHei", "SimHei", "PingFang SC",
    "Hiragino Sans", "Malgun Gothic", "Arial Unicode MS",
)  # fmt: skip
INSTALLED = {font.name for font in font_manager.fontManager.ttflist}
FONTS = ["DejaVu Sans", *(name for name in CJK_FONTS if name in INSTALLED)]
STYLE: dict[Any, Any] = {
    "font.family": FONTS,
    **dict.fromkeys(["font.size", "xtick.labelsize", "ytick.labelsize", "legend.fontsize"], 7),
    **{"axes.labelsize": 8, "axes.titlesize": 9, "axes.grid": True, "grid.alpha": 0.3},
}
LEAST_SPAN = 8  # percentage points of an axis, so that chance does not look like an effect
NOT_CURVES = ("epoch", "seconds", "images_per_second")

Cell = tuple[torch.Tensor | None, str]  # an image, uint8 (3, H, W), or None for an empty place; its title


@contextmanager
def or_a_warning(path: Path) -> Iterator[None]:
    """Context manager that makes the picture or page `path`; an error is logged, and no file is left."""
    try:
        with warnings.catch_warnings(action="ignore"):  # about the layout, mostly
            yield
    except Exception as error:  # from matplotlib, a font, an image, the disk
        log.debug("%s", path, exc_info=True)
        reason = f"{type(error).__name__}: {error}".strip().splitlines()[0]
        what = "page" if path.suffix == ".html" else "picture"
        log.warning("%s: no %s (%s); the figures are not affected", path, what, reason)
        with suppress(OSError):
            path.unlink(missing_ok=True)  # of an earlier run


@contextmanager
def _figure(path: Path, **settings: Any) -> Iterator[Figure]:
    """Context manager that gives a new Figure, and saves it as a PNG at the end."""
    with or_a_warning(path), rc_context(STYLE):
        figure = Figure(**settings)
        yield figure
        FigureCanvasAgg(figure)
        with atomic(path) as temporary:
            figure.savefig(temporary, format="png", dpi=110, bbox_inches="tight")


# --- names ---------------------------------------------------------------------------------------


@functools.cache  # so that it logs the same names only once
def drawable(names: tuple[tuple[int, str], ...]) -> dict[int, str]:
    """Names of classes or images as pictures can show them, number -> text.

    Line breaks, control characters and bytes that are not UTF-8 become escapes. A name with a character that
    FONTS lack is replaced by its number, and the log lists both.

    Args:
        names: pairs (number, name).
    """
    texts = {
        number: "".join(c if c.isprintable() else ascii(c)[1:-1] for c in name) for number, name in names
    }
    fonts = [font_manager.get_font(font_manager.findfont(name)) for name in FONTS]
    numbers = {
        number: f"#{number}"
        for number, text in texts.items()
        if not all(any(font.get_char_index(ord(c)) for font in fonts) for c in text)
    }
    if numbers:
        listed = health.join_some([f"{short} {texts[number]}" for number, short in numbers.items()])
        log.info(
            "pictures show numbers for %d names that the installed fonts cannot write: %s",
            len(numbers),
            listed,
        )
    return texts | numbers


def _cut(text: str, length: int) -> str:
    """A text without its middle if it has more than `length` characters."""
    half = (length - 1) // 2
    return text if len(text) <= length else f"{text[:half]}…{text[-half:]}"


# --- pictures ------------------------------------------------------------------------------------


def save_confusion_matrix(matrix: np.ndarray, rows: list[str], columns: list[str], path: Path) -> None:
    """Draw a matrix of shares in [0, 1], a row for each true class. `rows`, `columns`: their names."""
    side = min(14, 3 + 0.35 * max(matrix.shape))
    with _figure(path, figsize=(side + 1, side), layout="constrained") as figure:
        axes = figure.add_subplot(ylabel="true class", xlabel="cluster, in the order of the matched classes")
        axes.grid(False)
        picture = axes.imshow(matrix, cmap="Blues", vmin=0, vmax=1)
        if len(rows) <= TICKS:
            names = [_cut(name, LONGEST_TICK) for name in drawable(tuple(enumerate(rows))).values()]
            axes.set_yticks(range(len(rows)), names, parse_math=False)
        if len(columns) <= TICKS:
            axes.set_xticks(range(len(columns)), columns, rotation=90)
        if max(matrix.shape) <= 20:
            for (row, column), share in np.ndenumerate(matrix):
                if share >= 0.005:
                    color = "white" if share > 0.5 else "black"
                    axes.text(column, row, f"{100 * share:.0f}", ha="center", va="center", color=color)
        figure.colorbar(picture, ax=axes, label="share of the true class")


def save_image_sheet(cells: Iterable[Cell], path: Path) -> None:
    """A grid of images, SHEET_COLUMNS in a row, under their titles of one or two lines.

    A title that is wider than an image is cut.
    """
    with _figure(path) as figure:
        images, titles = zip(*cells, strict=True)
        columns = min(SHEET_COLUMNS, len(images))
        rows = math.ceil(len(images) / columns)
        figure.set_size_inches(1.5 * columns, 1.8 * rows)
        for i, (image, title) in enumerate(zip(images, titles, strict=True)):
            row, column = divmod(i, columns)  # by hand: automatic layout of a thousand takes minutes
            left, bottom = (column + 0.1) / columns, 1 - (row + 0.95) / rows
            axes = figure.add_axes((left, bottom, 0.8 / columns, 0.7 / rows))
            axes.axis("off")
            lines = [_cut(line, LONGEST_TITLE) for line in title.split("\n")]
            axes.set_title("\n".join(lines), fontsize=8, parse_math=False)
            if image is not None:
                axes.imshow(np.asarray(image).transpose(1, 2, 0))
    if path.exists():
        log.info("%s in %s", path.stem, path)


def save_contact_sheet(cells: Sequence[tuple[torch.Tensor, str]], title: str, path: Path) -> None:
    """A dense grid of small images, CONTACT_COLUMNS in a row, under one title.

    Args:
        cells: pairs of an image, uint8 (3, H, W), and a short ASCII text below it.
        title: one line of ASCII text.
    """
    with or_a_warning(path):
        side, line, gap = CONTACT_SIDE, 12, 4  # pixels
        columns = min(CONTACT_COLUMNS, max(5, len(cells)))
        rows = math.ceil(len(cells) / columns)
        size = columns * (side + gap) + gap, rows * (side + line + gap) + 22 + gap
        sheet = Image.new("RGB", size, "white")
        draw = ImageDraw.Draw(sheet)
        draw.text((gap, gap), title, fill="black")
        for i, (image, caption) in enumerate(cells):
            row, column = divmod(i, columns)
            left, top = gap + column * (side + gap), 22 + row * (side + line + gap)
            pixels = Image.fromarray(np.ascontiguousarray(np.asarray(image).transpose(1, 2, 0)))
            sheet.paste(pixels.resize((side, side), Image.Resampling.BILINEAR), (left, top))
            draw.text((left, top + side), caption, fill="black")
        with atomic(path) as temporary:
            sheet.save(temporary, "PNG", compress_level=1)


def save_numbers(rows: list[dict[str, Any]], best: int, path: Path) -> None:
    """Plot what choose_k.compare_numbers returned over the number of clusters, with `best` marked."""
    numbers = [row["clusters"] for row in rows]
    with _figure(path, figsize=(12, 3), layout="constrained") as figure:
        for place, name in enumerate(("modularity", "silhouette", "stability"), start=1):
            axes = figure.add_subplot(1, 3, place, title=name, xlabel="number of clusters", xscale="log")
            axes.plot(numbers, [row[name] for row in rows], marker="o")
            axes.axvline(best, color="gray", linestyle=":")
            axes.set_xticks(numbers, map(str, numbers))
            axes.minorticks_off()


def save_variants(
    methods: dict[str, dict[str, Any]], default: str, label: str, metric: str, path: Path
) -> None:
    """Plot a metric in % over the variants of an ablation: each seed's, their mean and standard deviation.

    Args:
        methods: method -> variant -> metrics.Spread of the seeds' shares in [0, 1].
        default: the variant of the experiment files, which is marked.
        label, metric: texts at the axis of variants and at the other one.
    """
    names = list(next(iter(methods.values())))
    with _figure(path, figsize=(max(4.2, 0.7 * len(names)), 2.6), layout="constrained") as figure:
        axes, ends = figure.add_subplot(), []
        for number, (method, variants) in enumerate(methods.items()):
            offset = 0.24 * (number - (len(methods) - 1) / 2)  # so that error bars stand beside each other
            places = [place + offset for place in range(len(names))]
            for place, found in zip(places, variants.values(), strict=True):
                values = [100 * value for value in found["values"]]
                ends += values
                axes.plot([place + 0.08] * len(values), values, ".", color=f"C{number}", alpha=0.5, mew=0)
            means = [100 * found["mean"] for found in variants.values()]
            deviations = [100 * (found["std"] or 0) for found in variants.values()]
            axes.errorbar(places, means, deviations, marker="_", ls=":", lw=1, capsize=3, label=method)
            for mean, deviation in zip(means, deviations, strict=True):
                ends += [mean - deviation, mean + deviation]
        low, high = min(ends), max(ends)
        margin = max(0.06 * (high - low), (LEAST_SPAN - (high - low)) / 2)
        axes.set_ylim(low - margin, min(high + margin, 100.5))
        axes.set_xticks(range(len(names)), [name.replace(", ", ",\n") for name in names])
        axes.get_xticklabels()[names.index(default)].set_fontweight("bold")
        seeds = len(found["values"])
        axes.set_xlabel(f"{label} (bold: as in the files; {seeds} seed{'s' * (seeds > 1)})")
        axes.set_ylabel(f"{metric}, %")
        axes.legend()


def save_curves(epochs: list[dict[str, Any]], path: Path) -> None:
    """Plot each logged number, except lists, over the epochs, in a panel of its own.

    `epochs`: see `read_epochs`.
    """
    curves: dict[str, list[tuple[int, float]]] = {}
    for line in epochs:
        for name, value in line.items():
            if name not in NOT_CURVES and not isinstance(value, list):
                curves.setdefault(name, []).append((line["epoch"], value))
    if not curves:
        return
    columns = min(3, len(curves))
    rows = math.ceil(len(curves) / columns)
    with _figure(path, figsize=(4 * columns, 2.6 * rows), layout="constrained") as figure:
        for i, (name, points) in enumerate(curves.items(), start=1):
            axes = figure.add_subplot(rows, columns, i, title=name)
            axes.plot(*zip(*points, strict=True), marker="." if len(points) < 20 else None)
            if i > len(curves) - columns:
                axes.set_xlabel("epoch")


def save_run_curves(steps: dict[str, dict[str, dict[str, list[tuple[int, float]]]]], path: Path) -> None:
    """Plot numbers of several runs over the epochs, a row of panels for each step.

    `steps`: step -> number -> run -> (epoch, value) pairs.
    """
    columns = max(map(len, steps.values()))
    runs = {run: None for numbers in steps.values() for found in numbers.values() for run in found}
    colors = {run: f"C{number}" for number, run in enumerate(runs)}
    with _figure(path, figsize=(3.4 * columns, 2.4 * len(steps)), layout="constrained") as figure:
        for row, (step, numbers) in enumerate(steps.items()):
            for column, (name, found) in enumerate(numbers.items()):
                axes = figure.add_subplot(
                    len(steps), columns, row * columns + column + 1, title=f"{step}: {name}"
                )
                for run, points in found.items():
                    marker = "." if len(points) < 20 else None
                    axes.plot(*zip(*points, strict=True), color=colors[run], label=run, marker=marker, lw=1)
        figure.axes[0].legend(fontsize="small")

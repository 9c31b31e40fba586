"""Pictures of results, written to files; nothing needs a display."""

import math

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from .checkpoint import atomic

TICKS = 50  # with more rows or columns than this, names would not be legible
NOT_CURVES = ("epoch", "seconds", "images_per_second")


def _save(figure, path):
    FigureCanvasAgg(figure)
    with atomic(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110, bbox_inches="tight")


def save_confusion_matrix(matrix, rows, columns, path):
    """Rows (true classes) of shares in [0, 1] as a PNG; `rows` and `columns` name them."""
    side = min(14, 3 + 0.35 * max(matrix.shape))
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.add_subplot()
    picture = axes.imshow(matrix, cmap="Blues", vmin=0, vmax=1)
    axes.set_ylabel("true class")
    axes.set_xlabel("cluster, in the order of the matched classes")
    if len(rows) <= TICKS:
        axes.set_yticks(range(len(rows)), rows, fontsize=8)
    if len(columns) <= TICKS:
        axes.set_xticks(range(len(columns)), columns, rotation=90, fontsize=8)
    if max(matrix.shape) <= 20:
        for (row, column), share in np.ndenumerate(matrix):
            if share >= 0.005:
                axes.text(
                    *(column, row, f"{100 * share:.0f}"),
                    ha="center", va="center", fontsize=7, color="white" if share > 0.5 else "black",
                )  # fmt: skip
    figure.colorbar(picture, ax=axes, label="share of the true class")
    _save(figure, path)


def save_image_sheet(images, titles, path):
    """A grid of uint8 images (3, H, W), or None for an empty place, each under its title."""
    columns = min(10, len(images))
    rows = math.ceil(len(images) / columns)
    figure = Figure(figsize=(1.5 * columns, 1.8 * rows))
    for i, (image, title) in enumerate(zip(images, titles, strict=True)):
        row, column = divmod(i, columns)  # placed by hand: laying out a thousand of them takes minutes
        axes = figure.add_axes([(column + 0.1) / columns, 1 - (row + 0.95) / rows, 0.8 / columns, 0.7 / rows])
        axes.axis("off")
        axes.set_title(title, fontsize=8)
        if image is not None:
            axes.imshow(np.asarray(image).transpose(1, 2, 0))
    _save(figure, path)


def save_curves(epochs, path):
    """One panel per logged number, lists left out, against the epoch; `epochs`: see Run.read_epochs."""
    logged = (pair for line in epochs for pair in line.items())
    names = [name for name, value in logged if name not in NOT_CURVES and not isinstance(value, list)]
    names = list(dict.fromkeys(names))
    if not names:
        return
    columns = min(3, len(names))
    rows = math.ceil(len(names) / columns)
    figure = Figure(figsize=(4 * columns, 2.6 * rows), layout="constrained")
    for i, name in enumerate(names):
        points = [(line["epoch"], line[name]) for line in epochs if name in line]
        axes = figure.add_subplot(rows, columns, i + 1)
        axes.plot(*zip(*points, strict=True), marker="." if len(points) < 20 else None)
        axes.set_title(name, fontsize=9)
        axes.tick_params(labelsize=7)
        axes.grid(alpha=0.3)
        if i >= len(names) - columns:
            axes.set_xlabel("epoch", fontsize=8)
    _save(figure, path)

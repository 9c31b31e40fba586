"""content -> report.html, by a template, a style sheet and a script that become one file."""

import base64
import hashlib
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from .words import figure, number, percent, plural

HERE = Path(__file__).parent
MOST_CELLS = 30  # classes and clusters up to which the confusion matrix is a table
CURVE_WIDTH, CURVE_HEIGHT = 240, 90  # of a training curve, in units of its SVG
NO_BREAK = "\N{NO-BREAK SPACE}"


def render(content):
    """The page that shows the content.

    Nothing is loaded from elsewhere: style and script are within, the script reads the images and their
    thumbnails from a JSON element. Text from outside (names of files, classes, folders) is escaped here, and
    only becomes text there. The page's policy allows no other script and no connection.

    Args:
        content: dict, see `write` of this package and content.py.

    Returns:
        str, the HTML, to be encoded as UTF-8.

    Raises:
        ValueError: a number in it is not finite, which JSON cannot say.
    """
    style, script = ((HERE / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    environment = Environment(
        loader=FileSystemLoader(HERE, encoding="utf-8"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    environment.filters.update(
        number=number, percent=lambda share: percent(share).replace(" ", NO_BREAK), plural=plural
    )
    return environment.get_template("page.html").render(
        content,
        style=Markup(style),
        script=Markup(script),
        style_hash=integrity(style),
        script_hash=integrity(script),
        data=data_of_script(content),
        steps=by_step(content["curves"]),
        bars_of=bars_of,
        as_table=is_table(content["labels"]),
        columns_of={str(cluster): cluster for cluster in range(len(content["clusters"]))},
    )


def integrity(text):
    """The hash by which a Content-Security-Policy knows an element's text."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def data_of_script(content):
    """What the script needs of the content; the rest is in the page already."""
    keys = ("id", "folder", "images", "thumbnails")
    data = {key: content[key] for key in keys}
    data["clusters"] = [{key: c[key] for key in ("name", "prototype")} for c in content["clusters"]]
    labels = content["labels"]
    data["classes"] = labels and labels["classes"]
    if labels and not is_table(labels):
        data["matrix"] = {key: labels[key] for key in ("columns", "matrix")}
    return data


def is_table(labels):
    return labels is not None and max(len(labels["classes"]), len(labels["columns"])) <= MOST_CELLS


# --- drawings ------------------------------------------------------------------------------------


def bars_of(histogram, below):
    """The bars of a cluster's histogram of confidence.

    Args:
        histogram: counts of images in bins of equal width from 0 to 1.
        below: confidence below which an image counts as unsure.

    Returns:
        list of dicts of the bins that are not empty: `index`; `height`, of the largest count 40; `count`;
        `range`, in words; `unsure`, whether the bin is below.
    """
    most, bins = max(histogram), len(histogram)
    return [
        {
            "index": index,
            "height": round(1 + 39 * count / most, 1),
            "count": count,
            "range": f"{100 * index / bins:.0f} to {100 * (index + 1) / bins:.0f}{NO_BREAK}%",
            "unsure": (index + 0.5) / bins < below,
        }
        for index, count in enumerate(histogram)
        if count
    ]


def by_step(curves):
    """Curves, grouped by step in the order in which they come: a list of (step, list of drawn curves)."""
    steps = {}
    for curve in curves:
        if curve["points"]:
            steps.setdefault(curve["step"], []).append(drawn(curve))
    return list(steps.items())


def drawn(curve):
    """A training curve as a line of an SVG, with what stands beside it."""
    epochs, values = zip(*curve["points"], strict=True)
    low, high, first, last = min(values), max(values), min(epochs), max(epochs)
    points = [
        (
            CURVE_WIDTH * ((epoch - first) / (last - first) if last > first else 0.5),
            CURVE_HEIGHT * ((high - value) / (high - low) if high > low else 0.5),
        )
        for epoch, value in curve["points"]
    ]
    return {
        "name": curve["name"].replace("_", " "),
        "width": CURVE_WIDTH,
        "height": CURVE_HEIGHT,
        "line": " ".join(f"{x:.1f},{y:.1f}" for x, y in points),
        "end": points[-1],
        "low": figure(low),
        "high": figure(high),
        "first": first,
        "last": last,
        "start_value": figure(values[0]),
        "end_value": figure(values[-1]),
    }

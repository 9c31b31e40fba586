"""Content -> report.html: a template, a style sheet and a script become one file."""

import base64
import hashlib
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from .words import percent, plural, thousands

HERE = Path(__file__).parent
LARGEST_TABLE = 30  # classes or clusters; of a larger confusion matrix, each class's main cluster
NO_BREAK = "\N{NO-BREAK SPACE}"


def render(content: dict[str, Any]) -> str:
    """The HTML of the page that shows the content, see `write_report` of this package and content.py.

    The page loads nothing: it contains its style and its script, which reads the images and their thumbnails
    from a JSON element. Text from outside (names of files, classes, folders) is escaped here, and the script
    only uses it as text. The page's security policy allows no other script and no connection.

    Raises:
        ValueError: a number is not finite; JSON has no such numbers.
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
        number=thousands, percent=lambda share: percent(share).replace(" ", NO_BREAK), plural=plural
    )
    return environment.get_template("page.html").render(
        content,
        style=Markup(style),
        script=Markup(script),
        style_hash=integrity(style),
        script_hash=integrity(script),
        data=data_of_script(content),
        bars_of=bars_of,
        as_table=is_table(content["labels"]),
        columns_of={str(cluster): cluster for cluster in range(len(content["clusters"]))},
    )


def integrity(text: str) -> str:
    """The hash that a Content-Security-Policy gives for an element's text."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def data_of_script(content: dict[str, Any]) -> dict[str, Any]:
    """The part of the content that the script needs; the rest is in the page already."""
    keys = "id", "clustering", "names", "folder", "num_images", "images", "thumbnails"
    data = {key: content[key] for key in keys}
    data["clusters"] = [{key: c[key] for key in ("name", "prototype", "parts")} for c in content["clusters"]]
    data["classes"] = content["labels"] and content["labels"]["classes"]
    return data


def is_table(labels: dict[str, Any] | None) -> bool:
    return labels is not None and max(len(labels["classes"]), len(labels["columns"])) <= LARGEST_TABLE


# --- drawings ------------------------------------------------------------------------------------


def bars_of(histogram: list[int], below: float) -> list[dict[str, Any]]:
    """The bars of a cluster's histogram of confidence, the highest of height 40; without empty bins.

    `histogram` counts images in bins of equal width from 0 to 1; bins below `below` are unsure.
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

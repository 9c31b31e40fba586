"""Links between the pages lead somewhere."""

import re

import pytest
from digits_steps import ROOT

PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
FENCED = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)


def anchors(page):
    """The headings of a page as GitHub makes anchors of them."""
    headings = re.findall(r"^#+ (.*)$", FENCED.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", FENCED.sub("", page.read_text(encoding="utf-8"))):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), target
        assert not anchor or anchor in anchors(linked), target


def test_the_tree_names_files_that_exist():
    files = {path.name for path in ROOT.rglob("*.py") if ".venv" not in path.parts}
    packages = {path.parent.name for path in ROOT.rglob("__init__.py") if ".venv" not in path.parts}
    tree = (ROOT / "docs/TREE.md").read_text(encoding="utf-8")
    assert set(re.findall(r"[\w-]+\.py\b", tree)) <= files
    assert packages <= set(re.findall(r"(\w+)/", tree))

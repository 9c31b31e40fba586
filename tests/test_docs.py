"""Links between the pages lead somewhere, on GitHub and in the site, and the site has all pages."""

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
        assert linked.is_file(), target  # the site has no pages of folders
        assert not anchor or anchor in anchors(linked), target


def test_the_site_has_every_page_once():
    nav = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").split("nav:")[1]
    listed = re.findall(r"^ +- .*?(\S+\.md)$", nav, re.MULTILINE)
    assert sorted(listed) == sorted(page.relative_to(ROOT).as_posix() for page in PAGES), (
        "see nav in mkdocs.yml"
    )


def test_the_tree_names_files_that_exist():
    files = {path.name for path in ROOT.rglob("*.py") if ".venv" not in path.parts}
    packages = {path.parent.name for path in ROOT.rglob("__init__.py") if ".venv" not in path.parts}
    tree = (ROOT / "docs/TREE.md").read_text(encoding="utf-8")
    assert set(re.findall(r"[\w-]+\.py\b", tree)) <= files
    assert packages <= set(re.findall(r"(\w+)/", tree))

"""A hook of MkDocs (mkdocs.yml): the site has the repository's tree, so that links hold in both."""

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """In the place of the folder of pages: the pages at the top and in docs/, and what they link to."""
    for file in list(files):
        if file.src_dir == config.docs_dir:
            files.remove(file)
    pages = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]
    targets = {
        (page.parent / target).resolve()
        for page in pages
        for target in re.findall(r"\]\(([^)\s#]+)", page.read_text(encoding="utf-8"))
    }
    for path in sorted({*pages, *targets, ROOT / "docs/iframe-worker.js"}):
        if path.is_file():
            name = path.relative_to(ROOT).as_posix()
            # browsers show a text, but may download a .py, .yml or a file without suffix
            shown = None if path.suffix in (".md", ".png", ".jpg", ".js", ".ipynb") else f"{name}.txt"
            files.append(File(name, str(ROOT), config.site_dir, config.use_directory_urls, dest_uri=shown))
    return files


def on_page_markdown(markdown: str, page: Page, **_: object) -> None:
    """The search shows what users look for before the tree and the log."""
    if page.parent and page.parent.title == "The project":
        page.meta["search"] = {"boost": 0.1}

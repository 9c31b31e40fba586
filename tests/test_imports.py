"""Imports go one way: the packages know nothing of each other, only the scripts compose them."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("data", "losses", "models", "utils")
SCRIPTS = ("simclr", "moco", "scan", "selflabel", "eval", "pipeline", "reproduce")


def imported(path):
    """Top-level names that a file imports from outside its own package."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("package", PACKAGES)
def test_package_imports_no_other(package):
    files = list((ROOT / package).glob("*.py"))
    assert files
    for path in files:
        assert not imported(path) & set(PACKAGES + SCRIPTS), path
        if package == "losses":
            assert "errors" not in imported(path)


def test_errors_import_nothing_of_the_project():
    assert not imported(ROOT / "errors.py") & set(PACKAGES + SCRIPTS)

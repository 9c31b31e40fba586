"""Imports go one way: floors know nothing of those above or beside them, only the scripts compose them.

Imports for type hints alone, under `if TYPE_CHECKING`, are not counted.
"""

import ast

import pytest
from digits_steps import ROOT

BELOW = {"errors", "data", "losses", "models", "utils"}
# for each floor, the modules of the project that its files may import besides those of the floor itself
FLOORS = {
    "errors": set(),
    "losses": set(),
    "models": {"errors"},
    "data": {"errors"},
    "utils.files": {"errors"},
    "utils.run": {"errors", "utils.files"},
    "utils.training": {"errors", "utils.files", "utils.run"},
    "utils.analysis": {"errors", "utils.files"},
    "utils.report": {"errors", "utils.files", "utils.analysis"},
    "steps": BELOW,
    "workflows": {*BELOW, "steps", "simclr", "scan", "selflabel", "eval", "moco", "pretrained"},
}
PACKAGES = {path.parent.name for path in ROOT.glob("*/__init__.py")}
OUR_OWN = {path.stem for path in ROOT.glob("*.py")} | PACKAGES


def files_of(floor):
    path = ROOT / floor.replace(".", "/")
    return sorted(path.rglob("*.py")) if path.is_dir() else [path.with_suffix(".py")]


def imported(source, package):
    """Dotted names of the project's modules that a source text imports, in functions, too.

    `package` is the dotted name of the package that it is in, from which relative imports start.
    """
    names = set()
    tree = ast.parse(source)
    tree.body = [node for node in tree.body if not ast.unparse(node).startswith("if TYPE_CHECKING:")]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")[: -node.level + 1 or None] if node.level else []
            module = ".".join([*parts, node.module] if node.module else parts)
            # `from utils import run` imports utils.run, `from utils.files import digest` utils.files.digest
            names |= {f"{module}.{alias.name}" for alias in node.names}
    return {name for name in names if name.split(".")[0] in OUR_OWN}


def beyond(floor, source, package):
    """What a source text on a floor imports and must not."""
    allowed = FLOORS[floor] | {floor}
    return {
        name
        for name in imported(source, package)
        if not any(f"{name}.".startswith(f"{module}.") for module in allowed)
    }


def package_of(path):
    return ".".join(path.relative_to(ROOT).parent.parts)


@pytest.mark.parametrize("floor", FLOORS)
def test_floor(floor):
    files = files_of(floor)
    assert files and all(path.is_file() for path in files)
    for path in files:
        assert not beyond(floor, path.read_text(), package_of(path)), path


def test_every_module_is_on_a_floor():
    within = {f"utils.{path.stem}" for path in (ROOT / "utils").glob("[!_]*")}
    assert {"errors", *PACKAGES - {"utils"}, *within} == FLOORS.keys()
    assert not imported((ROOT / "utils/__init__.py").read_text(), "utils")


@pytest.mark.parametrize("path", sorted(ROOT.glob("*.py")), ids=lambda path: path.stem)
def test_nothing_imports_the_users_commands(path):
    names = {name.split(".")[0] for name in imported(path.read_text(), "")}
    names -= {"predict"} if path.stem == "estimator" else set()  # it offers them to other programs
    assert not names & {"cluster", "predict", "export", "reproduce"}


@pytest.mark.parametrize(
    ("floor", "line", "allowed"),
    [
        ("errors", "import utils", False),
        ("losses", "from ..models import build_model", False),
        ("data", "from utils.files import atomic", False),
        ("utils.files", "from .run import machine", False),
        ("utils.run", "from .. import analysis", False),
        ("utils.training", "def f():\n    from ..analysis.metrics import contingency", False),
        ("utils.analysis", "if True:\n    import utils.training.engine", False),
        ("utils.analysis", "if TYPE_CHECKING:\n    from data import Dataset", True),
        ("losses", "from .scan import SCANLoss", True),
        ("utils.run", "from . import distributed, interrupt", True),
        ("utils.run", "from ..files import atomic", True),
        ("utils.training", "import torch.utils.data", True),
        ("steps", "from utils.training import engine", True),
    ],
)
def test_kinds_of_imports(floor, line, allowed):
    package = {"utils.files": "utils", "errors": ""}.get(floor, floor)
    assert (beyond(floor, line, package) == set()) == allowed

"""Build the wheel, all in one package, so that no other program's `data` or `utils` is in the way.

scan_clustering.py becomes scan_clustering/__init__.py, and the rest of the program scan_clustering/_program/,
where its own imports, and the commands that its messages name, are rewritten to fit. The folder is apart from
the API so that a function there may have the name of a module. All else is in pyproject.toml.
"""

import ast
import re
import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py
from setuptools.errors import SetupError

ROOT = Path(__file__).parent
API, INNER = "scan_clustering", "scan_clustering._program"
FOLDERS = {path.parent.name for path in ROOT.glob("*/__init__.py")}
TOP_MODULES = {path.stem for path in ROOT.glob("*.py")} - {"setup", API}
SUFFIXES = {".py", ".yml", ".txt", ".html", ".css", ".js"}
SCRIPT = re.compile(r"(?:python )?\b(cluster|predict|export|eval|reproduce)\.py\b")  # as users know them
VERSION_LINE = f"\nfrom {INNER}.utils.run.version import VERSION as __version__\n"


def sources() -> list[Path]:
    """The files of the program, relative to ROOT."""
    within = [path for folder in (*FOLDERS, "configs") for path in (ROOT / folder).rglob("*")]
    files = [*(ROOT / f"{name}.py" for name in TOP_MODULES), *within]
    return sorted(path.relative_to(ROOT) for path in files if path.suffix in SUFFIXES)


def rewritten(path: Path) -> str:
    """The text of a source file as it is in the wheel. Raises SetupError for an unforeseen import."""
    text = (ROOT / path).read_text(encoding="utf-8")
    if path.suffix == ".py":
        lines = text.split("\n")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ImportFrom) and not node.level:
                names, old, new = [str(node.module).split(".")[0]], "from ", f"from {INNER}."
            elif isinstance(node, ast.Import):
                names, old, new = [alias.name for alias in node.names], "import ", f"from {INNER} import "
            else:
                continue
            if FOLDERS.union(TOP_MODULES).isdisjoint(name.split(".")[0] for name in names):
                continue
            start = lines[node.lineno - 1][node.col_offset :]
            if len(names) > 1 or "." in names[0] or not start.startswith(old):
                raise SetupError(f"{path}:{node.lineno}: write this import as the others are")
            lines[node.lineno - 1] = " " * node.col_offset + new + start.removeprefix(old)
        text = "\n".join(lines)
    return SCRIPT.sub(r"scan-\1", text)


class BuildPackage(build_py):
    """Writes the package; there is no folder that it could be copied from."""

    def run(self) -> None:
        if self.editable_mode:
            raise SetupError("there is no editable install: run the scripts of the checkout")
        package = Path(self.build_lib, API)
        shutil.rmtree(package, ignore_errors=True)
        contents = {Path("_program", path): rewritten(path) for path in sources()}
        contents[Path("_program/__init__.py")] = '"""The program: not for other programs to import."""\n'
        contents[Path("__init__.py")] = rewritten(Path(f"{API}.py")) + VERSION_LINE
        for path, text in contents.items():
            (package / path).parent.mkdir(parents=True, exist_ok=True)
            (package / path).write_text(text, encoding="utf-8")

    def get_source_files(self) -> list[str]:
        """What the source distribution holds."""
        return [*map(str, sources()), f"{API}.py"]


setup(cmdclass={"build_py": BuildPackage})

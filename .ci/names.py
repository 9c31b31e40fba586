"""Names that two modules of the product define: a reader must not meet one name with two meanings.

Looks at the functions, classes and constants at the top of each module, without those that start with an
underscore. Exit status 1 if there are any besides SHARED.
"""

import ast
import sys
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parents[1]
# what every command, or every step, has by agreement
SHARED = {"main", "command", "add_arguments", "read_arguments", "run_step"}
# the published bounds of loss and validation objective: losses/ and utils/ do not import each other
SHARED |= {"MIN_PROBABILITY", "MIN_LOG"}


def defined(path: Path) -> set[str]:
    names = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            variables = {n.id for target in targets for n in ast.walk(target) if isinstance(n, ast.Name)}
            names |= {name for name in variables if name.isupper()}  # constants, but not `log`
    return {name for name in names if not name.startswith("_")}


def main() -> int:
    packages = [path.parent for path in ROOT.glob("*/__init__.py")]
    files = [*ROOT.glob("*.py"), *(file for package in packages for file in package.rglob("*.py"))]
    modules = defaultdict(list)
    for file in sorted(files):
        for name in defined(file):
            modules[name].append(str(file.relative_to(ROOT)))
    twice = {name: where for name, where in modules.items() if len(where) > 1 and name not in SHARED}
    for name, where in sorted(twice.items()):
        print(f"{name}: {', '.join(where)}")
    print(f"{len(twice)} of {len(modules)} names, in {len(files)} files, are defined twice")
    return bool(twice)


if __name__ == "__main__":
    sys.exit(main())

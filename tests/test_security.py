"""Nothing that a user downloads is executed: what the program's source may and may not call."""

import ast

import yaml
from digits_steps import ROOT

from utils.run import config

FORBIDDEN = {"os.system", "os.popen", "eval", "exec", "pickle.loads", "subprocess.getoutput"}
FORBIDDEN |= {"shutil.unpack_archive", "joblib.load", "marshal.loads", "pickle.Unpickler"}


def calls():
    """(file, dotted name, keywords) of every call in the program."""
    files = [
        *ROOT.glob("*.py"),
        *(
            f
            for p in ("data", "losses", "models", "steps", "utils", "workflows")
            for f in (ROOT / p).rglob("*.py")
        ),
    ]
    assert len(files) > 30
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call):
                keywords = {k.arg: getattr(k.value, "value", None) for k in node.keywords}
                yield file.relative_to(ROOT).as_posix(), ast.unparse(node.func), keywords


def test_no_shell_and_no_code_from_files():
    found = [(file, name) for file, name, keywords in calls() if name in FORBIDDEN or keywords.get("shell")]
    assert not found


def test_yaml_is_read_without_objects():
    assert {file for file, name, _ in calls() if name.startswith("yaml.") and "load" in name} == {
        "utils/run/config.py"
    }
    assert issubclass(config._UniqueKeyLoader, yaml.SafeLoader)


def test_weights_are_read_as_weights_only():
    loads = {(file, keywords.get("weights_only")) for file, name, keywords in calls() if name == "torch.load"}
    assert loads == {("utils/run/checkpoint.py", True), ("data/vectors/formats.py", True)}


def test_arrays_are_read_without_objects():
    loads = [keywords for _, name, keywords in calls() if name == "np.load"]
    assert len(loads) >= 2
    assert all(keywords.get("allow_pickle", False) is False for keywords in loads)


def test_the_one_pickle_is_of_a_file_whose_sum_torchvision_has_checked():
    assert [file for file, name, _ in calls() if name == "pickle.load"] == ["data/sets/torchvision_sets.py"]

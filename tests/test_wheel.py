"""What pip installs runs anywhere, also beside modules of the same names."""

import os
import shutil
import subprocess
import sys
import sysconfig

import numpy as np
import pytest
from digits_steps import ROOT
from image_folders import write_images

from utils.run.version import VERSION

pytestmark = pytest.mark.slow
HOSTILE = "raise SystemExit('the modules of another program were imported')"
IN_ONE_PROCESS = """
import importlib.metadata, pathlib, sys, scan_clustering
assert pathlib.Path(sys.prefix) in pathlib.Path(scan_clustering.__file__).parents
metadata = importlib.metadata.distribution("scan-clustering")
assert metadata.version == scan_clustering.__version__ == sys.argv[1], metadata.version
tops = {path.parts[0] for path in metadata.files} - {".."}
assert {top for top in tops if "dist-info" not in top} == {"scan_clustering"}, tops
commands = {entry.name: entry.load() for entry in metadata.entry_points}
from scan_clustering._program.utils.run.script import parse_arguments
from scan_clustering._program.workflows.experiments import EXPERIMENTS, experiment_files
files = [file for name in EXPERIMENTS for file in experiment_files(name).values()]
files += [parse_arguments(["--config_exp", files[0].partition("_program/")[2]], "").config_exp]
assert all(pathlib.Path(file).is_file() for file in files), files
sys.argv = "scan-cluster photos --clusters 3 --features new/vectors.npy --set num_workers=0".split()
commands["scan-cluster"]()
sys.argv = "scan-predict results/photos new/vectors.npy".split()
commands["scan-predict"]()
"""


def test_a_wheel_beside_another_programs_modules(tmp_path):
    tree, venv, hostile = tmp_path / "tree", tmp_path / "venv", tmp_path / "hostile"
    left_out = shutil.ignore_patterns(
        ".*", "tests", "benchmarks", "docs", "results", "datasets", "build", "*info"
    )
    shutil.copytree(ROOT, tree, ignore=left_out)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    site = venv / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    (site / "all.pth").write_text(
        sysconfig.get_path("purelib")
    )  # torch and the others are not installed again
    pip = [sys.executable, "-m", "pip", "--python", venv, "install", "-q", "--no-index", "--no-deps"]
    subprocess.run([*pip, "--no-build-isolation", tree], check=True)
    for name in ("cluster", "predict", "export", "eval", "reproduce"):
        assert (venv / "bin" / f"scan-{name}").exists()

    for name in ("data", "utils", "models", "configs"):
        (hostile / name).mkdir(parents=True)
        (hostile / name / "__init__.py").write_text(HOSTILE)
    for name in ("errors", "cluster", "scan"):
        (hostile / f"{name}.py").write_text(HOSTILE)
    (hostile / "configs/env.yml").write_text("stage: production\n")
    write_images(hostile / "photos", 40, (32, 32))
    (hostile / "new").mkdir()
    np.save(hostile / "new/vectors.npy", np.random.default_rng(0).normal(size=(40, 8)).astype(np.float32))
    done = subprocess.run(
        [venv / "bin/python", "-c", IN_ONE_PROCESS, VERSION],
        cwd=hostile,
        env={**os.environ, "PYTHONPATH": str(hostile), "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
    )
    printed = done.stdout + done.stderr
    assert done.returncode == 0, printed
    assert "taken for another program's" in printed and "40 images in 3 clusters" in printed
    assert "$ python -m scan_clustering._program.scan --config_exp" in printed and "cluster.py" not in printed
    results = hostile / "results/photos"
    assert "scan-predict" in (results / "report.html").read_text(encoding="utf-8")
    assert len((results / "predictions/vectors.npy.csv").read_text().splitlines()) == 41

"""The Python API."""

import ast
import gc
import hashlib
import json
import logging
import multiprocessing
import os
import pickle
import random
import shutil
import signal
import sys
import tempfile
import threading
from collections import Counter
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from digits_steps import ROOT, images_and_probabilities, rows_of
from PIL import Image
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.exceptions import NotFittedError
from sklearn.utils.estimator_checks import check_estimator

import cluster as command
import data
import estimator
from errors import UserError
from scan_clustering import ImageClusterer, cluster
from steps import judged_clusters
from utils import report

N = 60
VECTORS = load_digits().data[:N]
IMAGES = (load_digits().images[:N] * 15).astype(np.uint8)
QUICK = ["--set", "num_workers=0", "device=cpu", "precision=fp32"]


def run_here(argv, verbose):
    """In place of `run_command`: in this process, so that the tests need not wait for others to start."""
    with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        command.main([*map(str, argv), *QUICK])


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """A fitted estimator, which no test changes; its images are files."""
    folder = tmp_path_factory.mktemp("fitted")
    np.save(folder / "pixels.npy", VECTORS)
    for i, image in enumerate(IMAGES):
        Image.fromarray(image).save(folder / f"{i:02}.png")
    features = ["--features", str(folder / "pixels.npy")]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        patch.setattr(estimator, "run_command", run_here)
        return ImageClusterer(4, results=folder / "out/mine", options=features).fit(folder)


def state():
    """What a program has set up."""
    cudnn, root = torch.backends.cudnn, logging.getLogger()
    return (
        [signal.getsignal(number) for number in signal.valid_signals()],
        [root.handlers[:], root.level, logging.getLogger("utils").level, logging.raiseExceptions],
        [
            torch.get_num_threads(),
            multiprocessing.get_start_method(),
            os.getcwd(),
            {**os.environ},
            sys.stdout,
        ],
        [torch.get_rng_state().tolist(), str(np.random.get_state()), random.getstate()],
        [torch.get_default_dtype(), cudnn.benchmark, cudnn.allow_tf32, torch.is_grad_enabled()],
    )


def test_the_process_stays_as_it_was(fitted, capfd):
    """A real one, in a thread. Vectors get the clusters that the command gives the images of these."""
    method = multiprocessing.get_start_method()
    multiprocessing.set_start_method("spawn", force=True)
    found = []

    def work():
        found.append(cluster(VECTORS, clusters=4, options=QUICK))
        found.append(found[0].predict(VECTORS))

    try:
        before = state()
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        assert state() == before
    finally:
        multiprocessing.set_start_method(method, force=True)
    assert capfd.readouterr() == ("", "")
    for labels in (found[0].labels_, found[1]):
        np.testing.assert_array_equal(labels, fitted.labels_)
    np.testing.assert_array_equal(found[0].confidence_, fitted.confidence_)
    folder = found[0].folder_
    assert folder.exists()
    del found[:]
    gc.collect()
    assert not folder.exists()


@pytest.fixture
def program(tmp_path, monkeypatch):
    """Function that makes a shell script what runs in place of cluster.py."""

    def write(script):
        (tmp_path / "program").write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "program").chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(tmp_path / "program"))

    return write


@pytest.mark.parametrize("prefix", ["", "cluster.py: "])
def test_the_message_of_the_command_is_raised(program, prefix):
    program(f"echo a warning >&2; echo '{prefix}error: x: no such folder; check it' >&2; exit 2")
    with pytest.raises(UserError) as error:
        ImageClusterer(2).fit("x")
    assert str(error.value) == "x: no such folder; check it"


def test_what_the_command_prints(program, capfd):
    program("echo said; echo '  File x'>&2; echo 'KeyError: 1' >&2; exit 1")
    for verbose in (False, True):
        with pytest.raises(RuntimeError, match="KeyError: 1"):
            ImageClusterer(2, verbose=verbose).fit("x")
        assert capfd.readouterr() == ("said\n" * verbose, "")


def test_interrupted(program, tmp_path):
    program(f"echo $$ > {tmp_path / 'process'}; sleep 1; kill -INT $PPID; exec sleep 60")
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            ImageClusterer(2).fit("x")
    finally:
        signal.signal(signal.SIGINT, handler)
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "process").read_text()), 0)


# --- what is given, and what is found --------------------------------------------------------------


def test_a_list_of_paths(monkeypatch, fitted, tmp_path):
    """Each has its row, whatever the command leaves out."""
    images = fitted.folder_.parents[1]
    paths = [str(path) for path in sorted(images.glob("*.png"), reverse=True)]
    (tmp_path / "notes.txt").write_text("")
    given = [tmp_path / "notes.txt", *paths, paths[0]]

    def run(argv, verbose):
        assert "--from-scratch" in argv and argv[argv.index("--seed") + 1] == 3
        folder = tmp_path / "out"
        assert data.images_of([argv[0]]).files == paths
        shutil.copytree(fitted.folder_, folder, dirs_exist_ok=True)

    monkeypatch.setattr(estimator, "run_command", run)
    clusters = ImageClusterer(4, results=tmp_path / "out", from_scratch=True, random_state=3).fit(given)
    expected = fitted.labels_[::-1].tolist()
    assert clusters.labels_.tolist() == [-1, *expected, expected[0]]
    assert np.isnan(clusters.confidence_[0]) and not np.isnan(clusters.confidence_[1:]).any()
    assert clusters.table[1]["file"] == Path(paths[0]).name


def test_kinds_of_new_images(results, tmp_path):
    """They are written and read again without a loss."""
    model = ImageClusterer.load(labeled(results, tmp_path))
    images, probabilities = images_and_probabilities(results, 25)
    pixels = images.permute(0, 2, 3, 1).numpy()
    pictures = [Image.fromarray(image) for image in pixels]
    (tmp_path / "in").mkdir()
    paths = [tmp_path / "in" / f"{i:02}.png" for i in range(25)]
    for path, picture in zip(paths, pictures, strict=True):
        picture.save(path)
    (tmp_path / "bad.png").write_bytes(b"no image")
    for given in (pixels, pixels[..., 0], pictures, paths, str(tmp_path / "in")):
        np.testing.assert_allclose(model.predict_proba(given), probabilities, atol=1e-5)
    found = model.predict([paths[3], tmp_path / "bad.png", paths[3]])
    assert found.tolist() == [probabilities[3].argmax(), -1, probabilities[3].argmax()]
    with pytest.raises(UserError, match="was trained on images"):
        model.predict(VECTORS)


def labeled(results, folder):
    """A copy of the results of steps with the table that cluster.py adds."""
    shutil.copytree(results, folder / "results")
    (folder / "results/clusters.csv").write_text("file,cluster,confidence\na.png,1,0.5\n")
    return folder / "results"


def test_saved(fitted, tmp_path):
    fitted.save(tmp_path / "saved")
    again = ImageClusterer.load(tmp_path / "saved")
    pickled = pickle.loads(pickle.dumps(fitted))
    for other in (again, pickled):
        np.testing.assert_array_equal(other.labels_, fitted.labels_)
        np.testing.assert_array_equal(other.predict(VECTORS), fitted.predict(VECTORS))
    with pytest.raises(FileExistsError):
        fitted.save(tmp_path / "saved")
    with pytest.raises(UserError, match="clusters.csv"):
        ImageClusterer.load(tmp_path)
    with pytest.raises(UserError, match="trained on features, not on images"):
        again.predict(IMAGES)


def test_table(fitted, monkeypatch):
    rows = rows_of(fitted.folder_ / "clusters.csv")
    expected = [
        {
            "cluster": int(row["cluster"]),
            "confidence": float(row["confidence"]),
            "name": "",
            "file": row["file"],
        }
        for row in rows
    ]
    for library in ("pandas", "polars"):
        monkeypatch.setitem(sys.modules, library, None)  # not installed
    assert fitted.table == expected
    for library in ("polars", "pandas"):
        frame = mock.Mock(DataFrame=lambda rows, library=library: (library, rows))
        monkeypatch.setitem(sys.modules, library, frame)
        assert fitted.table == (library, expected)


def test_show(fitted, monkeypatch):
    assert fitted.show() == fitted.folder_ / "prototypes.png"
    Image.new("RGB", (3, 3)).save(fitted.show())
    shown = []
    monkeypatch.setitem(sys.modules, "ipykernel", mock.Mock())
    monkeypatch.setitem(sys.modules, "IPython.display", mock.Mock(display=shown.append))
    assert fitted.show() is None and shown[0].size == (3, 3)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (IMAGES.astype(float), "dim 3"),
        (np.zeros((30, 3, 8, 8), np.uint8), "dim 4"),
        (VECTORS[:20], "minimum of 21"),
        ([], "Expected 2D array"),
        (np.full((30, 2), np.nan), "NaN"),
    ],
)
def test_what_is_no_image(images, message):
    with pytest.raises(ValueError, match=message):
        ImageClusterer(2).fit(images)


# --- scikit-learn ----------------------------------------------------------------------------------


def test_parameters():
    clusters = ImageClusterer(3, verbose=True, options=["--size", "9"])
    assert clone(clusters).get_params() == clusters.get_params()
    assert clusters.set_params(random_state=4).random_state == 4 and "n_clusters=3" in repr(clusters)
    with pytest.raises(NotFittedError):
        clusters.predict(VECTORS)


FEW = "it fits to 10 to 20 samples; at least 21 are needed, so that each has 20 neighbors"
CHECKS_WITH_FEW = (
    "dict_unchanged", "dont_overwrite_parameters", "estimators_dtypes", "estimators_empty_data_messages",
    "estimators_nan_inf", "f_contiguous_array_estimator", "fit2d_1feature", "fit2d_predict1d",
    "methods_sample_order_invariance", "methods_subset_invariance", "n_features_in_after_fitting",
)  # fmt: skip


@pytest.mark.slow
def test_scikit_learns_own_checks(monkeypatch, tmp_path):
    """With a short training; the same data are clustered once."""
    monkeypatch.setattr(judged_clusters, "HEAD_ITERATIONS", 5)
    monkeypatch.setattr(report, "render", mock.Mock(return_value=""))

    def run_once(argv, verbose):
        root, name = (argv[argv.index(flag) + 1] for flag in ("--root_dir", "--name"))
        kept = (
            tmp_path / hashlib.sha256((root / name / "given.npy").read_bytes() + bytes(argv[2])).hexdigest()
        )
        if not kept.exists():
            run_here(argv, verbose)
            shutil.copytree(root / name, kept)
        shutil.copytree(kept, root / name, dirs_exist_ok=True)

    monkeypatch.setattr(estimator, "run_command", run_once)
    expected = {f"check_{name}": FEW for name in CHECKS_WITH_FEW}
    done = check_estimator(ImageClusterer(2), expected_failed_checks=expected, on_skip=None)
    status = Counter(check["status"] for check in done)
    assert status["xfail"] == len(CHECKS_WITH_FEW) and status["passed"] >= 30


def test_the_cells_of_the_notebook(monkeypatch, tmp_path):
    monkeypatch.setattr(estimator, "run_command", run_here)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    cells = json.loads((ROOT / "docs/notebook.ipynb").read_text())["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    assert not any(cell.get("outputs") for cell in cells)
    names = {}
    for cell in code:
        *statements, last = ast.parse(cell).body
        exec(compile(ast.Module(statements, []), "notebook", "exec"), names)
        value = (
            eval(compile(ast.Expression(last.value), "notebook", "eval"), names)
            if isinstance(last, ast.Expr)
            else None
        )
        if "adjusted_rand_score(" in cell and isinstance(last, ast.Expr):
            assert value > 0.5
    assert value and names["clusters"].show().exists()

"""Command lines that no script takes, and paths that YAML would take for something else."""

import subprocess
import sys

import pytest
import torch
from digits_steps import ROOT, STEPS
from mistakes import assert_holds

import data
from errors import UserError
from utils.run.config import load_config
from utils.run.script import parse_arguments, run_script

EXPERIMENT = ["--config_exp", STEPS["pretext"][1]]

MISTAKES = [
    (["--run", "a/b"], "--run", "found 'a/b'"),
    (["--run", ""], "--run", "found ''"),
    (["--run", ".."], "--run", "found '..'"),
    (["--pretrained", "https://host/model.pth.tar"], "--pretrained", "a file on this machine"),
    (["--pretrained", ""], "--pretrained", "expected a file"),
    (["--epochs", "3"], "unrecognized arguments: --epochs 3"),
]


@pytest.mark.parametrize("row", MISTAKES, ids=[" ".join(row[0]) for row in MISTAKES])
def test_mistake(row, capsys):
    argv, *words = row
    with pytest.raises(SystemExit):
        parse_arguments([*EXPERIMENT, *argv], "", pretrained_help="a file")
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert "error:" in last
    assert_holds(last, words)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("root_dir: x", "this machine's settings are those of"),
        ("queue: gpu", "unknown key 'queue'"),
        ("device: slurm", "device must be"),
        ("- 1", "expected keys and values"),
        (None, None),
    ],
)
def test_the_environment_file_of_the_current_folder(content, told, tmp_path, monkeypatch, capsys):
    """It is read if it is one of this program's, and a line, one for all steps, says whether it is."""
    monkeypatch.chdir(tmp_path)
    if content:
        (tmp_path / "configs").mkdir()
        (tmp_path / "configs/env.yml").write_text(content)
    argv = ["--config_exp", str(ROOT / STEPS["pretext"][1])]
    found = [parse_arguments(argv, "").config_env for _ in range(2)]
    own = str(ROOT / "configs/env.yml")
    assert found == 2 * ["configs/env.yml" if content == "root_dir: x" else own]
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == bool(content) and (not content or (told in lines[0] and own in lines[0]))
    assert parse_arguments([*argv, "--config_env", "configs/env.yml"], "").config_env == "configs/env.yml"
    assert not capsys.readouterr().err


ERRORS = [  # what torch and the system say, and what the user reads
    (torch.OutOfMemoryError("CUDA out of memory.\n..."), "the GPU's memory is full (CUDA out of memory.)"),
    (MemoryError("Unable to allocate 9 GiB"), "lower batch_size or the images' size"),
    (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "the memory is full (DefaultCPUAllocator"),
    (RuntimeError("unable to write to file </torch_5>: No space left\nshm"), "--shm-size", "num_workers=0"),
    (
        OSError(28, "No space left on device", "a.npy"),
        "a.npy: cannot be used (No space left on device); free",
    ),
    (PermissionError(13, "Permission denied"), "(Permission denied); change its permissions"),
    (OSError("a pipe broke"), "(a pipe broke)"),
    (RuntimeError("dataloader's workers are out of shared memory."), "--shm-size"),
]


@pytest.mark.parametrize("row", ERRORS, ids=[str(row[0])[:30] for row in ERRORS])
def test_an_error_that_is_no_bug(row, capsys):
    error, *words = row

    def main():
        raise error

    with pytest.raises(SystemExit):
        run_script(main)
    assert_holds(capsys.readouterr().err, words)


def test_a_bug_keeps_its_traceback():
    with pytest.raises(RuntimeError):
        run_script(lambda: torch.zeros(2) @ torch.zeros(3))


@pytest.mark.parametrize("name", ["17", "a: b", "{x}", "a #b", "null", "\U0001f4f7"])
def test_data_dir_is_no_yaml(name, tmp_path):
    (tmp_path / name).mkdir()
    argv = [*EXPERIMENT, "--data_dir", str(tmp_path / name), "--set", "train_db_name=faces"]
    config = load_config(parse_arguments(argv, ""), ["simclr"])
    assert config.data_dir == str(tmp_path / name)
    with pytest.raises(UserError, match="neither ") as error:
        data.build_dataset(config, "train")
    assert f"neither {tmp_path / name}/faces.npz nor" in str(error.value)


def test_help_answers_at_once():
    """torch, which takes seconds to import, is not imported for it."""
    code = "import sys, cluster\ntry: cluster.main(['--help'])\nfinally: print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert "--clusters" in done.stdout and done.stdout.endswith("\nFalse\n")

"""Run the steps of the method, one after another."""

import datetime
import json
import os
import platform
import shlex
import subprocess
from pathlib import Path

import torch

import data
import eval as evaluation
import moco
import pretrained
import scan
import selflabel
import simclr
from errors import UserError
from utils.files import digest, write_json
from utils.run import machine
from utils.run.config import differences, experiment_of, listed, load_config, read_yaml, with_defaults
from utils.run.fingerprint import FINGERPRINT, read_fingerprint
from utils.run.folder import find_earlier_folder, results_folder
from utils.run.script import parse_arguments

# step: {setup of its experiment file: the script}
SCRIPTS = {
    "pretext": {"simclr": simclr, "moco": moco, "pretrained": pretrained},
    "scan": {"scan": scan},
    "selflabel": {"selflabel": selflabel},
}
MADE_WITH = "made_with.json"  # in each step's folder: the machines and versions that produced its results


def run_steps(files, settings, step_settings=None, flags=None, run=None):
    """Run the given steps, each as from the command line.

    A finished step is skipped, see `is_finished`; an interrupted one resumes.

    Args:
        files: dict step -> experiment file; the steps are pretext, scan and selflabel, or some of them, if
            the results of the earlier ones are there.
        settings: KEY=VALUE strings for all steps, root_dir among them.
        step_settings: dict step -> KEY=VALUE strings for this step only, which override `settings`.
        flags: dict step -> further arguments of its script, such as --pretrained FILE.
        run: keep the results apart, as --run does; None: do not.

    Returns:
        dict step -> pathlib.Path of its results.

    Raises:
        UserError: see `check_steps`; and whatever a script raises.
    """
    configs = check_steps(files, settings, step_settings, run)
    folders = {step: results_folder(config, step) for step, config in configs.items()}
    fingerprints = {}  # of the images, which all steps share
    for step, config in configs.items():
        script = SCRIPTS[step][config.setup]
        arguments = [*(flags or {}).get(step, ()), *command_line(step, files, settings, step_settings, run)]
        print(f"\n$ python {script.__name__}.py {shlex.join(arguments)}", flush=True)
        if is_finished(folders[step], config, fingerprints, run):
            print(f"done before: {folders[step]}", flush=True)
        else:
            note_maker(folders[step], config)
            script.main(arguments)
    return folders


def make_report(folders, files, settings, step_settings=None):
    """Run eval.py on the last step's model, if its report is not there yet; the arguments of `run_steps`.

    Args:
        folders: what `run_steps` returned. The last one will hold eval/model/.

    Returns:
        pathlib.Path of report.html; it is missing if it could not be made, after a warning.
    """
    step = list(files)[-1]
    model = folders[step] / "model.pth.tar"
    report = folders[step] / "eval/model/report.html"
    if not report.exists() or report.stat().st_mtime < model.stat().st_mtime:
        arguments = [*command_line(step, files, settings, step_settings), "--model", str(model)]
        arguments += ["--visualize_prototypes", "--report"]
        print(f"\n$ python eval.py {shlex.join(arguments)}", flush=True)
        evaluation.main(arguments)
    return report


def check_steps(files, settings, step_settings=None, run=None):
    """Read and check the steps' configurations; arguments as in `run_steps`.

    Returns:
        dict step -> configuration.

    Raises:
        UserError: an invalid file or setting, or a results folder that was made with other settings.
    """
    configs = {}
    for step in files:
        arguments = parse_arguments(command_line(step, files, settings, step_settings, run), "")
        config = configs[step] = load_config(arguments, list(SCRIPTS[step]))
        earlier = results_folder(config, step) / "config.yml"
        if earlier.exists():
            changed = differences(with_defaults(experiment_of(read_yaml(earlier))), experiment_of(config))
            if changed:
                raise UserError(
                    f"{earlier.parent}: holds results of other settings ({listed(changed)}); undo the "
                    "change, or give another --root_dir"
                )
    return configs


def command_line(step, files, settings, step_settings, run=None):
    own = (step_settings or {}).get(step, [])
    apart = ["--run", run] if run else []
    return ["--config_exp", str(files[step]), *apart, "--set", *settings, *own]


def is_finished(folder, config, fingerprints, run=None):
    """Whether a step's folder holds complete, up-to-date results of this configuration.

    Results are out of date if the images, an earlier step's model or a result file have changed since.

    Args:
        folder: pathlib.Path of the step's results.
        config: the step's configuration.
        fingerprints: dict split -> fingerprint of its images; a cache, which this function fills.
        run: the name of --run, if the step had one.
    """
    written = read_fingerprint(folder)
    if not written:
        return False
    written = with_defaults(written)
    here = {
        **experiment_of(config),
        "inputs": {role: digest(_input(role, config, run)) for role in written.get("inputs", ())},
        "files": {name: digest(folder / name) for name in written.get("files", ())},
        "data": {},
    }
    if any(written.get(key) != here[key] for key in here if key != "data"):
        return False
    for split in written["data"]:
        name = "train+unlabeled" if split == "unlabeled" else split
        if name not in fingerprints:
            fingerprints[name] = data.build_dataset(config, name).fingerprint()
        here["data"][split] = fingerprints[name]
    return written["data"] == here["data"]


def _input(role, config, run):
    """Path of a file that a step started from, by its role in the fingerprint.

    The role is such as pretext/model.pth.tar, or an absolute path, which stays what it is.
    """
    return find_earlier_folder(config, Path(role).parts[0], run).parent / role


def note_maker(folder, config):
    """Record this machine and the installed versions in the step's MADE_WITH, once."""
    device = machine.choose_device(config.device)
    threads = f"{platform.machine()} CPU, {torch.get_num_threads()} of {os.cpu_count()} cores"
    maker = {
        "machine": torch.cuda.get_device_name(device) if device.type == "cuda" else threads,
        "precision": machine.dtype_name(machine.choose_precision(config.precision, device)),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "commit": _commit(),
    }
    makers = read_makers(folder)
    if maker not in makers:
        folder.mkdir(parents=True, exist_ok=True)
        write_json([*makers, maker], folder / MADE_WITH)


def read_makers(folder):
    """The records of `note_maker`, a list of dicts; empty if the step's script was run by hand."""
    path = folder / MADE_WITH
    return json.loads(path.read_text()) if path.exists() else []


def provenance(folders):
    """When the last of these steps finished, an ISO date; and all records of `note_maker`, each once.

    `folders`: list of pathlib.Path of the steps' results.
    """
    makers = []
    for folder in folders:
        makers += [maker for maker in read_makers(folder) if maker not in makers]
    finished = max((folder / FINGERPRINT).stat().st_mtime for folder in folders)
    return datetime.date.fromtimestamp(finished).isoformat(), makers


def summary_of(args, folders, lines):
    """What the tables of reproduce.py and ablation.py both say, as plain values.

    Args:
        args: the command line of reproduce.py.
        folders: list of pathlib.Path of the steps' results.
        lines: what else is to be said of how the figures were obtained.
    """
    finished, made_with = provenance(folders)
    splits = [read_fingerprint(folder).get("data", {}) for folder in folders]
    unlabeled = any("unlabeled" in of and of["unlabeled"] != of["train"] for of in splits)
    several = "; mean ± standard deviation (n - 1); worst: the lowest ACC" if len(args.seeds) > 1 else ""
    protocol = [
        "A rehearsal: the figures mean nothing." if args.rehearse else "",
        f"Data: trained on the train split{' (pretext: train+unlabeled)' if unlabeled else ''}, evaluated on "
        "the test split; labels serve these figures only.",
        *lines,
        f"Seeds: {', '.join(map(str, args.seeds))}{several}.",
        f"Settings other than those of the files: {' '.join(args.overrides)}." if args.overrides else "",
    ]
    return {
        "dataset": args.dataset,
        "command": command_of(args),
        "finished": finished,
        "rehearsal": args.rehearse,
        "settings": args.overrides,
        "seeds": args.seeds,
        "protocol": [line for line in protocol if line],
        "made_with": made_with,
    }


def command_of(args):
    """The command line of reproduce.py that gives these figures, without the folders."""
    command = ["python", "reproduce.py", args.dataset]
    command += ["--ablation", args.ablation] if args.ablation else []
    command += ["--seeds", *map(str, args.seeds)]
    command += ["--rehearse"] if args.rehearse else []
    command += ["--set", *args.overrides] if args.overrides else []
    return shlex.join(command)


def _commit():
    """The git commit of this program, with -dirty appended if files differ from it."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        git = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True)
    except OSError:  # no git on this machine
        return "unknown"
    return git.stdout.strip() or "unknown"

"""Run the steps of the method, one after another."""

import shlex
from pathlib import Path

import data
import eval as evaluation
import moco
import pretrained
import scan
import selflabel
import simclr
from errors import UserError
from utils.files import digest
from utils.run.config import differences, experiment_of, listed, load_config, read_yaml, with_defaults
from utils.run.fingerprint import read_fingerprint
from utils.run.folder import find_earlier_folder, results_folder
from utils.run.script import parse_arguments
from workflows.provenance import note_maker

# step: {setup of its experiment file: the script}
SCRIPTS = {
    "pretext": {"simclr": simclr, "moco": moco, "pretrained": pretrained},
    "scan": {"scan": scan},
    "selflabel": {"selflabel": selflabel},
}


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

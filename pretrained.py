"""Step 1 with features that others learned: load a backbone's weights, then mine neighbors.

python pretrained.py --config_exp FILE.yml                     (downloads the weights of its backbone once)
python pretrained.py --config_exp FILE.yml --pretrained FILE   (takes those of a file, of whatever program)

With `features_file`, the features themselves are given, and there are no weights.
"""

import logging
from pathlib import Path
from typing import cast

from torch import nn

from errors import UserError, first_line
from models import PretrainedModel, build_model, library_network, preprocessing
from models.pretrained_backbones import LibraryNetwork
from steps.mining import mine, pretext_splits
from steps.options import StepOptions, open_run
from utils.files import read_json
from utils.run import checkpoint, distributed
from utils.run.config import Config, differences, listed, load_config
from utils.run.fingerprint import Fingerprint
from utils.run.script import parse_arguments, run_script
from utils.run.weights import StateDict, find_backbone, load_backbone
from utils.training import resume

log = logging.getLogger("pretrained")

LEARNED = {True: "with labels", False: "without labels", None: "it is unknown whether with labels"}
# the libraries announce every request and retry
TALKATIVE = "timm", "huggingface_hub", "httpx", "httpx2"


def main(argv: list[str] | None = None) -> None:
    help_ = "a file of weights for the backbone (default: its own, by its name)"
    args = parse_arguments(argv, __doc__, pretrained_help=help_)
    run_step(load_config(args, ["pretrained"], training=False), StepOptions.from_arguments(args))


def run_step(config: Config, options: StepOptions) -> None:
    """Take a backbone that others trained as the pretext model, and mine the neighbors of both splits."""
    given = options.pretrained
    run = open_run(config, "pretext", options)
    model = cast(PretrainedModel, build_model(config))
    with distributed.main_first():
        source, labels = fill(model, config, given)
    model = run.machine.place(model)
    splits = pretext_splits(run, model, options)
    inputs = {str(given.resolve()): given} if given else {}
    fingerprint = Fingerprint(config, splits.datasets, inputs)
    resume.use_given_weights(run, fingerprint, given, model)
    mine(run, fingerprint, model, splits, source, {"weights": source, "labels_in_pretraining": labels})
    log.info("features of %s, learned by others: %s", source, LEARNED[labels])


def fill(model: PretrainedModel, config: Config, file: Path | None) -> tuple[str, bool | None]:
    """Load the weights of `file` or, if that is None, the pretrained ones of the backbone's library.

    Returns:
        where they come from; whether they were learned with labels, None if that is unknown.
    """
    name = config.backbone
    if config.features_file:
        if file:
            raise UserError(f"--pretrained {file}: with features_file there is no network to load it into")
        return config.features_file, None
    library = library_network(name)
    warn_of_normalization(config)
    if file:
        found, place = find_backbone(checkpoint.load(file), model.backbone, file)
        log.info("%s: the weights%s", file, f" below {place}" if place else "")
        labels = has_classifier(library, found) or recorded_labels(file)
    elif library is None or library.weights is None:
        raise UserError(
            f"backbone {name}: has no weights of its own; give --pretrained FILE, or run simclr.py"
        )
    else:
        found, labels = download_weights(library, config.transformation_kwargs.crop_size), library.labels
    source = str(file or (library and library.weights))
    if library:
        found = converted(library, model.backbone, found, source)
    load_backbone(model, found, source)
    return source, labels


def warn_of_normalization(config: Config) -> None:
    """Log a warning if the images are not normalized as the backbone's weights expect."""
    expected, given = preprocessing(config.backbone), config.transformation_kwargs.normalize
    found = differences(dict(given), {"mean": expected.mean, "std": expected.std})
    if found:
        log.warning(
            "transformation_kwargs.normalize is not what the weights of %s were trained with (%s)",
            config.backbone, listed(found),
        )  # fmt: skip


def download_weights(library: LibraryNetwork, image_size: int) -> StateDict:
    """A library's pretrained weights, from its cache or the network."""
    log.info("weights %s: from the library's cache, or downloaded once", library.weights)
    levels = {name: logging.getLogger(name).level for name in TALKATIVE}
    for name in TALKATIVE:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        return library.download(image_size)
    except Exception as error:  # whatever the network, the server, the cache or the disk make of it
        log.debug("%s", library.weights, exc_info=True)
        cause = first_line(error).split(". ")[0]
        raise UserError(
            f"{library.weights}: cannot be downloaded ({type(error).__name__}: {cause}); run this once where "
            "there is a network, give the weights with --pretrained FILE, or learn features from the images "
            "themselves (cluster.py --from-scratch, or simclr.py)"
        ) from None
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


def converted(library: LibraryNetwork, backbone: nn.Module, weights: StateDict, source: str) -> StateDict:
    """Weights in the library's layout and size. Raises UserError if it cannot make that of them."""
    try:
        return library.convert(backbone, weights)
    except (RuntimeError, ValueError, AssertionError, KeyError, AttributeError) as error:
        cause = first_line(error)
        raise UserError(f"{source}: does not fit this backbone ({cause}); set backbone to its own") from None


def recorded_labels(file: Path) -> bool | None:
    """What metrics.json beside a model of this step says of the labels; None for other files."""
    if file.name != "model.pth.tar":
        return None
    return read_json(file.parent / "metrics.json").get("labels_in_pretraining")


def has_classifier(library: LibraryNetwork | None, weights: StateDict) -> bool:
    """Whether a classifier of ImageNet's classes lies beside a backbone's weights."""
    layers = (weights.get(f"{name}.weight") for name in (library.classifiers() if library else ()))
    return any(layer is not None and len(layer) >= 1000 for layer in layers)


if __name__ == "__main__":
    run_script(main)

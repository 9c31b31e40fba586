"""Step 3 of SCAN: fine-tune on the model's own confident predictions, under strong augmentation.

python selflabel.py --config_exp configs/selflabel/selflabel_cifar10.yml [--pretrained scan_cifar10.pth.tar]
"""

import logging
from functools import partial

import torch

import data
from losses import CRITERIA, NO_VOTE, SelfLabelingLoss
from steps.load_model import load_model
from steps.options import DEFAULT_OPTIONS, BuildDataset, StepOptions, open_run
from steps.votes import Votes
from utils.analysis import health, metrics, plots, results
from utils.run import distributed
from utils.run.config import Config, load_config
from utils.run.fingerprint import Fingerprint, warn_if_unfinished
from utils.run.folder import earlier_folder
from utils.run.machine import Machine
from utils.run.script import parse_arguments, run_script, start_arguments
from utils.training import engine, resume
from utils.training.ema import EMA
from utils.training.inference import dry_run, infer
from utils.training.network import for_training
from utils.training.optim import build_optimizer

log = logging.getLogger("selflabel")


def selflabel_step(model, criterion, batch):
    """Self-labeling (section 2.3): a confident prediction on the weak view is the label of the strong view.

    Args:
        model: images -> list of one tensor of logits (B, C), in train mode. Its `buffers()` are the BatchNorm
            statistics, which both views update.
        criterion: a losses.SelfLabelingLoss, such as ConfidenceBasedCE.
        batch: weakly and strongly augmented images, both (B, 3, S, S); with `criterion.voting`, their votes.
    """
    weak_images, strong_images, *votes = batch
    votes = [distributed.gather(part) for part in votes]  # as the network's outputs are
    with torch.no_grad():
        weak_logits = model(weak_images)[0]
    labels, confident = criterion.pseudo_labels(weak_logits, *votes)
    statistics = list(model.buffers())
    before = [values.clone() for values in statistics]
    strong_logits = model(strong_images)[0]
    # Without a confident sample the strong view must not change the statistics. `torch.where` decides this on
    # the device, without a GPU synchronization. Autograd forbids in-place changes before the backward pass;
    # .data avoids that check, which is safe because the backward pass does not use these values.
    trains = confident.any()
    for now, earlier in zip(statistics, before, strict=True):
        now.data.copy_(torch.where(trains, now, earlier))
    loss = criterion.loss(strong_logits, labels, confident)
    values = {"loss": loss, "confident": confident.float().mean(), "trains": trains}
    if votes:
        values["voted"] = (votes[0] != NO_VOTE).float().mean()
    return values


def main(argv: list[str] | None = None) -> None:
    arguments = start_arguments("start from this clustering checkpoint (default: the clustering step's)")
    args = parse_arguments(argv, __doc__, arguments)
    run_step(load_config(args, ["selflabel"]), StepOptions.of(args))


def run_step(
    config: Config,
    options: StepOptions = DEFAULT_OPTIONS,
    build_dataset: BuildDataset = data.build_dataset,
    machine: Machine | None = None,
) -> None:
    """Fine-tune the clustering model's best head, and evaluate the last epoch's model."""
    run = open_run(config, "selflabel", options, machine)
    start = options.pretrained or clustering_model(config, options)
    hint = "" if options.pretrained else "run scan.py first"
    model = load_model(config, start, hint=hint, best_head_only=True).model
    with distributed.main_first():
        train_set, test_set = (build_dataset(config, split) for split in ("train", "test"))
    log.info("%d train and %d test images", len(train_set), len(test_set))
    fingerprint = Fingerprint(config, {"train": train_set, "test": test_set}, {"scan/model.pth.tar": start})
    test = data.eval_loader(test_set, config, **run.machine.loading(config))
    model = run.machine.place(model)
    build = CRITERIA[config.criterion]
    criterion: SelfLabelingLoss = build(threshold=config.confidence_threshold, **config.criterion_kwargs)
    votes = Votes(run, model, criterion.voting, train_set) if criterion.voting else None
    transforms = data.build_eval_transform(config), data.build_train_transform(config)
    views = data.WeakStrongView(*transforms, of_image=votes.of if votes else None)
    train = data.Loader(train_set, views, train=True, **run.machine.loading(config))
    dry_run(model, test, train)

    def predict(images):
        return model(images)[0].softmax(1)

    model.eval()
    if not votes:
        require_pseudo_labels(run, predict, train_set)
    watch = watch_from_the_start(run, predict, test)
    optimizer = build_optimizer(model.parameters(), config.optimizer, config.optimizer_kwargs)
    ema = EMA(model, config.ema_alpha) if config.use_ema else None
    engine.train(
        run, fingerprint, model, optimizer, train,
        partial(selflabel_step, for_training(run, model, train), criterion),
        checkpointed=[part for part in (ema, votes) if part],
        before_epoch=votes.update if votes else None,
        after_batch=ema.update if ema else None,
        after_epoch=partial(monitor, run, predict, test, watch),
    )  # fmt: skip
    evaluate(run, fingerprint, model, predict, test)


def clustering_model(config, options):
    """Path of the clustering step's model. Logs a warning if that step is unfinished."""
    path = earlier_folder(config, "scan", options.run) / "model.pth.tar"
    warn_if_unfinished(path.parent)
    return path


def require_pseudo_labels(run, predict, train_set):
    """Raise UserError if training is about to begin, and no training image is confident.

    A resumed or finished run is not checked: it has already trained on some.
    """
    config = run.config
    if not run.begins():
        return

    def surest(images):  # not all probabilities, which would take much memory
        return tuple(predict(images).max(1))

    with run.machine.autocast():
        found = infer(
            surest, data.eval_loader(train_set, config, **run.machine.loading(run.config)), "pseudo-labels"
        )
    confidence, clusters = (part.cpu() for part in found)
    health.require_confident(confidence, clusters, config.num_classes, config.confidence_threshold)


def watch_from_the_start(run, predict, test):
    """The health.ClusterMonitor of the training, which compares later clusters with those at the start."""
    with run.machine.autocast():
        start = infer(predict, test, "clusters at the start").argmax(1).cpu()
    threshold = run.config.confidence_threshold
    return health.ClusterMonitor(health.SELFLABEL_ADVICE, threshold, start, history=run.read_epochs)


def monitor(run, predict, test, watch, epoch):
    """Check the clusters after an epoch; returns the values to log. Labels are used only for the accuracy."""
    with run.machine.autocast():
        probabilities = infer(predict, test, "validation").cpu()
    values = watch(epoch, probabilities)
    labels = test.dataset.labels
    if labels is not None:
        num_classes = len(test.dataset.classes)
        values["val_acc"] = metrics.clustering_accuracy(probabilities, labels, num_classes)
    return values


def evaluate(run, fingerprint, model, predict, test):
    """Save the last epoch's model, evaluate it on the test split in float32, and write the results."""
    run.save(model.state_dict(), "model.pth.tar")
    probabilities = infer(predict, test, "evaluation").cpu()
    about = {"setup": run.config.setup, "dataset": run.config.val_db_name, "split": "test"}
    if run.main:
        results.report_clusters(run.folder, probabilities, test.dataset, about)
        plots.save_curves(run.read_epochs(), run.folder / "curves.png")
    resume.mark_finished(run, fingerprint, model.state_dict())


if __name__ == "__main__":
    run_script(main)

"""Step 3 of SCAN: fine-tune on the model's own confident predictions, under strong augmentation.

python selflabel.py --config_exp configs/selflabel/selflabel_cifar10.yml [--pretrained scan_cifar10.pth.tar]
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

import data
from losses import CRITERIA, NO_VOTE, SelfLabelingLoss
from steps.evaluation import finish_clustering, log_clusters, validation_accuracy
from steps.load_model import load_model
from steps.options import StepOptions, build_splits, open_run
from steps.votes import Votes
from utils.analysis import health
from utils.run import distributed
from utils.run.config import Config, load_config
from utils.run.fingerprint import Fingerprint, warn_if_unfinished
from utils.run.folder import Run, earlier_folder
from utils.run.script import parse_arguments, run_script
from utils.training import engine
from utils.training.ema import EMA
from utils.training.inference import dry_run, infer
from utils.training.network import TrainingNetwork, for_training
from utils.training.optim import build_optimizer


def selflabel_step(
    model: TrainingNetwork, criterion: SelfLabelingLoss, batch: tuple[torch.Tensor, ...]
) -> dict[str, torch.Tensor]:
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
    help_ = "start from this clustering checkpoint (default: the clustering step's)"
    args = parse_arguments(argv, __doc__, pretrained_help=help_)
    run_step(load_config(args, ["selflabel"]), StepOptions.from_arguments(args))


def run_step(config: Config, options: StepOptions) -> None:
    """Fine-tune the clustering model's best head, and evaluate the last epoch's model."""
    run = open_run(config, "selflabel", options)
    start, hint = options.pretrained, ""
    if start is None:
        start, hint = earlier_folder(config, "scan", options.run) / "model.pth.tar", "run scan.py first"
        warn_if_unfinished(start.parent)
    model = load_model(config, start, hint=hint, best_head_only=True).model
    train_set, test_set = build_splits(config, options)
    fingerprint = Fingerprint(config, {"train": train_set, "test": test_set}, {"scan/model.pth.tar": start})
    loading = run.machine.loading(config)
    test = data.eval_loader(test_set, config, **loading)
    model = run.machine.place(model)
    build = CRITERIA[config.criterion]
    criterion: SelfLabelingLoss = build(threshold=config.confidence_threshold, **config.criterion_kwargs)
    votes = Votes(run, model, criterion.voting, train_set) if criterion.voting else None
    transforms = data.build_eval_transform(config), data.build_train_transform(config)
    views = data.WeakStrongView(*transforms, votes=votes.for_images if votes else None)
    train = data.Loader(train_set, views, train=True, **loading)
    dry_run(model, test, train)

    def predict(images: torch.Tensor) -> torch.Tensor:
        return model(images)[0].softmax(1)

    def predict_all(title: str) -> torch.Tensor:
        with run.machine.autocast():
            return infer(predict, test, title).cpu()

    model.eval()
    if run.starts_untrained() and not votes:
        require_pseudo_labels(run, predict, data.eval_loader(train_set, config, **loading))
    watch = watch_from_the_start(run, predict_all)

    def monitor(epoch: int) -> dict[str, Any]:
        probabilities = predict_all("validation")
        return watch(epoch, probabilities) | validation_accuracy(probabilities, test_set)

    optimizer = build_optimizer(model.parameters(), config.optimizer, config.optimizer_kwargs)
    ema = EMA(model, config.ema_alpha) if config.use_ema else None
    engine.train(
        run, fingerprint, model, optimizer, train,
        partial(selflabel_step, for_training(run, model, train), criterion),
        checkpointed=[part for part in (ema, votes) if part],
        before_epoch=votes.update if votes else None,
        after_batch=ema.update if ema else None,
        after_epoch=monitor,
    )  # fmt: skip
    run.save(model.state_dict(), "model.pth.tar")
    probabilities = infer(predict, test, "evaluation")  # in float32
    finish_clustering(run, fingerprint, model.state_dict(), probabilities, test_set)
    log_clusters(run, test_set, model.backbone, test, probabilities)


def require_pseudo_labels(
    run: Run, predict: Callable[[torch.Tensor], torch.Tensor], images: data.Loader
) -> None:
    """Raise UserError if no training image is confident."""

    def surest(batch: torch.Tensor) -> tuple[torch.Tensor, ...]:  # all probabilities would take much memory
        return tuple(predict(batch).max(1))

    with run.machine.autocast():
        confidence, clusters = (part.cpu() for part in infer(surest, images, "pseudo-labels"))
    config = run.config
    health.require_confident(confidence, clusters, config.num_classes, config.confidence_threshold)


def watch_from_the_start(run: Run, predict_all: Callable[[str], torch.Tensor]) -> health.ClusterMonitor:
    """Compares the clusters of later epochs with those at the start of the training."""
    start = predict_all("clusters at the start").argmax(1)
    threshold = run.config.confidence_threshold
    return health.ClusterMonitor(health.SELFLABEL_ADVICE, threshold, start, history=run.read_epochs)


if __name__ == "__main__":
    run_script(main)

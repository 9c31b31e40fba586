"""Step 3 of SCAN: fine-tune on the samples that the model is sure of, under strong augmentation.

python selflabel.py --config_exp configs/selflabel/selflabel_cifar10.yml [--pretrained scan_cifar10.pth.tar]
"""

import logging

import torch

import data
from errors import UserError
from losses import ConfidenceBasedCE
from models import build_model
from utils import distributed, engine, fingerprint, health, metrics, plots, pretrained, report
from utils.config import load_config, parse_arguments
from utils.ema import EMA
from utils.optim import build_optimizer
from utils.run import Run, earlier_folder, results_folder, run_script, start_arguments

log = logging.getLogger("selflabel")


def main(argv=None):
    args = parse_arguments(
        argv,
        __doc__,
        start_arguments("start from this clustering checkpoint (default: the clustering step's)"),
    )
    config = load_config(args, ["selflabel"])
    if config.get("num_heads", 1) != 1:
        raise UserError(f"{args.config_exp}: num_heads must be 1 for self-labeling, found {config.num_heads}")
    run = Run(config, results_folder(config, "selflabel"), args.fresh, args.accept_changes)

    model = build_model(config)
    scan_model = earlier_folder(config, "scan", args.run) / "model.pth.tar"
    source = run.uses(args.pretrained or scan_model, "scan/model.pth.tar")
    if source == scan_model:
        fingerprint.warn_if_unfinished(scan_model.parent)
    weights, head = pretrained.read(source, ["clustering"], "" if args.pretrained else "run scan.py first")
    head = pretrained.choose_head(weights, head, source)
    pretrained.fit(model, only_head(weights, head), source)

    with distributed.main_first():
        val = data.build_eval_loader(config, "test", **run.loading)
        train_set, val_set = data.build_dataset(config, "train"), val.dataset
    run.works_on(train=train_set, test=val_set)
    log.info("%d train and %d test images", len(train_set), len(val_set))
    view = data.WeakStrongView(data.build_eval_transform(config), data.build_train_transform(config))
    train = data.Loader(train_set, view, train=True, **run.loading)

    model = run.place(model)
    engine.rehearse(model, val, train)

    def predict(images):
        return model(images)[0].softmax(1)

    model.eval()
    watch = look_at_the_start(run, predict, train_set, val)
    criterion = ConfidenceBasedCE(config.confidence_threshold, **config.criterion_kwargs)
    optimizer = build_optimizer(model.parameters(), config.optimizer, config.optimizer_kwargs)
    ema = EMA(model, config.ema_alpha) if config.use_ema else None
    network = run.for_training(model, train)
    statistics = list(model.buffers())  # BatchNorm's

    def step(batch):
        weak_images, strong_images = batch
        with torch.no_grad(), run.autocast():  # in train mode: BatchNorm learns from both views
            weak_logits = distributed.gather(network(weak_images)[0])
        _, confident = criterion.pseudo_labels(weak_logits)
        before = [values.clone() for values in statistics]
        with run.autocast():
            strong_logits = distributed.gather(network(strong_images)[0])
        # A batch without a confident sample is as if there were no strong view. No GPU is waited for to tell;
        # .data, since autograd minds a change before the backward pass, which does not look at these values.
        trains = confident.any()
        for now, earlier in zip(statistics, before, strict=True):
            now.data.copy_(torch.where(trains, now, earlier))
        loss = criterion(weak_logits, strong_logits)
        return {"loss": loss, "confident": confident.float().mean(), "trains": trains}

    def monitor(epoch):
        with run.autocast():
            probabilities = engine.infer(predict, val, "validation").cpu()
        values = watch(epoch, probabilities)
        if val_set.labels is not None:  # they only tell the accuracy
            figures = metrics.clustering_metrics(probabilities, val_set.labels, len(val_set.classes))
            values["val_acc"] = figures["acc"]
        return values

    engine.train(
        run,
        model,
        optimizer,
        train,
        step,
        state={"ema": ema.shadow} if ema else None,
        after_batch=ema.update if ema else None,
        after_epoch=monitor,
    )

    run.save(model.state_dict(), "model.pth.tar")
    probabilities = engine.infer(predict, val, "evaluation").cpu()
    about = {"setup": config.setup, "dataset": config.val_db_name, "split": "test"}
    if run.main:
        report.report_clusters(run.folder, probabilities, val_set, about)
        plots.save_curves(run.read_epochs(), run.folder / "curves.png")
    run.sign(model.state_dict())


def look_at_the_start(run, predict, train_set, val):
    """What the start model, in eval mode, says of the images: are there pseudo-labels to train on?

    Returns:
        the health.Watch of the training. Raises UserError when a training would begin without a confident
        image; one that goes on, or is finished, has shown that there are some.
    """
    config, begins = run.config, run.fresh or not (run.folder / "checkpoint.pth.tar").exists()
    with run.autocast():
        start = engine.infer(predict, val, "clusters at the start").cpu()
        if begins:
            view = data.PlainView(data.build_eval_transform(config))
            train = data.Loader(train_set, view, train=False, **run.loading)
            # the largest probability and its cluster, batch by batch: all of them would be large
            found = engine.infer(lambda images: tuple(predict(images).max(1)), train, "pseudo-labels")
            confidence, clusters = (part.cpu() for part in found)
            health.require_confident(confidence, clusters, start.size(1), config.confidence_threshold)
    return health.Watch(
        health.SELFLABEL_ADVICE, config.confidence_threshold, start.argmax(1), history=run.read_epochs
    )


def only_head(weights, head):
    """The weights with cluster head number `head` as head 0, without the others."""
    chosen = f"cluster_head.{head}."
    kept = {key: value for key, value in weights.items() if not key.startswith("cluster_head.")}
    kept.update(
        (key.replace(chosen, "cluster_head.0."), value)
        for key, value in weights.items()
        if key.startswith(chosen)
    )
    return kept


if __name__ == "__main__":
    run_script(main)

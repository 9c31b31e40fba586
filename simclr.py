"""Step 1 of SCAN: learn features by instance discrimination, then mine nearest neighbors.

python simclr.py --config_exp configs/pretext/simclr_cifar10.yml
"""

import logging

import data
from losses import SimCLRLoss
from models import build_model
from utils import checkpoint, engine, neighbors, plots, report
from utils.config import load_config, parse_arguments
from utils.optim import build_optimizer
from utils.run import Run, add_fresh, results_folder, run_script

log = logging.getLogger("simclr")

TRAIN_NEIGHBORS, VAL_NEIGHBORS = 20, 5  # mined, besides the image itself


def main(argv=None):
    args = parse_arguments(argv, __doc__, add_fresh)
    config = load_config(args, ["simclr"])
    run = Run(config, results_folder(config, "pretext"), args.fresh)

    train_set, val_set = data.build_dataset(config, "train"), data.build_dataset(config, "test")
    pretext_set = train_set
    if config.train_db_name in data.WITH_UNLABELED:
        pretext_set = data.build_dataset(config, "train+unlabeled")
    for images, k in ((train_set, TRAIN_NEIGHBORS), (val_set, VAL_NEIGHBORS)):
        neighbors.require_enough(len(images), k)
    log.info("%d images to learn from, %d train, %d test", len(pretext_set), len(train_set), len(val_set))
    loading = {"batch_size": config.batch_size, "device": run.device, "num_workers": config.num_workers}
    pretext = data.Loader(
        pretext_set, data.TwoViews(data.build_train_transform(config)), train=True, **loading
    )
    evaluation = data.PlainView(data.build_eval_transform(config))
    train, val = (data.Loader(images, evaluation, train=False, **loading) for images in (train_set, val_set))

    model = run.place(build_model(config))
    criterion = SimCLRLoss(**config.criterion_kwargs)
    optimizer = build_optimizer(model.parameters(), config.optimizer, config.optimizer_kwargs)

    def step(images):  # (2B, 3, S, S), the two views of an image beside each other
        with run.autocast():
            features = model(images)
        return {"loss": criterion(features.unflatten(0, (-1, 2)))}

    labelled = train_set.labels is not None and val_set.labels is not None

    def monitor(epoch):
        if not labelled:
            return {}
        with run.autocast():
            bank, queries = (engine.infer(model, loader, "features") for loader in (train, val))
        return {"knn_accuracy": knn_accuracy(bank, train_set, queries, val_set, config.temperature)}

    engine.train(run, model, optimizer, pretext, step, after_epoch=monitor)

    checkpoint.save(model.state_dict(), run.folder / "model.pth.tar")
    bank, queries = (engine.infer(model, loader, "features") for loader in (train, val))
    figures = {"setup": config.setup, "dataset": config.train_db_name}
    if labelled:
        figures["knn_accuracy"] = knn_accuracy(bank, train_set, queries, val_set, config.temperature)
    for name, features, labels, k in (
        ("train", bank, train_set.labels, TRAIN_NEIGHBORS),
        ("val", queries, val_set.labels, VAL_NEIGHBORS),
    ):
        path = run.folder / f"topk-{name}-neighbors.npy"
        figures[f"{name}_neighbors_of_same_class"] = neighbors.mine_and_save(features, labels, k, path)
    report.write_json(figures, run.folder / "metrics.json")
    plots.save_curves(run.read_epochs(), run.folder / "curves.png")


def knn_accuracy(bank, train_set, queries, val_set, temperature):
    """Share of the validation images whose class the train split's features vote for."""
    votes = neighbors.weighted_knn(
        bank, train_set.labels, queries, len(train_set.classes), temperature=temperature
    )
    return (votes.cpu() == val_set.labels).double().mean().item()


if __name__ == "__main__":
    run_script(main)

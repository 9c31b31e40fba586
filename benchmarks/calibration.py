"""Whether a temperature chosen without labels calibrates the confidence of finished runs.

python benchmarks/calibration.py RESULTS/seed-0/DATASET [RESULTS/seed-1/DATASET ...] [--output table.json]

Each folder holds the three steps of one run; the runs have the same test images. Each rule chooses one
temperature for a step's logits of the test images, without labels: the one at which the mean confidence is an
estimate of the accuracy, or at which the neighbors' clusters are most likely. Labels only measure what that
does to the expected calibration error (ECE); "labels" is the temperature with the lowest one, for comparison,
and "by chance" the error that so few images would have if their confidence were perfect.
"""

import argparse
import logging
import sys
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

import data
from predict import load_trained
from utils.analysis import calibration, metrics, neighbors
from utils.files import write_json
from utils.training.inference import infer

STEPS = "scan", "selflabel"
TEMPERATURES = torch.logspace(-1, 1, 201, dtype=torch.float64)
VIEWS = 5  # of each test image, by the step's training augmentation


def of_step(folder):
    """A finished step's test set, its logits float64 (N, C), and those of VIEWS augmented views (V, N, C)."""
    trained = load_trained(folder)
    config, model = trained.config, trained.model
    test_set = data.build_dataset(config, "test")
    loading = {"batch_size": config.batch_size, "device": torch.device("cpu")}

    def logits(images):
        return model(images)[trained.head].double()

    plain = infer(logits, data.eval_loader(test_set, config, **loading), "test images")
    torch.manual_seed(0)
    view = data.PlainView(data.build_train_transform(config))
    loader = data.Loader(test_set, view, train=False, **loading)
    return test_set, plain, torch.stack([infer(logits, loader, "views") for _ in range(VIEWS)])


def matched_agreement(clusters, others, c):
    """Share of the images on which two clusterings agree, their clusters being matched one to one."""
    table = metrics.contingency(clusters.numpy(), others.numpy(), c, c)
    return metrics.matched_share(table, metrics.hungarian_match(table))


def with_mean(logits, target):
    """The temperature at which the mean confidence is nearest to `target`."""
    means = [(logits / t).softmax(1).amax(1).mean().item() for t in TEMPERATURES]
    return TEMPERATURES[(torch.tensor(means) - target).abs().argmin()].item()


def most_likely(logits, clusters):
    """The temperature at which given clusters int64 (N, k) of each image are most likely."""
    losses = [-(logits / t).log_softmax(1).gather(1, clusters).mean().item() for t in TEMPERATURES]
    return TEMPERATURES[torch.tensor(losses).argmin()].item()


def temperatures(logits, views, mined, other_step, other_seeds):
    """The temperature that each rule chooses without labels, dict.

    Args:
        logits: float (N, C) of the test images.
        views: float (V, N, C), of augmented views of them.
        mined: int64 (N, k), their nearest neighbors, without themselves.
        other_step: int64 (N,), the clusters that the other step of the run gives them.
        other_seeds: list of int64 (N,), the clusters of the same step in other runs; may be empty.
    """
    c, clusters = logits.size(1), logits.argmax(1)
    theirs = clusters[mined]
    rules = {
        "neighbors": with_mean(logits, (theirs == clusters[:, None]).double().mean()),
        "neighbors' likelihood": most_likely(logits, theirs),
        "views": with_mean(logits, (views.argmax(2) == clusters).double().mean()),
        "other step": with_mean(logits, (other_step == clusters).double().mean()),
    }
    if other_seeds:
        agreement = np.mean([matched_agreement(clusters, others, c) for others in other_seeds])
        rules["other seeds"] = with_mean(logits, agreement)
    return rules


def error_at(temperature, logits, right):
    """Expected calibration error of the logits (N, C) at a temperature; `right`: bool (N,)."""
    return calibration.expected_calibration_error((logits / temperature).softmax(1).amax(1), right)


def with_labels(logits, labels, num_classes):
    """Whether each image is right, bool (N,), and the temperature at which that is most likely."""
    c, clusters = logits.size(1), logits.argmax(1)
    matches = metrics.hungarian_match(metrics.contingency(clusters.numpy(), labels.numpy(), c, num_classes))
    right = calibration.correct(clusters, labels, matches, c, num_classes)
    errors = [error_at(t, logits, right) for t in TEMPERATURES]
    return right, TEMPERATURES[torch.tensor(errors).argmin()].item()


def error_by_chance(confidence, draws=200):
    """Mean expected calibration error if the confidence were the probability of being right."""
    random = torch.Generator().manual_seed(0)
    errors = []
    for _ in range(draws):
        right = torch.rand(len(confidence), generator=random) < confidence
        errors.append(calibration.expected_calibration_error(confidence, right))
    return float(np.mean(errors))


def measure(folders):
    """Yield for each step of each run: a dict of figures, confidence float (N,), what is right bool (N,)."""
    runs = [{step: of_step(folder / step) for step in STEPS} for folder in folders]
    for folder, run in zip(folders, runs, strict=True):
        mined = neighbors.read(folder / "pretext/topk-val-neighbors.npy", len(run["scan"][0]))[:, 1:]
        for step, other in (STEPS, STEPS[::-1]):
            test_set, logits, views = run[step]
            seeds = [another[step][1].argmax(1) for another in runs if another is not run]
            chosen = temperatures(logits, views, mined, run[other][1].argmax(1), seeds)
            right, best = with_labels(logits, test_set.labels, len(test_set.classes))
            chosen = {"none": 1.0, **chosen, "labels": best}
            confidence = logits.softmax(1).amax(1).float()
            figures = {
                "folder": str(folder),
                "step": step,
                "temperature": chosen,
                "ece": {rule: error_at(t, logits, right) for rule, t in chosen.items()},
                "by_chance": error_by_chance(confidence),
            }
            yield figures, confidence, right


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", nargs="+", type=Path)
    parser.add_argument("--output", type=Path, help="also write the table as JSON")
    parser.add_argument(
        "--record", type=Path, metavar="FILE.npz", help="also keep the images' confidence and what is right"
    )
    args = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    rows, arrays = [], {}
    for row, confidence, right in measure(args.results):
        rows.append(row)
        for name, values in (("confidence", confidence), ("right", right)):
            arrays[f"{row['folder']}/{row['step']}/{name}"] = values.numpy()
        print(
            f"{row['folder']}, {row['step']}: ACC {100 * right.double().mean():.1f} %, "
            f"mean confidence {100 * confidence.mean():.1f} %, ECE by chance {100 * row['by_chance']:.1f} %"
        )
        for rule, error in row["ece"].items():
            print(f"    {rule:22} T {row['temperature'][rule]:5.2f}  ECE {100 * error:5.1f} %")
    for step in STEPS:
        for rule in rows[0]["ece"]:
            errors = [100 * row["ece"][rule] for row in rows if row["step"] == step]
            print(f"{step:10} {rule:22} mean ECE {np.mean(errors):5.1f} %, worst {max(errors):5.1f} %")
    if args.output:
        write_json(rows, args.output)
    if args.record:
        np.savez_compressed(args.record, **arrays)


if __name__ == "__main__":
    main()

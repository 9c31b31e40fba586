"""Ways of self-labeling, from the same finished clusterings: the published way against variants.

python benchmarks/selflabeling.py --config_exp configs/selflabel/selflabel_digits.yml --output FILE.jsonl
    --clustering RESULTS/seed-*/digits/scan/model.pth.tar [--ways published threshold:0.95,0.6 ...]
python benchmarks/selflabeling.py --table FILE.jsonl [...] [--split train]

Each way is a criterion for the loss of one batch, selflabel.selflabel_step, and WAYS says what its numbers
mean. All ways see the same batches and augmentations, for as many epochs, in float32; on a CPU `published`
gives the weights of selflabel.py to the bit. The figures of both splits go to --output, a line for each
clustering and way; --table compares the ways, clustering by clustering. Choose numbers by the train split.
"""

import argparse
import collections
import copy
import json
import logging
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).parents[1]))

import data
import selflabel
from losses import NO_VOTE, ConfidenceBasedCE, NeighborVoteCE
from models import build_model
from utils.analysis import metrics, neighbors
from utils.run import machine
from utils.run.config import load_config
from utils.run.script import parse_arguments
from utils.run.weights import choose_head, load_weights, read_weights
from utils.training.inference import infer
from utils.training.optim import build_optimizer, scheduled_learning_rate, set_learning_rate


class Published(ConfidenceBasedCE):
    """published[:T]. Predictions of a confidence above T, by default that of the configuration."""

    def __init__(self, config, threshold=None):
        chosen = config.confidence_threshold if threshold is None else threshold
        super().__init__(chosen, config.criterion_kwargs.apply_class_balancing)
        self.anchors = None  # int64 (B,): the images of the batch, set before each

    def start_epoch(self, progress, predict):
        """`progress`: share of the epochs done; `predict()`: all images' features and probabilities, now."""


class Threshold(Published):
    """threshold:A,B. The threshold goes from A in the first epoch to B in the last, linearly."""

    def __init__(self, config, first, last):
        super().__init__(config)
        self.first, self.last = first, last

    def start_epoch(self, progress, predict):
        self.threshold = self.first + progress * (self.last - self.first)


class Share(Threshold):
    """share:A,B. Of each cluster in the batch the most confident share, from A to B of it."""

    def pseudo_labels(self, weak_logits):
        confidence, labels = weak_logits.detach().float().softmax(1).max(1)
        used = torch.zeros_like(labels, dtype=torch.bool)
        for cluster in labels.unique():
            members = (labels == cluster).nonzero().squeeze(1)
            count = round(self.threshold * len(members) + 0.5)
            used[members[confidence[members].argsort(descending=True)[:count]]] = True
        return labels, used


class Smooth(Published):
    """smooth:E. Targets of 1 - E + E / C and E / C instead of 1 and 0."""

    def __init__(self, config, smoothing, threshold=None):
        super().__init__(config, threshold)
        self.smoothing = smoothing

    def forward(self, weak_logits, strong_logits):
        labels, used = self.pseudo_labels(weak_logits)
        c = weak_logits.size(1)
        targets = (1 - self.smoothing) * F.one_hot(labels, c) + self.smoothing / c
        return self.mean_loss(targets, labels, used.float(), strong_logits)

    def mean_loss(self, targets, labels, weights, strong_logits):
        """Mean cross-entropy of soft targets (B, C), balanced by the pseudo-labels' weights."""
        losses = -(targets * strong_logits.float().log_softmax(1)).sum(1)
        if self.apply_class_balancing:
            counts = weights.new_zeros(targets.size(1)).index_add_(0, labels, weights)
            weights = weights / counts[labels].clamp(min=1e-3)  # a weight may be small, or 0 like its count
        return (weights * losses).sum() / weights.sum().clamp(min=1e-12)


class Refine(Smooth):
    """refine:K,S,E,L. Clean images train on their first label, smoothed by E and mixed with the prediction.

    Clean: of the images above the threshold at the start, those that a share of S of their K neighbors agrees
    with. The prediction's part is its confidence. The others train on their sharpened prediction, with a
    weight that grows from 0 to L.
    """

    SHARPENING = 2  # 1 / temperature

    def __init__(self, config, k, share, smoothing, others):
        super().__init__(config, smoothing)
        self.k, self.share, self.others = int(k), share, others
        self.clean = None

    def start_epoch(self, progress, predict):
        self.progress = progress
        if self.clean is None:
            features, probabilities = predict()
            confidence, self.first = probabilities.max(1)
            voted, agreement = vote(features, probabilities, self.k)
            agrees = (voted == self.first) & (agreement >= self.share)
            self.clean = (confidence > self.threshold) & agrees

    def pseudo_labels(self, weak_logits):
        labels = weak_logits.argmax(1)
        clean = self.clean[self.anchors]
        return torch.where(clean, self.first[self.anchors], labels), torch.ones_like(clean)

    def forward(self, weak_logits, strong_logits):
        labels, _ = self.pseudo_labels(weak_logits)
        clean = self.clean[self.anchors]
        p, c = weak_logits.float().softmax(1), weak_logits.size(1)
        first = (1 - self.smoothing) * F.one_hot(labels, c) + self.smoothing / c
        part = torch.where(clean, p.max(1).values, torch.ones_like(p[:, 0])).unsqueeze(1)
        targets = ((1 - part) * first + part * p) ** self.SHARPENING
        targets = targets / targets.sum(1, keepdim=True)
        weights = torch.where(clean, 1.0, self.others * self.progress)
        return self.mean_loss(targets, targets.argmax(1), weights, strong_logits)


class Vote(Published):
    """vote:K,S. Each image's label is what its K neighbors and itself vote for, if a share of S agrees.

    Neighbors, in the backbone's features, and labels are found anew before each epoch.
    """

    def __init__(self, config, k, share):
        super().__init__(config)
        self.k, self.share = int(k), share

    def start_epoch(self, progress, predict):
        features, probabilities = predict()
        self.labels, agreement = vote(features, probabilities, self.k)
        self.reliable = agreement >= self.share

    def pseudo_labels(self, weak_logits):
        return self.labels[self.anchors], self.reliable[self.anchors]


class Either(Vote, NeighborVoteCE):
    """either:K,S. The product's way: the voted label where the vote is reliable, elsewhere as published."""

    def pseudo_labels(self, weak_logits):
        votes = self.labels.where(self.reliable, NO_VOTE)[self.anchors]
        return NeighborVoteCE.pseudo_labels(self, weak_logits, votes)


class Once(Either):
    """once:K,S. As `either`, but the neighbors vote only once, before the first epoch."""

    def start_epoch(self, progress, predict):
        if progress == 0:
            super().start_epoch(progress, predict)


class Prototypes(Either):
    """prototypes:K,S,M. As `either`, but an image's label is that of the nearest prototype, found once.

    A prototype is the mean feature of the M most confident images of a cluster; reliable is a label that a
    share of S of the K neighbors has, too.
    """

    def __init__(self, config, k, share, members):
        super().__init__(config, k, share)
        self.members = int(members)

    def start_epoch(self, progress, predict):
        if progress > 0:
            return
        features, probabilities = predict()
        features = F.normalize(features, dim=1)
        top = probabilities.topk(self.members, dim=0).indices  # (M, C)
        prototypes = F.normalize(features[top].mean(0), dim=1)
        self.labels = (features @ prototypes.T).argmax(1)
        mined = neighbors.mine(features, self.k, library="torch")
        agreement = (self.labels[mined] == self.labels.unsqueeze(1)).float().mean(1)
        self.reliable = agreement >= self.share


WAYS = {
    "published": Published,
    "threshold": Threshold,
    "share": Share,
    "smooth": Smooth,
    "refine": Refine,
    "vote": Vote,
    "either": Either,
    "once": Once,
    "prototypes": Prototypes,
}


def vote(features, probabilities, k):
    """See neighbors.vote; by the k nearest neighbors of each image, in features (N, D) not normalized yet."""
    return neighbors.vote(neighbors.mine(F.normalize(features, dim=1), k), probabilities)


class Start:
    """Model and images of one clustering, which each way copies."""

    def __init__(self, config, path):
        weights, head = read_weights(path, ["clustering"])
        head = choose_head(weights, head, path)
        self.config = config
        self.model = build_model(config)
        load_weights(self.model, selflabel.only_head(weights, head), path)
        self.model = self.model.to(memory_format=torch.channels_last).eval()
        self.splits = {split: data.build_dataset(config, split) for split in ("train", "test")}
        self.loaders = {
            split: data.eval_loader(images, config, batch_size=500) for split, images in self.splits.items()
        }

    def predict(self, model, split):
        model.eval()

        def both(images):
            features = model.backbone(images)
            return features, model.cluster_head(features)[0].softmax(1)

        return infer(both, self.loaders[split], split)

    def score(self, model):
        """{split: its figures}."""
        found = {}
        for split, images in self.splits.items():
            scores = metrics.clustering_metrics(
                self.predict(model, split)[1], images.labels, len(images.classes)
            )
            found[split] = {name: scores[name] for name in ("acc", "nmi", "ari")}
        return found

    def train(self, way):
        """Self-labeling by a way; returns the model, and the share of images with a label in each epoch."""
        config = self.config
        model = copy.deepcopy(self.model)
        transforms = data.build_eval_transform(config), data.build_train_transform(config)
        view = data.WeakStrongView(*transforms, of_image=lambda index: index)
        loader = data.Loader(self.splits["train"], view, config.batch_size, train=True)
        optimizer = build_optimizer(model.parameters(), config.optimizer, config.optimizer_kwargs)
        history = []
        for epoch in range(config.epochs):
            way.start_epoch(epoch / max(1, config.epochs - 1), lambda: self.predict(model, "train"))
            set_learning_rate(optimizer, scheduled_learning_rate(config, epoch))
            torch.manual_seed(config.seed * 1_000_003 + epoch + 1)  # as Run.seed
            model.train()
            shares = []
            for weak, strong, way.anchors in loader:
                values = selflabel.selflabel_step(model, way, (weak, strong))
                optimizer.zero_grad(set_to_none=True)
                values["loss"].backward()
                if values["trains"]:
                    optimizer.step()
                shares.append(values["confident"].item())
            history.append(round(float(np.mean(shares)), 4))
        return model.eval(), history


def build_way(text, config):
    name, _, numbers = text.partition(":")
    return WAYS[name](config, *(float(number) for number in numbers.split(",") if number))


def table(paths, split):
    """The ways' accuracies, and their differences from the published way on the same clusterings."""
    rows = [json.loads(line) for path in paths for line in Path(path).read_text().splitlines()]
    found = collections.defaultdict(dict)
    for row in rows:
        start = row["dataset"], row["clustering"], row["seed"]
        found[row["dataset"], row["way"]][start] = 100 * row[split]["acc"]
        found[row["dataset"], "before"][start] = 100 * row[f"before_{split}"]["acc"]
    for dataset in dict.fromkeys(dataset for dataset, _ in found):
        published = found[dataset, "published"]
        for (of, way), scores in found.items():
            if of != dataset:
                continue
            cells = " ".join(f"{scores[s]:6.1f}" if s in scores else "     -" for s in published)
            gains = np.array([scores[s] - published[s] for s in published if s in scores])
            print(
                f"{dataset:14} {way:26} {cells}   mean {np.mean(list(scores.values())):5.1f}   against "
                f"{gains.mean():+5.2f}, won {(gains > 0).sum()}, lost {(gains < 0).sum()} of {len(gains)}"
            )


def main():
    def add(parser):
        parser.add_argument(
            "--clustering", nargs="+", required=True, metavar="FILE", help="model.pth.tar of scan.py"
        )
        parser.add_argument("--ways", nargs="+", default=["published"], metavar="WAY[:NUMBERS]")
        parser.add_argument("--output", required=True, metavar="FILE")

    if "--table" in sys.argv:
        parser = argparse.ArgumentParser()
        parser.add_argument("--table", nargs="+")
        parser.add_argument("--split", default="test")
        args = parser.parse_args()
        table(args.table, args.split)
        return
    args = parse_arguments(sys.argv[1:], __doc__, add)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    machine.reuse_freed_memory()
    config = load_config(args, ["selflabel"])
    for path in args.clustering:
        start = Start(config, path)
        before = {f"before_{split}": scores for split, scores in start.score(start.model).items()}
        for way in args.ways:
            begun = time.process_time()
            model, shares = start.train(build_way(way, config))
            row = {
                "dataset": config.train_db_name, "clustering": path, "seed": config.seed, "way": way,
                **start.score(model), **before, "shares": shares,
                "cpu_seconds": round(time.process_time() - begun, 1), "set": args.overrides,
            }  # fmt: skip
            with open(args.output, "a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            print(
                f"{Path(path).parts[-4]} {way}: train ACC {100 * before['before_train']['acc']:.2f} -> "
                f"{100 * row['train']['acc']:.2f}, used {shares[0]:.2f} ... {shares[-1]:.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()

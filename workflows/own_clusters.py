"""What cluster.py does: from images to clusters, and all that its results folder holds."""

from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

import data
from data.messages import shown
from errors import UserError
from models import ClusteringModel
from steps import sheets
from steps.evaluation import describe_clusters
from steps.judged_clusters import FeatureSpace
from steps.load_model import load_model
from utils import report
from utils.analysis import baselines, health, partitions
from utils.files import KeptArrays, digest, read_json, write_json
from utils.run.folder import Run
from utils.run.machine import Machine, one_thread, threads_for
from utils.training.features import backbone_features, digest_of, features_path, remove_stale_features
from utils.training.inference import infer
from workflows.final_head import earlier_clustering, head_of
from workflows.fit_to_images import fit
from workflows.grown_images import Growth, tell_growth
from workflows.label_free_choices import choose_number, self_label
from workflows.own_command import ClusterOptions
from workflows.own_experiment import OwnExperiment, exclusive, require_enough_images, take_earlier
from workflows.own_folder import own_folder, with_added
from workflows.run_steps import PlannedStep
from workflows.subfolder_classes import SUBFOLDERS, compare_with_classes, labels_of, require_classes
from workflows.trained_model import save_levels
from workflows.user_edits import NAMES, Settled, is_fitted, read_all, settle, table_digests, take_edits

KEPT = "kept.npz"  # in the results folder, see KeptArrays


def find_clusters(options: ClusterOptions, environment: dict[str, Any]) -> None:
    """Find clusters of images, or take those that an earlier command found, and write the folder of results.

    `environment` holds the keys of configs/env.yml.
    """
    folder = make_folder(options, environment)
    with exclusive(folder):
        run_experiment(OwnExperiment(with_added(options, folder), folder, environment))


def run_experiment(experiment: OwnExperiment) -> None:
    """Run the steps, and write what they found."""
    options, folder = experiment.options, experiment.folder
    n = count_images(options, folder)
    take_edits(folder, options.corrections)
    if not take_earlier(experiment):
        fit(experiment, n)
    pretext = experiment.run("pretext")
    require_learned(pretext)
    if not options.clusters:
        planned = experiment.plan("pretext")
        images = experiment.build_dataset(planned.config, "train")
        experiment.set_number(choose_number(options.candidates, folder, planned, images))
    experiment.run("scan")
    if options.from_scratch:
        self_label(experiment)
    write_results(experiment)


def make_folder(options: ClusterOptions, environment: dict[str, Any]) -> Path:
    """Make the folder of the results, see `own_folder`.

    Raises UserError if it is that of the images or of other ones, or cannot be made.
    """
    root = options.root_dir or environment.get("root_dir", "results")
    folder = own_folder(options, Path(root).expanduser() / options.name)
    if folder.resolve() in options.images:
        raise UserError(
            f"{folder}: the results would lie among the images; give another --name or --root_dir"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror}); give another --root_dir") from None
    return folder


def count_images(options: ClusterOptions, folder: Path) -> int:
    """Number of the images, without those below the folder of the results.

    Raises UserError if they are too few, or if --labels finds no classes.
    """
    without = folder.parent, folder
    every, pages = options.every or 1, options.pages or "first"
    found = data.images_of(options.images, without, every, options.added, pages)
    if options.labels:
        require_classes([shown(name) for name in found.names], options.labels)
    require_enough_images(options, len(found.files))
    return len(found.files)


def require_learned(pretext: Path) -> None:
    """Raise UserError if the pretext step, of which this is the folder, has learned nothing."""
    if read_json(pretext / "metrics.json").get("collapsed"):
        raise UserError(
            f"{pretext}: the network did not learn to tell these images apart (loss: curves.png), so that "
            "clusters would mean nothing; try again with --name NEW and another --seed or --backbone"
        )


# --- the results ---------------------------------------------------------------------------------


def write_results(experiment: OwnExperiment) -> None:
    """Write all that the folder holds beside the steps' results, unless it is there already."""
    last = experiment.plan(list(experiment.folders)[-1])
    dataset = experiment.build_dataset(last.config, "train")
    options, model = experiment.options, digest(last.folder / "model.pth.tar")
    images = digest_of(dataset), dataset.fingerprint()
    labels = options.labels and [options.labels, digest(options.labels)]
    made_of: list[Any] = [model, *images, labels, options.clusters[:-1], options.link_originals]
    folder, head = experiment.folder, head_of(experiment.folder, model)
    fitted = head and is_fitted(head, read_all(folder, options.corrections, head, dataset))
    made_of += [experiment.left_out, digest(folder / NAMES), head and head.clustering]
    done = folder / "metrics.json"  # written at the end: it says that the others are complete
    figures = read_json(done)
    full = sum(map(bool, figures.get("cluster_sizes", ())))
    drawn = len(list((folder / "clusters").glob("*.png"))) >= full  # a full disk may have left pictures out
    drawn &= all((folder / name).exists() for name in ("report.html", "prototypes.png"))
    if not (fitted and figures.get("made_of") == made_of and drawn):
        known = (head or earlier_clustering(folder)).images
        growth = Growth.since(known, experiment.record.trained, dataset)
        described = describe(experiment, last, dataset, growth)
        made_of[-2:] = digest(folder / NAMES), described["clustering"]
        figures = {"made_of": made_of, "tables": table_digests(folder), **described}
        write_json(figures, done)
    tell(figures, health.advice_for(last.config), experiment.folder)


def describe(
    experiment: OwnExperiment, last: PlannedStep, dataset: data.Dataset, growth: Growth
) -> dict[str, Any]:
    """Write all but metrics.json, of which this returns the content.

    `last` is the step whose model gives the clusters.
    """
    config, folder, folders = last.config, experiment.folder, experiment.folders
    run = Run(config, last.folder, Machine.start(config))
    # unless --set says otherwise, the clustering step's backbone is that of the pretext step
    features_folder = folders["pretext"] if last.name == "scan" else last.folder
    features, settled = predictions(run, dataset, features_folder, experiment)
    (folder / "metrics.json").unlink(missing_ok=True)
    head, probabilities = settled.head, settled.probabilities
    kept, pretext = KeptArrays(folder / KEPT), folders["pretext"]
    with threads_for(len(dataset)):
        assignment, described = describe_clusters(run, dataset, features, probabilities, pretext, kept)
        others = baselines.cluster_by_baselines(features, config.num_classes, config.seed, kept)
    agreement, others = baselines.measure_agreement(
        assignment.cluster, others, max(len(head.weights), config.num_classes)
    )
    distinct = assignment.first.unique()  # without copies
    numbers = experiment.options.clusters
    levels = merge_levels(numbers, features[distinct], probabilities[distinct], run, kept)
    save_levels(levels, last.folder, head.clustering)
    scan = read_json(folders["scan"] / "metrics.json")
    figures = {
        "folder": experiment.options.image_folder(),
        "num_images": len(dataset),
        "num_clusters": len(head.weights),
        "clustering": head.clustering,
        "model": f"{last.name}/model.pth.tar",
        **described,
        "neighbors": scan["train_neighbors"],
        "candidates": scan.get("candidates", []),
        "groups": scan.get("groups"),
        "troubles": [trouble for epoch in run.read_epochs() for trouble in epoch.get("warned_of", ())],
        "agreement": agreement,
        "levels": levels,
    }
    if not experiment.options.clusters:
        figures["numbers"] = read_json(folder / "numbers.json")  # see choose_number
    columns: dict[str, list] = {"part": settled.part, "corrected": settled.corrected}
    if settled.names:
        columns["name"] = [settled.names[cluster] for cluster in assignment.cluster.tolist()]
    columns |= {name: clusters.tolist() for name, clusters in others.items()}
    for number, level in enumerate(levels, 1):
        columns[f"level_{number}"] = torch.tensor(level["of_cluster"])[assignment.cluster].tolist()
    if experiment.grown:
        columns |= tell_growth(growth, dataset, features, assignment, settled, last.folder, folder)
    truth = None
    if experiment.options.labels:
        source = experiment.options.labels
        truth = report.GroundTruth(*labels_of(dataset.names(), source), Path(source).name)
        figures |= compare_with_classes(probabilities, truth.labels, truth.classes)
        figures["labels"] = truth.source
    options = experiment.options
    images = [*options.images, *options.added]
    told = images[0] if len(images) == 1 else data.described([Path(source.name) for source in images])
    facts = {"images": told, "model": figures["model"], "network": config.backbone}
    if "weights" in figures:
        from_file = options.pretrained or options.features
        facts["features of"] = Path(figures["weights"]) if from_file else figures["weights"]
    if experiment.left_out:
        figures["self_labeling"] = facts["self-labeling"] = f"left out: {experiment.left_out}"
    link = None
    if len(images) == 1 and images[0].is_dir():
        link = f"{images[0].as_uri()}/" if options.link_originals else report.relative_url(images[0], folder)
    context = report.ReportContext(
        title=folder.name,
        results=folder,
        facts=facts,
        advice=health.advice_for(config),
        image_url=link,
        clustering=head.clustering,
        names=settled.names,
        truth=truth,
        columns=columns,
        kept=kept,
        seed=config.seed,
    )
    with one_thread():
        report.write_report(folder, dataset, features, assignment, figures, context)
        sheets.save_prototypes(dataset, figures, folder / "prototypes.png")
        sheets.save_clusters(dataset, probabilities, folder / "clusters")
    kept.write()
    return figures


def merge_levels(
    numbers: list[int], features: torch.Tensor, probabilities: torch.Tensor, run: Run, kept: KeptArrays
) -> list[dict[str, Any]]:
    """Merge the clusters of probabilities (N, C) into each of `numbers` but the last, if they are fewer.

    Returns:
        for each number, and C, `clusters`, the number, and `of_cluster`, the merged cluster of each of the C;
        nothing for a single number.
    """
    numbers = [*(k for k in numbers[:-1] if k < probabilities.size(1)), probabilities.size(1)]
    if len(numbers) < 2:
        return []
    how = run.config.seed, run.machine.device, run.config.search

    def embed() -> np.ndarray:
        return FeatureSpace.of(features, *how).embedded.numpy()

    embedded = torch.from_numpy(kept.get("embedded", [features.numpy(), *how], embed))
    clusters = F.one_hot(probabilities.argmax(1), probabilities.size(1))
    shares = clusters + 1e-6 * probabilities  # so that an empty cluster has a place, too
    merged = partitions.merge_clusters(embedded, shares, numbers)
    return [{"clusters": k, "of_cluster": of} for k, of in zip(numbers, merged, strict=True)]


def predictions(
    run: Run, dataset: data.Dataset, features_folder: Path, experiment: OwnExperiment
) -> tuple[torch.Tensor, Settled]:
    """Features float32 (N, D) of all images, and their clusters as the user wants them.

    `run`: of the step whose model it is. `features_folder`: where the features are kept in a file.
    """
    loaded = load_model(run.config, run.folder / "model.pth.tar")
    model = run.machine.place(loaded.model).eval()
    assert isinstance(model, ClusteringModel)  # as these steps have
    loading = run.machine.loading(run.config)
    images = data.eval_loader(dataset, run.config, **loading)
    features = backbone_features(run, features_folder, model, images, "features")
    remove_stale_features(features_folder, [features_path(run, features_folder, model, dataset)])
    loader = data.feature_loader(features, **loading)

    def classify(layer: nn.Linear) -> torch.Tensor:
        layer = run.machine.place(layer)
        return infer(lambda batch: layer(batch).softmax(1), loader, "clusters").cpu()

    layer, made_of = cast(nn.Linear, model.cluster_head[loaded.head]), digest(run.folder / "model.pth.tar")
    given = experiment.options.corrections
    return features, settle(experiment.folder, made_of, layer, classify, features, dataset, given)


def tell(figures: dict[str, Any], advice: dict[str, str], folder: Path) -> None:
    """Print what was found, and where it is."""
    sizes = torch.tensor(figures["cluster_sizes"])
    print(f"\n{figures['num_images']} images in {len(sizes)} clusters of {health.describe_counts(sizes)}")
    for level in figures["levels"][:-1]:
        members: dict[int, list[int]] = {}
        for cluster, merged in enumerate(level["of_cluster"]):
            members.setdefault(merged, []).append(cluster)
        print(f"merged into {level['clusters']}: {str(list(members.values()))[1:-1]}")
    for verdict in report.verdicts(figures, advice):
        print(f"{verdict.text} {verdict.advice}".strip())
    if "acc" in figures:
        how = ", by features that were learned with labels" if figures.get("labels_in_pretraining") else ""
        acc, nmi = 100 * figures["acc"], 100 * figures["nmi"]
        source = figures["labels"].replace(SUBFOLDERS, "the subfolders")
        print(f"against {source}: ACC {acc:.1f}  NMI {nmi:.1f} %{how}")
        if len(sizes) != len(figures["classes"]):
            vote = 100 * figures["majority_vote_acc"]
            n = len(figures["classes"])
            print(f"{len(sizes)} clusters for {n} classes, matched one to one; by majority vote {vote:.1f} %")
    for name in ("report.html", "clusters.csv", "prototypes.png", "clusters", "metrics.json"):
        if (folder / name).exists():
            print(f"  {folder / name}")

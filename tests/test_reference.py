"""The numbers of the original implementation, computed on CPU in float32 (tests/reference/)."""

import json
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from digits_steps import official_moco

import moco
from data.augment import strong
from losses import ConfidenceBasedCE, SCANLoss, SimCLRLoss
from losses.scan import entropy
from models import build_model
from utils.analysis import metrics, neighbors
from utils.analysis.prototypes import find_prototypes
from utils.run.weights import load_weights, read_weights, unwrap
from utils.training.optim import learning_rate

FOLDER = Path(__file__).parent / "reference"
ARRAYS = np.load(FOLDER / "reference.npz")
KEYS = json.loads((FOLDER / "state_dict_keys.json").read_text())


def tensor(name):
    return torch.from_numpy(ARRAYS[name])


def close(value, name, tolerance=1e-5):
    np.testing.assert_allclose(np.asarray(value), ARRAYS[name], rtol=tolerance, atol=0)


# --- losses --------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_simclr_loss(temperature):
    close(SimCLRLoss(temperature)(tensor("simclr_in")), f"simclr_T{temperature}")


@pytest.mark.parametrize("weight", [2.0, 5.0])
def test_scan_loss(weight):
    close(torch.stack(SCANLoss(weight)(tensor("scan_a"), tensor("scan_n"))), f"scan_w{weight}")


@pytest.mark.parametrize("threshold", [0.9, 0.99])
@pytest.mark.parametrize("balancing", [False, True])
def test_confidence_based_cross_entropy(threshold, balancing):
    loss = ConfidenceBasedCE(threshold, balancing)(tensor("sl_weak"), tensor("sl_strong"))
    close(loss, f"sl_{threshold}_{int(balancing)}")


def test_entropy():
    close(entropy(tensor("ent_in")).mean(), "ent_batch")
    close(entropy(tensor("ent_in").mean(0)), "ent_mean")


# --- neighbors, metrics, prototypes, schedules ---------------------------------------------------


def test_knn_votes():
    arguments = tensor("mb_f"), tensor("mb_t"), tensor("mb_q"), 10
    np.testing.assert_array_equal(neighbors.weighted_knn(*arguments), ARRAYS["mb_wknn"])
    np.testing.assert_array_equal(neighbors.weighted_knn(*arguments, k=1), ARRAYS["mb_knn"])


@pytest.mark.parametrize("k", [5, 20])
def test_mining(k):
    mined = neighbors.nearest_neighbors(tensor("mb_f"), k)
    np.testing.assert_array_equal(mined, ARRAYS[f"mb_idx{k}"])
    close(neighbors.label_agreement(mined, tensor("mb_t"), k), f"mb_acc{k}", 1e-9)


@pytest.mark.parametrize("head", [0, 1, 2])
def test_evaluation_of_a_head(head):
    probabilities = tensor(f"ev_p{head}")
    objective = metrics.validation_objective(probabilities, tensor("ev_nb"))
    np.testing.assert_allclose(
        [objective[name] for name in ("entropy", "consistency", "loss")], ARRAYS["ev_scan"][head], rtol=1e-5
    )
    found = metrics.clustering_metrics(probabilities, tensor("ev_t"), 12)
    close([found[name] for name in ("acc", "ari", "nmi", "top5")], f"ev_m{head}")
    np.testing.assert_array_equal(found["matches"], ARRAYS[f"ev_match{head}"])


def test_best_head():
    losses = [metrics.validation_objective(tensor(f"ev_p{h}"), tensor("ev_nb"))["loss"] for h in range(3)]
    assert int(np.argmin(losses)) == ARRAYS["ev_best"]
    close(min(losses), "ev_loss")


def test_prototypes():
    assert find_prototypes(tensor("proto_feat"), tensor("ev_p0")) == ARRAYS["proto_idx"].tolist()


def test_schedules():
    close([learning_rate(e, 500, 0.4, "cosine", 0.1) for e in range(500)], "lr_cos", 1e-12)
    close([learning_rate(e, 30, 0.4, "step", 0.1, [10, 20]) for e in range(30)], "lr_step", 1e-12)


# --- augmentation --------------------------------------------------------------------------------


@pytest.mark.parametrize("level", [0.25, 0.9])
@pytest.mark.parametrize("name", strong.OPERATIONS)
def test_operation(name, level):
    low, high, _ = strong.OPERATIONS[name]
    image = tensor("aug_img").permute(2, 0, 1)[None]
    magnitude = torch.tensor([low + level * (high - low)], dtype=torch.float64)
    out = strong.apply_operations(image, torch.tensor([strong.INDEX[name]]), magnitude)
    np.testing.assert_array_equal(out[0].permute(1, 2, 0), ARRAYS[f"aug_{name}_{level}"])


# --- networks ------------------------------------------------------------------------------------

CIFAR = {"backbone": "resnet18", "train_db_name": "cifar-10", "num_classes": 10}
STL = {**CIFAR, "train_db_name": "stl-10"}
MLP, LINEAR = ({"head": head, "features_dim": 128} for head in ("mlp", "linear"))
CONFIGS = {
    "simclr_cifar": {**CIFAR, "setup": "simclr", "model_kwargs": MLP},
    "simclr_cifar_linear": {**CIFAR, "setup": "simclr", "model_kwargs": LINEAR},
    "simclr_stl": {**STL, "setup": "simclr", "model_kwargs": MLP},
    "scan_cifar": {**CIFAR, "setup": "scan", "num_heads": 3},
    "scan_stl": {**STL, "setup": "scan", "num_heads": 1},
    "moco_imagenet": {
        **{"setup": "moco", "backbone": "resnet50", "model_kwargs": MLP},
        **{"train_db_name": "imagenet_50", "num_classes": 50},
    },
}


def reference_model(name):
    """The model with the reference weights, each drawn from a generator seeded by its key."""
    model = build_model(CONFIGS[name])
    weights = {}
    for key, value in model.state_dict().items():
        a = np.random.default_rng(zlib.crc32(key.encode())).standard_normal(tuple(value.shape))
        if key.endswith("num_batches_tracked"):
            a = np.zeros(())
        elif key.endswith("running_var"):
            a = 0.5 * np.abs(a) + 0.5
        elif key.endswith("running_mean"):
            a = 0.1 * a
        elif a.ndim == 1:
            a = 0.1 * a + key.endswith("weight")
        else:
            a = a * np.sqrt(2 / np.prod(value.shape[1:]))
        weights[key] = torch.as_tensor(a, dtype=value.dtype)
    model.load_state_dict(weights)
    return model.eval()


@pytest.mark.parametrize("name", CONFIGS)
def test_state_dict_keys_are_the_published_ones(name):
    state = build_model(CONFIGS[name]).state_dict()
    assert [[key, list(value.shape)] for key, value in state.items()] == KEYS[name]


@pytest.mark.parametrize(
    ("name", "images", "expected"),
    [
        ("simclr_cifar", "x32", "m_simclr_cifar"),
        ("simclr_cifar_linear", "x32", "m_simclr_cifar_lin"),
        ("simclr_stl", "x96", "m_simclr_stl"),
        ("scan_cifar", "x32", "m_scan_out"),
        ("scan_stl", "x96", "m_scan_stl_out"),
    ],
)
@torch.no_grad()
def test_outputs(name, images, expected):
    out = reference_model(name)(tensor(images))
    out = torch.stack(out) if isinstance(out, list) else out
    np.testing.assert_allclose(out, ARRAYS[expected], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_backbone_features():
    features = reference_model("scan_cifar").backbone(tensor("x32"))
    np.testing.assert_allclose(features, ARRAYS["m_scan_feat"], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_moco_output():
    images = torch.from_numpy(np.random.default_rng(7).standard_normal((1, 3, 224, 224))).float()
    model = reference_model("moco_imagenet")
    np.testing.assert_allclose(model(images), ARRAYS["m_moco"], rtol=1e-4, atol=1e-5)

    official, _ = unwrap(official_moco(model.state_dict()), "file")
    converted = moco.convert(official)
    other = build_model(CONFIGS["moco_imagenet"])
    load_weights(other, converted, "file")
    np.testing.assert_allclose(other.eval()(images), ARRAYS["m_moco"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("wrap", [lambda w: w, lambda w: {"model": w, "head": np.int64(2)}])
@torch.no_grad()
def test_outputs_of_a_published_file(tmp_path, wrap):
    """Through the file: torch's format before 1.6, several GPUs' prefix, the head a NumPy scalar."""
    path = tmp_path / "scan_cifar-10.pth.tar"
    weights = {f"module.{key}": value for key, value in reference_model("scan_cifar").state_dict().items()}
    torch.save(wrap(weights), path, _use_new_zipfile_serialization=False)
    weights, head = read_weights(path, ["clustering"])
    model = build_model(CONFIGS["scan_cifar"])
    load_weights(model, weights, path)
    out = torch.stack(model.eval()(tensor("x32")))
    np.testing.assert_allclose(out, ARRAYS["m_scan_out"], rtol=1e-4, atol=1e-5)
    assert head in (None, 2)

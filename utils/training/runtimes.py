"""The features of a frozen network on the CPU by ONNX Runtime, where that is installed, equal and faster."""

import importlib.util
import logging
import tempfile
import time
import warnings
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

log = logging.getLogger(__name__)

Features = Callable[[torch.Tensor], torch.Tensor]  # inputs (B, ...) -> float32 (B, D)

ONNX_PACKAGES = "onnx", "onnxruntime", "onnxscript"
ONE_FILE = 1.5e9  # bytes of weights, more go to a file of their own: an ONNX file is limited to 2 GB
# Seconds that torch must take for all images: an export takes 8 to 12. Less than GAIN times as fast is not
# worth another runtime; and a rerun then chooses the same one, although times vary.
WORTH_EXPORT, GAIN = 30, 1.2
TRIED = 64  # images on which both are compared
LARGEST_ERROR, LEAST_RECALL, NEAREST = 1e-3, 0.99, 20


def write_onnx(network: nn.Module, example: torch.Tensor, path: Path, names: tuple[str, str]) -> None:
    """Write a network as an ONNX graph, whose first dimension is free; `names`: of its input and output."""
    size = sum(tensor.nbytes for tensor in network.state_dict().values())
    ignored = StringIO()
    logging.disable()  # the exporter logs, warns and prints, and an export that fails shows whole graphs
    try:
        with warnings.catch_warnings(action="ignore"), redirect_stdout(ignored), redirect_stderr(ignored):
            torch.onnx.export(
                network, (example,), path, input_names=names[:1], output_names=names[1:], verbose=False,
                dynamic_shapes=({0: torch.export.Dim("N")},), dynamo=True, external_data=size > ONE_FILE,
            )  # fmt: skip
    finally:
        logging.disable(logging.NOTSET)


def fastest_features(network: nn.Module, n: int, runtime: str) -> Features:
    """A network in eval mode as a function for the features of n images.

    The first batch decides whether ONNX Runtime computes them, unless `runtime` is "torch". It is not asked
    about transformers, which have one convolution: torch is as fast on their products of matrices.
    """
    installed = all(map(importlib.util.find_spec, ONNX_PACKAGES))
    convolutions = sum(isinstance(module, nn.Conv2d) for module in network.modules())
    if runtime == "torch" or not installed or convolutions < 2 or n <= TRIED:
        return network
    chosen: Features | None = None

    def features(images: torch.Tensor) -> torch.Tensor:
        nonlocal chosen
        chosen = chosen or _choose(network, images[:TRIED], n)
        return chosen(images)

    return features


def _choose(network: nn.Module, images: torch.Tensor, n: int) -> Features:
    expected, torch_seconds = timed_features(network, images)
    if images.device.type != "cpu" or n / len(images) * torch_seconds < WORTH_EXPORT:
        return network
    try:
        other = onnx_features(network, images)
        found, seconds = timed_features(other, images)
    except Exception:  # an exporter can fail in any way, and torch is there
        log.debug("ONNX Runtime does not take this network", exc_info=True)
        return network
    equal, gain = are_equal(found, expected), torch_seconds / seconds
    log.debug("ONNX Runtime: equal %s, %.2f times as fast as torch", equal, gain)
    if not equal or gain < GAIN:
        return network
    log.info("ONNX Runtime, %.1f times as fast as torch, computes the features", gain)
    return other


def timed_features(function: Features, images: torch.Tensor) -> tuple[torch.Tensor, float]:
    """The features, and the seconds that they took; of the CPU, so that other programs do not count."""
    start = time.process_time()
    with torch.no_grad():
        features = function(images)
    return features, (time.process_time() - start) / torch.get_num_threads()


def onnx_features(network: nn.Module, example: torch.Tensor) -> Features:
    """The network by ONNX Runtime, with as many threads as torch has."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # other programs need the cores
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.onnx")
        write_onnx(network, example, path, ("images", "features"))
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


def are_equal(found: torch.Tensor, expected: torch.Tensor) -> bool:
    """Whether features (N, D) differ by at most LARGEST_ERROR of the largest, and share their neighbors."""
    difference = (found - expected).abs().max() / expected.abs().max()
    unit = [F.normalize(features, dim=1) for features in (found, expected)]
    one, other = ((x @ x.T).topk(min(NEAREST + 1, len(x))).indices for x in unit)
    recall = (one.unsqueeze(2) == other.unsqueeze(1)).any(2).float().mean()
    return bool(difference <= LARGEST_ERROR and recall >= LEAST_RECALL)

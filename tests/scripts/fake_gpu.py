"""A pretended GPU: what is on `cuda` has a shape, a type and a device but no numbers; the rest is real.

A tensor on the wrong device is an error, as on a GPU, and what makes the CPU wait for the GPU is noted. It is
made of torch's FakeTensor and of some of torch's internals, which `check` looks at first.
"""

import ctypes
import itertools
import json
import sys
import traceback
from contextlib import ExitStack
from pathlib import Path
from unittest import mock

import torch
from digits_steps import ROOT, STEPS, arguments, official_moco, run, weights
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

import data
import eval as evaluation
import moco
from data import loader
from data.sets.arrays import ArrayImages
from utils.analysis import plots
from utils.run import checkpoint
from utils.run.config import load_config
from utils.run.script import parse_arguments
from utils.training import engine

aten = torch.ops.aten
PAGEABLE = 2**16  # bytes: up to here CUDA copies memory that is not pinned without waiting
# what the CPU is told when it asks for a number of the GPU: half of everything, and no image is broken
NUMBERS = {torch.bool: True, torch.float32: 0.5, torch.float64: 0.5}
TRAINED = "utils/training/engine.py: _train_epoch"  # asks how many batches trained; not none


class _Fake(FakeTensorMode):
    avoid_device_init = True


class FakeGPU(TorchDispatchMode):
    """Context in which `cuda` is pretended.

    Attributes:
        waits: a list of (operator, innermost function of the project that called it).
        operators: the operators so far that the GPU would execute, a list of names.
        copies: number of copies from the CPU so far.
    """

    def __init__(self):
        super().__init__()
        self.fake, self.stack = _Fake(allow_non_fake_inputs=True), ExitStack()
        self.waits, self.operators, self.copies = [], [], 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        leaves = tree_leaves((args, kwargs))
        ours = [x for x in leaves if _is_on_gpu(x)]
        about_a_gpu = ours or any(isinstance(x, torch.device) and x.type == "cuda" for x in leaves)
        if not about_a_gpu or func.namespace == "prim":  # those ask what a tensor is
            return func(*args, **kwargs)
        if func is aten._local_scalar_dense.default:
            where = self._note(func)
            return 1 if where == TRAINED else NUMBERS.get(ours[0].dtype, 0)
        if func is aten._to_copy.default and getattr(kwargs.get("device"), "type", "") == "cpu":
            self._note(func)
            return real(ours[0].to(kwargs.get("dtype")) if kwargs.get("dtype") else ours[0])
        from_cpu = [x for x in leaves if torch.is_tensor(x) and not _is_on_gpu(x) and x.dim()]
        if from_cpu:
            self.copies += 1
            pinned = all(x.nbytes <= PAGEABLE or getattr(x, "is_pretended_pinned", False) for x in from_cpu)
            if not pinned or not kwargs.get("non_blocking"):
                self._note(func)
        elif not func.is_view:
            self.operators.append(func.name())
        if func is aten._fused_sgd_.default:  # torch has no rule for its shapes
            return None
        args, kwargs = tree_map(self._pretend, (args, kwargs))
        with self.fake:  # raises for tensors of two devices, and for shapes that depend on numbers
            return func(*args, **kwargs)

    def _pretend(self, x):
        if torch.is_tensor(x) and not isinstance(x, FakeTensor):
            return self.fake.from_tensor(x, static_shapes=True)
        return x

    def _note(self, func):
        frame = sys._getframe(2)
        while frame and not _of_the_project(frame):
            frame = frame.f_back
        where = frame and f"{Path(frame.f_code.co_filename).relative_to(ROOT)}: {frame.f_code.co_name}"
        self.waits.append((func.name(), where))
        return where

    def __enter__(self):
        for owner, name, value in (
            (torch.cuda, "is_available", lambda: True), (torch.cuda, "device_count", lambda: 1),
            (torch.cuda, "current_device", lambda: 0), (torch.cuda, "_lazy_init", lambda: None),
            (torch.cuda, "get_device_capability", lambda device=None: (9, 0)),
            (torch.cuda, "is_bf16_supported", lambda *_: True),
            (torch.cuda, "manual_seed_all", lambda seed: None), (torch.Tensor, "pin_memory", _pinned),
            # not torch.cuda.set_device, which checks what it is given
            (torch._C, "_cuda_setDevice", lambda index: None),
        ):  # fmt: skip
            self.stack.enter_context(mock.patch.object(owner, name, value, create=True))
        torch._C._ensureCUDADeviceGuardSet()
        torch._C._set_only_lift_cpu_tensors(True)
        self.stack.callback(torch._C._set_only_lift_cpu_tensors, False)
        if torch.version.cuda:
            self._no_streams()
        return super().__enter__()

    def __exit__(self, *error):
        self.stack.close()
        return super().__exit__(*error)

    def _no_streams(self):
        """Let the fifth virtual function of torch's CUDA hooks, which autograd asks about streams, say no."""
        library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib/libtorch_cpu.so"))
        library._ZN2at6detail12getCUDAHooksEv.restype = ctypes.POINTER(ctypes.POINTER(ctypes.c_void_p))
        hooks = library._ZN2at6detail12getCUDAHooksEv()
        old = ctypes.cast(hooks[0], ctypes.c_void_p).value
        self.answer = ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.c_void_p, ctypes.c_int8)(lambda *_: False)
        self.table = (ctypes.c_void_p * 80)(*(hooks[0][i] for i in range(80)))
        self.table[4] = ctypes.cast(self.answer, ctypes.c_void_p).value
        hooks[0] = ctypes.cast(self.table, ctypes.POINTER(ctypes.c_void_p))
        self.stack.callback(hooks.__setitem__, 0, ctypes.cast(old, ctypes.POINTER(ctypes.c_void_p)))


def _is_on_gpu(x):
    return isinstance(x, FakeTensor) and x.device.type == "cuda"


def _pinned(tensor):
    tensor = tensor.clone()
    tensor.is_pretended_pinned = True
    return tensor


def _of_the_project(frame):
    path = Path(frame.f_code.co_filename)
    return path.is_relative_to(ROOT) and not {"tests", "site-packages"} & set(path.relative_to(ROOT).parts)


def real(x):
    """Any numbers of the shape and type of a pretended tensor, on the CPU; what is none of those as it is."""
    if not isinstance(x, FakeTensor):
        return x
    shape = tuple(x.shape)
    return torch.rand(shape).to(x.dtype) if x.is_floating_point() else torch.zeros(shape, dtype=x.dtype)


# --- does torch still let itself be pretended to? ------------------------------------------------


def check():
    """Raise unless everything that the scenarios rely on works."""
    with FakeGPU() as gpu:
        device = torch.device("cuda", 0)
        parameter = torch.nn.Parameter(torch.ones(3).to(device, non_blocking=True))
        (parameter * torch.ones(3).to(device)).sum().backward()  # in the GPU's own thread
        assert parameter.grad.device == device and parameter.grad.shape == (3,)
        assert [name for name, _ in gpu.waits] == ["aten::_to_copy"]  # the second one, which waits
        assert (parameter.sum().item(), parameter.detach().cpu().shape) == (0.5, (3,))
        for values, waits in (
            (torch.rand(2**15), 1),
            (torch.rand(2**15).pin_memory(), 0),
            (torch.rand(9), 0),
        ):
            before = len(gpu.waits)
            values.to(device, non_blocking=True)
            assert len(gpu.waits) - before == waits
        try:
            parameter + torch.ones(3)
        except Exception:
            return
    raise AssertionError("tensors of two devices were added")


# --- scenarios -----------------------------------------------------------------------------------


def train(gpu, root, step, *settings):
    """Run a step; returns, for each batch but the last, what it waited for until the next one was there."""
    begins, train_epoch = [], engine._train_epoch

    def one_epoch(model, optimizer, batches, take_step, *rest):
        def noted(batch):
            begins.append(len(gpu.waits))
            return take_step(batch)

        return train_epoch(model, optimizer, batches, noted, *rest)

    # one call for each batch, so that what it waits for belongs to it
    with mock.patch.object(engine, "_train_epoch", one_epoch), mock.patch.object(loader, "AT_ONCE", 0):
        run(step, root, "epochs=1", "batch_size=600", *settings)
    return {"waits": [gpu.waits[a:b] for a, b in itertools.pairwise(begins)]}


def evaluate(gpu, root, step, settings, flag):
    model = root / "digits" / step / "model.pth.tar"
    config = arguments(step, root, *settings)
    evaluation.main([*config, "--model", str(model), "--output", str(root / "eval"), flag])
    return json.loads((root / "eval/metrics.json").read_text())


def mine_official_weights(gpu, root):
    own = weights(root / "digits/pretext/model.pth.tar")
    torch.save(official_moco(own), root / "moco.pth.tar")
    config = arguments("pretext", root / "out", "setup=moco", "temperature=0.1")
    moco.main([*config, "--pretrained", str(root / "moco.pth.tar")])
    return json.loads((root / "out/digits/pretext/metrics.json").read_text())


def augment(gpu, root, config, view_of, batches):
    """Batches of CIFAR-10's shape: what one costs, and whether the network's precision reaches the images."""
    config = load_config(parse_arguments(["--config_exp", config], ""), ["simclr", "scan", "selflabel"])
    count = batches * config.batch_size
    view, images = view_of(config, count), ArrayImages(torch.zeros(count, 3, 32, 32, dtype=torch.uint8))
    images.to("cuda")  # once, before the copies are counted
    operators = []
    for enabled in (False, True):
        torch.manual_seed(0)
        begin, copies, waits = len(gpu.operators), gpu.copies, len(gpu.waits)
        made = data.Loader(images, view, config.batch_size, train=True, device=torch.device("cuda"))
        with torch.autocast("cuda", torch.bfloat16, enabled=enabled):
            dtypes = {str(part.dtype) for batch in made for part in tree_leaves(batch)}
        operators.append(gpu.operators[begin:])
    return {
        "operators": len(operators[1]) / batches, "copies": (gpu.copies - copies) / batches,
        "waits": [gpu.waits[waits:]], "dtypes": sorted(dtypes), "same": operators[0] == operators[1],
    }  # fmt: skip


def two_views(config, count):
    return data.TwoViews(data.build_train_transform(config))


def pairs(config, count):
    neighbors = torch.arange(count).unsqueeze(1).expand(-1, config.num_neighbors + 1)
    return data.AnchorNeighborView(data.build_train_transform(config), neighbors, config.num_neighbors)


def weak_and_strong(config, count):
    return data.WeakStrongView(data.build_eval_transform(config), data.build_train_transform(config))


HEADS = "update_cluster_head_only=True"
SGD = "optimizer_kwargs={lr: 0.01, momentum: 0.9}"
# name: (function, its arguments)
SCENARIOS = {
    "pretext": (train, "pretext"),
    "scan": (train, "scan", "update_cluster_head_only=False"),
    "scan on cached features": (train, "scan", HEADS, "cache_features=1", "validation=train_holdout"),
    "scan, heads": (train, "scan", HEADS),
    "selflabel": (train, "selflabel"),
    "selflabel, average": (train, "selflabel", "use_ema=True", "ema_alpha=0.9", "optimizer=sgd", SGD),
    "selflabel, votes": (train, "selflabel", "criterion=neighbor-vote-cross-entropy", "search=torch"),
    "eval of clusters": (evaluate, "scan", (), "--visualize_prototypes"),
    "eval of features": (evaluate, "pretext", ("search=torch",), "--kmeans"),
    "moco": (mine_official_weights,),
    "simclr": (augment, "configs/pretext/simclr_cifar10.yml", two_views, 10),
    "ours": (augment, "configs/scan/scan_cifar10.yml", pairs, 10),
    "ours and weak": (augment, "configs/selflabel/selflabel_cifar10.yml", weak_and_strong, 2),
}


def main(results, folder):
    """Take SCENARIOS, from the finished run `results`, in `folder`; print a line of JSON about each."""
    try:
        check()
    except Exception:
        print(json.dumps({"check": traceback.format_exc()}))
        return
    print(json.dumps({"check": "passed"}), flush=True)
    for function in ("save_curves", "save_image_sheet", "save_confusion_matrix"):  # no GPU draws
        setattr(plots, function, lambda *_: None)
    torch.compiler.cudagraph_mark_step_begin = lambda: None  # it imports the compiler
    save = checkpoint.save
    checkpoint.save = lambda content, path: save(tree_map(real, content), path)
    for number, (name, (function, *settings)) in enumerate(SCENARIOS.items()):
        root = folder / str(number)
        (root / "digits").mkdir(parents=True)
        for step in STEPS:
            if function is train and step == settings[0]:
                break
            (root / "digits" / step).symlink_to(results / step)
        try:
            with FakeGPU() as gpu:
                found = function(gpu, root, *settings)
        except BaseException:
            found = {"error": traceback.format_exc()}
        print(json.dumps({"name": name, **found}), flush=True)

"""The plain implementation and ours, side by side, and how far ours is from the machine's limit.

python benchmarks/bench.py [--only WORD] [--device cpu]

Every measurement runs in a process of its own; `plain.py` holds the plain implementation. Shapes and batch
sizes are those of the published CIFAR-10 experiments; pixels and features are random, since times do not
depend on them. The limit is the fastest matrix product (float32, bfloat16), convolution or copy that torch
reaches on this machine, measured in the same run. The table is also written to --output as JSON.
"""

import argparse
import importlib.util
import itertools
import json
import subprocess
import sys
import time
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parents[1]))

import plain

import data
from data.sets.arrays import ArrayImages
from losses import CRITERIA
from models import build_model
from scan import scan_step
from selflabel import selflabel_step
from simclr import simclr_step
from utils.analysis import metrics, neighbors
from utils.files import write_json
from utils.run import machine
from utils.run.config import load_config
from utils.run.script import parse_arguments
from utils.training import inference
from utils.training.network import TrainingNetwork
from utils.training.optim import build_optimizer

STEPS = {"simclr": simclr_step, "scan": scan_step, "selflabel": selflabel_step}
WAYS = ("plain", "fp32", "bf16")
CONFIGS = {
    "simclr": "configs/pretext/simclr_cifar10.yml",
    "scan": "configs/scan/scan_cifar10.yml",
    "selflabel": "configs/selflabel/selflabel_cifar10.yml",
}
PIXELS = 3 * 32 * 32
HAS_FAISS = importlib.util.find_spec("faiss") is not None
IMAGES, NEIGHBORS, CLASSES = 50_000, 5, (10, 200, 1000)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", default="", help="only the tasks whose name contains this")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--output", default="results/benchmarks/bench.json")
    parser.add_argument("--measure", nargs=2, metavar=("TASK", "WAY"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    device = machine.choose_device(args.device)
    if args.measure:
        task, way = args.measure
        print(json.dumps(TASKS[task](way, device)))
        return
    has_bf16 = machine.choose_precision("auto", device) == torch.bfloat16
    ways = WAYS if has_bf16 else WAYS[:2]
    about = {
        "machine": torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"{device}, {torch.get_num_threads()} threads",
        "torch": torch.__version__,
        "bf16 in hardware": has_bf16,
    }
    print(", ".join(f"{key}: {value}" for key, value in about.items()))
    limits = in_a_process("limits", "", device)
    print(", ".join(f"{name}: {value / 1e9:,.1f} G{name.split()[-1]}/s" for name, value in limits.items()))
    rows = {}
    print(f"\n{'':34}" + "".join(f"{way:>12}" for way in ways) + "     ratio  of the limit")
    for task in TASKS:
        if task == "limits" or args.only not in task:
            continue
        found = {way: in_a_process(task, way, device) for way in ways}
        rows[task] = compare({way: result for way, result in found.items() if result}, limits)
        print(line(task, rows[task], ways), flush=True)
    Path(args.output).parent.mkdir(parents=True, exist_ok=True)
    write_json({**about, "limits": limits, "tasks": rows}, Path(args.output))
    print(f"\n{NOTES}\n{args.output}")


NOTES = """Per second: more is better. *: extrapolated, see the docstring. ratio: best of ours to plain.
of the limit: of the measured product in FLOP/s, or of the measured copy in bytes/s, by the best of ours."""


def in_a_process(task, way, device):
    command = [sys.executable, __file__, "--device", str(device), "--measure", task, way]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"{task}, {way}: failed")
    return json.loads(done.stdout.splitlines()[-1])


def compare(found, limits):
    """Collect the rates of all ways, their ratios to the plain way, and their shares of the limit."""
    row = {
        "unit": next(result["unit"] for result in found.values()),
        "extrapolated": found.get("plain", {}).get("extrapolated", False),
    }
    rates = row["per_second"] = {way: result["count"] / result["seconds"] for way, result in found.items()}
    row["ratio"] = {
        way: rate / rates["plain"] for way, rate in rates.items() if way != "plain" and "plain" in rates
    }
    row["of_the_limit"] = {}
    for way, result in found.items():
        if "FLOP" in result:
            row["of_the_limit"][way] = (
                result["FLOP"] / result["seconds"] / limits[f"{result['precision']} FLOP"]
            )
        elif "bytes" in result:
            row["of_the_limit"][way] = result["bytes"] / result["seconds"] / limits["copied bytes"]
    return row


def line(task, row, ways):
    rates = "".join(
        f"{row['per_second'][way]:>11,.4g}{'*' if way == 'plain' and row['extrapolated'] else ' '}"
        if way in row["per_second"]
        else f"{'':12}"
        for way in ways
    )
    best = max((way for way in row["per_second"] if way != "plain"), key=row["per_second"].get)
    ratio = f"{row['ratio'][best]:.1f}x" if best in row["ratio"] else ""
    share = row["of_the_limit"].get(best)
    return f"{task + ', ' + row['unit']:34}{rates}{ratio:>10}" + (
        f"{share:>12.1%}" if share is not None else ""
    )


# --- measuring -----------------------------------------------------------------------------------


def seconds_of(function, device, at_least=1.0):
    """Mean seconds of a call, over as many calls as take `at_least` seconds, after one to warm up."""
    function()
    _wait(device)
    start, calls = time.perf_counter(), 0
    while calls == 0 or time.perf_counter() - start < at_least:
        function()
        calls += 1
        _wait(device)
    return (time.perf_counter() - start) / calls


def _wait(device):
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def limits(way, device):
    """Rates that torch reaches here: products in both precisions, and copies (bytes read and written).

    The product is a matrix product or a convolution, whichever is faster: they come from different libraries.
    """
    n, batch = (8192, 1024) if device.type == "cuda" else (2048, 64)
    rates = {}
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        if dtype == torch.bfloat16 and machine.choose_precision("auto", device) != dtype:
            continue
        a = torch.rand(n, n, device=device, dtype=dtype)
        x = torch.rand(batch, 512, 8, 8, device=device, dtype=dtype).to(memory_format=torch.channels_last)
        w = torch.rand(512, 512, 3, 3, device=device, dtype=dtype).to(memory_format=torch.channels_last)
        rates[f"{name} FLOP"] = max(
            2 * n**3 / seconds_of(lambda a=a: a @ a, device),
            2 * x.numel() * 512 * 9 / seconds_of(lambda x=x, w=w: F.conv2d(x, w, padding=1), device),
        )
    source = torch.rand(64 * 2**20, device=device)
    target = torch.empty_like(source)
    rates["copied bytes"] = 2 * source.nbytes / seconds_of(lambda: target.copy_(source), device)
    return rates


def config_of(step):
    args = parse_arguments(["--config_exp", CONFIGS[step]], "")
    return load_config(args, [step])


def images_of(count):
    return torch.randint(256, (count, 32, 32, 3), dtype=torch.uint8)


def batches_of(step, config, way, device, count):
    """A loader of `count` training batches of a step of the method, the plain way or ours."""
    images = images_of(count * config.batch_size)
    mined = torch.randint(len(images), (len(images), 1 + config.get("num_neighbors", 0)))
    if way == "plain":
        augment, untouched = plain.train_transform(config), plain.eval_transform(config)
        pair = [untouched, augment] if step == "selflabel" else [augment, augment]
        views = plain.Views(images.numpy(), pair, mined.tolist() if step == "scan" else None)
        return plain.loader(views, config.batch_size, torch.get_num_threads())
    augment = data.build_train_transform(config)
    view = {
        "simclr": lambda: data.TwoViews(augment),
        "scan": lambda: data.AnchorNeighborView(augment, mined, config.num_neighbors),
        "selflabel": lambda: data.WeakStrongView(data.build_eval_transform(config), augment),
    }[step]()
    dataset = ArrayImages(images.permute(0, 3, 1, 2).contiguous())
    return data.Loader(dataset, view, config.batch_size, train=True, device=device)


# --- the tasks: function(way, device) -> dict of unit, count, seconds and, if limited, FLOP or bytes ---


def augmentation(step):
    def task(way, device):
        """The augmented views of a training epoch, on the device; step 3's weak view is not counted."""
        if way == "bf16":
            return None
        config = config_of(step)
        count = 200 if device.type == "cuda" and way != "plain" else 8
        machine.reuse_freed_memory()

        def epoch():
            for batch in loader:
                views = torch.stack(batch) if isinstance(batch, list) else batch
                views[0].to(device)

        loader = batches_of(step, config, way, device, count)
        per_anchor = 2 if step == "simclr" else 1
        views = count * config.batch_size * per_anchor
        seconds = seconds_of(epoch, device, 5)
        return {"unit": "views", "count": views, "seconds": seconds, "bytes": views * PIXELS * (1 + 4)}

    return task


def training(step):
    def task(way, device):
        """Iterations at the published batch size, with augmentation; all ways share <step>_step()."""
        if (
            way == "fp32"
            and device.type == "cuda"
            and machine.choose_precision("auto", device) != torch.float32
        ):
            return None  # to save time: such a GPU trains in bf16
        config, precision = config_of(step), torch.bfloat16 if way == "bf16" else torch.float32
        model = build_model(config).to(device).train()
        autocast = partial(torch.autocast, device.type, precision, enabled=way == "bf16")
        if way == "plain":
            network = counted = model
            optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)
        else:
            machine.reuse_freed_memory()
            model = model.to(memory_format=torch.channels_last)
            compiled = machine.compiled(model, "auto", device, 10**6)
            network = TrainingNetwork(model, compiled, autocast)
            counted = TrainingNetwork(model, model, autocast)  # cannot count in a compiled one
            optimizer = build_optimizer(model.parameters(), "sgd", {"lr": 1e-4, "momentum": 0.9})
        all_are_confident = [0.0] if step == "selflabel" else []
        criterion = CRITERIA[config.criterion](*all_are_confident, **config.criterion_kwargs)

        def train(batch, network=network):
            torch.compiler.cudagraph_mark_step_begin()
            loss = STEPS[step](network, criterion, batch)["loss"]
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            if way == "plain":
                loss.item()  # as for a progress bar

        warm, count = (10, 50) if device.type == "cuda" else (1, 2 if config.batch_size > 200 else 6)
        loader = batches_of(step, config, way, device, min(warm + count, 8))
        batches = itertools.chain.from_iterable(itertools.repeat(loader))  # epoch after epoch

        def on_device():
            batch = next(batches)
            if torch.is_tensor(batch):
                return batch
            views = [images.to(device, non_blocking=True) for images in batch]
            return torch.stack(views, 1).flatten(0, 1) if step == "simclr" else views

        with nullcontext() if way == "plain" else machine.few_threads(device):
            for _ in range(warm):
                train(on_device())
            _wait(device)
            start = time.perf_counter()
            for _ in range(count):
                train(on_device())
            _wait(device)
            seconds = (time.perf_counter() - start) / count
        few = torch.rand(2, 8, 3, 32, 32, device=device)
        with FlopCounterMode(display=False) as counter:
            train(few.flatten(0, 1) if step == "simclr" else few, counted)
        return {
            "unit": "views",
            "count": 2 * config.batch_size,
            "seconds": seconds,
            "FLOP": counter.get_total_flops() * config.batch_size / few.size(1),
            "precision": machine.dtype_name(precision),
        }

    return task


def evaluation(way, device):
    """Features of a whole split under the evaluation transform."""
    config, precision = config_of("simclr"), torch.bfloat16 if way == "bf16" else torch.float32
    model = build_model(config).to(device).eval()
    count = IMAGES if device.type == "cuda" else 1024
    images = images_of(count)
    if way == "plain":
        views = plain.Views(images.numpy(), [plain.eval_transform(config)])
        loader = plain.loader(views, config.batch_size, torch.get_num_threads(), train=False)

        @torch.no_grad()
        def run():
            return torch.cat([model(batch.to(device)).cpu() for (batch,) in loader])

    else:
        machine.reuse_freed_memory()
        model = model.to(memory_format=torch.channels_last)
        view = data.PlainView(data.build_eval_transform(config))
        dataset = ArrayImages(images.permute(0, 3, 1, 2).contiguous())
        loader = data.Loader(dataset, view, config.batch_size, train=False, device=device)

        def run():
            with torch.autocast(device.type, precision) if way == "bf16" else nullcontext():
                return inference.infer(model, loader, "features")

    seconds = seconds_of(run, device)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.rand(1, 3, 32, 32, device=device))
    flop = counter.get_total_flops() * count
    precision = machine.dtype_name(precision)
    return {"unit": "images", "count": count, "seconds": seconds, "FLOP": flop, "precision": precision}


def mining(way, device):
    """20 neighbors of 50 000 features of 128 dimensions; the plain way is faiss's exact index on the CPU."""
    if way == "bf16" or (way == "plain" and not HAS_FAISS):
        return None
    features = F.normalize(torch.randn(IMAGES, 128))
    if way == "plain":
        import faiss

        def run():
            index = faiss.IndexFlatIP(128)
            index.add(features.numpy())
            index.search(features.numpy(), 21)

    else:

        def run():
            neighbors.nearest_neighbors(features, 20, device)

    flop = 2 * IMAGES**2 * 128
    seconds = seconds_of(run, device)
    return {"unit": "images", "count": IMAGES, "seconds": seconds, "FLOP": flop, "precision": "float32"}


def mining_a_million(way, device):
    """20 neighbors of 10^6 features, 128 dimensions, 1000 groups; plain: extrapolated from 500 queries."""
    if way == "bf16" or (way == "plain" and not HAS_FAISS):
        return None
    count = 10**6
    centers = torch.randn(1000, 128)
    features = F.normalize(centers.repeat(1000, 1) + 0.7 * torch.randn(count, 128))
    if way == "plain":
        import faiss

        index = faiss.IndexFlatIP(128)
        index.add(features.numpy())
        seconds = seconds_of(lambda: index.search(features[:500].numpy(), 21), device) * count / 500
    else:
        start = time.perf_counter()
        neighbors.nearest_neighbors(features, 20, device)
        seconds = time.perf_counter() - start
    return {"unit": "images", "count": count, "seconds": seconds, "extrapolated": way == "plain"}


def objective(classes):
    def task(way, device):
        """SCAN's objective on 50 000 images; plain: an N x N matrix, 25 times the time for N = 10 000."""
        if way == "bf16":
            return None
        count = 10_000 if way == "plain" else IMAGES
        probabilities = torch.randn(count, classes, device=device).softmax(1)
        mined = torch.randint(count, (count, 1 + NEIGHBORS))
        if way == "plain":
            on_device = mined.to(device)
            run = lambda: plain.validation_objective(probabilities, on_device)  # noqa: E731
        else:
            run = lambda: metrics.validation_objective(probabilities, mined)  # noqa: E731
        seconds = seconds_of(run, device) * (IMAGES / count) ** 2
        # each row is read once, and once for each neighbor
        needed = probabilities.nbytes * (2 + NEIGHBORS)
        result = {"unit": "objectives", "count": 1, "seconds": seconds}
        return {**result, "extrapolated": True} if way == "plain" else {**result, "bytes": needed}

    return task


def matching(classes):
    def task(way, device):
        """Match clusters to classes, 50 000 images; plain: a pass per pair, extrapolated from 1000 pairs."""
        if way == "bf16":
            return None
        clusters, labels = torch.randint(classes, (2, IMAGES))
        if way == "plain":
            few = min(classes, 31)
            pairs = list(itertools.product(range(few), range(few)))
            seconds = seconds_of(lambda: plain.count_matches(clusters, labels, pairs), device)
            seconds *= classes**2 / len(pairs)
            table = metrics.contingency(clusters.numpy(), labels.numpy(), classes, classes)
            seconds += seconds_of(lambda: plain.assign(table), device)
        else:

            def run():
                table = metrics.contingency(clusters.numpy(), labels.numpy(), classes, classes)
                metrics.hungarian_match(table)

            seconds = seconds_of(run, device)
        result = {"unit": "matchings", "count": 1, "seconds": seconds}
        return {**result, "extrapolated": way == "plain" and classes > 31}

    return task


TASKS = {
    "limits": limits,
    "augmentation simclr": augmentation("simclr"),
    "augmentation ours": augmentation("selflabel"),
    "simclr step": training("simclr"),
    "scan step": training("scan"),
    "selflabel step": training("selflabel"),
    "evaluation": evaluation,
    "mining 50k": mining,
    "mining 1M": mining_a_million,
    **{f"objective C={classes}": objective(classes) for classes in CLASSES},
    **{f"matching C={classes}": matching(classes) for classes in CLASSES},
}

if __name__ == "__main__":
    main()

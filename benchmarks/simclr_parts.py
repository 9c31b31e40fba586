"""Where the time of a SimCLR iteration goes: augmentation, forward, backward, optimizer.

python benchmarks/simclr_parts.py [--device auto] [--batch_size 512] [--compile auto]

The published CIFAR-10 experiment, on random pixels. Each part is repeated and timed on its own, and so are
whole iterations. Prints views per second and, for forward and backward, the share of the fastest product that
torch reaches here. The table is also written to --output as JSON.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from bench import config_of, images_of, limits, seconds_of
from torch.utils.flop_counter import FlopCounterMode

import data
from losses import SimCLRLoss
from models import build_model
from utils.files import write_json
from utils.run import machine
from utils.training.optim import build_optimizer


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--batch_size", type=int, default=512)
    parser.add_argument("--compile", default="auto", choices=["auto", "on", "off"])
    parser.add_argument("--output", default="results/benchmarks/simclr_parts.json")
    args = parser.parse_args()
    device = machine.choose_device(args.device)
    precision = machine.choose_precision("auto", device)
    with machine.few_threads(device):  # as in training
        rows = parts(device, precision, args.batch_size, args.compile)
    rates = limits(None, device)
    dtype = machine.dtype_name(precision)
    limit = rates[f"{dtype} FLOP"]
    name = (
        torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} threads"
    )
    print(f"{device} ({name}), {dtype}, {args.batch_size} images; limit {limit / 1e12:.3g} TFLOP/s")
    views = 2 * args.batch_size
    for part, row in rows.items():
        row["views_per_second"] = views / row["seconds"]
        text = f"{part:14}{1e3 * row['seconds']:>10.2f} ms{row['views_per_second']:>12,.0f} views/s"
        if "FLOP" in row:
            row["of_the_limit"] = row["FLOP"] / row["seconds"] / limit
            text += f"{row['of_the_limit']:>8.1%} of the limit"
        print(text)
    Path(args.output).parent.mkdir(parents=True, exist_ok=True)
    about = {"device": name, "precision": str(precision), "torch": torch.__version__, **rates}
    write_json({**about, "parts": rows}, Path(args.output))


def parts(device, precision, batch_size, compile_):
    """Seconds and FLOP of each part of an iteration: dict name -> dict."""
    if device.type == "cpu":
        machine.reuse_freed_memory()
    config = config_of("simclr")
    model = build_model(config).to(device, memory_format=torch.channels_last).train()
    # without the CUDA graphs of the training, whose parts cannot be timed one by one
    machine.FEW_IMAGES = machine.FEW_NUMBERS = 0
    network = machine.compiled(model, compile_, device, 10**6)
    criterion = SimCLRLoss(**config.criterion_kwargs)
    optimizer = build_optimizer(model.parameters(), "sgd", {"lr": 1e-4, "momentum": 0.9})
    view = data.TwoViews(data.build_train_transform(config))
    pixels = images_of(batch_size).permute(0, 3, 1, 2).contiguous().to(device)
    views = view(pixels)

    def forward(network=network, views=views):
        with torch.autocast(device.type, precision, enabled=precision != torch.float32):
            return criterion(network(views).unflatten(0, (-1, 2)))

    def step():
        optimizer.zero_grad(set_to_none=True)
        forward(views=view(pixels)).backward()
        optimizer.step()

    def forward_and_backward():
        forward().backward()

    with FlopCounterMode(display=False) as counter:
        forward(model, views[:16]).backward()
    flop = counter.get_total_flops() * len(views) / 16
    rows = {"augmentation": {"seconds": seconds_of(lambda: view(pixels), device)}}
    rows["forward"] = {"seconds": seconds_of(forward, device), "FLOP": flop / 3}
    both = seconds_of(forward_and_backward, device)
    rows["backward"] = {"seconds": both - rows["forward"]["seconds"], "FLOP": flop * 2 / 3}
    rows["optimizer"] = {"seconds": seconds_of(optimizer.step, device)}
    rows["whole step"] = {"seconds": seconds_of(step, device), "FLOP": flop}
    return rows


if __name__ == "__main__":
    main()

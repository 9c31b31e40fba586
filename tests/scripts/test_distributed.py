"""Several processes: they compute what one does, one of them writes, and a lost one is no disaster."""

import logging
import signal

import exact_steps
import lost_process
import numpy as np
import pytest
import torch
from digits_steps import STEPS, arguments, before, epochs, weights
from processes import PROCESSES, finish, run_all, start, work
from torch import nn
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

import data
import simclr
from data.sets.arrays import ArrayImages
from errors import UserError
from utils.run import checkpoint, distributed, machine, processes
from utils.run.folder import Run
from utils.training import engine


@pytest.fixture(scope="module")
def one_and_two(results, made_once):
    """The results of exact_steps.py in one process and in two."""

    def make(folder):
        one, two = folder / "one", folder / "two"
        for place in (one, two):
            exact_steps.prepare(results, place)
        process = start(exact_steps.main, one, output=one / "output")
        assert finish(process) == 0, (one / "output").read_text()
        codes, printed = run_all(exact_steps.main, two, count=2, output=two / "output")
        assert codes == [0, 0], printed

    folder = made_once("one_and_two", make)
    return folder / "one", folder / "two"


# bfloat16 features are gathered where the network computes in bfloat16
@pytest.mark.parametrize(
    ("folder", "tolerance"),
    [
        *((f"{s}/digits/{s}", 1e-5) for s in STEPS),
        ("cached/digits/scan", 0.05),
        ("voted/digits/selflabel", 1e-4),
    ],
)
def test_the_loss_is_that_of_one_process(folder, tolerance, one_and_two):
    ((one,), (two,)) = (epochs(place / folder) for place in one_and_two)
    assert one["epoch"] == two["epoch"] == 1
    assert two["loss"] == pytest.approx(one["loss"], abs=tolerance)


@pytest.mark.parametrize("step", STEPS)
def test_gradients_and_results_are_those_of_one_process(step, one_and_two):
    gradients = [torch.load(folder / step / "gradients.pt") for folder in one_and_two]
    assert len(gradients[0]) == len(gradients[1]) > 1
    assert max(g.abs().max() for g in gradients[0]) > 1e-2
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-4, atol=1e-5)

    one, two = (folder / step / "digits" / step for folder in one_and_two)
    names = [{path.name for path in folder.rglob("*")} for folder in (one, two)]
    assert names[0] == names[1] and "checkpoint.pth.tar" in names[0]
    saved = [checkpoint.load(folder / "checkpoint.pth.tar") for folder in (one, two)]
    assert saved[0].keys() == saved[1].keys() and saved[0]["identity"] == saved[1]["identity"]
    for name in ("checkpoint.pth.tar", "model.pth.tar"):  # BatchNorm's running statistics, too
        a, b = (weights(folder / name) for folder in (one, two))
        assert list(a) == list(b)
        for key in a:
            torch.testing.assert_close(b[key], a[key], rtol=1e-4, atol=1e-5, msg=key)


def test_votes_and_neighbors_are_those_of_one_process(one_and_two):
    name = "voted/digits/selflabel/checkpoint.pth.tar"
    votes = [checkpoint.load(folder / name)["votes"]["votes"] for folder in one_and_two]
    assert (votes[0] == votes[1]).float().mean() > 0.99
    assert len(votes[0].unique()) > 5
    one, two = (folder / "pretext/digits/pretext" for folder in one_and_two)
    for name in ("train", "val"):
        a, b = (np.load(folder / f"topk-{name}-neighbors.npy") for folder in (one, two))
        assert a.shape == b.shape
        assert (a == b).mean() > 0.99  # ties and rounding
    assert (two / "log.txt").read_text().count("neighbors of each of 1437 images") == 1


def test_a_lost_process_ends_the_run_and_the_next_resumes(tmp_path):
    argv = arguments("pretext", tmp_path, "epochs=3")
    codes, printed = run_all(lost_process.main, argv, count=2, output=tmp_path / "output")
    assert codes == [1, -signal.SIGKILL], printed
    assert "error in process 0: another process of this run was lost" in printed[0]
    folder = tmp_path / "digits/pretext"
    assert checkpoint.load(folder / "checkpoint.pth.tar")["epoch"] == 2
    simclr.main(argv)  # one process goes on with what two began
    assert "resuming after epoch 2" in (folder / "log.txt").read_text()
    assert [line["epoch"] for line in epochs(folder)] == [1, 2, 3]


@pytest.mark.parametrize("step", ["scan", "selflabel"])
def test_one_process_then_two_then_one(step, after, tmp_path, monkeypatch):
    """The first is lost, one of the two is lost, and the last ends the step."""
    argv = arguments(step, after(*before(step)), "epochs=3", "batch_size=718", "precision=fp32")
    folder, log_epoch = tmp_path / "digits" / step, Run.log_epoch

    def log_or_fail(run, metrics):
        if metrics["epoch"] == 2:
            raise ZeroDivisionError
        log_epoch(run, metrics)

    monkeypatch.setattr(engine, "SECONDS_PER_CHECKPOINT", 0)
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(Run, "log_epoch", log_or_fail)
        STEPS[step][0].main(argv)
    logging.basicConfig(force=True)  # its log is open, and locked, until this process ends or logs elsewhere
    codes, printed = run_all(lost_process.main, argv, step, count=2, output=tmp_path / "output")
    assert codes == [1, -signal.SIGKILL], printed
    assert "2 processes" in printed[0] and "resuming after epoch 1" in printed[0]
    assert "another process of this run was lost" in printed[0].splitlines()[-1]
    STEPS[step][0].main(argv)
    assert "resuming after epoch 2" in (folder / "log.txt").read_text(encoding="utf-8")
    assert [line["epoch"] for line in epochs(folder)] == [1, 2, 3]
    assert (folder / "metrics.json").exists()


def test_torchrun_restarts_a_lost_process_and_resumes(tmp_path):
    """What torchrun calls, with processes forked from one that has imported what they need."""
    launch = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=2, max_restarts=1, monitor_interval=0.05,
        start_method=PROCESSES.get_start_method(), rdzv_backend="c10d", rdzv_endpoint="localhost:0",
    )  # fmt: skip
    argv, output = arguments("pretext", tmp_path, "epochs=3", flags=["--fresh"]), tmp_path / "output"
    elastic_launch(launch, work)(lost_process.main, (argv,), output, {})
    assert "resuming after epoch 2" in output.read_text(encoding="utf-8")  # although the command says --fresh
    folder = tmp_path / "digits/pretext"
    assert [line["epoch"] for line in epochs(folder)] == [1, 2, 3]
    assert (folder / "metrics.json").exists()


def test_a_users_mistake_is_one_line_of_each_process(tmp_path):
    argv = arguments("pretext", tmp_path, "batch_size=255")
    codes, printed = run_all(simclr.main, argv, count=2, output=tmp_path / "output")
    assert codes == [1, 1]
    for rank, text in enumerate(printed):
        last = text.splitlines()[-1]
        assert last.startswith(f"error in process {rank}: batch_size 255 does not divide by 2 processes")
        assert "UserError" not in text and "Traceback" not in text


@pytest.mark.parametrize("gpus, backend", [(8, "nccl"), (0, "gloo")])
def test_each_process_of_a_machine_takes_its_gpu(monkeypatch, gpus, backend):
    """Process 13 of 16 on two machines; none of the GPUs is there."""
    place = {"RANK": "13", "WORLD_SIZE": "16", "LOCAL_RANK": "5", "TORCHELASTIC_RESTART_COUNT": "2"}
    for name, value in place.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    chosen, joined, wrapped = [], [], []
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    store = torch.distributed.HashStore()
    monkeypatch.setattr(torch.distributed, "rendezvous", lambda url, timeout: iter([(store, 13, 16)]))
    monkeypatch.setattr(
        torch.distributed, "init_process_group", lambda *args, **options: joined.append((args, options))
    )
    monkeypatch.setattr(nn.parallel, "DistributedDataParallel", lambda *_, **options: wrapped.append(options))

    device = machine.choose_device("auto", processes.local_rank())
    distributed.start(device)
    distributed.parallel(nn.Linear(1, 1), device)
    assert (str(device), chosen) == (("cuda:5", [5]) if gpus else ("cpu", []))
    (((found,), options),) = joined
    assert found == backend and (options["rank"], options["world_size"]) == (13, 16)
    assert options["timeout"] == distributed.TIMEOUT  # longer than mining takes, in one of the processes
    options["store"].set("key", "value")
    assert store.check(["attempt 2/key"])  # not in the way of the processes before the restart
    assert wrapped[0]["device_ids"] == ([5] if gpus else None)


class WithActivation(nn.BatchNorm2d):
    def forward(self, images):
        return super().forward(images).relu()


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("layer", [WithActivation, nn.BatchNorm1d])
def test_a_batchnorm_that_would_change_silently(monkeypatch, layer, device):
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    model = nn.Sequential(nn.BatchNorm2d(4), nn.Sequential(layer(4)))
    with pytest.raises(UserError, match=f"1.0: a {layer.__name__} cannot take its statistics over several"):
        distributed.synchronize(model, torch.device(device))
    assert type(model[0]) is nn.BatchNorm2d
    converted = distributed.synchronize(model[:1], torch.device(device))
    assert type(converted[0]) is (nn.SyncBatchNorm if device == "cuda" else distributed.SyncBatchNorm)


def share_loader(n, view, batch_size, train, rank=0, world_size=1):
    images = ArrayImages(torch.arange(n, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 1, 1))
    return data.Loader(
        images, data.PlainView(view), batch_size, train=train, rank=rank, world_size=world_size
    )


@pytest.mark.parametrize("n, batch_size, world_size", [(20, 8, 2), (21, 8, 3), (5, 4, 4), (3, 8, 4)])
def test_shares_put_together_are_the_batches(n, batch_size, world_size):
    def batches(*share):
        return list(share_loader(n, lambda images: images[:, 0, 0, 0], batch_size, False, *share))

    shares = zip(*(batches(rank, world_size) for rank in range(world_size)), strict=True)
    for expected, parts in zip(batches(), shares, strict=True):
        assert len({len(part) for part in parts}) == 1
        assert torch.equal(torch.cat(parts)[: len(expected)], expected)


@pytest.mark.parametrize("train", [True, False])
def test_processes_share_the_batches_but_not_the_augmentations(train):
    def anchors_and_noise(rank):
        torch.manual_seed(3)
        noise = []

        def view(images):
            noise.append(torch.rand(1).item())
            return images[:, 0, 0, 0]

        loader = share_loader(64, view, 32, train, rank, 2)
        loader.skip(0, torch.get_rng_state())  # as one process left it within an epoch
        return torch.stack(list(loader)), noise

    (first, noise), (second, other_noise) = map(anchors_and_noise, (0, 1))
    assert sorted(torch.cat([first, second], 1).flatten().tolist()) == list(range(64))
    assert not set(noise) & set(other_noise)

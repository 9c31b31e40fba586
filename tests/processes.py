"""Processes to be killed, or to be several, forked from one that has imported what they need."""

import multiprocessing
import os
from pathlib import Path

import torch
from digits_steps import ROOT, draw_nothing

from utils.run.script import run_script

FORKS = "forkserver" in multiprocessing.get_all_start_methods()
PROCESSES = multiprocessing.get_context("forkserver" if FORKS else "spawn")
PROCESSES.set_forkserver_preload(["digits_steps", "faiss", "torch._dynamo"])
os.environ["PYTHONPATH"] = f"{ROOT}{os.pathsep}{ROOT / 'tests'}"  # where the server looks for them


def start(main, *args, output, environment=None):
    """Start `main(*args)` as a script's command would; what it prints is appended to the file `output`."""
    process = PROCESSES.Process(target=work, args=(main, args, output, environment or {}))
    process.start()
    return process


def work(main, args, output, environment):
    os.chdir(ROOT)
    os.environ.update({"CUDA_VISIBLE_DEVICES": "", **environment})
    torch.set_num_threads(1)
    draw_nothing()
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    run_script(lambda: main(*args))


def finish(process):
    """Wait for the end of a process; returns its exit status, -N if signal N ended it."""
    process.join(300)
    assert process.exitcode is not None, "hangs"
    return process.exitcode


def run_all(main, *args, count, output):
    """Run `main(*args)` in `count` processes as torchrun starts them, but leave each to itself.

    torchrun ends the others when one is lost, before or after they notice by themselves.

    Returns:
        the exit status of each, and what each printed.
    """
    store = torch.distributed.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    shared = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(store.port), "WORLD_SIZE": str(count)}
    shared["TORCHELASTIC_USE_AGENT_STORE"] = "True"  # no process is to make another one
    processes = []
    for rank in range(count):
        place = {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        processes.append(start(main, *args, output=f"{output}{rank}", environment=place))
    codes = [finish(process) for process in processes]
    return codes, [Path(f"{output}{rank}").read_text(encoding="utf-8") for rank in range(count)]

"""A step, its second process killed once, when the second epoch is saved; see test_distributed.py."""

import os
import signal
import sys
import time

from digits_steps import STEPS

from utils.run import checkpoint, processes
from utils.run.folder import Run
from utils.run.script import run_script
from utils.training import engine


def main(argv, step="pretext"):
    engine.SECONDS_PER_CHECKPOINT = 0
    log_epoch = Run.log_epoch

    def log_and_die(run, metrics):
        log_epoch(run, metrics)
        if processes.rank() == 1 and metrics["epoch"] == 2 and processes.attempt() == 0:
            while checkpoint.load(run.folder / "checkpoint.pth.tar")["epoch"] < 2:  # process 0 saves it
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGKILL)

    Run.log_epoch = log_and_die
    STEPS[step][0].main(argv)


if __name__ == "__main__":
    run_script(lambda: main(sys.argv[1:]))

"""simclr.py, its second process killed once after the second epoch; see test_distributed.py."""

import os
import signal
import sys

import simclr
from utils.run import distributed
from utils.run.folder import Run
from utils.run.script import run_script

log_epoch = Run.log_epoch


def log_and_die(run, metrics):
    log_epoch(run, metrics)
    if distributed.rank() == 1 and metrics["epoch"] == 2 and not distributed.restarted():
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    Run.log_epoch = log_and_die
    run_script(lambda: simclr.main(sys.argv[1:]))

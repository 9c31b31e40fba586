"""Sort images into clusters, without labels, in one command.

python cluster.py PHOTOS [MORE ...] --clusters 10 [--from-scratch]

By default the images are clustered by the features of a network that learned from other photos.
--from-scratch learns from your images alone, which is right for what no photo shows: scans, microscopy, ...

ROOT_DIR/NAME/ will hold report.html (open it in a browser), clusters.csv (a row for each image),
prototypes.png (an image for each cluster), clusters/ (a sheet of images for each cluster), metrics.json, the
experiment files in configs/, and each step's results. If it is interrupted, give the same command again.
"""

import logging

from utils.run.config import read_yaml
from utils.run.script import default_environment, run_script
from workflows.own_command import read_arguments


def main(argv: list[str] | None = None) -> None:
    options = read_arguments(argv, __doc__)
    logging.basicConfig(level=logging.INFO, format="%(message)s", force=True)
    environment = read_yaml(options.config_env or default_environment())

    from workflows.own_clusters import find_clusters  # imports torch, which takes seconds

    find_clusters(options, environment)


def command() -> None:
    run_script(main, "give the same command again to go on")


if __name__ == "__main__":
    command()

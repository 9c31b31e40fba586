"""Loggers show a run's curves, prototypes and features elsewhere: TensorBoard's, or one's own."""

import logging
import pkgutil
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from errors import UserError, first_line

log = logging.getLogger(__name__)

MOST_CURVES = 200


class Logger(Protocol):
    """As torch's SummaryWriter; if it has a `flush`, that is called, too. docs/LOGGERS.md shows another."""

    def add_scalar(self, tag: str, value: float, epoch: int, /) -> object: ...
    def add_image(self, tag: str, image: Any, /) -> object: ...
    def add_embedding(self, mat: Any, metadata: list, *, metadata_header: list[str]) -> object: ...


def tensorboard(folder: Path, config: dict[str, Any]) -> Logger:
    from torch.utils.tensorboard import SummaryWriter

    shutil.rmtree(folder / "tensorboard", ignore_errors=True)
    return SummaryWriter(folder / "tensorboard", purge_step=0)  # an open page forgets what it has read


LOGGERS: dict[str, Callable[..., Logger]] = {"tensorboard": tensorboard}  # by the package that each needs


class Loggers:
    """The loggers of a run, by LOGGERS or MODULE:CLASS. Raises UserError for one that cannot be imported."""

    def __init__(self, names: str | list[str], *made_with: Any) -> None:
        self.made_with, self.running = made_with, dict[str, Logger]()
        names = names.replace(" ", "").split(",") if isinstance(names, str) else names
        try:
            self.makers = {name: LOGGERS.get(name, pkgutil.resolve_name(name)) for name in names}
        except (ImportError, AttributeError, ValueError) as error:
            raise UserError(f"logger: {error}; pip install tensorboard, or give MODULE:CLASS") from None

    def log(self, call: Callable[[Logger], object]) -> None:
        """Call a function with each logger. One that fails is left out from then on."""
        for name, make in [*self.makers.items()]:
            try:
                self.running[name] = logger = self.running.get(name) or make(*self.made_with)
                call(logger)
                if hasattr(logger, "flush"):
                    logger.flush()
            except Exception as error:  # such as a full disk
                log.warning("logger %s: %s; it gets nothing more, the run goes on", name, first_line(error))
                del self.makers[name]

    def log_epoch(self, line: dict[str, Any]) -> None:
        """Log a line of metrics.jsonl: its first numbers. Those of a list are NAME/0, NAME/1, ..."""
        each = {f"{k}/{i}": v for k, of in line.items() if isinstance(of, list) for i, v in enumerate(of)}
        numbers = {name: v for name, v in (line | each).items() if isinstance(v, int | float)}
        epoch = int(numbers.pop("epoch"))
        scalars = list(numbers.items())[:MOST_CURVES]
        self.log(lambda logger: [logger.add_scalar(*scalar, epoch) for scalar in scalars])

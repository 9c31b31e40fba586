"""Write files of results so that a crash never damages the previous one."""

import csv
import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from errors import UserError, first_line

log = logging.getLogger(__name__)

# of tables; the other columns are numbers, or text if some of their cells are
TEXT_COLUMNS = ("file", "name", "runner_up_name", "note", "copy_of", "near_duplicate_of")


@contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """Context manager of a temporary path to write to, which then replaces `path` atomically."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def writing(path: Path, advice: str) -> Iterator[None]:
    """Context manager that turns a failure to write `path`, such as a full disk, into a UserError."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); {advice}") from None


def write_json(content: Any, path: str | Path) -> None:
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """What `write_json` wrote; an empty dict if the file is missing, damaged or something else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def write_csv(header: Iterable[str], rows: Iterable[Sequence[object]], path: str | Path) -> None:
    """Write a table in UTF-8; bytes in names that are not UTF-8 become escapes."""
    with (
        atomic(path) as temporary,
        open(temporary, "w", newline="", encoding="utf-8", errors="backslashreplace") as file,
    ):
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)


def write_parquet(table: Path) -> None:
    """Write FILE.parquet, with the columns of FILE.csv, beside a table, if pyarrow is installed.

    A file that was not made so is not replaced. Logs a warning for that, and if it cannot be written.
    """
    path, mark = table.with_suffix(".parquet"), {b"made_of": os.fsencode(table.name)}
    try:
        import pyarrow.csv as csv_files
        import pyarrow.parquet as parquet
    except ImportError:
        if path.exists():
            log.warning("%s: is not made of the new %s; pip install pyarrow", path, table.name)
        return
    try:
        if path.exists() and parquet.read_schema(path).metadata != mark:
            raise OSError(f"it exists, and was not made of {table.name}")
        columns = csv_files.read_csv(
            table,
            parse_options=csv_files.ParseOptions(newlines_in_values=True),
            convert_options=csv_files.ConvertOptions(column_types=dict.fromkeys(TEXT_COLUMNS, "string")),
        )
        with atomic(path) as temporary:
            parquet.write_table(columns.replace_schema_metadata(mark), temporary)
    except Exception as error:  # the table is there in any case
        log.warning("%s: not written (%s)", path, first_line(error))


def write_array(array: np.ndarray, path: str | Path) -> None:
    """Write a NumPy array to an .npy file."""
    with atomic(path) as temporary, open(temporary, "wb") as file:
        np.save(file, array)


class KeptArrays:
    """Arrays that take long to make, in a file for later commands. Without a path they are not kept."""

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self.arrays: dict[str, np.ndarray] = {}
        unreadable = OSError, ValueError, KeyError, EOFError, TypeError, AttributeError, BadZipFile
        if path:
            with suppress(*unreadable), np.load(path, allow_pickle=False) as saved:
                self.arrays = dict(saved)

    def get(self, name: str, made_of: Sequence[object], make: Callable[[], np.ndarray]) -> np.ndarray:
        """The array of a name; it is made again if `made_of`, arrays or what has a text, is another."""
        sum_ = hashlib.sha256()
        for part in made_of:
            sum_.update(part.tobytes() if isinstance(part, np.ndarray) else str(part).encode())
        of = f"{name} of"
        if str(self.arrays.get(of)) != sum_.hexdigest():
            self.arrays |= {name: make(), of: np.array(sum_.hexdigest())}
        return self.arrays[name]

    def write(self) -> None:
        if self.path:
            with suppress(OSError), atomic(self.path) as temporary, open(temporary, "wb") as file:
                np.savez(file, **self.arrays)  # type: ignore[arg-type]


def digest(path: str | Path) -> str:
    """SHA-256 of a file, shortened; "none" if it is not there."""
    if not Path(path).is_file():
        return "none"
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]

"""Tables that people make by hand or in a spreadsheet: any usual separator and encoding."""

import csv
import itertools
import logging
import os
import unicodedata
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from pathlib import Path

from errors import UserError, first_line, refusal

from .messages import say_once, shown

log = logging.getLogger(__name__)

SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs"}


def read_table(
    path: Path, columns: Sequence[str], optional: Sequence[str] = ()
) -> list[tuple[int, dict[str, str]]]:
    """The rows of a table whose first line names its columns, in any order and case; others are ignored.

    Args:
        path: a text file, see `table_lines`.
        columns: those that must be there; `a|b` may have either name, and if there are both, it is a.
        optional: those that may be there.

    Returns:
        for each row its line in the file, and its cells by column, for `a|b` by the first name; "" where
        there is none.

    Raises:
        UserError: it cannot be read, lacks a column, or has a row with more cells than there are columns.
    """
    lines = table_lines(path)
    header = [name.lower() for name in next(lines, (0, []))[1]]
    index: dict[str, int] = {}
    for column in (*columns, *optional):
        name = next((name for name in column.split("|") if name in header), "")
        if (name and header.count(name) > 1) or (not name and column in columns):
            wanted = ",".join(column.partition("|")[0] for column in columns)
            found = shown(",".join(header))[:80] or "nothing"
            raise UserError(f"{path}: its first line must be {wanted}, found {found}")
        index[column.partition("|")[0]] = header.index(name) if name else len(header)
    rows = []
    for number, cells in lines:
        if len(cells) > len(header):
            what = f'more than {len(header)} columns; put a text with a comma in quotes ""'
            raise UserError(f"{path}, line {number}: {what}")
        cells += [""] * (len(header) + 1 - len(cells))
        rows.append((number, {name: cells[place] for name, place in index.items()}))
    return rows


def table_lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield the line number and the cells of each row of a table that is not empty, the header included.

    Cells have no spaces around them; empty ones at the end are left out. They are separated by what the first
    row has most of: commas, semicolons or tabs. The text is UTF-8, UTF-16 with a mark, or else Windows'
    cp1252, all of which Excel writes. In the end, what was understood is logged. Raises UserError if the file
    cannot be read.
    """
    line = count = 0
    try:
        encoding = _encoding(path)
        with open(path, encoding=encoding, newline="") as file:
            start = next((text for text in file if text.strip(" \t\r\n,;")), "")
            names_it = start.lower().startswith("sep=")  # as Excel takes it
            separator = max(SEPARATORS, key=start.count)
            file.seek(0)
            reader = csv.reader(file, delimiter=separator, strict=True)
            for row in reader:
                line, cells = reader.line_num, [cell.strip() for cell in row]
                while cells and not cells[-1]:
                    cells.pop()
                if cells and not (names_it and count == 0 and cells[0].lower().startswith("sep=")):
                    count += 1
                    yield line, cells
    except (UnicodeError, csv.Error) as error:
        what = f"line {line + 1} cannot be read as CSV ({first_line(error)}); save it as CSV in UTF-8"
        raise UserError(f"{path}: {what}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read {refusal(error)}") from None
    rows = f"{max(count - 1, 0)} rows, separated by {SEPARATORS[separator]}"
    say_once(log.info, f"{path}: {rows}{'' if encoding == 'utf-8-sig' else f', in {encoding}'}")


def _encoding(path: Path) -> str:
    """The encoding of a text file. Raises OSError, and UserError for an Excel workbook."""
    with open(path, "rb") as file:
        start = file.read(4)
    if start.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "utf-16"
    if start == b"PK\x03\x04":
        raise UserError(f"{path}: is a workbook, not a text file; save it as CSV in UTF-8")
    try:
        with open(path, encoding="utf-8-sig") as file:
            deque(file, maxlen=0)
    except UnicodeDecodeError:
        return "cp1252"
    return "utf-8-sig"


# --- names of images -----------------------------------------------------------------------------


def rows_of_images(names: Sequence[str], images: Sequence[str]) -> list[list[int]]:
    """For each image the rows of a table that name it.

    Names may have more folders than the images', others, or no suffix, as long as only one image can be
    meant. A row is of one image at most.
    """
    found: list[list[int]] = [[] for _ in images]
    left = dict(enumerate(map(_plain, names)))
    for without_suffix, without_folder in itertools.product((False, True), repeat=2):
        keys = [os.path.basename(_plain(image)) if without_folder else _plain(image) for image in images]
        keys = [os.path.splitext(key)[0] for key in keys] if without_suffix else keys
        count, has_row = Counter(keys), list(map(bool, found))
        image_of = {key: image for image, key in enumerate(keys) if count[key] == 1}
        for row, name in list(left.items()):
            image = next((image_of[end] for end in _ends(name, without_suffix) if end in image_of), None)
            if image is not None and not has_row[image]:
                found[image].append(row)
                del left[row]
    return found


def _plain(name: str) -> str:
    return unicodedata.normalize("NFC", name).replace("\\", "/").removeprefix("./")


def _ends(name: str, without_suffix: bool) -> Iterator[str]:
    """A path, and all that is left of it without its first folders."""
    for form in (name, os.path.splitext(name)[0])[: 1 + without_suffix]:
        parts = form.split("/")
        yield from ("/".join(parts[start:]) for start in range(len(parts)))

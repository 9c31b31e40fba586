"""Files of vectors as other programs write them, with the names of their images or without."""

import json
from collections.abc import Callable
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, NamedTuple

import numpy as np
import torch

from errors import UserError, first_line

from ..csv_tables import table_lines

# what names and vectors are called, without "_" and a final "s"; of several, the first
CALLED_NAMES = ("path", "imagepath", "filepath", "file", "filename", "image", "imagename", "name")
CALLED_VECTORS = ("feature", "vector", "embedding")
NO_FEATURES = ("", "unnamed:0", "index", "id", "label", "clas", "target", "cluster")  # columns of tables
INSTEAD = "write it with numpy.savez(FILE, features=VECTORS, names=NAMES), where NAMES are texts"


class VectorFile(NamedTuple):
    """N vectors of D numbers."""

    vectors: np.ndarray  # integers or floats (N, D); those of an .npy file are read when they are used
    names: list[str] | None  # of the images' files; None: not known

    @property
    def backbone(self) -> str:
        """The `backbone` of a configuration with these vectors."""
        return f"features/{self.vectors.shape[1]}"


def read_vectors(path: Path) -> VectorFile:
    """Read .npy, .npz, .csv, .parquet, .safetensors, or a tensor or dict that torch.save wrote.

    Names may also be in a table FILE.csv beside it. Raises UserError if the file cannot be read, or holds no
    or several tables of numbers, or another number of names.
    """
    try:
        content = READERS.get(path.suffix.lower(), _numpy)(path)
        columns = {k: v for k, v in content.items() if isinstance(v, list) or getattr(v, "ndim", 0) == 1}
        names, beside = _first(columns, CALLED_NAMES), path.with_suffix(".csv")
        if names is None and beside != path and beside.exists():
            names = _first(_csv(beside), CALLED_NAMES)
            if names is None:
                raise UserError(f"{beside}: has no column file, which would name the rows of {path.name}")
        if names is not None:
            names = [name.decode() if isinstance(name, bytes) else str(name) for name in names]
        arrays = {key: value for key, value in content.items() if isinstance(value, np.ndarray)}
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except ImportError as error:
        raise UserError(f"{path}: needs a package; pip install {error.name}") from None
    except Exception as error:  # a damaged file can break a reader in any way
        why = first_line(error)
        if "pickle" in why or isinstance(error, UnpicklingError):  # these advise to run what is in it
            why = "it holds Python objects, or is of another kind"
        raise UserError(f"{path}: cannot be read as vectors ({why}); {INSTEAD}") from None
    tables = {key: a for key, a in arrays.items() if a.ndim == 2 and a.dtype.kind in "fiu" and a.size}
    vectors = next(iter(tables.values())) if len(tables) == 1 else _first(tables, CALLED_VECTORS)
    if vectors is None:
        found = ", ".join(f"{array.dtype} {array.shape}" for array in arrays.values())
        raise UserError(f"{path}: expected numbers of shape (N, D), found {found[:99] or 'none'}; {INSTEAD}")
    if names is None:  # texts by another name
        some = [list(map(str, v)) for v in columns.values() if len(v) and isinstance(v[0], str)]
        texts = [text for text in some if len({*text}) == len(text) == len(vectors)]
        names = texts[0] if len(texts) == 1 else None
    if names is not None and len(names) != len(vectors):
        raise UserError(f"{path}: holds {len(vectors)} vectors, but there are {len(names)} names")
    return VectorFile(vectors, names)


def _first(content: dict[str, Any], called: tuple[str, ...]) -> Any:
    """What is called by the first of these names that is there; None if there is none."""
    plain = {_plain(key): value for key, value in content.items()}
    return next((plain[name] for name in called if name in plain), None)


def _plain(key: object) -> str:
    return str(key).lower().replace("_", "").replace(" ", "").removesuffix("s")


# --- the formats: name -> array, or list of texts ------------------------------------------------


def _numpy(path: Path) -> dict[str, Any]:
    content = np.load(path, mmap_mode="r", allow_pickle=False)
    return {"vectors": content} if isinstance(content, np.ndarray) else dict(content)


def _torch(path: Path) -> dict[str, Any]:
    content = torch.load(path, map_location="cpu", weights_only=True)
    return _arrays(content if isinstance(content, dict) else {"vectors": content})


def _arrays(content: dict[str, Any]) -> dict[str, Any]:
    """The tensors as arrays, bfloat16 as float32."""
    tensors = {key: value for key, value in content.items() if isinstance(value, torch.Tensor)}
    return content | {
        key: (tensor.float() if tensor.is_floating_point() else tensor).detach().numpy()
        for key, tensor in tensors.items()
    }


def _safetensors(path: Path) -> dict[str, Any]:
    import safetensors

    with safetensors.safe_open(path, "pt") as file:
        texts = {key: json.loads(text) for key, text in (file.metadata() or {}).items() if text[:1] == "["}
        return texts | _arrays({key: file.get_tensor(key) for key in file.keys()})  # noqa: SIM118


def _parquet(path: Path) -> dict[str, Any]:
    import pyarrow.parquet
    import pyarrow.types as types

    table, content = pyarrow.parquet.read_table(path), {}
    numbers = []
    for name, column in zip(table.column_names, table.columns, strict=True):
        if types.is_integer(column.type) or types.is_floating(column.type):
            numbers += [column.to_numpy()] * (_plain(name) not in NO_FEATURES)
        elif hasattr(column.type, "value_type"):  # a list in each row
            content[name] = np.stack(column.to_numpy())
        else:
            content[name] = column.to_pylist()
    return {**content, **({"columns": np.column_stack(numbers)} if numbers else {})}


def _csv(path: Path) -> dict[str, Any]:
    """The vectors are the columns that hold a number in the first row, except NO_FEATURES."""
    lines = table_lines(path)
    _, header = next(lines, (0, []))
    if any("." in name and _is_feature("column", name) for name in header):
        raise UserError(f"{path}: its first line must name the columns: file, and any names for the numbers")
    content: dict[str, Any] = {name: [] for name in header if _plain(name) in CALLED_NAMES}
    vectors: list[np.ndarray] = []
    for line, cells in lines:
        cells += [""] * (len(header) - len(cells))
        if not vectors:
            taken = [i for i, name in enumerate(header) if _is_feature(name, cells[i])]
        try:
            vectors.append(np.array([cells[i].replace(",", ".") or "nan" for i in taken], np.float32))
        except ValueError as error:
            raise UserError(f"{path}, line {line}: {first_line(error)}") from None
        for name, column in content.items():
            column.append(cells[header.index(name)])
    return content | ({"vectors": np.stack(vectors)} if vectors else {})


def _is_feature(column: str, cell: str) -> bool:
    try:
        float(cell.replace(",", "."))
    except ValueError:
        return False
    return _plain(column) not in (*NO_FEATURES, *CALLED_NAMES)


READERS: dict[str, Callable[[Path], dict[str, Any]]] = {
    ".pt": _torch, ".pth": _torch, ".safetensors": _safetensors, ".parquet": _parquet, ".csv": _csv,
    ".tsv": _csv,
}  # fmt: skip

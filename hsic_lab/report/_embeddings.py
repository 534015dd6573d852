"""Embeddings and the readers of their files."""

import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from hsic_lab._checks import as_labels
from hsic_lab.datasets import load
from hsic_lab.evaluation import extract_features
from hsic_lab.training import Run
from hsic_lab.training._data import held_out_pairs

MAX_VALUES = 1 << 28  # of a view: 1 GiB in float32, for example 131 072 x 2048
MIN_ROWS, MAX_FEATURES = 4, 1 << 13  # C of more features has over 256 MiB in float32
VIEWS = (("z_a", "z_b"), ("a", "b"))
LABELS = ("labels", "label", "y", "targets", "target")
_LABEL_NAMES = ", ".join(LABELS)
Shapes = Mapping[str, tuple[int, ...]]
Arrays = tuple[Shapes, Callable[[str], np.ndarray | Tensor]]  # the shapes, and a function that loads one array


@dataclass(frozen=True, eq=False)
class Embeddings:
    """The features of a page: one or two finite views `z_a, z_b` of shape (n, d), n at least 4 and d from 2 to 8192.

    `labels` of shape (n,) are integers or strings. `features` of shape (m, p) are the rows of the labels if these are
    not the rows of `z_a`; for a run, the features of its encoder. `rows` is the number of rows of the source if `z_a`
    is a sample of them. The page has the title `name` and shows the remark `note`.
    """

    z_a: Tensor
    z_b: Tensor | None = None
    labels: np.ndarray | None = None
    features: Tensor | None = None
    name: str = "embeddings"
    rows: int | None = None
    note: str = ""

    def __post_init__(self) -> None:
        views = [z for z in (self.z_a, self.z_b) if z is not None]
        _check_shapes(self.name, [tuple(z.shape) for z in views])
        for z in views:
            if len(bad := (~z.isfinite()).any(dim=1).nonzero()):
                found = f"{len(bad)} of {len(z)} rows hold NaN or infinity, the first is row {int(bad[0])}"
                raise ValueError(f"{self.name}: {found}")
        expected = len(self.z_a if self.features is None else self.features)
        if self.labels is not None and self.labels.shape != (expected,):
            raise ValueError(f"{self.name}: {expected} rows need as many labels, got {self.labels.shape}")


def read_embeddings(path: str | Path, second: str | Path | None = None, labels: str | Path | None = None) -> Embeddings:
    """Read embeddings from a file or from the folder of a run.

    * ``.npy``: one view (n, d)
    * ``.npz, .safetensors``: arrays ``z_a`` and ``z_b``, or ``a`` and ``b``, or one or two matrices of any names
    * ``.csv, .parquet``: one view in all columns, or two views in columns ``a_NAME`` and ``b_NAME``
    * folder of a run: projections of its held-out pairs; features of test images with their labels

    Labels are in an array or column ``labels, label, y, targets`` or ``target``. Nothing is unpickled. A file that
    could be misunderstood, or that does not match the others, raises ValueError.

    Parameters
    ----------
    path : path
        A file or folder as above. Of a view with more than 2^28 values a random sample of rows is used. A ``.npy`` file
        may have any size, other files at most 2^29 values.
    second, labels : path, optional
        A file with the other view, and a ``.npy, .csv`` or ``.parquet`` file with the labels.
    """
    found = _read(Path(path))
    if second is not None:
        other = _read(Path(second))
        if found.z_b is not None or other.z_b is not None:
            raise ValueError(f"two files must hold one view each; {path if found.z_b is not None else second} has two")
        if found.rows != other.rows:
            raise ValueError(f"the views must have the same shape; {path} and {second} have different numbers of rows")
        given = [one.labels for one in (found, other) if one.labels is not None]
        if labels is None and len(given) == 2 and not np.array_equal(given[0].astype(str), given[1].astype(str)):
            raise ValueError(f"the labels in {path} and {second} differ: their rows are not the same images in order")
        found = replace(found, z_b=other.z_a, labels=given[0] if given else None, name=f"{found.name} and {other.name}")
    if labels is not None:
        if found.rows is not None:
            raise ValueError(f"{labels}: rows were sampled, so the labels must be in the file of the embeddings")
        found = replace(found, labels=_read_labels(Path(labels)), features=None)
    return found


def _read(path: Path) -> Embeddings:
    if path.is_dir():
        return _read_run(path)
    if path.suffix not in READERS:
        raise ValueError(f"{path}: accepted are files ending in {', '.join(READERS)} and run folders")
    with _named_errors(path):
        return _assemble(path, *READERS[path.suffix](path))


def _read_run(folder: Path) -> Embeddings:
    run = Run.load(folder)
    if run.metadata.get("views") == "custom":
        raise ValueError(f"{folder} was trained with views of your own: give the projections of two such views instead")
    data = load(run.config.dataset)
    with torch.no_grad():
        pairs = held_out_pairs(data, run.config, torch.device("cpu"))
        z_a, z_b = (torch.cat([run.projector(run.encoder(x)) for x in view.split(512)]) for view in pairs)
    judged = data.test.sample(min(MAX_VALUES // 4096, len(data.test)))
    features = extract_features(run.encoder, judged.images)
    return Embeddings(z_a.float(), z_b.float(), judged.labels.numpy(), features, name=f"{folder} on {data.name}")


def _read_labels(path: Path) -> np.ndarray:
    with _named_errors(path):
        if path.suffix not in (".npy", ".csv", ".parquet"):
            raise ValueError(f"{path}: labels are read from .npy, .csv and .parquet")
        if path.suffix == ".npy":
            return _plain_labels(np.lib.format.open_memmap(path, mode="r"), path)
        table = _csv_table(path) if path.suffix == ".csv" else pyarrow.parquet.read_table(path)
        names = [name for name in table.column_names if name in LABELS or table.num_columns == 1]
        if len(names) != 1:
            raise ValueError(f"expected one column, or one called {_LABEL_NAMES}; found {table.column_names}")
        return _plain_labels(table[names[0]].to_pandas(), path)


@contextmanager
def _named_errors(path: Path) -> Iterator[None]:
    """Turn errors of the libraries that read files into a ValueError of one line that names the file."""
    clearer = {  # than the words of NumPy
        "mmap length is greater than file size": "the file is shorter than its header says: it was cut off",
        "Python objects in dtype": "it holds pickled Python objects, which are not read",
    }
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist")
    damage = ValueError, OSError, EOFError, KeyError, MemoryError, zipfile.BadZipFile, SafetensorError
    try:
        yield
    except (*damage, pa.ArrowException) as error:
        words = (str(error).strip() or type(error).__name__).splitlines()[0]
        words = next((ours for theirs, ours in clearer.items() if theirs in words), words)
        raise ValueError(words if path.name in words else f"{path} cannot be read: {words}") from error


def _npy(path: Path) -> Arrays:
    # open_memmap refuses pickled objects; np.load would take any text for a pickle.
    array = np.lib.format.open_memmap(path, mode="r")
    return {"z_a": array.shape}, lambda name: array


def _npz(path: Path) -> Arrays:
    archive, shapes = np.load(path, allow_pickle=False), {}
    for name in archive.files:  # the headers alone: a compressed archive may unpack to any size
        with archive.zip.open(f"{name}.npy") as member:
            version = np.lib.format.read_magic(member)
            reader = (np.lib.format.read_array_header_1_0, np.lib.format.read_array_header_2_0)[version[0] > 1]
            shapes[name], _, dtype = reader(member)
            if dtype.hasobject:
                raise ValueError(f"array {name!r} holds pickled Python objects, which are not read")
    return _checked_sizes(shapes), archive.__getitem__


def _safetensors(path: Path) -> Arrays:
    archive = safe_open(path, framework="pt")
    shapes = {name: tuple(archive.get_slice(name).get_shape()) for name in archive.keys()}  # noqa: SIM118
    return _checked_sizes(shapes), archive.get_tensor


def _csv(path: Path) -> Arrays:
    if (size := path.stat().st_size) > 16 * MAX_VALUES:
        raise ValueError(f"{path} has {size} bytes of text: save it as .npy, of which rows are sampled")
    table = _csv_table(path)
    names = [name for name in table.column_names if name not in LABELS]
    counted = ([str(i + first) for i in range(len(names))] for first in (0, 1))
    if pd.to_numeric(pd.Series(names), errors="coerce").notna().all() and names not in counted:
        raise ValueError(f"the first line holds numbers, {', '.join(names[:3])}, ...: give every column a name there")
    return _table_arrays(table)


def _parquet(path: Path) -> Arrays:
    metadata = pa.parquet.read_metadata(path)
    _checked_sizes({"the table": (metadata.num_rows, metadata.num_columns)})
    return _table_arrays(pa.parquet.read_table(path))


# Each reader checks sizes before it loads an array.
READERS = {".npy": _npy, ".npz": _npz, ".csv": _csv, ".parquet": _parquet, ".safetensors": _safetensors}


def _csv_table(path: Path) -> pa.Table:
    return pa.csv.read_csv(path, convert_options=pa.csv.ConvertOptions(strings_can_be_null=True))


def _table_arrays(table: pa.Table) -> Arrays:
    """Return the views and the labels of a table; raise ValueError for columns that could be misunderstood."""
    if not table.num_rows:
        raise ValueError("there is no row below the names of the columns")
    refused = () if set(LABELS) & set(table.column_names) else ("class", "classes")
    for name, kind in zip(table.column_names, table.schema.types, strict=True):
        if table.column_names.count(name) > 1:
            raise ValueError(f"column {name!r} occurs twice")
        if name in LABELS:
            continue
        if name.lower() in (*LABELS, *refused):
            raise ValueError(f"column {name!r} is no feature: labels are called {_LABEL_NAMES}")
        if name in ("", "__index_level_0__"):
            raise ValueError("a column has no name, probably an index: save the table without it (index=False)")
        if name.lower() in ("id", "ids", "index", "idx") or name.startswith("Unnamed:"):
            raise ValueError(f"column {name!r} looks like an index, not a feature: save the table without it")
        if not (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
            raise ValueError(f"column {name!r} holds {kind}, not numbers; labels belong into a column {_LABEL_NAMES}")
    names = [name for name in table.column_names if name not in LABELS]
    view_a, view_b = ([name for name in names if name.startswith(prefix)] for prefix in ("a_", "b_"))
    if not (view_a and view_b):
        view_a, view_b = names, []
    elif rest := sorted(set(names) - set(view_a) - set(view_b)):
        raise ValueError(f"two views have columns a_... and b_..., column {rest[0]!r} is neither")
    elif alone := sorted({"b_" + name[2:] for name in view_a} ^ set(view_b)):
        raise ValueError(f"every column a_NAME needs a column b_NAME; {alone[0]!r} is missing, or has no partner")
    else:
        view_b = ["b_" + name[2:] for name in view_a]  # features are paired by name, not by position
    arrays = {name: np.asarray(table[name].to_pandas()) for name in LABELS if name in table.column_names}
    for key, view in zip(VIEWS[0], (view_a, view_b), strict=True):
        block = np.empty((table.num_rows, len(view)), np.float32)
        for column, name in enumerate(view):
            block[:, column] = table[name].to_numpy()  # a missing value becomes NaN
        arrays |= {key: block} if view else {}
    return {name: array.shape for name, array in arrays.items()}, arrays.__getitem__


def _assemble(path: Path, shapes: Shapes, get: Callable[[str], np.ndarray | Tensor]) -> Embeddings:
    """Choose the views and the labels among arrays by name and shape, and load them."""
    known = next((name for name in LABELS if name in shapes), None)
    if known is not None and len(shapes[known]) != 1:
        raise ValueError(f"{known} must have shape (n,), got {shapes[known]}")
    matrices = [name for name, shape in shapes.items() if len(shape) == 2]
    views = next((pair for pair in VIEWS if pair[0] in matrices), matrices)
    views = [name for name in views if name in matrices]
    if not 1 <= len(views) <= 2:
        raise ValueError(f"expected one or two matrices (n, d), called z_a and z_b or a and b; found {dict(shapes)}")
    _check_shapes(path.name, [shapes[name] for name in views])
    n, d = shapes[views[0]]
    if known is not None and shapes[known] != (n,):
        raise ValueError(f"{n} rows need as many labels, got {shapes[known][0]}")
    rows: Any = sample(n, MAX_VALUES // d) if n * d > MAX_VALUES else slice(None)
    z = [real_floats(get(name)[rows], f"array {name!r}") for name in views]
    labels = None if known is None else _plain_labels(get(known), path)[rows]
    unused = ", ".join(name for name in shapes if name not in (*views, known))
    z_b, source_rows = z[1] if len(z) == 2 else None, n if len(z[0]) < n else None
    return Embeddings(z[0], z_b, labels, None, path.name, source_rows, f"Not used: {unused}" if unused else "")


def sample(n: int, most: int) -> np.ndarray:
    """Return ``min(n, most)`` of the rows 0 to n - 1, drawn without replacement, in ascending order."""
    return np.sort(np.random.default_rng(0).choice(n, min(n, most), replace=False))


def _check_shapes(name: str, shapes: list[tuple[int, ...]]) -> None:
    for shape in shapes:
        if len(shape) != 2 or shape[0] < MIN_ROWS or not 2 <= shape[1] <= MAX_FEATURES:
            accepted = f"at least {MIN_ROWS} rows and 2 to {MAX_FEATURES} columns"
            raise ValueError(f"{name}: a view must have {accepted}, got shape {shape}")
    if len(set(shapes)) > 1:
        raise ValueError(f"{name}: the views must have the same shape, got {shapes[0]} and {shapes[1]}")


def _checked_sizes(shapes: Shapes) -> Shapes:
    """Return the shapes; raise ValueError for an array that is too large to be read whole."""
    for name, shape in shapes.items():
        if np.prod(shape, dtype=float) > 2 * MAX_VALUES:
            found = f"{name} has shape {shape}, more than {2 * MAX_VALUES} values"
            raise ValueError(f"{found}: save it as .npy to sample rows")
    return shapes


def real_floats(values: np.ndarray | Tensor, name: str) -> Tensor:
    """Return real numbers as float32 on the CPU; raise ValueError for others, and outside the range of float32."""
    if isinstance(values, np.ndarray):
        real = values.dtype.kind in "iuf"
    else:
        real = not values.is_complex() and values.dtype != torch.bool
    if not real:
        raise ValueError(f"{name} must hold real numbers, got {values.dtype}")
    # An array is copied because a memory map is read-only and its file may change. The range is checked below.
    with np.errstate(over="ignore", under="ignore"):
        copied = np.array(values, "f4", order="C") if isinstance(values, np.ndarray) else values.detach().cpu().float()
    wide = str(values.dtype).endswith("float64") and 0 not in values.shape
    largest = float(max(values.max(), -values.min())) if wide else 0.0
    if np.isfinite(largest) and (largest > torch.finfo(torch.float32).max or (largest > 0 and not copied.any())):
        raise ValueError(f"{name} reaches {largest:.3g}, outside the range of float32: rescale it")
    return torch.as_tensor(copied)


def _plain_labels(values: object, source: object) -> np.ndarray:
    labels = np.asarray(values)
    if missing := int(pd.isna(labels).sum()):
        raise ValueError(f"{source}: {missing} labels are missing")
    if labels.dtype.kind == "f" and (labels == np.floor(labels)).all():
        labels = labels.astype(np.int64)  # pandas keeps integers as floats in a column with missing values
    return as_labels(f"the labels of {source}", labels)

"""What a report is about, and how arrays of any names become it."""

import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

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

MOST_VALUES = 1 << 28  # of a view: 1 GiB in float32, twice 50 000 x 2048
MOST_FEATURES = 1 << 13  # C of more has 256 MiB in float32 and is no image
LEAST_ROWS = 4
VIEWS = (("z_a", "z_b"), ("a", "b"))
LABELS = ("labels", "label", "y", "targets", "target")


@dataclass(frozen=True, eq=False)
class Embeddings:
    """What a report is about.

    z_a, z_b: float32 `(n, d)`, one or two views; rows of one number are one thing
    labels:   `(n,)` integers or strings, one a row, or None
    features: `(m, p)` where labels belong to other rows than those of z_a (a run: its encoder's features), else None
    name:     what the reader is told they are;  rows: how many rows the source has, if these are a sample
    note:     a sentence about the source that the reader should know
    """

    z_a: Tensor
    z_b: Tensor | None = None
    labels: np.ndarray | None = None
    features: Tensor | None = None
    name: str = "embeddings"
    rows: int | None = None
    note: str = ""

    def __post_init__(self) -> None:
        shapes = [tuple(z.shape) for z in (self.z_a, self.z_b) if z is not None]
        for shape in shapes:
            if len(shape) != 2 or shape[0] < LEAST_ROWS or not 2 <= shape[1] <= MOST_FEATURES:
                raise ValueError(
                    f"{self.name}: a view must have at least {LEAST_ROWS} rows and 2 to {MOST_FEATURES} columns, "
                    f"got shape {shape}"
                )
        if len(set(shapes)) > 1:
            raise ValueError(f"{self.name}: the views must have the same shape, got {shapes[0]} and {shapes[1]}")
        for z in (self.z_a, self.z_b):
            if z is not None and len(bad := (~z.isfinite()).any(dim=1).nonzero()):
                found = f"{len(bad)} of {len(z)} rows hold NaN or infinity, the first is row {int(bad[0])}"
                raise ValueError(f"{self.name}: {found}")
        expected = len(self.z_a if self.features is None else self.features)
        if self.labels is not None and self.labels.shape != (expected,):
            raise ValueError(f"{self.name}: {expected} rows need as many labels, got {self.labels.shape}")


def assemble(
    path: Path, shapes: Mapping[str, tuple[int, ...]], get: Callable[[str], np.ndarray | Tensor]
) -> Embeddings:
    """Embeddings from arrays of known shapes, of which `get(name)` gives one."""
    known = next((name for name in LABELS if name in shapes), None)
    if known is not None and len(shapes[known]) != 1:
        raise ValueError(f"{known} must have shape (n,), got {shapes[known]}")
    matrices = [name for name, shape in shapes.items() if len(shape) == 2]
    views = next((pair for pair in VIEWS if pair[0] in matrices), matrices)
    views = [name for name in views if name in matrices]
    if not 1 <= len(views) <= 2:
        raise ValueError(f"expected one or two matrices (n, d), called z_a and z_b or a and b; found {dict(shapes)}")
    if len({shapes[name] for name in views}) > 1:
        raise ValueError(f"the views must have the same shape, got {' and '.join(str(shapes[name]) for name in views)}")
    n, d = shapes[views[0]]
    if 0 in (n, d):
        raise ValueError(f"holds no values, shape {(n, d)}")
    rows = slice(None)
    if n * d > MOST_VALUES and d <= MOST_FEATURES:
        rows = np.sort(np.random.default_rng(0).choice(n, MOST_VALUES // d, replace=False))
    z = [real_floats(get(name)[rows], f"array {name!r}") for name in views]
    labels = None
    if known is not None:
        labels = plain_labels(get(known), path)
        if len(labels) != n:
            raise ValueError(f"{n} rows need as many labels, got {len(labels)}")
        labels = labels[rows]
    unused = [name for name in shapes if name not in (*views, known)]
    note = f"Not used: {', '.join(unused)}" if unused else ""
    rows = n if len(z[0]) < n else None
    return Embeddings(*z, *[None] * (2 - len(z)), labels, name=path.name, rows=rows, note=note)


def real_floats(values: np.ndarray | Tensor, name: str) -> Tensor:
    """Real numbers as float32 on the CPU; ValueError for others, and for a range that float32 lacks."""
    array = isinstance(values, np.ndarray)
    if not (values.dtype.kind in "iuf" if array else not values.is_complex() and values.dtype != torch.bool):
        raise ValueError(f"{name} must hold real numbers, got {values.dtype}")
    with np.errstate(over="ignore", under="ignore"):  # said below
        # Copied: a memory map is read-only, and the file may change under it.
        floats = np.array(values, "f4", order="C") if array else values.detach().to("cpu", torch.float32)
    wide = str(values.dtype).endswith("float64") and 0 not in values.shape
    largest = float(max(values.max(), -values.min())) if wide else 0.0
    if np.isfinite(largest) and (largest > torch.finfo(torch.float32).max or (largest > 0 and not floats.any())):
        raise ValueError(f"{name} reaches {largest:.3g}, outside the range of float32: rescale it")
    return torch.as_tensor(floats)


def refuse_huge(shapes: Mapping[str, tuple[int, ...]]) -> None:
    """ValueError for arrays too large to be read whole, as files that are not mapped must be."""
    for name, shape in shapes.items():
        if np.prod(shape, dtype=float) > 2 * MOST_VALUES:
            most = f"more than {2 * MOST_VALUES} values"
            raise ValueError(f"{name} has shape {shape}, {most}: save it as .npy, of which rows are drawn")


def plain_labels(values: object, source: object) -> np.ndarray:
    """Labels `(n,)` as integers or strings; a table keeps integers as floats where it has room for missing ones."""
    labels = np.asarray(values)
    if missing := int(pd.isna(labels).sum()):
        raise ValueError(f"{source}: {missing} labels are missing")
    if labels.dtype.kind == "f" and (labels == np.floor(labels)).all():
        labels = labels.astype(np.int64)
    return as_labels(f"the labels of {source}", labels)


INDICES = ("id", "ids", "index", "idx")
NO_FEATURES = (*LABELS, "class", "classes")


def read_csv(path: Path) -> Embeddings:
    if path.stat().st_size > 16 * MOST_VALUES:
        raise ValueError(f"{path} has {path.stat().st_size} bytes of text: save it as .npy, of which rows are drawn")
    table = csv_table(path)
    names = [name for name in table.column_names if name not in LABELS]
    counted = ([str(i + first) for i in range(len(names))] for first in (0, 1))
    if all(map(_is_number, names)) and names not in counted:
        raise ValueError(f"the first line holds numbers, {', '.join(names[:3])}, ...: give every column a name there")
    return _from_table(path, table)


def csv_table(path: Path) -> pa.Table:
    return pa.csv.read_csv(path, convert_options=pa.csv.ConvertOptions(strings_can_be_null=True))


def read_parquet(path: Path) -> Embeddings:
    metadata = pa.parquet.read_metadata(path)
    refuse_huge({"the table": (metadata.num_rows, metadata.num_columns)})
    return _from_table(path, pa.parquet.read_table(path))


def _from_table(path: Path, table: pa.Table) -> Embeddings:
    if len(twice := [name for name in set(table.column_names) if table.column_names.count(name) > 1]):
        raise ValueError(f"column {twice[0]!r} stands twice")
    if not table.num_rows:
        raise ValueError("there is no row below the names of the columns")
    taken = LABELS if set(LABELS) & set(table.column_names) else NO_FEATURES
    if near := [name for name in table.column_names if name not in LABELS and name.lower() in taken]:
        raise ValueError(f"column {near[0]!r} is no feature: labels are called {' or '.join(LABELS)}")
    names = [name for name in table.column_names if name not in LABELS]
    if "" in names or "__index_level_0__" in names:
        raise ValueError("a column has no name, probably an index: save the table without it (index=False)")
    if indices := [name for name in names if name.lower() in INDICES or name.startswith("Unnamed:")]:
        raise ValueError(f"column {indices[0]!r} looks like an index, not a feature: save the table without it")
    if strange := [name for name in names if not _numeric(table.schema.field(name).type)]:
        raise ValueError(
            f"column {strange[0]!r} holds {table.schema.field(strange[0]).type}, not numbers; "
            f"labels belong into a column called {' or '.join(LABELS)}"
        )
    views = [[name for name in names if name.startswith(prefix)] for prefix in ("a_", "b_")]
    if not all(views):
        views = [names]
    elif rest := sorted(set(names) - set(views[0]) - set(views[1])):
        raise ValueError(f"two views have columns a_... and b_..., column {rest[0]!r} is neither")
    else:
        views[1] = _in_the_order_of(views[0], views[1])
    blocks = [_columns(table, part) for part in views]
    values = dict(zip(VIEWS[0], blocks, strict=False))
    values |= {name: np.asarray(table[name].to_pandas()) for name in LABELS if name in table.column_names}
    return assemble(path, {name: value.shape for name, value in values.items()}, values.__getitem__)


def _in_the_order_of(first: list[str], second: list[str]) -> list[str]:
    """The columns `b_...` as their partners `a_...` come: a feature is known by its name, not by its place."""
    partners = ["b_" + name[2:] for name in first]
    if alone := sorted(set(partners) ^ set(second)):
        raise ValueError(f"every column a_NAME needs a column b_NAME; {alone[0]!r} is missing, or has no partner")
    return partners


def _columns(table: pa.Table, names: list[str]) -> np.ndarray:
    block = np.empty((table.num_rows, len(names)), np.float32)
    for column, name in enumerate(names):
        block[:, column] = table[name].to_numpy()  # a missing value becomes NaN
    return block


def _is_number(name: str) -> bool:
    try:
        float(name)
    except ValueError:
        return False
    return True


def _numeric(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) or pa.types.is_floating(kind)


def read_embeddings(path: str | Path, second: str | Path | None = None, labels: str | Path | None = None) -> Embeddings:
    """The embeddings in a file, or of a run folder; `second` is a file with the other view, `labels` one with labels.

    .npy                  one view `(n, d)`
    .npz, .safetensors    arrays z_a and z_b, or a and b, or one or two matrices of any names, in their order; labels
                          under labels, label, y, targets or target; what else is there is named in `note`
    .csv, .parquet        one view: all columns; two: those named a_... and b_...; labels in a column of those names
    a run folder          the projections of its held-out pairs, and its encoder's features of test images with labels

    Of a view of more than 2^28 values as many rows as have no more are drawn. A .npy file is mapped, so that it may be
    of any size; others of more than 2^29 values raise ValueError. Numbers become float32. Raises FileNotFoundError,
    or ValueError naming the file and what is wrong: unreadable, pickled, empty, not finite, fewer than 4 rows, views
    that do not match.
    """
    found = _read(Path(path))
    if second is not None:
        other = _read(Path(second))
        if found.z_b is not None or other.z_b is not None:
            both = path if found.z_b is not None else second
            raise ValueError(f"two files must hold one view each, and {both} holds two")
        given = found.labels if found.labels is not None else other.labels
        both = labels is None and other.labels is not None
        if both and not np.array_equal(given.astype(str), other.labels.astype(str)):
            raise ValueError(f"the labels in {path} and {second} differ: their rows are not the same things in order")
        found = replace(found, z_b=other.z_a, labels=given, name=f"{found.name} and {other.name}")
    if labels is not None:
        found = replace(found, labels=_read_labels(Path(labels), found.rows), features=None)
    return found


_CLEARER = {  # what NumPy says, and what a reader can use
    "mmap length is greater than file size": "the file is shorter than its header says: it was cut off",
    "Python objects in dtype": "it holds pickled Python objects, which are not read",
}


def _read(path: Path) -> Embeddings:
    if path.is_dir():
        return _read_run(path)
    if path.suffix not in READERS:
        raise ValueError(f"{path}: accepted are files ending in {', '.join(READERS)} and run folders")
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist")
    with _naming(path):
        return READERS[path.suffix](path)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    try:
        yield
    except (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile, SafetensorError, pa.ArrowException) as error:
        words = str(error).strip().splitlines()
        told = words[0] if words else type(error).__name__
        told = next((ours for theirs, ours in _CLEARER.items() if theirs in told), told)
        raise ValueError(told if path.name in told else f"{path} cannot be read: {told}") from error


def _read_npy(path: Path) -> Embeddings:
    # open_memmap refuses pickled objects, and np.load would take any text for a pickle.
    array = np.lib.format.open_memmap(path, mode="r")
    return assemble(path, {"z_a": array.shape}, lambda name: array)


def _read_npz(path: Path) -> Embeddings:
    with np.load(path, allow_pickle=False) as archive:
        shapes = {}
        for name in archive.files:  # headers first: a compressed archive may unpack to any size
            with archive.zip.open(f"{name}.npy") as member:
                version = np.lib.format.read_magic(member)
                reader = (np.lib.format.read_array_header_1_0, np.lib.format.read_array_header_2_0)[version[0] > 1]
                shapes[name], _, dtype = reader(member)
                if dtype.hasobject:
                    raise ValueError(f"array {name!r} holds pickled Python objects, which are not read")
        refuse_huge(shapes)
        return assemble(path, shapes, archive.__getitem__)


def _read_safetensors(path: Path) -> Embeddings:
    with safe_open(path, framework="pt") as archive:
        shapes = {name: tuple(archive.get_slice(name).get_shape()) for name in archive.keys()}  # noqa: SIM118
        refuse_huge(shapes)
        return assemble(path, shapes, archive.get_tensor)


def _read_labels(path: Path, sampled_from: int | None) -> np.ndarray:
    if sampled_from is not None:
        raise ValueError(f"{path}: rows were drawn; labels must stand in the file of the embeddings")
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist")
    with _naming(path):
        if path.suffix == ".npy":
            return plain_labels(np.lib.format.open_memmap(path, mode="r"), path)
        if path.suffix not in (".csv", ".parquet"):
            raise ValueError(f"{path}: labels are read from .npy, .csv and .parquet")
        table = csv_table(path) if path.suffix == ".csv" else pyarrow.parquet.read_table(path)
        names = [name for name in table.column_names if name in LABELS or table.num_columns == 1]
        if len(names) != 1:
            raise ValueError(
                f"{path}: expected one column, or one called {' or '.join(LABELS)}; found {table.column_names}"
            )
        return plain_labels(table[names[0]].to_pandas(), path)


def _read_run(folder: Path) -> Embeddings:
    run = Run.load(folder)
    if run.metadata.get("views") == "custom":
        raise ValueError(f"{folder} was trained with views of your own: give the projections of two such views instead")
    data = load(run.config.dataset)
    with torch.no_grad():
        pairs = held_out_pairs(data, run.config, torch.device("cpu"))
        z_a, z_b = (torch.cat([run.projector(run.encoder(x)) for x in view.split(512)]) for view in pairs)
    judged = data.test.sample(min(MOST_VALUES // 4096, len(data.test)))
    features = extract_features(run.encoder, judged.images)
    return Embeddings(z_a.float(), z_b.float(), judged.labels.numpy(), features, name=f"{folder} on {data.name}")


READERS: dict[str, Callable[[Path], Embeddings]] = {
    ".npy": _read_npy,
    ".npz": _read_npz,
    ".csv": read_csv,
    ".parquet": read_parquet,
    ".safetensors": _read_safetensors,
}

"""Reading the arrays and the tables of files: columns by name, of which the headers alone are read at first."""

import csv
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute
import pyarrow.csv
import pyarrow.parquet
import torch
from safetensors import safe_open
from torch import Tensor

from hsic_lab.datasets._folders import printable

MAX_VALUES = 1 << 28  # of a view: 1 GiB in float32, for example 131 072 x 2048
TABLES, ARRAYS = (".csv", ".tsv", ".parquet"), (".npy", ".npz", ".safetensors", ".pt", ".pth")
VIEWS = (("z_a", "z_b"), ("a", "b"))
LABELS = ("labels", "label", "y", "targets", "target")
MISSING = ("na", "nan", "n/a", "null", "none")  # in lower case
CLEARER = {  # patterns in the errors of the libraries that read files, and clearer words
    "Python objects in dtype|Object arrays|Weights only load": "it holds pickled Python objects, which are not read",
    "mmap length is greater than file size": "the file is shorter than its header says: it was cut off",
    "^EOFError|Ran out of input|unexpected EOF|pickle data was truncated": "the file was cut off",
    "invalid UTF8 data|codec can't decode": "its text is not UTF-8",
}


class Column(NamedTuple):
    """An array or a table's column, not loaded yet. `dtype` is one of NumPy, or words. A `mapped` one has any size."""

    shape: tuple[int, ...]
    dtype: Any = None
    load: Callable[[], Any] = tuple
    mapped: bool = False

    def checked(self, name: str) -> Callable[[], Any]:
        """Return `load`; ValueError with the name if the values are too many to be read whole."""
        kind = self.dtype if isinstance(self.dtype, np.dtype) else np.dtype(float)
        n_bytes = (size := np.prod(self.shape, dtype=float)) * kind.itemsize
        if kind.kind in "US" and n_bytes > MAX_VALUES:
            raise ValueError(f"{name} holds {n_bytes:.0f} bytes of text, more than {MAX_VALUES}: shorten the labels")
        if max(size, n_bytes / 8) > (most := 2 * MAX_VALUES) and not self.mapped:
            raise ValueError(f"{name} has shape {self.shape}, more than {most} values: save it as .npy to sample rows")
        return self.load


@contextmanager
def named_errors(path: Path) -> Iterator[None]:
    """Turn errors of the libraries that read files into a ValueError of one line that names the file."""
    if not path.is_file():
        raise FileNotFoundError(f"{printable(path)} does not exist")
    try:
        yield
    except Exception as error:  # a malformed file can make these libraries raise anything
        words = (str(error).strip() or type(error).__name__).splitlines()[0]
        words = next((ours for theirs, ours in CLEARER.items() if re.search(theirs, words)), words)
        raise ValueError(words if path.name in words else f"{printable(path)} cannot be read: {words}") from error


def _read_arrays(path: Path) -> dict[str, Column]:
    """Return the arrays of a file, of which the headers alone are read: compressed ones may unpack to any size."""
    if path.suffix.lower() == ".npy":  # np.load would take any text for a pickle, open_memmap refuses both
        array = np.lib.format.open_memmap(path, mode="r")
        return {"z_a": Column(array.shape, array.dtype, lambda: array, mapped=True)}
    if path.suffix.lower() == ".npz":
        archive, found = np.load(path, allow_pickle=False), {}
        for name in archive.files:
            with archive.zip.open(f"{name}.npy") as member:
                version = np.lib.format.read_magic(member)
                reader = (np.lib.format.read_array_header_1_0, np.lib.format.read_array_header_2_0)[version[0] > 1]
                shape, _, dtype = reader(member)
            found[name] = Column(shape, dtype, partial(archive.__getitem__, name))
        return found
    if path.suffix.lower() == ".safetensors":
        file = safe_open(path, framework="pt")
        heads = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
        loads = {name: partial(file.get_tensor, name) for name in heads}
        return {name: Column(tuple(h.get_shape()), h.get_dtype(), loads[name]) for name, h in heads.items()}
    with path.open("rb") as opened:
        mapped = (start := opened.read(2)) == b"PK"
    if not mapped and start != b"\x80\x02":
        raise ValueError("it was not written by torch.save")
    if mapped and not zipfile.is_zipfile(path):
        raise ValueError("the file was cut off")
    # Tensors and plain containers alone. Files of torch before 1.6 are no archives and cannot be mapped.
    content = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    if isinstance(content, Tensor):
        content = {"z_a": content}
    elif isinstance(content, list | tuple) and len(content) == 2:
        views = iter(VIEWS[0])  # a vector beside features are labels
        content = {"labels" if np.ndim(value) == 1 else next(views): value for value in content}
    if not isinstance(content, Mapping):
        raise ValueError(f"expected a tensor, two tensors or a dictionary of tensors, got {type(content).__name__}")
    given = {str(name): value for name, value in content.items() if isinstance(value, Tensor | list)}
    if not given:
        names = ", ".join(map(repr, content)) or "an empty dictionary"
        raise ValueError(f"it holds no tensor and no list, only {names}")
    for name, value in given.items():
        if isinstance(value, Tensor) and value.layout != torch.strided:
            raise ValueError(f"{name!r} is sparse, {value.layout}: save its to_dense()")
    values = {name: np.asarray(value) if isinstance(value, list) else value for name, value in given.items()}
    return {name: Column(tuple(v.shape), v.dtype, partial(values.get, name)) for name, v in values.items()}


def read_columns(path: Path, label: str | None, header: bool = True) -> dict[str, Column]:
    """Return arrays, or columns of a table. In text files labels and a lone column are text: 01 and 1 differ."""
    if path.suffix.lower() not in TABLES:
        return _read_arrays(path)
    text: list[str] = []
    if path.suffix.lower() == ".parquet":
        file = pa.parquet.ParquetFile(path)
        n_bytes = sum(file.metadata.row_group(i).total_byte_size for i in range(file.num_row_groups))
        most = max(n_bytes // 8, file.metadata.num_rows * file.metadata.num_columns)  # equal values take few bytes
        table = Column((most,), None, file.read).checked("the table")()
    else:
        if (size := path.stat().st_size) > 16 * MAX_VALUES:
            raise ValueError(f"{path} has {size} bytes of text: save it as .npy, of which rows are sampled")
        parse = pa.csv.ParseOptions(delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
        with path.open(encoding="utf-8-sig", newline="") as opened:
            head = next(csv.reader(opened, delimiter=parse.delimiter), []) if header else ["label"]
        if len(head) == 1 and re.search(r"[;,\t|]", head[0]):
            raise ValueError(f"columns must be separated by {parse.delimiter!r}, the first line is {head[0]!r:.80}")
        text = [name.strip() for name in head if len(head) == 1 or name.strip() in (*LABELS, label)]
        kinds = {name: pa.string() for name in head if name.strip() in text}
        convert = pa.csv.ConvertOptions(column_types=kinds, strings_can_be_null=False)
        table = pa.csv.read_csv(path, pa.csv.ReadOptions(column_names=[] if header else head), parse, convert)
        table = table.rename_columns(list(map(str.strip, table.column_names)))
        others = [name for name in table.column_names if name not in text]
        counted = ([str(i + first) for i in range(len(others))] for first in (0, 1))
        if others and pd.to_numeric(pd.Series(others), errors="coerce").notna().all() and others not in counted:
            raise ValueError(f"the first line holds numbers, {', '.join(others[:3])}, ...: name every column there")
    if not table.num_rows:
        raise ValueError("there is no row below the names of the columns")
    found: dict[str, Column] = {}
    for name, column in zip(table.column_names, table.columns, strict=True):
        if name in found:
            raise ValueError(f"column {name!r} occurs twice")
        kind, shape = column.type, (len(column),)
        if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
            lengths = pa.compute.unique(pa.compute.list_value_length(column)).to_pylist()
            ragged = len(lengths) > 1 or lengths == [None]
            kind, shape = ("vectors of different lengths", shape) if ragged else (kind.value_type, (*shape, *lengths))
        number = isinstance(kind, pa.DataType) and (pa.types.is_integer(kind) or pa.types.is_floating(kind))
        load = partial(_values, column, shape, name in text)
        found[name] = Column(shape, np.dtype(kind.to_pandas_dtype()) if number else str(kind), load)
    return found


def _values(column: pa.ChunkedArray, shape: tuple[int, ...], is_text: bool) -> np.ndarray:
    """Return a column; text as numbers if all are written whole or some are not whole. Beside numbers MISSING is ""."""
    column = pa.compute.list_flatten(column) if len(shape) == 2 else column
    values = np.asarray(column.to_pandas(integer_object_nulls=True)).reshape(shape)  # labels may be above 2^53
    if not is_text:
        return values
    text = pd.Series(values)
    there = ~text.str.strip().str.lower().isin(["", *MISSING])
    whole = any(text[there].str.fullmatch(rf" *(0|-?[1-9]\d{{0,14}}){end} *").all() for end in ("", r"\.0"))
    numbers = pd.to_numeric(text, errors="coerce").where(there)
    if not there.any() or not np.isfinite(numbers[there]).all():
        return values
    return (numbers if whole or (numbers % 1).any() else text.where(there, "")).to_numpy()

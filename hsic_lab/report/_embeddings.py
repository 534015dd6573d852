"""Embeddings and the readers of their files."""

import csv
import itertools
import pickle
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute
import pyarrow.csv
import pyarrow.parquet
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from hsic_lab._checks import as_labels, as_tensor, finite_rows, to_array
from hsic_lab.correlation import column_moments
from hsic_lab.datasets._folders import printable, split_of
from hsic_lab.evaluation import extract_features
from hsic_lab.training import Run
from hsic_lab.training._setup import data_of, held_out_pairs

MAX_VALUES = 1 << 28  # of a view: 1 GiB in float32, for example 131 072 x 2048
MIN_ROWS, MAX_FEATURES = 4, 1 << 13  # C of more features has over 256 MiB in float32
VIEWS = (("z_a", "z_b"), ("a", "b"))
LABELS = ("labels", "label", "y", "targets", "target")
INDEX = re.compile(r"(|.*[_ .-])(id|ids|idx|index|row|rows)|unnamed.*|__index_level_\d+__|", re.IGNORECASE)
MISSING = ("na", "nan", "n/a", "null", "none")  # in lower case
_LABEL_NAMES = ", ".join(LABELS)


class Header(NamedTuple):
    """What is known of an array or a column before it is loaded. `dtype` is one of NumPy, or words."""

    shape: tuple[int, ...]
    dtype: Any


# The headers, a function that loads one array, and remarks on how the file was read.
Arrays = tuple[Mapping[str, Header], Callable[[str], Any], list[str]]


class Choice(NamedTuple):
    """The columns or arrays that are labels, neither, or views: patterns as in a shell, None for the usual names."""

    label: str | None = None
    drop: Sequence[str] = ()
    view_a: str | None = None
    view_b: str | None = None


@dataclass(frozen=True, eq=False)
class Embeddings:
    """The features of a page: one or two finite views `z_a, z_b` of shape (n, d), n at least 4 and d from 2 to 8192.

    `labels` of shape (n,) are integers or strings. `features` of shape (m, p) are the rows of the labels if these are
    not the rows of `z_a`; for a run, the features of its encoder. `target` of shape (n,) is a continuous quantity in
    place of labels, NaN where it is missing. `rows` is the number of rows of the source if `z_a` is a sample of them.
    The page has the title `name` and shows the remark `note`. `kind` is that of `diagnose`, `columns` name features.
    """

    z_a: Tensor
    z_b: Tensor | None = None
    labels: np.ndarray | None = None
    features: Tensor | None = None
    name: str = "embeddings"
    rows: int | None = None
    note: str = ""
    target: np.ndarray | None = None
    kind: str = "unknown"
    columns: Sequence[str] = ()

    def __post_init__(self) -> None:
        views = [z for z in (self.z_a, self.z_b) if z is not None]
        _check_shapes(self.name, [tuple(z.shape) for z in views])
        for z in views:
            finite_rows(self.name, z)
        expected = len(self.z_a if self.features is None else self.features)
        if self.labels is not None and self.labels.shape != (expected,):
            raise ValueError(f"{self.name}: {expected} rows need as many labels, got {self.labels.shape}")


def read_embeddings(
    path: str | Path, second: str | Path | None = None, labels: str | Path | None = None, *, label: str | None = None,
    drop: Sequence[str] = (), view_a: str | None = None, view_b: str | None = None,
) -> Embeddings:  # fmt: skip
    """Return the embeddings in a file or in the folder of a run.

    * ``.npy``: one view (n, d)
    * ``.npz, .safetensors, .pt``: arrays ``z_a`` and ``z_b``, or ``a`` and ``b``, or one or two matrices of any names
    * ``.csv, .tsv, .parquet``: one view in all columns, or two views in columns ``a_NAME`` and ``b_NAME``; in Parquet
      also columns of vectors, which are named like arrays
    * folder of a run: projections of its held-out pairs; features of test images with their labels

    Labels are in an array or column ``labels, label, y, targets`` or ``target``; in text files 01 and 1 are two
    classes. Numbers of which some are not whole are a continuous target. Rows without a label are left out of what
    needs labels. The note says what was taken. A file that is not clear raises ValueError. Nothing is unpickled.

    Parameters
    ----------
    path, second, labels : path, optional but for `path`
        A file or folder as above, a file with the other view, and a ``.npy, .csv, .tsv`` or ``.parquet`` file with the
        labels. Of a view with more than 2^28 values a random sample of rows is used. A ``.npy`` file may have any size,
        arrays in other files at most 2^29 values, and texts at most 2^28 bytes.
    label, drop, view_a, view_b : str, sequence of str, str, str, optional
        The column or array with the labels; those to leave out; those of the views, as patterns like ``emb_*``. Of two
        files `view_a` is in the first and `view_b` in the second. Chosen columns are not refused as an index. Columns
        of two files are paired by name if both have the same names, else by position; the note says which.
    """
    choice = Choice(label, [drop] if isinstance(drop, str) else drop, view_a, None if second else view_b)
    found = _read(Path(path), choice, labels is not None)
    if second is not None:
        _refuse_splits([Path(path).stem, Path(second).stem], "files")
        other = _read(Path(second), choice._replace(view_a=view_b), True)
        if found.z_b is not None or other.z_b is not None:
            raise ValueError(f"two files must hold one view each; {path if found.z_b is not None else second} has two")
        if found.rows != other.rows:
            raise ValueError(f"the views must have the same shape; {path} and {second} have different numbers of rows")
        given = [one for one in (found, other) if one.labels is not None or one.target is not None]
        texts = [np.asarray(one.labels if one.target is None else one.target).astype(str) for one in given]
        if labels is None and len(texts) == 2 and not np.array_equal(texts[0], texts[1]):
            raise ValueError(f"the labels in {path} and {second} differ: their rows are not the same images in order")
        sources = (found, view_a or ""), (other, view_b or "")
        a, b = ([name.removeprefix(p.split("*")[0]) for name in one.columns] for one, p in sources)
        places = pd.Index(b).get_indexer(a)
        named = 0 < len(a) == len(b) and min(places) >= 0
        z_b, how = (other.z_a[:, places], "name") if named else (other.z_a, "position")
        note = f"{found.name}: {found.note}. {other.name}: {other.note}. Features are paired by {how}"
        name = f"{found.name} and {other.name}"
        found = replace(given[0] if given else found, z_a=found.z_a, z_b=z_b, name=name, note=note)
    if labels is not None:
        if found.rows is not None:
            raise ValueError(f"{labels}: rows were sampled, so the labels must be in the file of the embeddings")
        found = replace(found, labels=None, features=None, target=None)
        found = _with_labels(found, _read_labels(Path(labels), label), printable(labels))
    return found


def _read(path: Path, choice: Choice, elsewhere: bool) -> Embeddings:
    """Return the embeddings of one file or run; the chosen labels may be `elsewhere`, in another file."""
    if path.is_dir():
        if any(choice):
            raise ValueError(f"{path} is a run: columns and arrays are chosen in files only")
        return _read_run(path)
    if (suffix := path.suffix.lower()) not in READERS:
        raise ValueError(f"{path}: accepted are files ending in {', '.join(READERS)} and run folders")
    with _named_errors(path):
        arrays = READERS[suffix](path, choice.label)
        if elsewhere and choice.label not in arrays[0]:
            choice = choice._replace(label=None)
        return _assemble(path, arrays, choice)


def _read_run(folder: Path) -> Embeddings:
    """Return the projections of a run's held-out pairs, and the features of its test images with their labels."""
    run = Run.load(folder)
    if run.metadata.get("views") == "custom":
        raise ValueError(f"{folder} was trained with views of your own: give the projections of two such views instead")
    data = data_of(run.config.dataset, run.metadata)
    network = torch.nn.Sequential(run.encoder, run.projector)
    z_a, z_b = (extract_features(network, view) for view in held_out_pairs(data, run.config, torch.device("cpu")))
    judged = data.test.sample(min(MAX_VALUES // 4096, len(data.test)))
    labels, name = judged.labels.numpy() if data.class_names else None, printable(f"{folder} on {data.name}")
    return Embeddings(z_a, z_b, labels, extract_features(run.encoder, judged.images), name, kind="projections")


def _read_labels(path: Path, label: str | None) -> Any:
    """Return the column or array of labels of a file."""
    with _named_errors(path):
        if (suffix := path.suffix.lower()) not in (".npy", ".csv", ".tsv", ".parquet"):
            raise ValueError(f"{path}: labels are read from .npy, .csv, .tsv and .parquet")
        headers, load, _ = READERS[suffix](path, label or "*")
        name = next(iter(headers)) if len(headers) == 1 else _label_name(headers, label)
        if name is None:
            raise ValueError(f"expected one column, or one called {_LABEL_NAMES}; found {_few(headers)}")
        if others := [other for other in headers if other != name and (label is None or INDEX.fullmatch(other))]:
            remedy = f"give {name!r} alone, in the order of the rows; or --label-column {name!r} if none is an index"
            raise ValueError(f"rows are matched by position, {_few(others)} not compared: {remedy}")
        _check_size(name, headers[name])
        return load(name)


def _label_name(names: Mapping[str, Header], label: str | None) -> str | None:
    """Return the name of the labels, None if there are none; ValueError if the choice is not clear."""
    if label is not None and label not in names:
        raise ValueError(f"there is no column or array {label!r} for the labels; there are {_few(names)}")
    if label is None and len(usual := [name for name in names if name in LABELS]) > 1:
        raise ValueError(f"{' and '.join(map(repr, usual))} may be the labels: choose one with --label-column")
    return label or next((name for name in names if name in LABELS), None)


def _few(names: Mapping[str, Any] | Sequence[str]) -> str:
    """Return the names in words, of many the first and the last."""
    names = list(map(printable, names))
    return ", ".join(map(repr, names)) if len(names) <= 8 else f"{names[0]!r} to {names[-1]!r} ({len(names)})"


@contextmanager
def _named_errors(path: Path) -> Iterator[None]:
    """Turn errors of the libraries that read files into a ValueError of one line that names the file."""
    pickled = ("Python objects in dtype", "Object arrays cannot", "Weights only load failed")
    clearer = dict.fromkeys(pickled, "it holds pickled Python objects, which are not read")  # than the libraries' words
    clearer["mmap length is greater than file size"] = "the file is shorter than its header says: it was cut off"
    if not path.is_file():
        raise FileNotFoundError(f"{printable(path)} does not exist")
    readers = zipfile.BadZipFile, SafetensorError, pa.ArrowException, pickle.UnpicklingError
    try:
        yield
    except (ValueError, OSError, EOFError, LookupError, RuntimeError, MemoryError, *readers) as error:
        words = (str(error).strip() or type(error).__name__).splitlines()[0]
        words = next((ours for theirs, ours in clearer.items() if theirs in words), words)
        raise ValueError(words if path.name in words else f"{printable(path)} cannot be read: {words}") from error


def _npy(path: Path, label: str | None) -> Arrays:
    """Return the one array of a file, mapped: np.load would take any text for a pickle, open_memmap refuses both."""
    array = np.lib.format.open_memmap(path, mode="r")
    return {"z_a": Header(array.shape, array.dtype)}, lambda name: array, []


def _npz(path: Path, label: str | None) -> Arrays:
    """Return the arrays of an archive of NumPy."""
    archive, headers = np.load(path, allow_pickle=False), {}
    for name in archive.files:  # the headers alone: a compressed archive may unpack to any size
        with archive.zip.open(f"{name}.npy") as member:
            version = np.lib.format.read_magic(member)
            reader = (np.lib.format.read_array_header_1_0, np.lib.format.read_array_header_2_0)[version[0] > 1]
            shape, _, dtype = reader(member)
            headers[name] = Header(shape, dtype)
    return headers, archive.__getitem__, []


def _safetensors(path: Path, label: str | None) -> Arrays:
    """Return the tensors of a file of safetensors."""
    archive = safe_open(path, framework="pt")
    slices = {name: archive.get_slice(name) for name in archive.keys()}  # noqa: SIM118
    headers = {name: Header(tuple(part.get_shape()), part.get_dtype()) for name, part in slices.items()}
    return headers, archive.get_tensor, []


def _torch(path: Path, label: str | None) -> Arrays:
    """Return the tensors and lists of a file of torch, of which tensors and plain containers alone are unpickled."""
    content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    if isinstance(content, Tensor):
        content = {"z_a": content}
    elif isinstance(content, list | tuple) and len(content) == 2:
        views = iter(VIEWS[0])  # a vector beside features are labels
        content = {"labels" if np.ndim(value) == 1 else next(views): value for value in content}
    if not isinstance(content, Mapping):
        raise ValueError(f"expected a tensor, two tensors or a dictionary of tensors, got {type(content).__name__}")
    found = {str(name): value for name, value in content.items() if isinstance(value, Tensor | list)}
    arrays = {name: np.asarray(value) if isinstance(value, list) else value for name, value in found.items()}
    headers = {name: Header(tuple(value.shape), value.dtype) for name, value in arrays.items()}
    return headers, arrays.__getitem__, []


def _csv(path: Path, label: str | None) -> Arrays:
    """Return the columns of a text table, and what was found out about its separator, decimals and encoding."""
    if (size := path.stat().st_size) > 16 * MAX_VALUES:
        raise ValueError(f"{path} has {size} bytes of text: save it as .npy, of which rows are sampled")
    encoding, remarks = _encoding(path), []
    with path.open(encoding=encoding, newline="") as file:
        lines = [file.readline(1 << 26) for _ in range(2)]
    widths = {mark: [len(next(csv.reader([line], delimiter=mark), ())) for line in lines] for mark in ",;\t"}
    marks = [mark for mark, (head, row) in widths.items() if head > 1 and head == row]
    if len(marks) > 1:
        raise ValueError(f"its columns could be separated by any of {' '.join(map(repr, marks))}")
    mark = marks[0] if marks else ","
    names = next(csv.reader([lines[0]], delimiter=mark), [])
    text = {name: pa.string() for name in names if name.strip() in (*LABELS, label) or label == "*"}

    def read(decimal: str) -> pa.Table:
        convert = pa.csv.ConvertOptions(column_types=text, strings_can_be_null=False, decimal_point=decimal)
        parse = pa.csv.ParseOptions(delimiter=mark)
        return pa.csv.read_csv(path, pa.csv.ReadOptions(encoding=encoding), parse, convert)

    table = read(".")
    no_number = [kind for kind in table.schema.types if pa.types.is_string(kind)]
    if mark != "," and len(no_number) > len(text):
        other = read(",")
        if sum(map(pa.types.is_string, other.schema.types)) < len(no_number):
            table, remarks = other, ["decimal commas"]
    remarks += [f"columns separated by {mark!r}"] * (mark != ",") + [f"text in {encoding}"] * (encoding != "utf-8-sig")
    table = table.rename_columns(list(map(str.strip, table.column_names)))
    text = {name.strip(): kind for name, kind in text.items()}
    columns = [name for name in table.column_names if name not in text]
    counted = ([str(i + first) for i in range(len(columns))] for first in (0, 1))
    if columns and pd.to_numeric(pd.Series(columns), errors="coerce").notna().all() and columns not in counted:
        raise ValueError(f"the first line holds numbers, {', '.join(columns[:3])}, ...: give every column a name there")
    headers, load, _ = _from_table(table)
    words = [f"Read with {' and '.join(remarks)}"] if remarks else []
    return headers, lambda name: _typed(load(name), mark != ",") if name in text else load(name), words


def _encoding(path: Path) -> str:
    """Return the encoding of a text file: UTF-8 if all bytes fit, else UTF-16 if it says so, else Windows-1252."""
    for encoding in ("utf-8-sig", "utf-16"):
        with suppress(UnicodeError), path.open(encoding=encoding) as file:
            while file.read(1 << 24):
                pass
            return encoding
    return "cp1252"  # Latin-1 with more letters


def _parquet(path: Path, label: str | None) -> Arrays:
    """Return the columns of a Parquet file."""
    file = pa.parquet.ParquetFile(path)
    groups = [file.metadata.row_group(i) for i in range(file.metadata.num_row_groups)]
    values = sum(group.column(i).num_values for group in groups for i in range(group.num_columns))
    _check_size("the table", Header((max(values, sum(group.total_byte_size for group in groups) // 8),), None))
    text = [field.name for field in file.schema_arrow if pa.types.is_string(field.type)]
    # A dictionary holds a text once, however many rows have it.
    return _from_table(pa.parquet.read_table(path, read_dictionary=text))


# Each reader checks sizes before it loads an array.
READERS = {".npy": _npy, ".npz": _npz, ".csv": _csv, ".tsv": _csv, ".parquet": _parquet, ".safetensors": _safetensors}
READERS |= {".pt": _torch, ".pth": _torch}


def _from_table(table: pa.Table) -> Arrays:
    """Return the columns of a table as arrays."""
    if not table.num_rows:
        raise ValueError("there is no row below the names of the columns")
    # To look up a column by its name in the table takes time in the width of the table.
    columns = dict(zip(names := table.column_names, table.columns, strict=True))
    if len(columns) < len(names):
        raise ValueError(f"column {next(name for name in columns if names.count(name) > 1)!r} occurs twice")
    headers = {name: _column_header(column) for name, column in columns.items()}

    def load(name: str) -> np.ndarray:
        flat = pa.compute.list_flatten(columns[name]) if len(headers[name].shape) == 2 else columns[name]
        return np.asarray(flat.to_pandas()).reshape(headers[name].shape)

    return headers, load, []


def _column_header(column: pa.ChunkedArray) -> Header:
    """Return the shape of a column, which is (n, d) for vectors of one length, and the kind of its values."""
    kind, shape = column.type, [len(column)]
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        lengths = pa.compute.unique(pa.compute.list_value_length(column)).to_pylist()
        if len(lengths) != 1 or lengths == [None]:
            return Header((len(column),), f"vectors of different lengths ({', '.join(map(str, lengths[:3]))})")
        kind, shape = kind.value_type, [len(column), lengths[0]]
    number = pa.types.is_integer(kind) or pa.types.is_floating(kind)
    return Header(tuple(shape), np.dtype(kind.to_pandas_dtype()) if number else str(kind))


def _typed(values: np.ndarray, comma: bool) -> np.ndarray:
    """Return text as it is, or as numbers if all but MISSING is written as whole numbers are, or some are not whole."""
    text = pd.Series(values)
    there = ~text.str.strip().str.lower().isin(["", *MISSING])
    whole = text[there].str.fullmatch(r" *(0|-?[1-9]\d{0,14}) *").all()
    numbers = pd.to_numeric(text.str.replace(",", ".") if comma else text, errors="coerce").where(there)
    numeric = whole or (np.isfinite(numbers[there]).all() and (numbers[there] % 1).any())
    return numbers.to_numpy() if there.any() and numeric else values


def _matching(names: Sequence[str], pattern: str) -> list[str]:
    """Return the names that match the pattern, at least one."""
    if not (found := [name for name in names if fnmatchcase(name, pattern)]):
        raise ValueError(f"no column or array is called {pattern!r}; there are {_few(names)}")
    return found


def _columns(headers: Mapping[str, Header], names: Sequence[str], choice: Choice, label: str | None) -> list[list[str]]:
    """Return the columns of each view; raise ValueError for columns that could be misunderstood."""
    patterns = [choice.view_a, choice.view_b]
    if choice.view_a is None:
        refused = (*LABELS, *(() if label else ("class", "classes")))
        names = [name for name in names if name not in LABELS]
        for name in names:
            kind, remedy = headers[name].dtype, f"leave it out, --drop {name!r}"
            if name.lower() in refused:
                raise ValueError(f"column {name!r} is no feature: labels are called {_LABEL_NAMES}, or --label-column")
            if INDEX.fullmatch(name):
                raise ValueError(f"column {name!r} looks like an index, not a feature: {remedy}")
            if not isinstance(kind, np.dtype):
                raise ValueError(
                    f"column {name!r} holds {kind}, not numbers: {remedy}, or --label-column if these are labels"
                )
        for pair in (f"{a}_* {b}_*".split() for a, b in VIEWS):
            if all(any(fnmatchcase(name, pattern) for name in names) for pattern in pair):
                patterns = list(pair)
        if patterns[0] is None:
            return [list(names)]
    chosen = [pattern for pattern in patterns if pattern is not None]
    views = [_matching(names, pattern) for pattern in chosen]
    if choice.view_a is None and (rest := sorted(set(names).difference(*views))):
        raise ValueError(f"two views have columns {chosen[0]} and {chosen[1]}, column {rest[0]!r} is neither")
    if len(views) == 2:  # features are paired by name, not by position
        a, b = ({name.removeprefix(p.split("*")[0]): name for name in v} for v, p in zip(views, chosen, strict=True))
        if alone := sorted(a.keys() ^ b.keys()):
            raise ValueError(f"every column of a view needs a partner in the other one; {(a | b)[alone[0]]!r} has none")
        views[1] = [b[key] for key in a]
    return views


def _refuse_splits(names: Sequence[str], what: str) -> None:
    """Raise ValueError for names of a training and a test split, which are no views of the same rows."""
    if len(set(map(split_of, names))) > 1:
        raise ValueError(f"the {what} {_few(names)} look like splits, not views: choose one, --view-a {names[0]!r}")


def _assemble(path: Path, arrays: Arrays, choice: Choice) -> Embeddings:
    """Return the views and the labels, which are chosen among arrays or columns by name and shape."""
    headers, load, remarks = arrays
    dropped = {name for pattern in choice.drop for name in _matching(list(headers), pattern)}
    kept = {name: header for name, header in headers.items() if name not in dropped}
    label = _label_name(kept, choice.label)
    others = [name for name in kept if name != label]
    matrices = [name for name in others if len(kept[name].shape) == 2]
    in_columns = not matrices and READERS[path.suffix.lower()] in (_csv, _parquet)
    if in_columns:
        views = _columns(kept, others, choice, label)
        shapes = [(*(kept[name].shape[0] for name in view[:1]), len(view)) for view in views]
    else:
        names = next(([name for name in pair if name in matrices] for pair in VIEWS if pair[0] in matrices), matrices)
        if choice.view_a is not None:
            names = [name for p in (choice.view_a, choice.view_b) if p for name in _matching(others, p)]
        if not 1 <= len(names) <= 2:
            shown = {name: header.shape for name, header in list(kept.items())[:8]}
            raise ValueError(f"expected one or two matrices (n, d), called z_a and z_b or a and b; found {shown}")
        if choice.view_a is None:
            _refuse_splits(names, "arrays")
        views, shapes = [[name] for name in names], [kept[name].shape for name in names]
    _check_shapes(path.name, shapes)
    n, d = shapes[0]
    if label is not None and kept[label].shape != (n,):
        raise ValueError(f"{n} rows need as many labels, got {label!r} of shape {kept[label].shape}")
    used = {*itertools.chain(*views), *filter(None, [label])}
    for name in used if path.suffix.lower() != ".npy" else ():
        _check_size(name, kept[name])
    rows: Any = sample(n, MAX_VALUES // d) if n * d > MAX_VALUES else slice(None)

    def loaded(view: list[str]) -> Tensor:
        if not in_columns:
            return real_floats(load(view[0])[rows], f"array {view[0]!r}")
        kinds = {kept[name].dtype for name in view if isinstance(kept[name].dtype, np.dtype)}
        block = np.empty((len(np.arange(n)[rows]), d), np.result_type("f4", *kinds))
        for i, name in enumerate(view):
            block[:, i] = (values := load(name))[rows]  # a missing value becomes NaN
            if choice.view_a is None and _is_counter(values):
                raise ValueError(f"column {name!r} counts the rows like an index: leave it out, --drop {name!r}")
        return real_floats(block, path.name)

    z = [loaded(view) for view in views]
    notes = [*remarks, *(f"View {letter}: {_few(view)}" for letter, view in zip("AB", views, strict=False))]
    if unused := [name for name in headers if name not in used]:
        notes.append(f"Left out: {_few(unused)}")
    z_b, source_rows = z[1] if len(z) == 2 else None, n if len(z[0]) < n else None
    columns = list(map(printable, views[0])) if in_columns else []
    found = Embeddings(z[0], z_b, name=printable(path.name), rows=source_rows, note=". ".join(notes), columns=columns)
    return found if label is None else _with_labels(found, load(label)[rows], repr(label))


def _is_counter(values: np.ndarray) -> bool:
    """Return whether these are consecutive whole numbers in any order, or 8 or more integers that rise or fall."""
    if not np.isfinite(values[0]) or values[0] % 1:  # the first value rules out nearly all features
        return False
    steps = np.diff(ordered := np.sort(values))
    sorted_already = np.array_equal(ordered, values) or np.array_equal(ordered, values[::-1])
    rising = values.dtype.kind in "iu" and len(values) >= 8 and sorted_already and (steps > 0).all()
    return bool(rising or (steps == 1).all())


def _with_labels(found: Embeddings, values: np.ndarray | Tensor, source: str) -> Embeddings:
    """Return the embeddings with labels, or with a continuous target; the note says which."""
    values = to_array(values) if isinstance(values, Tensor) else values  # arrays may hold missing values
    if values.shape != (n := len(found.z_a),):
        raise ValueError(f"{found.name}: {n} rows need as many labels, got {values.shape}")
    if values.dtype.kind in "OS":
        values = np.array([v.decode(errors="replace") if isinstance(v, bytes) else v for v in values], object)
    given = ~pd.isna(values) & (values != "" if values.dtype.kind in "OU" else True)
    labels = np.asarray(pd.Series(values[given]).infer_objects())
    if not len(labels):
        raise ValueError(f"the labels of {source} are all missing")
    words = f". {n - len(labels)} of {n} labels are missing: what needs labels uses the other rows"
    missing = words if len(labels) < n else ""
    if labels.dtype.kind == "f":
        if not np.isfinite(labels).all():
            raise ValueError(f"the labels of {source} must be finite, got {labels[~np.isfinite(labels)][0]}")
        if (labels % 1).any():
            target = np.full(n, np.nan)
            target[given] = labels
            words = f"Continuous target: {source}, {labels.min():g} to {labels.max():g}; a probe needs classes"
            return replace(found, target=target, note=f"{found.note}. {words}{missing}")
        labels = labels.astype(np.int64)  # pandas keeps integers as floats in a column with missing values
    if labels.dtype.kind == "O":
        _check_size(source, Header((n, max(len(str(label)) for label in pd.unique(labels))), np.dtype("U1")))
    labels = as_labels(f"the labels of {source}", labels)
    classes = [str(label) for label in np.unique(labels)]
    bare: dict[str, str] = {}
    for label in classes:
        if (other := bare.setdefault(label.strip(), label)) != label:
            raise ValueError(f"the labels of {source} hold {other!r} and {label!r}, which differ in spaces only")
    words = "".join(f". The text {label!r} is a class" for label in classes if label.strip().lower() in MISSING)
    note = f"{found.note}. Labels: {source}, {len(classes)} classes: {_few(classes)}{words}{missing}"
    return replace(found, labels=labels, features=found.z_a[torch.from_numpy(given)] if missing else None, note=note)


def sample(n: int, most: int) -> np.ndarray:
    """Return ``min(n, most)`` of the rows 0 to n - 1, drawn without replacement, in ascending order."""
    return np.sort(np.random.default_rng(0).choice(n, min(n, most), replace=False))


def _check_shapes(name: str, shapes: Sequence[tuple[int, ...]]) -> None:
    """Raise ValueError for views that are too small, too wide or of different shapes."""
    for shape in shapes:
        if len(shape) != 2 or shape[0] < MIN_ROWS or not 2 <= shape[1] <= MAX_FEATURES:
            accepted = f"at least {MIN_ROWS} rows and 2 to {MAX_FEATURES} columns"
            raise ValueError(f"{name}: a view must have {accepted}, got shape {shape}")
    if len(set(shapes)) > 1:
        raise ValueError(f"{name}: the views must have the same shape, got {shapes[0]} and {shapes[1]}")


def _check_size(name: str, header: Header) -> None:
    """Raise ValueError for an array that is too large to be read whole."""
    kind = header.dtype if isinstance(header.dtype, np.dtype) else np.dtype(float)
    n_bytes = (size := np.prod(header.shape, dtype=float)) * kind.itemsize
    if kind.kind in "US" and n_bytes > MAX_VALUES:
        raise ValueError(f"{name} holds {n_bytes:.0f} bytes of text, more than {MAX_VALUES}: shorten the labels")
    if max(size, n_bytes / 8) > (most := 2 * MAX_VALUES):
        raise ValueError(f"{name} has shape {header.shape}, more than {most} values: save it as .npy to sample rows")


def real_floats(values: np.ndarray | Tensor, name: str) -> Tensor:
    """Return real numbers on the CPU as float32, or as float64 if their means are large; ValueError for others."""
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
    fits = values.dtype.itemsize < 4 or str(values.dtype).endswith(("float32", "f4"))
    if not fits and values.ndim == 2 and len(values) > 1:
        exact = as_tensor(values, name, shared=True).detach().cpu().double()
        mean, variance = column_moments(exact)
        if ((2**-24 * mean.abs() > 1e-4 * variance.sqrt()) & (variance > 0)).any():  # the rounding of float32
            return exact.clone()
    return torch.as_tensor(copied)

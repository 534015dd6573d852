"""Embeddings, and what of a file or a run becomes their features, views and labels."""

import itertools
import os
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from hsic_lab._checks import as_labels, as_tensor, check_type, finite_rows, to_array
from hsic_lab.correlation import column_moments
from hsic_lab.datasets._folders import SPLITS, printable, split_of
from hsic_lab.evaluation import extract_features, extract_layers
from hsic_lab.training import Run
from hsic_lab.training._setup import data_of, held_out_pairs

from hsic_lab.report._files import (  # isort: skip
    ARRAYS, LABELS, MAX_VALUES, MISSING, TABLES, VIEWS, Column, named_errors, read_columns,
)  # fmt: skip

MIN_ROWS, MAX_FEATURES = 4, 1 << 13  # C of more features has over 256 MiB in float32
RARE = 20  # from so many rows on, whole numbers that differ in more than half of them are no classes
INDEX = re.compile(
    r"(?i:(|.*[_ .-])(id|ids|idx|index|rows?|[gu]uid|uid)|rowid|unnamed.*|__index_level_\d+__|)|.*[a-z]I[dD]s?"
)
SHORT = SPLITS | {"tr": "train", "te": "test", "ts": "test"}  # which mean splits only where all names do


@dataclass(frozen=True, eq=False)
class Embeddings:
    """The features of a page: one or two finite views `z_a, z_b` of shape (n, d), n at least 4 and d from 2 to 8192.

    `labels` of shape (n,) are integers or strings. `features` of shape (m, p) are the rows of the labels if these are
    not the rows of `z_a`; for a run, the features of its encoder. If some rows have no label, `labelled` are the
    numbers of those of `z_a` that have one, and `features` are these. `target` of shape (n,) is a continuous quantity
    in place of labels, NaN where it is missing. `rows` is the number of rows of the source if `z_a` is a sample of
    them. The page has the title `name` and the remark `note`. `kind` is that of `diagnose`, `columns` name features.
    `layers` are the features of a run by depth, of the rows of `features`; `table` has columns that are no features.
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
    layers: Mapping[str, Tensor] | None = None
    table: pd.DataFrame | None = None
    labelled: np.ndarray | None = None

    def __post_init__(self) -> None:
        check_type("z_a", self.z_a, Tensor), check_type("z_b", self.z_b, Tensor, type(None))
        views = [z for z in (self.z_a, self.z_b) if z is not None]
        for z in views:
            if z.ndim != 2 or len(z) < MIN_ROWS or not 2 <= z.shape[1] <= MAX_FEATURES:
                accepted = f"at least {MIN_ROWS} rows and 2 to {MAX_FEATURES} columns"
                raise ValueError(f"{self.name}: a view must have {accepted}, got shape {tuple(z.shape)}")
            finite_rows(self.name, z)
        if len(shapes := {tuple(z.shape): 0 for z in views}) > 1:
            found = " and ".join(map(str, shapes))
            raise ValueError(f"{self.name}: views must have one shape, got {found}; --against compares other features")
        check_type("labels", self.labels, np.ndarray, type(None))
        check_type("target", self.target, np.ndarray, type(None))
        if self.labels is not None:
            as_labels(f"{self.name}: labels", self.labels)
        judged = self.z_a if self.features is None else self.features
        for values, rows, what in ((self.labels, judged, "labels"), (self.target, self.z_a, "values of the target")):
            if values is not None and values.shape != (n := len(rows),):
                raise ValueError(f"{self.name}: {n} rows need {what} of shape ({n},), got {values.shape}")


def read_embeddings(
    path: str | Path, second: str | Path | None = None, labels: str | Path | None = None, *, label: str | None = None,
    drop: Sequence[str] = (), view_a: str | None = None, view_b: str | None = None,
) -> Embeddings:  # fmt: skip
    """Return the embeddings in a file or in the folder of a run.

    * ``.npy``: one view (n, d)
    * ``.npz, .safetensors, .pt``: arrays ``z_a`` and ``z_b``, or ``a`` and ``b``, or one or two matrices of any names
    * ``.csv, .tsv, .parquet``: one view in all columns, or two views in columns ``a_NAME`` and ``b_NAME``; in Parquet
      also columns of vectors, named like arrays. Text is UTF-8 with decimal points, and commas or (.tsv) tabs between
    * folder of a run: projections of its held-out pairs; features of test images with their labels

    Labels are in an array or column ``labels, label, y, targets`` or ``target``; in text files 01 and 1 are two
    classes. Numbers are a continuous target if some are not whole, or if more than half of 20 or more differ. Rows
    without a label are left out of what needs labels. The note says what was taken. A file that is not clear raises
    ValueError. Nothing is unpickled.

    Parameters
    ----------
    path, second, labels : path, optional but for `path`
        A file or folder as above, a file with the other view, and a ``.npy`` file or a table with the labels. Of a view
        with more than 2^28 values a random sample of rows is used. A ``.npy`` file may have any size, arrays in other
        files at most 2^29 values, and texts at most 2^28 bytes.
    label, drop, view_a, view_b : str, sequence of str, str, str, optional
        The column or array with the labels; those to leave out; those of the views, as patterns like ``emb_*``. Of two
        files `view_a` is in the first and `view_b` in the second. Each choice must be in one of the files at least. A
        column that is chosen may look like an index. Columns of two files are paired by name if both have the same
        names, else by position; the note says which.
    """
    check_type("drop", drop, str, list, tuple)
    drop = [drop] if isinstance(drop, str) else drop
    for name, choice in {"label": label, "view_a": view_a, "view_b": view_b}.items():
        check_type(name, "" if choice is None else choice, str)
    if view_b is not None and view_a is None and second is None:
        raise ValueError(f"view B, {view_b!r}, is chosen: choose view A of the file too, --view-a")
    path = Path(check_type("path", path, str, os.PathLike))
    seen: list[str] = []  # the names in all files
    several = seen if second is not None or labels is not None else None
    found = read_one(path, label, drop, view_a, None if second else view_b, several)
    other = None if second is None else read_one(Path(second), label, drop, view_b, None, several)
    given = None if labels is None else _read_labels(Path(labels), label, drop, len(found.z_a), seen)
    if several:
        for pattern in drop:
            _matching(several, pattern)
        _label_name(several, label) if label else None
    if second is not None and other is not None:
        _refuse_splits([path.stem, Path(second).stem], "files")
        if found.z_b is not None or other.z_b is not None:
            raise ValueError(f"two files must hold one view each; {path if found.z_b is not None else second} has two")
        if found.rows != other.rows:
            raise ValueError(f"the views must have the same shape; {path} and {second} have different numbers of rows")
        known = [pd.Series(z.target) if z.labels is None else known_labels(z, len(z.z_a)) for z in (found, other)]
        texts = pd.concat(known, axis=1, join="inner").dropna().map(lambda value: str(value).removesuffix(".0"))
        if labels is None and (texts[0] != texts[1]).any():
            raise ValueError(f"the labels in {path} and {second} differ: their rows are not the same images in order")
        sources = (found, view_a or ""), (other, view_b or "")
        a, b = ([name.removeprefix(p.split("*")[0]) for name in one.columns] for one, p in sources)
        places = pd.Index(b).get_indexer(a)
        named = 0 < len(a) == len(b) and min(places) >= 0
        notes = f"{found.name}: {found.note}", f"{other.name}: {other.note}"
        note = ". ".join((*notes, f"Features are paired by {'name' if named else 'position'}"))
        name, z_b = f"{found.name} and {other.name}", other.z_a[:, places] if named else other.z_a
        found = replace(found, z_b=z_b, name=name, note=note)
        if found.labels is None and found.target is None:
            features = None if other.labelled is None else found.z_a[other.labelled]
            table = pd.DataFrame(found.table).join(pd.DataFrame(other.table).filter(["label"]))
            taken: Any = {name: getattr(other, name) for name in ("labels", "target", "labelled")}
            found = replace(found, features=features, table=table, **taken)
    if given is not None:
        if found.rows is not None:
            raise ValueError(f"{labels}: rows were sampled, so the labels must be in the file of the embeddings")
        plain = replace(found, labels=None, features=None, target=None, labelled=None)
        plain = plain if found.layers is None else replace(plain, layers=None, table=None)  # of other rows than views
        found = _with_labels(plain, *given)
    return found


def _read_run(folder: Path) -> Embeddings:
    """Return the projections of a run's held-out pairs, and the features of its test images with their labels."""
    run = Run.load(folder)
    if run.metadata.get("views") == "custom":
        raise ValueError(f"{folder} was trained with views of your own: give the projections of two such views instead")
    data = data_of(run.config.dataset, run.metadata)
    network = torch.nn.Sequential(run.encoder, run.projector)
    z_a, z_b = (extract_features(network, view) for view in held_out_pairs(data, run.config, torch.device("cpu")))
    judged = data.test.sample(min(MAX_VALUES // max(4096, sum(run.config.projector)), len(data.test)))
    layers = extract_layers(run.encoder, run.projector, judged.images)
    labels, table = None, pd.DataFrame({"row": range(len(judged))})
    if data.class_names:
        labels = judged.labels.numpy()
        table["label"] = np.take(data.class_names, labels)
    more: Any = {"note": printable(run.unfinished), "kind": "projections", "layers": layers, "table": table}
    return Embeddings(z_a, z_b, labels, layers["encoder"], printable(f"{folder} on {data.name}"), **more)


def read_one(
    path: Path, label: str | None, drop: Iterable[str], view_a: str | None, view_b: str | None, seen: list[str] | None
) -> Embeddings:
    """Return the embeddings of one file or run; with `seen`, which gets the names, choices may be in another file."""
    if path.is_dir():
        if view_a or view_b or ((label or drop) and seen is None):
            raise ValueError(f"{path} is a run: columns and arrays are chosen in files only")
        return _read_run(path)
    if (suffix := path.suffix.lower()) not in (*ARRAYS, *TABLES):
        raise ValueError(f"{path}: accepted are files ending in {', '.join((*ARRAYS, *TABLES))} and run folders")
    with named_errors(path):
        columns = read_columns(path, label)
        dropped = {name for pattern in drop for name in _matching(columns, pattern, seen is not None)}
        kept = {name: column for name, column in columns.items() if name not in dropped}
        elsewhere = label and seen is not None and label not in columns
        label = None if elsewhere else _label_name([name for name in kept if name not in (view_a, view_b)], label)
        if seen is not None:
            seen += [name for name in columns if name not in seen]
        views = _views(kept, label, view_a, view_b, suffix in TABLES)
        n, d = (*kept[views[0][0]].shape, len(views[0]))[:2]
        used = {*itertools.chain(*views), *([] if label is None else [label])}
        for name in used:
            kept[name].checked(name)
        same_rows = len({kept[name].shape[:1] for name in used}) == 1  # else `Embeddings` names the shapes
        rows: Any = sample(n, MAX_VALUES // d) if same_rows and n * d > MAX_VALUES else slice(None)
        z = [_load(kept, view, rows, view_a is None) for view in views]
        notes = [f"View {letter}: {_few(view)}" for letter, view in zip("AB", views, strict=False)]
        if unused := [name for name in columns if name not in used]:
            notes.append(f"Left out: {_few(unused)}")
        names = [] if len(kept[views[0][0]].shape) == 2 else list(map(printable, views[0]))
        beside: dict[str, Any] = {"row": np.arange(n)[rows], "label": None}  # a column of such a name gets another one
        for name in unused if suffix in TABLES else []:
            if len(columns[name].shape) == 1:
                free = name
                while free in beside:
                    free += "_"
                beside[free] = columns[name].load()[rows]
        table = pd.DataFrame(beside).drop(columns="label")
        taken: Any = {"name": printable(path.name), "note": ". ".join(notes), "columns": names, "table": table}
        found = Embeddings(z[0], z[1] if len(z) == 2 else None, rows=n if len(z[0]) < n else None, **taken)
        return found if label is None else _with_labels(found, kept[label].load()[rows], repr(label))


def _label_name(names: Collection[str], label: str | None) -> str | None:
    """Return the name of the labels, None if there are none; ValueError if the choice is not clear."""
    if label is not None and label not in names:
        raise ValueError(f"there is no column or array {label!r} for the labels; there are {_few(names)}")
    if label is None and len(usual := [name for name in names if name in LABELS]) > 1:
        raise ValueError(f"{' and '.join(map(repr, usual))} may be the labels: choose one with --label-column")
    return label or next((name for name in names if name in LABELS), None)


def _views(
    columns: dict[str, Column], label: str | None, view_a: str | None, view_b: str | None, table: bool
) -> list[list[str]]:
    """Return the columns, or the one matrix, of each view; raise ValueError for names that could be misunderstood."""
    names = [name for name in columns if name != label]
    matrices = [name for name in names if len(columns[name].shape) == 2]
    patterns = [pattern for pattern in (view_a, view_b) if pattern is not None]
    if matrices or not table:
        usual = next(([name for name in pair if name in matrices] for pair in VIEWS if pair[0] in matrices), matrices)
        views = [_matching(names, pattern) for pattern in patterns] or [[name] for name in usual]
        if not 1 <= len(views) <= 2 or not all(len(view) == 1 and view[0] in matrices for view in views):
            shown = {name: column.shape for name, column in list(columns.items())[:8]}
            raise ValueError(f"expected one or two matrices (n, d), called z_a and z_b or a and b; found {shown}")
        if not patterns:
            _refuse_splits(usual, "arrays")
        return views
    if not patterns:
        names = [name for name in names if name not in LABELS]
        if len(names) < 2 and not any("vectors" in str(columns[name].dtype) for name in names):
            raise ValueError(f"a view needs 2 to {MAX_FEATURES} columns of features, found {_few(names) or 'none'}")
        for name in names:
            kind, fault = columns[name].dtype, ""
            if name.lower() in (*LABELS, *(() if label else ("class", "classes"))):
                fault = f"is no feature: labels are called {', '.join(LABELS)}, or --label-column; else"
            elif INDEX.fullmatch(name):
                fault = "looks like an index, not a feature:"
            elif not isinstance(kind, np.dtype):
                values = pd.Series(columns[name].load()).astype(str)
                texts = values[pd.to_numeric(values, errors="coerce").isna()].head(1)
                text = "".join(f" ({text!r} in row {row}, from 0)" for row, text in texts.items())
                fault = f"holds {kind}, not numbers{text}: correct it, or choose it as --label-column, or"
            if fault:
                raise ValueError(f"column {name!r} {fault} leave it out, --drop {name!r}")
        _refuse_splits(names, "columns")
        pairs = [f"{a}_* {b}_*".split() for a, b in VIEWS]
        patterns = next((p for p in pairs if all(any(fnmatchcase(n, one) for n in names) for one in p)), ["*"])
    views = [_matching(names, pattern) for pattern in patterns]
    if view_a is None and (rest := sorted(set(names).difference(*views))):
        raise ValueError(f"two views have columns {' and '.join(patterns)}, column {rest[0]!r} is neither")
    if len(views) == 2:  # features are paired by name, not by position
        a, b = ({name.removeprefix(p.split("*")[0]): name for name in v} for v, p in zip(views, patterns, strict=True))
        if alone := sorted(a.keys() ^ b.keys()):
            raise ValueError(f"every column of a view needs a partner in the other one; {(a | b)[alone[0]]!r} has none")
        views[1] = [b[key] for key in a]
    return views


def _load(columns: dict[str, Column], view: list[str], rows: Any, suspicious: bool) -> Tensor:
    """Return the values of a view; ValueError for a `suspicious` column that counts the rows."""
    parts = []
    for name in view:
        values = columns[name].load()
        if isinstance(columns[name].dtype, np.dtype) and values.dtype == object:  # integers and missing values
            values = values.astype(float)
        if values.ndim == 1 and values.dtype.kind == "f" and len(bad := np.flatnonzero(~np.isfinite(values))):
            found = f"{len(bad)} values that are empty or not finite, the first in row {bad[0]} (from 0)"
            raise ValueError(f"column {name!r} holds {found}: correct them, or --drop {name!r}")
        if suspicious and values.ndim == 1 and values[0] % 1 == 0:  # few features are whole
            steps = np.diff(ordered := np.sort(values))
            in_order = np.array_equal(ordered, values) or np.array_equal(ordered, values[::-1])
            rising = values.dtype.kind in "iu" and len(values) >= 8 and in_order and (steps > 0).all()
            if rising or (steps == 1).all():
                raise ValueError(f"column {name!r} counts the rows like an index: leave it out, --drop {name!r}")
        parts.append(values[rows])
    return real_floats(parts[0] if parts[0].ndim == 2 else np.column_stack(parts), _few(view))


def _read_labels(path: Path, label: str | None, drop: Sequence[str], n: int, seen: list[str]) -> tuple[Any, str]:
    """Return the labels for `n` rows and the name of the file, whose first line may be one of them, not their name."""
    if (suffix := path.suffix.lower()) not in (".npy", *TABLES):
        raise ValueError(f"{path}: labels are read from .npy, .csv, .tsv and .parquet")
    with named_errors(path):
        columns = read_columns(path, label)
        name = next(iter(columns)) if len(columns) == 1 else _label_name(columns, label)
        if name is None:
            raise ValueError(f"expected one column, or one called {', '.join(LABELS)}; found {_few(columns)}")
        given = {name}.union(*(_matching(columns, pattern, True) for pattern in drop))
        if others := [other for other in columns if other not in given and (label is None or INDEX.fullmatch(other))]:
            remedy = f"give {name!r} alone, in the order of the rows, or --drop {others[0]!r} if they are in this order"
            raise ValueError(f"rows are matched by position, {_few(others)} not compared: {remedy}")
        values, source = columns[name].checked(name)(), printable(path)
        if suffix in (".csv", ".tsv") and len(columns) == 1 and len(values) == n - 1 and name in values.astype(str):
            columns = read_columns(path, label, header=False)
            values, source, suffix = columns["label"].load(), f"{source} without a header", ".npy"
        seen += [str(label)] if suffix == ".npy" else columns  # any name is right for unnamed labels
        return values, source


def _with_labels(found: Embeddings, values: np.ndarray | Tensor, source: str) -> Embeddings:
    """Return the embeddings with labels, or with a continuous target; the note says which."""
    values = to_array(values) if isinstance(values, Tensor) else values  # arrays may hold missing values
    if values.shape != (n := len(found.z_a),):
        raise ValueError(f"{found.name}: {n} rows need labels of shape ({n},), got {values.shape}")
    if values.dtype.kind in "OS":
        values = np.array([v.decode(errors="replace") if isinstance(v, bytes) else v for v in values], object)
    table = (pd.DataFrame({"row": range(n)}) if found.table is None else found.table).assign(label=values)
    given = ~pd.isna(values) & (values != "" if values.dtype.kind in "OU" else True)
    labels = np.asarray(pd.Series(values[given]).infer_objects())
    if len(labels) < MIN_ROWS:
        raise ValueError(f"{len(labels)} of {n} rows have labels in {source}, {MIN_ROWS} are needed: leave it out")
    words = f". {n - len(labels)} of {n} labels are missing: what needs labels uses the other rows"
    missing = words if len(labels) < n else ""
    if labels.dtype.kind == "f" and not np.isfinite(labels).all():
        raise ValueError(f"the labels of {source} must be finite, got {labels[~np.isfinite(labels)][0]}")
    if labels.dtype.kind in "iuf":
        whole, different = not (labels % 1).any(), len(labels) >= RARE and 2 * len(np.unique(labels)) > len(labels)
        if different or not whole:
            target = np.full(n, np.nan)
            target[given] = labels
            words = f"Continuous target: {source}, {labels.min():g} to {labels.max():g}; a probe needs classes"
            words += "; most of these whole numbers differ: if they are classes, write them as words" * whole
            return replace(found, target=target, note=f"{found.note}. {words}{missing}", table=table)
    if labels.dtype.kind == "f" and np.abs(labels).max() < 2**63:
        labels = labels.astype(np.int64)  # pandas keeps integers as floats in a column with missing values
    if labels.dtype.kind == "O":
        Column((n, max(len(str(label)) for label in pd.unique(labels))), np.dtype("U1")).checked(source)
    labels = as_labels(f"the labels of {source}", labels)
    classes = pd.Series([str(label) for label in np.unique(labels)])
    if len(twins := classes[classes.str.strip().duplicated(keep=False)]):
        pair = " and ".join(map(repr, twins[:2]))
        raise ValueError(f"the labels of {source} hold {pair}, which differ in spaces only")
    words = "".join(f". The text {label!r} is a class" for label in classes if label.strip().lower() in MISSING)
    if labels.dtype.kind in "iu" and len(classes) > RARE:
        words += "; if these whole numbers are amounts, write one of them with a fraction, such as 41.001"
    note = f"{found.note}. Labels: {source}, {len(classes)} classes: {_few(classes)}{words}{missing}"
    labelled = np.flatnonzero(given) if missing else None
    features = None if labelled is None else found.z_a[labelled]
    return replace(found, labels=labels, features=features, note=note, table=table, labelled=labelled)


def known_labels(found: Embeddings, n: int) -> pd.Series:
    """Return the labels by the numbers of their rows; none if they are of other rows than these `n`."""
    labels: Any = [] if found.labels is None or (found.labelled is None and len(found.labels) != n) else found.labels
    return pd.Series(labels, found.labelled, dtype=object)


def _few(names: Iterable[str]) -> str:
    """Return the names in words, of many the first and the last."""
    names = list(map(printable, names))
    return ", ".join(map(repr, names)) if len(names) <= 8 else f"{names[0]!r} to {names[-1]!r} ({len(names)})"


def _matching(names: Collection[str], pattern: str, elsewhere: bool = False) -> list[str]:
    """Return the name, or the names that match the pattern, at least one unless it may be `elsewhere`."""
    found = [pattern] if pattern in names else [name for name in names if fnmatchcase(name, pattern)]
    if not found and not elsewhere:
        raise ValueError(f"no column or array is called {pattern!r}; there are {_few(names) or 'none'}")
    return found


def _refuse_splits(names: Sequence[str], what: str) -> None:
    """Raise ValueError for names of training and test splits, which are no views."""
    kinds, short = {split_of(name) for name in names}, {split_of(name, SHORT) for name in names}
    if (len(kinds) > 1 and what != "columns") or (len(short) > 1 and None not in short):
        first = re.sub(r"\d+$", "*", names[0]) if what == "columns" else names[0]
        raise ValueError(f"the {what} {_few(names)} look like splits, not views: choose one, --view-a {first!r}")


def sample(n: int, most: int) -> np.ndarray:
    """Return ``min(n, most)`` of the rows 0 to n - 1, drawn without replacement, in ascending order."""
    return np.sort(np.random.default_rng(0).choice(n, min(n, most), replace=False))


def real_floats(values: np.ndarray | Tensor, name: str) -> Tensor:
    """Return real numbers on the CPU as float32, or as float64 if their means are large; ValueError for others."""
    if isinstance(values, Tensor):
        given, real = values.detach().cpu(), not values.is_complex() and values.dtype != torch.bool
    elif real := values.dtype.kind in "iuf":
        given = as_tensor(values, name, shared=True)
    if not real:
        raise ValueError(f"{name} must hold real numbers, got {values.dtype}")
    # A memory map is read-only, and its file may change: everything is copied.
    single = torch.empty(given.shape).copy_(given)
    if given.itemsize < 4 or given.dtype == torch.float32 or given.ndim != 2 or len(given) < 2 or not given.numel():
        return single
    largest = float(torch.maximum(given.max(), -given.min()))
    if np.isfinite(largest) and (largest > torch.finfo(torch.float32).max or (largest > 0 and not single.any())):
        raise ValueError(f"{name} reaches {largest:.3g}, outside the range of float32: rescale it")
    mean, variance = column_moments(exact := given.double())
    lost = (2**-24 * mean.abs() > 1e-4 * variance.sqrt()) & (variance > 0)  # by the rounding of float32
    return torch.empty(given.shape, dtype=torch.float64).copy_(exact) if lost.any() else single

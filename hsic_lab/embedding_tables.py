"""Embeddings in tables, CSV and Parquet: which columns are features, of which view, and which are no features."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from hsic_lab.embedding_arrays import LABELS, MOST_VALUES, VIEWS, Embeddings, assemble, refuse_huge

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
    facts = pa.parquet.read_metadata(path)
    refuse_huge({"the table": (facts.num_rows, facts.num_columns)})
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
        raise ValueError(f"column {strange[0]!r} holds {table.schema.field(strange[0]).type}, not numbers; "
                         f"labels belong into a column called {' or '.join(LABELS)}")
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

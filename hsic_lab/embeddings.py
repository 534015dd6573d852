"""Somebody's embeddings in a file, or a run, as one or two views and labels: nothing is unpickled."""

import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import torch
from safetensors import SafetensorError, safe_open

from hsic_lab.datasets import load
from hsic_lab.embedding_arrays import LABELS, MOST_VALUES, Embeddings, assemble, plain_labels, refuse_huge
from hsic_lab.embedding_tables import csv_table, read_csv, read_parquet
from hsic_lab.frozen import extract_features
from hsic_lab.pairs import held_out_pairs
from hsic_lab.runs import Run
from hsic_lab.training import TrainConfig

__all__ = ["READERS", "Embeddings", "read_embeddings"]


def read_embeddings(
    path: str | Path, second: str | Path | None = None, labels: str | Path | None = None
) -> Embeddings:
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
            raise ValueError(f"{path}: expected one column, or one called {' or '.join(LABELS)}; "
                             f"found {table.column_names}")
        return plain_labels(table[names[0]].to_pandas(), path)


def _read_run(folder: Path) -> Embeddings:
    run = Run.load(folder)
    if run.facts.get("views") == "custom":
        raise ValueError(f"{folder} was trained with views of your own: give the projections of two such views instead")
    data = load(run.config["dataset"])
    with torch.no_grad():
        pairs = held_out_pairs(data, TrainConfig.from_json(run.config), torch.device("cpu"))
        z_a, z_b = (torch.cat([run.projector(run.encoder(x)) for x in view.split(512)]) for view in pairs)
    judged = data.test.sample(min(MOST_VALUES // 4096, len(data.test)))
    features = extract_features(run.encoder, judged.images)
    return Embeddings(z_a.float(), z_b.float(), judged.labels.numpy(), features, name=f"{folder} on {data.name}")


READERS: dict[str, Callable[[Path], Embeddings]] = {
    ".npy": _read_npy, ".npz": _read_npz, ".csv": read_csv, ".parquet": read_parquet,
    ".safetensors": _read_safetensors,
}

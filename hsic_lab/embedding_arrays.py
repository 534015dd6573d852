"""What a report is about, and how arrays of any names become it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from hsic_lab.checks import as_labels

MOST_VALUES = 1 << 28  # of a view: 1 GiB in float32, twice 50 000 x 2048
MOST_FEATURES = 1 << 13  # C of more has 256 MiB in float32 and is no picture
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

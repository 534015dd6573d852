"""Several representations under one linear probe: a table, and its summary."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from joblib import Parallel, delayed

from hsic_lab.checks import as_labels
from hsic_lab.labelled import Data, chance_accuracy, checked_splits
from hsic_lab.logistic import linear_probe
from hsic_lab.penalty import stratified_split


def probe_table(
    features: Mapping[str, tuple[Data, Data]], train_y: Data, test_y: Data,
    splits: int = 3, n_train: int | None = None, n_jobs: int | None = None,
) -> pd.DataFrame:
    """Linear-probe accuracy of several representations, each over the same `splits` random training subsets.

    `features` maps a name to `(train_x, test_x)`. Split s draws a stratified subset of `n_train` training
    rows (80 % of them by default) with seed s, the same rows for every representation, and probes it with its
    own validation split. The spread is that of the probe's training rows: it says nothing about other
    training seeds of the encoder. `n_jobs` processes share the work, as in scikit-learn: None is 1, -1 all cores.

    Returns one row per (representation, split): `representation, split, accuracy, C, n_train, n_test,
    chance`, where `chance` is the test accuracy of always answering the commonest training class.
    """
    if not features:
        raise ValueError("features must name at least one representation, got none")
    if splits < 1:
        raise ValueError(f"splits must be at least 1, got {splits}")
    train_y, test_y = as_labels("train_y", train_y), as_labels("test_y", test_y)
    size = round(0.8 * len(train_y)) if n_train is None else n_train
    if not 0 < size < len(train_y):
        raise ValueError(f"n_train must be between 1 and {len(train_y) - 1}, got {size}")
    subsets = [stratified_split(np.arange(len(train_y)), train_y, size, s)[0] for s in range(splits)]
    tasks = []
    for name, (train_x, test_x) in features.items():
        # Arrays, since joblib hands large ones to its processes without a copy.
        train, test = (x.cpu().numpy() for x in checked_splits(train_x, train_y, test_x, test_y)[:2])
        tasks += [
            delayed(_probe_row)(name, split, train, train_y, subset, test, test_y)
            for split, subset in enumerate(subsets)
        ]
    return pd.DataFrame(Parallel(n_jobs=n_jobs)(tasks)).assign(chance=chance_accuracy(train_y, test_y))


def probe_summary(table: pd.DataFrame) -> pd.DataFrame:
    """Mean and standard deviation (m - 1; NaN for one split) of a `probe_table` over its splits."""
    grouped = table.groupby("representation", sort=False)["accuracy"]
    return grouped.agg(mean="mean", std="std", splits="size")


def _probe_row(name, split, train, train_y, subset, test, test_y) -> dict[str, str | int | float]:
    result = linear_probe(train[subset], train_y[subset], test, test_y, seed=split)
    return {
        "representation": name, "split": split, "accuracy": result.accuracy, "C": result.C,
        "n_train": result.n_train, "n_test": result.n_test,
    }

"""Linear probes: logistic regression on frozen features, tables of probes, few-label curves, confusion matrix."""

import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
import torch
from joblib import Parallel, delayed
from scipy.special import logsumexp
from sklearn import config_context
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import confusion_matrix
from sklearn.model_selection import train_test_split
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits
from torch import Tensor

from hsic_lab._checks import as_labels
from hsic_lab.correlation import column_moments, to_array
from hsic_lab.evaluation._features import Data, chance_accuracy, check_splits

CS = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
VALIDATION = 0.2
_MAX_ITERATIONS = 10_000
Features = Mapping[str, tuple[Data, Data]]
Array = Tensor | np.ndarray


@dataclass(frozen=True)
class ProbeResult:
    """Result of `linear_probe`.

    Attributes
    ----------
    accuracy, C : float
        Test accuracy, and the chosen inverse strength of the L2 penalty.
    validation_scores : dict of float to float
        Validation accuracy of every C that was tried.
    predictions, classes : ndarray of shape (n_test,) and (k,)
        Predicted labels of the test rows, and the sorted labels.
    n_train, n_test : int
        Numbers of rows.
    model : Pipeline
        Fitted scaler and classifier of scikit-learn, for NumPy arrays.
    """

    accuracy: float
    C: float
    validation_scores: dict[float, float]
    predictions: np.ndarray = field(repr=False)
    n_train: int
    n_test: int
    classes: np.ndarray = field(repr=False)
    model: Pipeline = field(repr=False)


def linear_probe(
    train_x: Data,
    train_y: Data,
    test_x: Data,
    test_y: Data,
    *,
    Cs: Sequence[float] = CS,
    validation: float = VALIDATION,
    seed: int = 0,
) -> ProbeResult:
    """Fit multinomial logistic regression on standardized features, with an L2 penalty chosen without the test rows.

    The objective is ``C sum_i log-loss_i + |W|^2 / 2``. Each C, from the strongest penalty on, is scored on a
    stratified part of the training rows, until two values in a row score below the best one. The best C (the smallest
    on a tie) is refitted on all training rows, and the test rows are predicted once. Features that are constant up to
    rounding get the weight 0. The solver is L-BFGS in float64. Tensors on a GPU stay there if scikit-learn dispatches
    to torch, which needs version 1.9 and ``SCIPY_ARRAY_API=1`` set before SciPy is imported; else NumPy is used.

    Parameters
    ----------
    train_x, test_x : array-like or Tensor of shape (n_train, p) and (n_test, p)
        Features.
    train_y, test_y : array-like or Tensor of shape (n_train,) and (n_test,)
        Labels: integers, booleans or strings.
    Cs : sequence of float
        Candidates for C, the inverse strength of the penalty.
    validation : float, default 0.2
        Share of the training rows on which C is chosen.
    seed : int, default 0
        Seed of that split.

    Raises
    ------
    ValueError
        For splits that do not fit together, features that are not finite or whose squares overflow, fewer than two
        classes, a class with fewer than two training rows, a test class without any, and a C that is not positive.
    RuntimeError
        If the solver does not converge.

    Examples
    --------
    >>> from hsic_lab.evaluation import linear_probe
    >>> x, y = [[-1.2], [-1.0], [1.0], [1.1]] * 5, ["left", "left", "right", "right"] * 5
    >>> linear_probe(x, y, [[-0.9], [1.3]], ["left", "right"]).accuracy
    1.0
    """
    train, test, train_y, test_y = check_splits(train_x, train_y, test_x, test_y)
    if not Cs or not all(np.isfinite(C) and C > 0 for C in Cs):
        raise ValueError(f"Cs must be positive finite values of C, got {tuple(Cs)}")
    variance = column_moments(train)[1]
    if not variance.isfinite().all():
        raise ValueError(f"features reach {float(train.abs().max()):.3g}, and their squares overflow: rescale them")
    # The line search of the solver is reliable in float64, for a quarter more time than in float32.
    x = _for_sklearn(train.double().masked_fill(variance == 0, 0))
    fit, held = validation_split(train_y, validation, seed)
    with _solver(x):
        scores = _validation_scores(x[fit], train_y[fit], x[held], train_y[held], sorted(Cs))
        C = max(scores, key=lambda C: scores[C])  # the first of equal scores belongs to the strongest penalty
        model = make_pipeline(StandardScaler(), LogisticRegression(C=C, max_iter=_MAX_ITERATIONS)).fit(x, train_y)
        predictions = to_array(model.predict(_for_sklearn(test.to(train.device).double())))
    for step in model:
        vars(step).update({name: to_array(value) for name, value in vars(step).items() if isinstance(value, Tensor)})
    accuracy = float(np.mean(predictions == test_y))
    return ProbeResult(accuracy, C, scores, predictions, len(train), len(test), model.classes_, model)


def validation_split(y: np.ndarray, share: float = VALIDATION, seed: int = 0) -> list[np.ndarray]:
    """Positions of the rows to fit on and of the rows to choose C on."""
    if not 0 < share < 1:
        raise ValueError(f"validation must be a share between 0 and 1, got {share}")
    return _stratified_split(y, len(y) - round(share * len(y)), seed)


def _stratified_split(y: np.ndarray, size: int, seed: int) -> list[np.ndarray]:
    """Split positions into `size` rows and the rest, with the same shares of the classes."""
    classes, counts = np.unique(y, return_counts=True)
    if counts.min() < 2:
        rare = classes[counts.argmin()].item()
        raise ValueError(f"every class needs at least 2 training rows, class {rare!r} has {counts.min()}")
    if min(size, len(y) - size) < len(classes):
        raise ValueError(
            f"{len(y)} training rows split into {size} and {len(y) - size}: each part needs a row for each "
            f"of the {len(classes)} classes"
        )
    return train_test_split(np.arange(len(y)), train_size=size, stratify=y, random_state=seed)


def _for_sklearn(x: Tensor) -> Array:
    """Keep a tensor on a GPU if scikit-learn can compute there, else return a NumPy array."""
    return x if x.device.type == "cuda" and _dispatches() else x.cpu().numpy()


def _dispatches() -> bool:
    """Whether SciPy and scikit-learn compute on torch tensors."""
    if os.environ.get("SCIPY_ARRAY_API") != "1" or not isinstance(logsumexp(torch.zeros(2)), Tensor):
        return False  # not set, or set after SciPy was imported
    return LogisticRegression().__sklearn_tags__().array_api_support


@contextmanager
def _solver(x: Array) -> Iterator[None]:
    """Settings for scikit-learn's solver on `x`; a ConvergenceWarning becomes a RuntimeError."""
    # The solver alternates many small products with Python code. A second BLAS thread gains nothing on idle cores,
    # and its busy waiting makes a fit ten times slower on shared cores.
    with threadpool_limits(1), config_context(array_api_dispatch=isinstance(x, Tensor)), warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)
        try:
            yield
        except ConvergenceWarning as warning:
            raise RuntimeError(f"the linear probe did not converge: {warning}") from warning


def _validation_scores(fit_x, fit_y, held_x, held_y, Cs: Sequence[float]) -> dict[float, float]:
    """Validation accuracy for ascending C, until two values in a row score below the best one."""
    scaler = StandardScaler().fit(fit_x)
    fit_x, held_x = scaler.transform(fit_x), scaler.transform(held_x)
    # A looser tolerance, because weak penalties are rarely chosen and would take four fifths of the time.
    model = LogisticRegression(tol=1e-3, max_iter=_MAX_ITERATIONS, warm_start=True)
    scores: dict[float, float] = {}
    for C in Cs:
        predictions = to_array(model.set_params(C=C).fit(fit_x, fit_y).predict(held_x))
        scores[C] = float(np.mean(predictions == held_y))
        if len(scores) > 2 and max(list(scores.values())[-2:]) < max(scores.values()):
            break
    return scores


def probe_table(
    features: Features,
    train_y: Data,
    test_y: Data,
    splits: int = 3,
    n_train: int | None = None,
    n_jobs: int | None = None,
) -> pd.DataFrame:
    """Linear-probe accuracy of several representations on the same random training subsets.

    The spread over the subsets measures the probe. It says nothing about other training seeds of the encoder.

    Parameters
    ----------
    features : mapping of str to (train_x, test_x)
        Features of every representation, as in `linear_probe`.
    train_y, test_y : array-like or Tensor
        Labels.
    splits : int, default 3
        Number of stratified subsets; the number of a subset is its seed.
    n_train : int or None
        Rows of a subset, None for 80 % of the training rows.
    n_jobs : int or None
        Number of processes, as in scikit-learn.

    Returns
    -------
    DataFrame
        One row per representation and split: `representation, split, accuracy, C, n_train, n_test, chance`, where
        `chance` is the test accuracy of always predicting the most frequent training class.
    """
    if splits < 1:
        raise ValueError(f"splits must be at least 1, got {splits}")
    train_y, test_y = as_labels("train_y", train_y), as_labels("test_y", test_y)
    size = round(0.8 * len(train_y)) if n_train is None else n_train
    if not 0 < size < len(train_y):
        raise ValueError(f"n_train must be between 1 and {len(train_y) - 1}, got {size}")
    draws = [({"split": split}, _stratified_split(train_y, size, split)[0], split) for split in range(splits)]
    return _probe_rows(features, train_y, test_y, draws, n_jobs)


def few_label_curve(
    features: Features,
    train_y: Data,
    test_y: Data,
    per_class: Sequence[int] = (10, 50, 100),
    seeds: int = 5,
    n_jobs: int | None = None,
) -> pd.DataFrame:
    """Linear-probe accuracy against the number of labeled training rows of each class.

    Every seed shuffles each class once and takes its first rows, so its training sets are nested and the same for all
    representations. The spread over the seeds says nothing about other training seeds of the encoder.

    Parameters
    ----------
    features, train_y, test_y, n_jobs
        As in `probe_table`.
    per_class : sequence of int
        Numbers of labeled rows of each class.
    seeds : int, default 5
        Number of draws.

    Returns
    -------
    DataFrame
        One row per representation, number and seed: `representation, per_class, seed, accuracy, C, n_test, chance`.
    """
    if not per_class or seeds < 1:
        raise ValueError(f"per_class must not be empty and seeds at least 1, got {list(per_class)} and {seeds}")
    train_y, test_y = as_labels("train_y", train_y), as_labels("test_y", test_y)
    classes, counts = np.unique(train_y, return_counts=True)
    # The validation part of `linear_probe` needs a row of each class.
    fewest = next(m for m in range(2, 10) if round(VALIDATION * m * len(classes)) >= len(classes))
    if not fewest <= min(per_class) <= max(per_class) <= counts.min():
        rare = classes[counts.argmin()].item()
        raise ValueError(
            f"per_class must lie between {fewest}, of which one is held out for the penalty, and {counts.min()}, the "
            f"rows of class {rare!r}, got {list(per_class)}"
        )
    draws = []
    for m, seed in product(per_class, range(seeds)):
        generator = np.random.default_rng(seed)
        shuffled = [generator.permutation(np.flatnonzero(train_y == label)) for label in classes]
        draws.append(({"per_class": m, "seed": seed}, np.concatenate([rows[:m] for rows in shuffled]), seed))
    return _probe_rows(features, train_y, test_y, draws, n_jobs).drop(columns="n_train")


def _probe_rows(features: Features, train_y, test_y, draws: Sequence[tuple], n_jobs: int | None) -> pd.DataFrame:
    """Probe every representation on every draw: columns of the table, training rows, seed of the validation split."""
    if not isinstance(features, Mapping):
        raise TypeError(f"features must map a name to (train_x, test_x), got {type(features).__name__}")
    if not features:
        raise ValueError("features must name at least one representation, got none")
    tasks = []
    for name, (train_x, test_x) in features.items():
        # joblib hands large arrays to its processes without a copy.
        train, test = map(_for_sklearn, check_splits(train_x, train_y, test_x, test_y)[:2])
        task = {"representation": name}, train, train_y, test, test_y
        tasks += [delayed(_probe_row)(*task, *draw) for draw in draws]
    return pd.DataFrame(Parallel(n_jobs=n_jobs)(tasks)).assign(chance=chance_accuracy(train_y, test_y))


def _probe_row(name, train, train_y, test, test_y, columns, rows, seed) -> dict[str, Any]:
    """One row of a table of probes."""
    result = linear_probe(train[rows], train_y[rows], test, test_y, seed=seed)
    return name | columns | {k: getattr(result, k) for k in ("accuracy", "C", "n_train", "n_test")}


def confusion(test_y: Data, predictions: Data, class_names: Sequence[str] | None = None) -> pd.DataFrame:
    """Confusion matrix: counts of test rows by true class and predicted class.

    Parameters
    ----------
    test_y, predictions : array-like or Tensor of shape (n,)
        True labels (rows of the result) and predicted labels (columns).
    class_names : sequence of str or None
        Names of the labels 0, 1, ...; None for the sorted labels that occur.

    Examples
    --------
    >>> from hsic_lab.evaluation import confusion
    >>> confusion([0, 0, 1], [0, 1, 1], ["cat", "dog"]).to_numpy().tolist()
    [[1, 1], [0, 1]]
    """
    test_y, predictions = as_labels("test_y", test_y), as_labels("predictions", predictions)
    if len(test_y) != len(predictions):
        raise ValueError(f"test_y and predictions must have the same length, got {len(test_y)}, {len(predictions)}")
    labels = np.union1d(test_y, predictions)
    names = list(labels if class_names is None else class_names)
    if class_names is not None:
        if len(nameless := np.setdiff1d(labels, np.arange(len(names)))):
            raise ValueError(f"class_names must name the labels 0 to {len(names) - 1}, got also {nameless.tolist()}")
        labels = np.arange(len(names))
    counts = confusion_matrix(test_y, predictions, labels=labels)
    return pd.DataFrame(counts, pd.Index(names, name="true"), pd.Index(names, name="predicted"))

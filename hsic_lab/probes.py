"""Probes beside `evaluation.linear_probe`: a fast one in torch, few-label curves, the confusion matrix."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import torch
from joblib import Parallel, delayed
from scipy.stats import t as student_t
from sklearn.metrics import confusion_matrix
from torch import Tensor

from hsic_lab.checks import as_labels, full_precision
from hsic_lab.labelled import Data, chance_accuracy, checked_splits
from hsic_lab.logistic import ProbeOutcome, linear_probe
from hsic_lab.penalty import STRENGTHS, VALIDATION, check_strengths, penalty_path, stratified_split
from hsic_lab.softmax import SoftmaxSolver
from hsic_lab.spectra import column_moments


@dataclass(frozen=True)
class FastProbeResult(ProbeOutcome):
    """The outcome of `fast_probe`, with the solution.

    `coef` (K, p) and `intercept` (K,) are those of scikit-learn's LogisticRegression on `(x - mean) / scale`, with
    K = 1 for two classes, in float64; the `scale` of a constant feature is infinite. `loss` is the objective there,
    `iterations` are those of the last fit, `seconds` the time from checked features to predictions, the choice of C
    included.
    """

    coef: Tensor = field(repr=False)
    intercept: Tensor = field(repr=False)
    mean: Tensor = field(repr=False)
    scale: Tensor = field(repr=False)
    loss: float
    iterations: int
    seconds: float


def fast_probe(
    train_x: Data, train_y: Data, test_x: Data, test_y: Data,
    *, C: float | None = None, strengths: Sequence[float] = STRENGTHS, validation: float = VALIDATION, seed: int = 0,
    tolerance: float = 1e-4,
) -> FastProbeResult:
    """`linear_probe` for large sets: the same objective and the same choice of C, by torch's L-BFGS on the features.

    Minimises `C sum_i log-loss_i + |W|^2 / 2` over W and a free intercept, on features standardised by the training
    rows: scikit-learn's LogisticRegression behind a StandardScaler, softmax for three classes or more, one logit for
    two. Runs on the device of `train_x`, first in float32, then in float64 (near the optimum the values that a line
    search compares agree in float32) until no entry of the gradient of the objective over `C n` exceeds `tolerance`,
    scikit-learn's rule and default. Solvers that stop by it differ by a tenth of a point at 1e-4, not at 1e-6. With
    `C` given nothing is chosen; else the path over `strengths` on a stratified share `validation` is that of
    `linear_probe`, and so are the errors.
    """
    train, test, train_y, test_y = checked_splits(train_x, train_y, test_x, test_y)
    check_strengths(strengths if C is None else (C,), validation)
    test = test.to(train.device)
    start = time.perf_counter()
    classes, targets = np.unique(train_y, return_inverse=True)
    scores: dict[float, float] = {}
    if C is None:
        fit_rows = len(train) - round(validation * len(train))
        fit, held, *_ = stratified_split(np.arange(len(train)), train_y, fit_rows, seed)
        scores = _validation_scores(train, fit, held, targets[fit], targets[held], sorted(strengths))
        C = max(scores, key=scores.get)  # the first of equals: the strongest penalty
    mean, scale = _scaler(train)
    with full_precision(train):
        standardized = (train - mean) / scale
        solver = SoftmaxSolver(standardized, torch.as_tensor(targets, device=train.device), len(classes))
        iterations = solver.fit(C, tolerance)
        predictions = classes[solver.predict((test - mean) / scale).cpu().numpy()]
        loss = solver.objective(C)
    coef, intercept = solver.weights, solver.intercept
    return FastProbeResult(
        float(np.mean(predictions == test_y)), C, scores, predictions, len(train), len(test), classes,
        coef, intercept, mean, scale, loss, iterations, time.perf_counter() - start,
    )


def few_label_curve(
    features: Mapping[str, tuple[Data, Data]], train_y: Data, test_y: Data,
    per_class: Sequence[int] = (10, 50, 100), seeds: int = 5, n_jobs: int | None = None,
) -> pd.DataFrame:
    """Linear-probe accuracy against the number of labelled rows of each class, over `seeds` draws of them.

    `features` maps a name to `(train_x, test_x)`. Seed s shuffles every class once; its first m rows are the training
    set for m labels per class, so that sets are nested, and the same for every representation. Each is probed by
    `linear_probe` with its own validation split. `n_jobs` as in `evaluation.probe_table`.

    Returns one row per (representation, per_class, seed): `representation, per_class, seed, accuracy, C, n_test,
    chance`. The spread is that of the labelled rows: it says nothing about other training seeds of the encoder.
    Raises ValueError as `linear_probe`, and for a class with fewer rows than asked for.
    """
    if not isinstance(features, Mapping):
        raise TypeError(f"features must map a name to (train_x, test_x), got {type(features).__name__}")
    if not features or not per_class or seeds < 1:
        raise ValueError(
            "features and per_class must not be empty and seeds at least 1, got "
            f"{list(features)}, {list(per_class)} and {seeds}"
        )
    train_y, test_y = as_labels("train_y", train_y), as_labels("test_y", test_y)
    classes, counts = np.unique(train_y, return_counts=True)
    # `linear_probe` holds a fifth of the rows out, and needs a row of each class on both sides.
    fewest = next(m for m in range(2, 10) if round(VALIDATION * m * len(classes)) >= len(classes))
    if not fewest <= min(per_class) <= max(per_class) <= counts.min():
        rare = classes[counts.argmin()].item()
        raise ValueError(
            f"per_class must lie between {fewest}, of which one is held out for the penalty, and {counts.min()}, the "
            f"rows of class {rare!r}, got {list(per_class)}"
        )
    shuffled = []
    for seed in range(seeds):
        generator = np.random.default_rng(seed)
        shuffled.append([generator.permutation(np.flatnonzero(train_y == label)) for label in classes])
    tasks = []
    for name, (train_x, test_x) in features.items():
        train, test = (x.cpu().numpy() for x in checked_splits(train_x, train_y, test_x, test_y)[:2])
        tasks += [
            delayed(_curve_row)(name, m, seed, train[subset], train_y[subset], test, test_y)
            for m in per_class for seed in range(seeds)
            for subset in [np.concatenate([rows[:m] for rows in shuffled[seed]])]
        ]
    return pd.DataFrame(Parallel(n_jobs=n_jobs)(tasks)).assign(chance=chance_accuracy(train_y, test_y))


def few_label_summary(table: pd.DataFrame) -> pd.DataFrame:
    """Mean accuracy of a `few_label_curve` and its 95 % interval, one row per (representation, per_class).

    `low, high` are `mean -+ t s / sqrt(m)` over the m seeds, with Student's t of m - 1 degrees of freedom: NaN for one.
    """
    grouped = table.groupby(["representation", "per_class"], sort=False)["accuracy"]
    frame = grouped.agg(mean="mean", std="std", seeds="size").reset_index()
    half = student_t.ppf(0.975, frame["seeds"] - 1) * frame["std"] / np.sqrt(frame["seeds"])
    return frame.drop(columns="std").assign(low=frame["mean"] - half, high=frame["mean"] + half)


def confusion(test_y: Data, predictions: Data, class_names: Sequence[str] | None = None) -> pd.DataFrame:
    """Counts of test rows by their class (rows, "true") and their prediction (columns, "predicted").

    `class_names[k]` names the label k = 0, 1, ...; left out, the labels that occur name themselves, sorted.
    Raises ValueError for labels of different lengths, and labels without a name.
    """
    test_y, predictions = as_labels("test_y", test_y), as_labels("predictions", predictions)
    if len(test_y) != len(predictions):
        raise ValueError(f"test_y and predictions must have the same length, got {len(test_y)}, {len(predictions)}")
    labels = names = np.union1d(test_y, predictions)
    if class_names is not None:
        names, nameless = list(class_names), np.setdiff1d(labels, np.arange(len(class_names)))
        if len(nameless):
            raise ValueError(f"class_names must name the labels 0 to {len(names) - 1}, got also {nameless.tolist()}")
        labels = np.arange(len(names))
    counts = confusion_matrix(test_y, predictions, labels=labels)
    return pd.DataFrame(counts, pd.Index(names, name="true"), pd.Index(names, name="predicted"))


def _validation_scores(train, fit, held, fit_y, held_y, strengths) -> dict[float, float]:
    device = train.device
    mean, scale = _scaler(train[fit])
    with full_precision(train):
        fit_x, held_x = ((train[torch.as_tensor(rows, device=device)] - mean) / scale for rows in (fit, held))
        solver = SoftmaxSolver(fit_x, torch.as_tensor(fit_y, device=device), len(np.unique(fit_y)))
        held_y = torch.as_tensor(held_y, device=device)

        def score(C: float) -> float:
            solver.fit(C, 1e-3)  # looser, as in `linear_probe`
            return float((solver.predict(held_x) == held_y).double().mean())

        return penalty_path(strengths, score)


def _scaler(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the columns; infinity for a constant one, of which 0 is left, and no rounding."""
    mean, variance = column_moments(x)
    if not variance.isfinite().all():
        raise ValueError(f"features reach {float(x.abs().max()):.3g}, and squares leave {variance.dtype}: rescale them")
    return mean, variance.sqrt().masked_fill(variance == 0, torch.inf)


def _curve_row(name, m, seed, train, train_y, test, test_y) -> dict[str, str | int | float]:
    result = linear_probe(train, train_y, test, test_y, seed=seed)
    return {
        "representation": name, "per_class": m, "seed": seed, "accuracy": result.accuracy, "C": result.C,
        "n_test": result.n_test,
    }

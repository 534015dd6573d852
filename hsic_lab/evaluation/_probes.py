"""How a probe chooses its L2 penalty without the test set: a stratified split and a path over C that ends in time."""

import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import torch
from joblib import Parallel, delayed
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import confusion_matrix
from sklearn.model_selection import train_test_split
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits
from torch import Tensor

from hsic_lab._checks import as_labels, no_autocast
from hsic_lab._softmax import SoftmaxSolver
from hsic_lab.correlation import column_moments
from hsic_lab.evaluation._features import Data, chance_accuracy, checked_splits

STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
VALIDATION = 0.2  # the share of the training rows that is held out


def check_strengths(strengths: Sequence[float], validation: float) -> None:
    """ValueError unless the values of C are positive and finite, and the share is one."""
    if not strengths or not all(np.isfinite(C) and C > 0 for C in strengths):
        raise ValueError(f"strengths must be positive finite values of C, got {tuple(strengths)}")
    if not 0 < validation < 1:
        raise ValueError(f"validation must be a share between 0 and 1, got {validation}")


def penalty_path(strengths: Sequence[float], score: Callable[[float], float]) -> dict[float, float]:
    """`score(C)` for C in ascending order, until two values in a row are below the best so far.

    Weaker penalties overfit more, and cost the most.
    """
    scores: dict[float, float] = {}
    for C in strengths:
        scores[C] = score(C)
        if len(scores) > 2 and max(list(scores.values())[-2:]) < max(scores.values()):
            break
    return scores


def stratified_split(x: np.ndarray, y: np.ndarray, size: int, seed: int) -> list[np.ndarray]:
    """`[x_first, x_rest, y_first, y_rest]`, `size` rows in the first part, with the classes' shares kept."""
    classes, counts = np.unique(y, return_counts=True)
    if counts.min() < 2:
        rare = classes[counts.argmin()].item()
        raise ValueError(f"every class needs at least 2 training rows, class {rare!r} has {counts.min()}")
    if min(size, len(y) - size) < len(classes):
        raise ValueError(
            f"{len(y)} training rows split into {size} and {len(y) - size}: each part needs a row for each "
            f"of the {len(classes)} classes"
        )
    return train_test_split(x, y, train_size=size, stratify=y, random_state=seed)


_MAX_ITERATIONS = 10_000


@dataclass(frozen=True)
class ProbeOutcome:
    """What any fitted linear probe tells of its one look at the test set.

    `accuracy` is the share of `predictions` (n_test,) that are right; `C` is the inverse strength of the L2
    penalty and `validation_scores` maps every C tried to its validation accuracy.
    """

    accuracy: float
    C: float
    validation_scores: dict[float, float]
    predictions: np.ndarray = field(repr=False)
    n_train: int
    n_test: int
    classes: np.ndarray = field(repr=False)


@dataclass(frozen=True)
class ProbeResult(ProbeOutcome):
    """The outcome of `linear_probe`; `model` is the fitted scikit-learn pipeline."""

    model: Pipeline


def linear_probe(
    train_x: Data,
    train_y: Data,
    test_x: Data,
    test_y: Data,
    *,
    strengths: Sequence[float] = STRENGTHS,
    validation: float = VALIDATION,
    seed: int = 0,
) -> ProbeResult:
    """Multinomial logistic regression on standardized features, its L2 penalty chosen without the test set.

    `strengths` are values of C, the inverse penalty. Each is scored on a stratified share `validation` of the
    training rows; the best one (the stronger penalty on a tie) is refitted on all training rows, and the test
    rows are predicted once. The path over C starts from the strongest penalty, each solution starting the next,
    with a looser tolerance, and ends once two values in a row score below the best; the refit starts afresh
    and is solved to scikit-learn's default tolerance. Constant features count as zero.

    Raises ValueError as `labelled.checked_splits`, for a class with fewer than two training rows, and
    for a C that is not positive; RuntimeError if the solver does not converge.
    """
    train, test, train_y, test_y = checked_splits(train_x, train_y, test_x, test_y)
    check_strengths(strengths, validation)
    # Float64: the solver's line search is reliable there, for a quarter more time than in float32.
    train, test = (x.cpu().double().numpy() for x in (train, test))

    fit_rows = len(train) - round(validation * len(train))
    fit_x, held_x, fit_y, held_y = stratified_split(train, train_y, fit_rows, seed)
    scores = _validation_scores(fit_x, fit_y, held_x, held_y, sorted(strengths))
    C = max(scores, key=scores.get)  # the first of equals: the strongest penalty

    model = make_pipeline(StandardScaler(), LogisticRegression(C=C, max_iter=_MAX_ITERATIONS))
    with _solver():
        model.fit(train, train_y)
    predictions = model.predict(test)
    return ProbeResult(
        float(np.mean(predictions == test_y)),
        C,
        scores,
        predictions,
        n_train=len(train),
        n_test=len(test),
        classes=model.classes_,
        model=model,
    )


@contextmanager
def _solver() -> Iterator[None]:
    """One BLAS thread, and a ConvergenceWarning is an error."""
    # The solver alternates many small products with Python: a second thread gains nothing on idle cores, and
    # its busy waiting made a fit ten times slower on cores that others use too.
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)
        try:
            yield
        except ConvergenceWarning as warning:
            raise RuntimeError(f"the linear probe did not converge: {warning}") from warning


def _validation_scores(fit_x, fit_y, held_x, held_y, strengths: Sequence[float]) -> dict[float, float]:
    """Validation accuracy for C in ascending order, each solution the start of the next."""
    scaler = StandardScaler().fit(fit_x)
    fit_x, held_x = scaler.transform(fit_x), scaler.transform(held_x)
    # A looser tolerance: the weak penalties, rarely chosen, would otherwise take four fifths of the time.
    model = LogisticRegression(tol=1e-3, max_iter=_MAX_ITERATIONS, warm_start=True)

    def score(C: float) -> float:
        with _solver():
            model.set_params(C=C).fit(fit_x, fit_y)
        return float(model.score(held_x, held_y))

    return penalty_path(strengths, score)


def probe_table(
    features: Mapping[str, tuple[Data, Data]],
    train_y: Data,
    test_y: Data,
    splits: int = 3,
    n_train: int | None = None,
    n_jobs: int | None = None,
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


def _probe_row(name, split, train, train_y, subset, test, test_y) -> dict[str, str | int | float]:
    result = linear_probe(train[subset], train_y[subset], test, test_y, seed=split)
    return {
        "representation": name,
        "split": split,
        "accuracy": result.accuracy,
        "C": result.C,
        "n_train": result.n_train,
        "n_test": result.n_test,
    }


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
    train_x: Data,
    train_y: Data,
    test_x: Data,
    test_y: Data,
    *,
    C: float | None = None,
    strengths: Sequence[float] = STRENGTHS,
    validation: float = VALIDATION,
    seed: int = 0,
    tolerance: float = 1e-4,
) -> FastProbeResult:
    """`linear_probe` for large sets: the same objective and the same choice of C, by torch's L-BFGS on the features.

    Minimizes `C sum_i log-loss_i + |W|^2 / 2` over W and a free intercept, on features standardized by the training
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
        scores = _fast_validation_scores(train, fit, held, targets[fit], targets[held], sorted(strengths))
        C = max(scores, key=scores.get)  # the first of equals: the strongest penalty
    mean, scale = _scaler(train)
    with no_autocast(train):
        standardized = (train - mean) / scale
        solver = SoftmaxSolver(standardized, torch.as_tensor(targets, device=train.device), len(classes))
        iterations = solver.fit(C, tolerance)
        predictions = classes[solver.predict((test - mean) / scale).cpu().numpy()]
        loss = solver.objective(C)
    coef, intercept = solver.weights, solver.intercept
    return FastProbeResult(
        float(np.mean(predictions == test_y)),
        C,
        scores,
        predictions,
        len(train),
        len(test),
        classes,
        coef,
        intercept,
        mean,
        scale,
        loss,
        iterations,
        time.perf_counter() - start,
    )


def few_label_curve(
    features: Mapping[str, tuple[Data, Data]],
    train_y: Data,
    test_y: Data,
    per_class: Sequence[int] = (10, 50, 100),
    seeds: int = 5,
    n_jobs: int | None = None,
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
            for m in per_class
            for seed in range(seeds)
            for subset in [np.concatenate([rows[:m] for rows in shuffled[seed]])]
        ]
    return pd.DataFrame(Parallel(n_jobs=n_jobs)(tasks)).assign(chance=chance_accuracy(train_y, test_y))


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


def _fast_validation_scores(train, fit, held, fit_y, held_y, strengths) -> dict[float, float]:
    device = train.device
    mean, scale = _scaler(train[fit])
    with no_autocast(train):
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
        "representation": name,
        "per_class": m,
        "seed": seed,
        "accuracy": result.accuracy,
        "C": result.C,
        "n_test": result.n_test,
    }

"""The linear probe of scikit-learn: logistic regression whose penalty never saw the test set."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from hsic_lab.labelled import Data, checked_splits
from hsic_lab.penalty import STRENGTHS, VALIDATION, check_strengths, penalty_path, stratified_split

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
    train_x: Data, train_y: Data, test_x: Data, test_y: Data,
    *, strengths: Sequence[float] = STRENGTHS, validation: float = VALIDATION, seed: int = 0,
) -> ProbeResult:
    """Multinomial logistic regression on standardised features, its L2 penalty chosen without the test set.

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
        float(np.mean(predictions == test_y)), C, scores, predictions,
        n_train=len(train), n_test=len(test), classes=model.classes_, model=model,
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

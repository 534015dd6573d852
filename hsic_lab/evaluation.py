"""What frozen features know: a linear probe (scikit-learn) and weighted nearest neighbours.

Labels are one-dimensional: integers, booleans or strings. Features are `(n, p)` tensors or arrays. Every
function here raises ValueError, quoting the value, on shapes that do not fit, on empty or non-finite
features, on fewer than two classes, and on a test class that the training labels lack: no probe could ever
answer it.
"""
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import torch
from joblib import Parallel, delayed
from numpy.typing import ArrayLike
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits
from torch import Tensor, nn

from hsic_lab.checks import as_labels
from hsic_lab.frozen import check_images, evaluating, model_input
from hsic_lab.penalty import STRENGTHS, VALIDATION, check_strengths, penalty_path, stratified_split
from hsic_lab.sphere import unit_rows

Data = ArrayLike | Tensor
_BLOCK_ELEMENTS = 1 << 24  # similarities a kNN block may hold: 64 MiB in float32
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


def extract_features(encoder: nn.Module, images: Tensor, batch_size: int = 512) -> Tensor:
    """Features of frozen images: `encoder(images)`, shape (n, p), float32, on the CPU.

    uint8 images (n, c, h, w) are normalised to [-1, 1]; floating-point ones are passed through as they are.
    The encoder runs on its own device in eval mode without gradients, and every submodule gets its own
    training flag back, also after an exception, so that batch statistics are neither used nor moved.

    Raises ValueError for an empty input, integer images that are not uint8 (n, c, h, w), encoder output that
    is not (n, p) (nothing is flattened here: flatten in the encoder), and non-finite features.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    check_images(images)

    blocks = []
    with evaluating(encoder), torch.inference_mode():
        for block in images.split(batch_size):
            output = encoder(model_input(encoder, block))
            if not isinstance(output, Tensor):
                raise TypeError(f"the encoder must return one tensor, got {type(output).__name__}")
            if output.ndim != 2 or len(output) != len(block):
                shapes = f"({len(block)}, p), got {tuple(output.shape)}"
                raise ValueError(f"the encoder must return features of shape {shapes}")
            blocks.append(output.float().cpu())
    # Joined outside inference mode: the result is an ordinary tensor, which autograd accepts later.
    return _require_finite("the encoder's features", torch.cat(blocks))


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

    Raises ValueError as described at the top of this file, for a class with fewer than two training rows, and
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


def chance_accuracy(train_y: np.ndarray, test_y: np.ndarray) -> float:
    """Test accuracy of always answering the commonest training class."""
    classes, counts = np.unique(train_y, return_counts=True)
    return float(np.mean(test_y == classes[counts.argmax()]))


def _probe_row(name, split, train, train_y, subset, test, test_y) -> dict[str, str | int | float]:
    result = linear_probe(train[subset], train_y[subset], test, test_y, seed=split)
    return {
        "representation": name, "split": split, "accuracy": result.accuracy, "C": result.C,
        "n_train": result.n_train, "n_test": result.n_test,
    }


def probe_summary(table: pd.DataFrame) -> pd.DataFrame:
    """Mean and standard deviation (m - 1; NaN for one split) of a `probe_table` over its splits."""
    grouped = table.groupby("representation", sort=False)["accuracy"]
    return grouped.agg(mean="mean", std="std", splits="size")


def knn_accuracy(
    train_x: Data, train_y: Data, test_x: Data, test_y: Data, k: int = 200, temperature: float = 0.5
) -> float:
    """Accuracy of the weighted k-nearest-neighbour vote of Wu et al. 2018 (arXiv 1805.01978, section 3.4).

    A test row's k training rows of highest cosine similarity s vote for their class with weight `exp(s /
    temperature)`; the class with the largest sum wins, the smaller label on a tie. Runs on the device of
    `train_x`, over blocks of test rows, so that memory does not grow with their number.

    Raises ValueError as described at the top of this file, for k outside 1..n_train, a temperature that is
    not positive, and a zero row, which has no direction.
    """
    train, test, train_y, test_y = checked_splits(train_x, train_y, test_x, test_y)
    if not 1 <= k <= len(train):
        raise ValueError(f"k must be between 1 and the {len(train)} training rows, got {k}")
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    classes, votes_for = np.unique(train_y, return_inverse=True)
    votes_for = torch.as_tensor(votes_for, device=train.device)
    test = test.to(train)
    bank, queries = unit_rows("train_x", train), unit_rows("test_x", test)

    predictions = []
    for block in queries.split(max(1, _BLOCK_ELEMENTS // len(bank))):
        similarity, neighbours = (block @ bank.T).topk(k, dim=1)
        # Divided by the row's largest weight, which changes no vote's rank: exp cannot overflow.
        weights = ((similarity - similarity[:, :1]) / temperature).exp()
        votes = weights.new_zeros(len(block), len(classes))
        predictions.append(votes.scatter_add_(1, votes_for[neighbours], weights).argmax(dim=1).cpu())
    return float(np.mean(classes[torch.cat(predictions).numpy()] == test_y))


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


def checked_splits(train_x, train_y, test_x, test_y) -> tuple[Tensor, Tensor, np.ndarray, np.ndarray]:
    """The four inputs of a probe, checked against each other."""
    train, test = _rows("train_x", train_x), _rows("test_x", test_x)
    train_y, test_y = as_labels("train_y", train_y), as_labels("test_y", test_y)
    for name, x, y in (("train", train, train_y), ("test", test, test_y)):
        if len(x) != len(y):
            raise ValueError(f"{name}_x has {len(x)} rows and {name}_y {len(y)} labels")
    if train.shape[1] != test.shape[1]:
        raise ValueError(f"train_x has {train.shape[1]} features and test_x {test.shape[1]}")
    classes = np.unique(train_y)
    if len(classes) < 2:
        raise ValueError(f"train_y must hold at least two classes, got only {classes.tolist()}")
    unseen = np.setdiff1d(test_y, classes)
    if len(unseen):
        raise ValueError(f"test_y holds classes that train_y lacks: {unseen.tolist()}")
    return train, test, train_y, test_y


def _rows(name: str, x: Data) -> Tensor:
    if not isinstance(x, Tensor):
        x = np.asarray(x)
        x = torch.as_tensor(x if x.flags.writeable else x.copy())  # a frame's or a memory map's array is read-only
    x = x.detach()
    if x.ndim != 2 or 0 in x.shape:
        raise ValueError(f"{name} must have shape (n, p) with n and p at least 1, got {tuple(x.shape)}")
    return _require_finite(name, x if x.dtype == torch.float64 else x.float())


def _require_finite(name: str, x: Tensor) -> Tensor:
    bad = (~x.isfinite()).any(dim=1).nonzero()[:, 0]
    if len(bad):
        raise ValueError(f"{name} must be finite: {len(bad)} of {len(x)} rows are not, first row {bad[0]}")
    return x

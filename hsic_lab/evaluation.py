"""Evaluation of frozen features: linear probes, nearest neighbors, few-label curves."""

import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain, pairwise, product
from typing import TypeAlias

import numpy as np
import pandas as pd
import torch
from joblib import Parallel, delayed
from numpy.typing import ArrayLike
from scipy.special import logsumexp
from sklearn import config_context
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits
from torch import Tensor, nn

from hsic_lab._checks import (  # isort: skip
    as_labels, as_tensor, at_least_float32, check_integer, check_number, check_type, finite_rows, to_array,
    with_float64,
)  # fmt: skip
from hsic_lab._statistics import few_label_summary, probe_summary
from hsic_lab.cka import cka_or_nan
from hsic_lab.correlation import column_moments, directions
from hsic_lab.diagnostics import rankme
from hsic_lab.views import normalize

__all__ = [
    "ProbeResult", "extract_features", "extract_layers", "few_label_curve", "few_label_summary",
    "knn_accuracy", "linear_probe", "probe_summary", "probe_table",
]  # fmt: skip

Data: TypeAlias = "ArrayLike | Tensor"  # a string, because `help` would show the long union behind ArrayLike
Pairs = Mapping[str, tuple[Data, Data]]
NEIGHBORS, TEMPERATURE = 200, 0.5
VALIDATION = 0.2
_BLOCK_ELEMENTS = 1 << 24  # similarities in one block: 64 MiB in float32
_MAX_ITERATIONS = 10_000


def check_splits(
    train_x: Data, train_y: Data, test_x: Data, test_y: Data
) -> tuple[Tensor, Tensor, np.ndarray, np.ndarray]:
    """Check labeled training and test rows; return features as tensors and labels as arrays."""
    train, test = _rows("train_x", train_x), _rows("test_x", test_x)
    train_y, test_y = as_labels("train_y", train_y), as_labels("test_y", test_y)
    for name, x, y in (("train", train, train_y), ("test", test, test_y)):
        if len(x) != len(y):
            raise ValueError(f"{name}_x has {len(x)} rows and {name}_y {len(y)} labels")
    if train.shape[1] != test.shape[1]:
        raise ValueError(f"train_x has {train.shape[1]} features and test_x {test.shape[1]}")
    if len(classes := np.unique(train_y)) < 2:
        raise ValueError(f"train_y must hold at least two classes, got only {classes.tolist()}")
    if len(unseen := np.setdiff1d(test_y, classes)):
        raise ValueError(f"test_y holds classes that train_y lacks: {unseen.tolist()}")
    return train, test, train_y, test_y


def _rows(name: str, x: Data) -> Tensor:
    """Finite floating-point features of shape (n, p)."""
    x = as_tensor(x, name).detach()
    if x.ndim != 2 or 0 in x.shape:
        raise ValueError(f"{name} must have shape (n, p) with n and p at least 1, got {tuple(x.shape)}")
    if not x.is_floating_point():
        x = x.float() if x.itemsize < 4 else with_float64(x).double()  # float32 cannot tell all 32-bit integers apart
    return finite_rows(name, at_least_float32(x))


def chance_accuracy(train_y: np.ndarray, test_y: np.ndarray) -> float:
    """Test accuracy of always predicting the most frequent training class."""
    return float(np.mean(test_y == pd.Series(train_y.tolist()).mode()[0]))


@contextmanager
def evaluating(*models: nn.Module) -> Iterator[None]:
    """Set models to eval mode within the block, then restore the training flag of every submodule."""
    flags = [(m, m.training) for model in models for m in check_type("the network", model, nn.Module).modules()]
    for model in models:
        model.eval()
    try:
        yield
    finally:
        for module, training in flags:
            module.training = training


def check_images(images: Tensor) -> None:
    """Check for at least one image: uint8, whose shape `normalize` checks, or floating point of any shape."""
    if not isinstance(images, Tensor):
        raise TypeError(f"images must be a torch.Tensor, got {type(images).__name__}; torch.as_tensor makes one")
    if as_tensor(images, "images").ndim == 0 or images.numel() == 0:
        raise ValueError(f"images must hold at least one image, got shape {tuple(images.shape)}")
    if not (images.dtype == torch.uint8 or images.is_floating_point()):
        raise ValueError(f"images must be uint8 or floating point, got {images.dtype}")


def model_input(model: nn.Module, images: Tensor) -> Tensor:
    """Move images to the device and the floating type of the model; normalize uint8 to [-1, 1]."""
    tensors = [tensor for tensor in chain(model.parameters(), model.buffers()) if tensor.is_floating_point()]
    images = images.to(tensors[0].device if tensors else images.device)
    images = normalize(images) if images.dtype == torch.uint8 else images
    return images.to(tensors[0].dtype) if tensors else images


def extract_features(encoder: nn.Module, images: Tensor, batch_size: int = 512) -> Tensor:
    """Compute the features of images with a frozen encoder, in float32 of shape (n, p) on the CPU.

    The encoder runs on its own device, in eval mode and without gradients: batch normalization uses its running
    statistics and does not change them. Afterwards every submodule has the training flag it had before.

    Parameters
    ----------
    encoder, batch_size : nn.Module, int, default 512
        Maps images to finite features of shape (n, p); and the number of images that it sees at once.
    images : Tensor
        uint8 of shape (n, c, h, w), normalized to [-1, 1] here; or floating point. They take the type of the weights.

    Examples
    --------
    >>> import torch
    >>> from hsic_lab.evaluation import extract_features
    >>> extract_features(torch.nn.Flatten(), torch.zeros(4, 3, 2, 2)).shape
    torch.Size([4, 12])
    """
    check_images(images)
    batch_size, blocks = check_integer("batch_size", batch_size, 1), []
    with evaluating(encoder), torch.no_grad():  # inference mode would leave lazy layers with buffers that cannot train
        for block in images.split(batch_size):
            output = encoder(model_input(encoder, block))
            if not isinstance(output, Tensor) or output.is_complex():
                found = output.dtype if isinstance(output, Tensor) else type(output).__name__
                raise TypeError(f"the encoder must return one tensor of real features, got {found}")
            if output.ndim != 2 or len(output) != len(block):
                raise ValueError(f"the encoder must return shape ({len(block)}, p), got {tuple(output.shape)}")
            blocks.append(output.float().cpu())
    return finite_rows("the encoder's features", torch.cat(blocks))


def default_neighbors(n_train: int) -> int:
    """Square root of the number of training rows, at most 200: with more, all classes vote in a small data set."""
    return min(NEIGHBORS, max(1, round(n_train**0.5)))


def knn_protocol(k: int) -> str:
    """Describe the nearest-neighbor evaluation with `k` neighbors."""
    return f"weighted kNN, k = {k}, temperature {TEMPERATURE}"


def knn_accuracy(
    train_x: Data, train_y: Data, test_x: Data, test_y: Data, k: int | None = None, temperature: float = TEMPERATURE
) -> float:
    """Accuracy of the weighted k-nearest-neighbor classifier of Wu et al. (2018), arXiv:1805.01978.

    The k training rows of highest cosine similarity s to a test row vote for their class with weight
    ``exp(s / temperature)``. The class with the largest sum is predicted, the first one in sorted order on a tie. The
    computation runs on the device of `train_x`, in blocks of test rows.

    Parameters
    ----------
    train_x, train_y, test_x, test_y : array-like or Tensor
        Features and labels, as in `linear_probe`. A row of zeros has no direction and is refused.
    k, temperature : int or None, float, default None, 0.5
        Number of neighbors, None for the square root of the number of training rows, at most 200 (the k of Wu et al.);
        if there are fewer rows than k, all vote, with a UserWarning. Low temperatures favor the nearest rows.
    """
    train, test, train_y, test_y = check_splits(train_x, train_y, test_x, test_y)
    k = default_neighbors(len(train)) if k is None else check_integer("k", k, 1)
    temperature = check_number("temperature", temperature, 0, above=True)
    if k > len(train):
        warnings.warn(f"k = {k} is larger than the {len(train)} training rows: all of them vote", stacklevel=2)
    classes, codes = np.unique(train_y, return_inverse=True)
    bank, queries = directions("train_x", train), directions("test_x", test.to(train))
    class_of, predictions = torch.as_tensor(codes, device=train.device), []
    for block in queries.split(max(1, _BLOCK_ELEMENTS // len(bank))):
        similarity, neighbors = (block @ bank.T).topk(min(k, len(bank)), dim=1)
        # Subtracting the largest similarity of a row keeps the order of its votes, and exp cannot overflow.
        weights = ((similarity - similarity[:, :1]) / temperature).exp()
        votes = weights.new_zeros(len(block), len(classes))
        predictions.append(votes.scatter_add_(1, class_of[neighbors], weights).argmax(dim=1).cpu())
    return float(np.mean(classes[torch.cat(predictions).numpy()] == test_y))


@dataclass(frozen=True)
class ProbeResult:
    """Result of `linear_probe`.

    It holds the test accuracy, the chosen C, the validation accuracy of every C that was tried, the predicted labels of
    the test rows, the sorted labels, and the fitted scaler and classifier of scikit-learn, which take NumPy arrays.
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
    train_x: Data, train_y: Data, test_x: Data, test_y: Data, *, Cs: Sequence[float] = (1e-3, 1e-2, 1e-1, 1.0, 10.0),
    validation: float = VALIDATION, seed: int = 0,
) -> ProbeResult:  # fmt: skip
    """Fit multinomial logistic regression on standardized features, with an L2 penalty chosen without the test rows.

    The objective is ``C sum_i log-loss_i + |W|^2 / 2``. Each C, from the strongest penalty on, is scored on a
    stratified part of the training rows, until two values in a row score below the best one. The best C (the smallest
    on a tie) is refitted on all training rows, and the test rows are predicted once. Features that are constant up to
    rounding get the weight 0. The solver is L-BFGS in float64. Tensors on a GPU stay there if scikit-learn dispatches
    to torch, which needs version 1.9 and ``SCIPY_ARRAY_API=1`` set before SciPy is imported; else NumPy is used. Every
    class needs two training rows (else ValueError); RuntimeError is raised if the solver does not converge.

    Parameters
    ----------
    train_x, train_y, test_x, test_y : array-like or Tensor
        Features of shape (n, p), and labels of shape (n,): integers, booleans or strings.
    Cs : sequence of float
        Candidates for C, the inverse strength of the penalty.
    validation, seed : float, default 0.2, and int, default 0
        Share of the training rows on which C is chosen, and seed of that split.

    Examples
    --------
    >>> from hsic_lab.evaluation import linear_probe
    >>> x, y = [[-1.2], [-1.0], [1.0], [1.1]] * 5, ["left", "left", "right", "right"] * 5
    >>> linear_probe(x, y, [[-0.9], [1.3]], ["left", "right"]).accuracy
    1.0
    """
    train, test, train_y, test_y = check_splits(train_x, train_y, test_x, test_y)
    train = with_float64(train)
    tried = [check_number("every one of Cs", C, 0, above=True) for C in np.ravel(Cs).tolist()]
    if not tried:
        raise ValueError(f"Cs must hold at least one value, got {Cs!r}")
    if not (variance := column_moments(train)[1]).isfinite().all():
        raise ValueError(f"features reach {float(train.abs().max()):.3g}, and their squares overflow: rescale them")
    validation = check_number("validation", validation, 0, 1, above=True, below=True)
    seed = check_integer("seed", seed, 0, 2**32 - 1)
    # The line search of the solver is reliable in float64, for a quarter more time than in float32.
    x = _for_sklearn(train.double().masked_fill(variance == 0, 0))
    fit, held = validation_split(train_y, validation, seed)
    # A looser tolerance, because weak penalties are rarely chosen and would take four fifths of the time.
    search = make_pipeline(StandardScaler(), LogisticRegression(tol=1e-3, max_iter=_MAX_ITERATIONS, warm_start=True))
    scores: dict[float, float] = {}
    # The solver alternates many small products with Python code. A second BLAS thread gains nothing on idle cores,
    # and its busy waiting makes a fit ten times slower on shared cores.
    with threadpool_limits(1), config_context(array_api_dispatch=isinstance(x, Tensor)), warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)
        try:
            for C in sorted(tried):
                search.set_params(logisticregression__C=C).fit(x[fit], train_y[fit])
                scores[C] = float(np.mean(to_array(search.predict(x[held])) == train_y[held]))
                if len(scores) > 2 and max(list(scores.values())[-2:]) < max(scores.values()):
                    break
            C = max(scores, key=lambda C: scores[C])  # the first of equal scores belongs to the strongest penalty
            model = make_pipeline(StandardScaler(), LogisticRegression(C=C, max_iter=_MAX_ITERATIONS)).fit(x, train_y)
            predictions = to_array(model.predict(_for_sklearn(test.to(train.device).double())))
        except ConvergenceWarning as warning:
            raise RuntimeError(f"the linear probe did not converge: {warning}") from warning
    for step in model:
        vars(step).update({name: to_array(value) for name, value in vars(step).items() if isinstance(value, Tensor)})
    accuracy = float(np.mean(predictions == test_y))
    return ProbeResult(accuracy, C, scores, predictions, len(train), len(test), model.classes_, model)


def validation_split(y: np.ndarray, held: float = VALIDATION, seed: int = 0) -> list[np.ndarray]:
    """Positions of the rows to fit on, and of those held out: a share below 1 or a number of rows, stratified."""
    classes, counts = np.unique(y, return_counts=True)
    if counts.min() < 2:
        rare = classes[counts.argmin()].item()
        raise ValueError(f"every class needs at least 2 training rows, class {rare!r} has {counts.min()}")
    size = len(y) - (round(held * len(y)) if held < 1 else int(held))
    if min(size, len(y) - size) < len(classes):
        parts = f"{len(y)} training rows split into {size} and {len(y) - size}"
        raise ValueError(f"{parts}: each part needs a row for each of the {len(classes)} classes")
    return train_test_split(np.arange(len(y)), train_size=size, stratify=y, random_state=seed)


def _for_sklearn(x: Tensor) -> Tensor | np.ndarray:
    """Keep a tensor on a GPU if scikit-learn can compute there, else return a NumPy array."""
    return x if x.device.type == "cuda" and _dispatches() else x.cpu().numpy()


def _dispatches() -> bool:
    """Whether SciPy and scikit-learn compute on torch tensors."""
    if os.environ.get("SCIPY_ARRAY_API") != "1" or not isinstance(logsumexp(torch.zeros(2)), Tensor):
        return False  # not set, or set after SciPy was imported
    return LogisticRegression().__sklearn_tags__().array_api_support


def extract_layers(encoder: nn.Module, projector: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """Compute the features of a frozen encoder and the outputs of the layers of its projector, by name.

    The names are "encoder", "projector 1", "projector 2", ... A layer is a linear map with what follows it.

    Parameters
    ----------
    encoder, projector, images : Module, Sequential or Linear, Tensor
        The two networks of a run, and images, as in `extract_features`.

    Examples
    --------
    >>> import torch
    >>> from hsic_lab.evaluation import extract_layers
    >>> list(extract_layers(torch.nn.Flatten(), torch.nn.Linear(12, 5), torch.zeros(4, 3, 2, 2)))
    ['encoder', 'projector 1']
    """
    check_type("projector", projector, nn.Sequential, nn.Linear)  # children of others may be called in another order
    x = extract_features(encoder, images)
    layers, modules = {"encoder": x}, [projector] if isinstance(projector, nn.Linear) else [*projector.children()]
    starts = [i for i, module in enumerate(modules) if i == 0 or isinstance(module, nn.Linear)]
    for number, (start, end) in enumerate(pairwise([*starts, None]), 1):
        layers[f"projector {number}"] = x = extract_features(nn.Sequential(*modules[start:end]), x)
    return layers


def probe_table(
    features: Pairs, train_y: Data, test_y: Data, splits: int = 3, n_train: int | None = None,
    n_jobs: int | None = None, layers: bool = False,
) -> pd.DataFrame:  # fmt: skip
    """Linear-probe accuracy of several representations on the same random training subsets.

    The spread over the subsets measures the probe. It says nothing about other training seeds of the encoder. The
    columns are `representation, split, accuracy, C, n_train, n_test` and `chance`, the test accuracy of always
    predicting the most frequent training class.

    Parameters
    ----------
    features, train_y, test_y : mapping of str to (train_x, test_x), and array-like or Tensor
        Features of every representation and labels, as in `linear_probe`.
    splits : int, default 3
        Number of stratified subsets; the number of a subset is its seed.
    n_train, n_jobs : int or None
        Rows of a subset, None for 80 % of the training rows; and number of processes, as in scikit-learn.
    layers : bool, default False
        Add what compares the layers of a network, of the test rows: `cka_labels`, unbiased linear CKA with one-hot
        labels (HSIC with the labels, normalized to at most 1), and `rankme`, as in `hsic_lab.diagnostics`.
    """
    splits = check_integer("splits", splits, 1)
    train_y, test_y = as_labels("train_y", train_y), as_labels("test_y", test_y)
    size = check_integer("n_train", round(0.8 * len(train_y)) if n_train is None else n_train, 1, len(train_y) - 1)
    subsets = [validation_split(train_y, len(train_y) - size, split)[0] for split in range(splits)]
    draws = [({"split": split}, rows, split) for split, rows in enumerate(subsets)]
    table = _probe_rows(features, train_y, test_y, draws, n_jobs)
    if layers:
        one_hot = torch.from_numpy(test_y[:, None] == np.unique(test_y)).double()
        for name, (_, test_x) in features.items():
            x = _rows("test_x", test_x).cpu().double()
            table.loc[table["representation"] == name, ["cka_labels", "rankme"]] = cka_or_nan(x, one_hot), rankme(x)
    return table


def few_label_curve(
    features: Pairs, train_y: Data, test_y: Data, per_class: Sequence[int] = (10, 50, 100), seeds: int = 5,
    n_jobs: int | None = None,
) -> pd.DataFrame:  # fmt: skip
    """Linear-probe accuracy against the number of labeled training rows of each class.

    Every seed shuffles each class once and takes its first rows, so its training sets are nested and the same for all
    representations. The spread over the seeds says nothing about other training seeds of the encoder. The columns are
    `representation, per_class, seed, accuracy, C, n_test, chance`, as in `probe_table`.

    Parameters
    ----------
    features, train_y, test_y, n_jobs
        As in `probe_table`.
    per_class, seeds : sequence of int, and int, default 5
        Numbers of labeled rows of each class, and number of draws.
    """
    per_class, seeds = [check_integer("per_class", m, 1) for m in per_class], check_integer("seeds", seeds, 1)
    if not per_class:
        raise ValueError("per_class must hold at least one number of rows, got none")
    train_y, test_y = as_labels("train_y", train_y), as_labels("test_y", test_y)
    classes, counts = np.unique(train_y, return_counts=True)
    # The validation part of `linear_probe` needs a row of each class.
    fewest = next(m for m in range(2, 10) if round(VALIDATION * m * len(classes)) >= len(classes))
    if not fewest <= min(per_class) <= max(per_class) <= counts.min():
        rare = classes[counts.argmin()].item()
        limits = f"{fewest}, of which one is held out for the penalty, and {counts.min()}, the rows of class {rare!r}"
        raise ValueError(f"per_class must lie between {limits}, got {per_class}")
    draws = []
    for m, seed in product(per_class, range(seeds)):
        generator = np.random.default_rng(seed)
        shuffled = [generator.permutation(np.flatnonzero(train_y == label)) for label in classes]
        draws.append(({"per_class": m, "seed": seed}, np.concatenate([rows[:m] for rows in shuffled]), seed))
    return _probe_rows(features, train_y, test_y, draws, n_jobs).drop(columns="n_train")


def _probe_rows(features: Pairs, train_y, test_y, draws: Sequence[tuple], n_jobs: int | None) -> pd.DataFrame:
    """Probe every representation on every draw: columns of the table, training rows, seed of the validation split."""
    if not check_type("features", features, Mapping):
        raise ValueError("features must name at least one representation, got none")
    for name, pair in features.items():
        check_type(f"features[{name!r}]", pair, tuple, list)
    # Arrays, because joblib hands large ones to its processes without a copy.
    splits = [map(_for_sklearn, check_splits(x, train_y, test_x, test_y)[:2]) for x, test_x in features.values()]
    probe, cases = delayed(linear_probe), product([tuple(split) for split in splits], draws)
    tasks = (probe(x[rows], train_y[rows], test_x, test_y, seed=seed) for (x, test_x), (_, rows, seed) in cases)
    results = zip(product(features, draws), Parallel(n_jobs=n_jobs)(tasks), strict=True)
    table = [{"representation": name} | columns | vars(result) for (name, (columns, *_)), result in results]
    shown = ["representation", *draws[0][0], "accuracy", "C", "n_train", "n_test"]
    return pd.DataFrame(table, columns=shown).assign(chance=chance_accuracy(train_y, test_y))

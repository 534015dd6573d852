"""Every public function x unusual input: the value of the plain input, or an error of this library that quotes it.

`python tests/test_unusual_input.py` prints the table of outcomes.
"""

import datetime
import decimal
import inspect
import math
import re
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import torch
from torch import Tensor, nn

import hsic_lab
from hsic_lab import (
    ablation,
    correlation,
    datasets,
    diagnostics,
    encoders,
    evaluation,
    explorer,
    independence,
    kernels,
    losses,
    plots,
    report,
    training,
    views,
)
from hsic_lab.cka import MinibatchCKA, StreamingLinearCKA
from hsic_lab.hsic import StreamingLinearHSIC, dhsic, hsic, hsic_matrix
from hsic_lab.training import TrainConfig, recipe

matplotlib.use("Agg")
PACKAGE = str(Path(hsic_lab.__file__).parent)
N, D = 24, 3
DRAW = np.random.default_rng(0)
X = DRAW.normal(size=(N, D)).round(3)  # exact enough for float32
Y = (X + DRAW.normal(size=(N, D))).round(3)
LABELS = np.arange(N) % 3
SPECTRUM = DRAW.normal(size=(30, 30))
IMAGES = torch.from_numpy(DRAW.integers(0, 256, size=(N, 3, 8, 8), dtype=np.uint8))
FRAME = pd.DataFrame(
    {"level": [1, 1, 2, 2], "seed": [0, 1, 0, 1], "accuracy": [0.1, 0.2, 0.3, 0.5], "evaluation": "linear"}
)


class Net(nn.Module):
    """Images to rows, and rows to rows."""

    def __init__(self) -> None:
        super().__init__()
        self.flat, self.linear = nn.Flatten(), nn.Linear(192, 4, bias=False)
        with torch.no_grad():
            self.linear.weight.copy_(torch.linspace(-1, 1, 768).view(4, 192).sin())

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.flat(x))


FAULTS = ("obscure", "not", "wrong")


def value_of(result: Any) -> np.ndarray:
    """All numbers of a result in one vector."""
    if isinstance(result, Tensor):
        return result.detach().double().numpy().ravel()
    if isinstance(result, pd.DataFrame):
        return np.concatenate(
            [[len(result)], *(value_of(result[name].to_numpy()) for name in result.select_dtypes("number"))]
        )
    if isinstance(result, tuple | list):
        return np.concatenate([[len(result)], *map(value_of, result)])
    if isinstance(result, independence.TestResult):
        return np.array([result.statistic, result.pvalue])
    if isinstance(result, evaluation.ProbeResult):
        return np.array([result.accuracy])
    if isinstance(result, matplotlib.axes.Axes):
        matplotlib.pyplot.close("all")
        return np.zeros(1)
    return np.asarray(result, dtype=np.float64).ravel()


GAUSSIAN = kernels.Gaussian(1.0)
LOSSES = {
    "BarlowTwinsLoss": losses.BarlowTwinsLoss(),
    "HSICSSLLoss": losses.HSICSSLLoss(),
    "VICRegLoss": losses.VICRegLoss(),
    "SSLHSICLoss": losses.SSLHSICLoss(),
    "NTXentLoss": losses.NTXentLoss(),
    "NegativeCosineSimilarity": losses.NegativeCosineSimilarity(),
    "SIGRegLoss": losses.SIGRegLoss(),
    "SpectralContrastiveLoss": losses.SpectralContrastiveLoss(),
    "ReferenceCodeLoss": losses.ReferenceCodeLoss(0.005),
}

# name: (function of arrays, its plain arrays)
ARRAYS: dict[str, tuple[Callable, tuple]] = {
    "hsic": (hsic, (X, Y)),
    "hsic gaussian": (lambda x, y: hsic(x, y, GAUSSIAN, GAUSSIAN, estimator="unbiased"), (X, Y)),
    "hsic delta": (lambda x, y: hsic(x, y, GAUSSIAN, kernels.Delta()), (X, LABELS)),
    "dhsic": (lambda x, y: dhsic(x, y), (X, Y)),
    "hsic_matrix": (hsic_matrix, (X, Y)),
    "cka": (hsic_lab.cka, (X, Y)),
    "kernel": (GAUSSIAN, (X, Y)),
    "standardize": (correlation.standardize, (X,)),
    "cross_correlation": (correlation.cross_correlation, (X, Y)),
    "spectrum": (correlation.spectrum, (np.corrcoef(X.T),)),
    "feature_order": (lambda c: correlation.feature_order(c, "cluster"), (np.corrcoef(X.T),)),
    "CorrelationSummary": (
        lambda c: correlation.CorrelationSummary.from_matrix(c, N).rms_off_diagonal,
        (np.corrcoef(X.T),),
    ),
    "permutation_test": (lambda x, y: independence.permutation_test(x, y, permutations=19), (X, Y)),
    "permutation_test groups": (
        lambda x, y, g: independence.permutation_test(x, y, permutations=19, groups=g),
        (X, Y, LABELS),
    ),
    "aggregated_test": (lambda x, y: independence.aggregated_test(x, y, permutations=39), (X, Y)),
    "gamma_test": (independence.gamma_test, (X, Y)),
    "spectral_test": (lambda x, y: independence.spectral_test(x, y, draws=50), (X, Y)),
    "block_test": (independence.block_test, (X, Y)),
    "shift_test": (lambda x, y: independence.shift_test(x, y, guard=4), (X, Y)),
    "conditional_test": (lambda x, y: independence.conditional_test(x, y, Y[:, :1]), (X, Y)),
    "mutual_knn": (lambda x, y: hsic_lab.compare.mutual_knn(x, y, k=5), (X, Y)),
    "procrustes": (hsic_lab.compare.procrustes, (X, Y)),
    "DistanceInduced": (lambda x, y: hsic(x, y, kernels.DistanceInduced(), kernels.DistanceInduced()), (X, Y)),
    "dhsic_test": (lambda x, y: independence.dhsic_test(x, y, permutations=19), (X, Y)),
    "median_distance": (kernels.median_distance, (X,)),
    "factor of a Gram": (lambda x: kernels.factor(GAUSSIAN, x, rank=8).square().sum(), (X,)),
    "StreamingLinearCKA": (lambda x, y: (m := StreamingLinearCKA(), m.update(x, y), m.compute())[2], (X, Y)),
    "MinibatchCKA": (lambda x, y: (m := MinibatchCKA(), m.update(x, y), m.compute())[2], (X, Y)),
    "StreamingLinearHSIC": (lambda x, y: (m := StreamingLinearHSIC(), m.update(x, y), m.compute())[2], (X, Y)),
    "diagnose": (lambda x, y: diagnostics.diagnose(x, y)[["value"]], (X, Y)),
    "alignment": (diagnostics.alignment, (X, Y)),
    "covariance_spectrum": (diagnostics.covariance_spectrum, (X,)),
    "effective_rank": (diagnostics.effective_rank, (X,)),
    "lidar": (lambda x, y: diagnostics.lidar([x, y]), (X, Y)),
    "rankme": (diagnostics.rankme, (X,)),
    "uniformity": (diagnostics.uniformity, (X,)),
    "redundancy": (diagnostics.redundancy, (X, Y)),
    "feature_sum_covariance": (diagnostics.feature_sum_covariance, (X, Y)),
    "factor_dependence": (
        lambda x: (
            diagnostics.factor_dependence(x, pd.DataFrame({"a": LABELS}))[["value"]]
            if "value" in diagnostics.factor_dependence(x, pd.DataFrame({"a": LABELS}))
            else diagnostics.factor_dependence(x, pd.DataFrame({"a": LABELS}))
        ),
        (X,),
    ),
    "knn_accuracy": (lambda x, y, z, w: evaluation.knn_accuracy(x, y, z, w, k=3), (X, LABELS, Y, LABELS)),
    "linear_probe": (lambda x, y, z, w: evaluation.linear_probe(x, y, z, w, Cs=(1.0,)), (X, LABELS, Y, LABELS)),
    "few_label_curve": (
        lambda x, y: evaluation.few_label_curve({"a": (x, Y)}, y, LABELS, per_class=(6,), seeds=1)[["accuracy"]],
        (X, LABELS),
    ),
    "extract_features": (lambda i: evaluation.extract_features(Net(), i), (IMAGES.numpy(),)),
    "normalize": (views.normalize, (IMAGES.numpy(),)),
    "TwoViews": (lambda i: views.TwoViews(8)(i, torch.Generator().manual_seed(0)), (IMAGES.numpy(),)),
    "compare_models": (lambda i: hsic_lab.compare_models(Net(), Net(), i, layers=["linear"]), (IMAGES.numpy(),)),
    "from_arrays": (lambda i, y: datasets.from_arrays(i, y).train.images, (IMAGES.numpy(), LABELS)),
    "plot_cross_correlation": (plots.plot_cross_correlation, (np.corrcoef(X.T),)),
    "plot_embedding": (plots.plot_embedding, (X, LABELS)),
    "plot_spectrum": (plots.plot_spectrum, (np.array([3.0, 2.0, 1.0]),)),
    "SupConLoss": (lambda a, b, y: losses.SupConLoss()(a, b, labels=y), (X, Y, LABELS)),
    "plot_pairs": (lambda a, b: plots.plot_pairs(a, b, 4), (IMAGES.numpy(), IMAGES.numpy())),
} | {name: (loss, (X, Y)) for name, loss in LOSSES.items()}


def variants(x: np.ndarray) -> Iterator[tuple[str, Any, bool]]:
    """Name, input, and whether it means the same numbers as `x`."""
    same = {
        "tensor": lambda: torch.from_numpy(x.copy()),
        "needs gradient": lambda: torch.from_numpy(x.copy()).requires_grad_(),
        "negative strides": lambda: x[::-1].copy()[::-1],
        "byte-swapped": lambda: x.astype(x.dtype.newbyteorder()),
        "read-only": lambda: np.frombuffer(x.tobytes(), x.dtype).reshape(x.shape),
        "column-major": lambda: np.asfortranarray(x),
        "slice": lambda: np.repeat(x, 2, axis=0)[::2],
        "expanded tensor": lambda: torch.from_numpy(np.repeat(x, 2, axis=0))[::2],
        "transposed tensor": lambda: torch.from_numpy(np.asfortranarray(x)),
        "float32": lambda: x.astype(np.float32),
        "longdouble": lambda: x.astype(np.longdouble),
        "int32": lambda: x.astype(np.int32),
        "uint16": lambda: x.astype(np.uint16),
        "int8": lambda: x.astype(np.int8),
        "masked, nothing masked": lambda: np.ma.masked_array(x),
        "list": lambda: x.tolist(),
        "tuple": lambda: tuple(x.tolist()),
        "object": lambda: x.astype(object),
        "memory map": lambda: np.asarray(x).view(np.memmap),
        "frame": lambda: pd.DataFrame(x) if x.ndim == 2 else pd.Series(x),
        "nullable frame": lambda: (pd.DataFrame(x) if x.ndim == 2 else pd.Series(x)).convert_dtypes(),
        "odd index": lambda: (
            pd.DataFrame(x, index=range(5, 5 + len(x))) if x.ndim == 2 else pd.Series(x, index=range(5, 5 + len(x)))
        ),
        "parameter": lambda: nn.Parameter(torch.from_numpy(x.astype(np.float64))),
    }
    for name, make in same.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                made = make()
            except (ValueError, TypeError, RuntimeError):
                continue
            other_type = (
                np.asarray(made.detach() if isinstance(made, Tensor) else made).dtype.newbyteorder("=") != x.dtype
            )
            if x.dtype == np.uint8 and other_type:
                continue  # floating point images have another scale
            if not np.array_equal(np.asarray(made.detach() if isinstance(made, Tensor) else made, dtype=np.float64), x):
                continue
        yield name, made, True
    t = torch.from_numpy(x.copy())
    masked = np.ma.masked_array(x, mask=np.zeros(x.shape, bool))
    masked[1] = np.ma.masked
    frame = pd.DataFrame(x.reshape(len(x), -1)).astype(object)
    frame.iloc[1, 0] = None
    other = {
        "None": None,
        "string": "gaussian",
        "number": 3,
        "nan number": math.nan,
        "dict": {"a": x},
        "empty": x[:0],
        "0-d": np.array(1.0),
        "no columns": x[:, :0] if x.ndim > 1 else x[:0],
        "one row": x[:1],
        "5-d": x.reshape(*x.shape, 1, 1, 1),
        "masked": masked,
        "missing": frame,
        "nullable missing": frame.convert_dtypes(),
        "text": np.full(x.shape, "a"),
        "numbers as text": x.astype(str),
        "bytes": np.full(x.shape, b"a"),
        "dates": np.full(x.shape, np.datetime64("2020-01-01")),
        "date objects": np.full(x.shape, datetime.date(2020, 1, 1), dtype=object),
        "decimals": np.full(x.shape, decimal.Decimal(1)),
        "complex": x + 1j,
        "complex tensor": torch.complex(t.double(), t.double()),
        "sparse matrix": scipy.sparse.csr_matrix(x.reshape(len(x), -1)),
        "sparse tensor": t.double().reshape(len(x), -1).to_sparse(),
        "float8": t.float().to(torch.float8_e4m3fn),
        "quantized": torch.quantize_per_tensor(t.float(), 0.1, 0, torch.qint8),
        "meta": t.to("meta"),
        "ragged": [[1.0, 2.0], [3.0]],
        "generator": (row for row in x),
        "set": {1.0, 2.0},
        "class": object,
        "structured": np.zeros(len(x), "f8,f8"),
    }
    if x.dtype.kind == "f":
        bad = x.copy()
        bad[1] = np.nan
        other |= {
            "nan": bad,
            "inf": np.where(np.isnan(bad), np.inf, bad),
            "huge": x * 1e200,
            "constant": np.ones_like(x),
        }
    for name, made in other.items():
        yield name, made, False


def in_config(name: str, value: Any) -> float:
    return float(getattr(TrainConfig(**{name: value}), name) or 0)


INTEGERS = {
    "permutations": lambda v: independence.permutation_test(X, Y, permutations=v),
    "permutations aggregated": lambda v: independence.aggregated_test(X, Y, permutations=v),
    "seed of a test": lambda v: independence.permutation_test(X, Y, permutations=19, seed=v),
    "draws": lambda v: independence.spectral_test(X, Y, draws=v),
    "block_size": lambda v: independence.block_test(X, Y, block_size=v),
    "block_size of hsic": lambda v: hsic(X, Y, GAUSSIAN, GAUSSIAN, route="tiled", block_size=v),
    "k": lambda v: evaluation.knn_accuracy(X, LABELS, Y, LABELS, k=v),
    "batch_size": lambda v: evaluation.extract_features(Net(), IMAGES, batch_size=v),
    "batch_size of compare_models": lambda v: hsic_lab.compare_models(Net(), Net(), IMAGES, ["linear"], batch_size=v),
    "degree": lambda v: kernels.Polynomial(v)(X, Y),
    "width of a PooledEncoder": lambda v: encoders.PooledEncoder(width=v).out_features,
    "guard": lambda v: independence.shift_test(X, Y, guard=v),
    "rank": lambda v: kernels.factor(GAUSSIAN, X, rank=v).square().sum(),
    "seeds of a Grid": lambda v: ablation.Grid("g", seeds=v).seeds,
    "size": lambda v: views.TwoViews(v)(IMAGES, torch.Generator().manual_seed(0))[0].shape,
    "width": lambda v: hsic_lab.ConvEncoder(width=v).out_features,
    "channels": lambda v: hsic_lab.ConvEncoder(channels=v).channels,
    "sizes": lambda v: hsic_lab.MLPProjector([v, v]).out_features,
    "channels of a ResNet": lambda v: hsic_lab.ResNetEncoder(18, channels=v).channels,
    "depth": lambda v: hsic_lab.ResNetEncoder(v).out_features,
    "max_rows": lambda v: diagnostics.uniformity(X, max_rows=v),
    "seed of uniformity": lambda v: diagnostics.uniformity(X, max_rows=8, seed=v),
    "first": lambda v: diagnostics.alpha_req(SPECTRUM, first=v, last=20),
    "n of plot_pairs": lambda v: plots.plot_pairs(IMAGES, IMAGES, n=v),
    "n of a norm": lambda v: correlation.expected_squared_norm(v, 4),
    "n of a summary": lambda v: correlation.CorrelationSummary.from_matrix(np.eye(3), v).expected_rms,
    "test_fraction seed": lambda v: datasets.from_arrays(IMAGES, LABELS, seed=v).train.labels,
    **{
        f"TrainConfig {name}": partial(in_config, name)
        for name in ("seed", "epochs", "batch_size", "width", "snapshots", "checkpoint_every", "micro_batch")
    },
}
NUMBERS = {
    "bandwidth": lambda v: kernels.Gaussian(v)(X, Y),
    "bandwidth laplace": lambda v: kernels.Laplace(v)(X, Y),
    "offset": lambda v: kernels.Polynomial(2, v)(X, Y),
    "lambda_param": lambda v: losses.BarlowTwinsLoss(lambda_param=v)(torch.from_numpy(X), torch.from_numpy(Y)),
    "temperature": lambda v: losses.NTXentLoss(temperature=v)(torch.from_numpy(X), torch.from_numpy(Y)),
    "gamma": lambda v: losses.SSLHSICLoss(gamma=v)(torch.from_numpy(X), torch.from_numpy(Y)),
    "C": lambda v: evaluation.linear_probe(X, LABELS, Y, LABELS, Cs=(v,)),
    "power": lambda v: diagnostics.alignment(X, Y, power=v),
    "t": lambda v: diagnostics.uniformity(X, t=v),
    "delta": lambda v: diagnostics.lidar([X, Y], delta=v),
    "hue": lambda v: views.TwoViews(8, hue=v)(IMAGES, torch.Generator().manual_seed(0)),
    "flip": lambda v: views.TwoViews(8, flip=v)(IMAGES, torch.Generator().manual_seed(0)),
    "tolerance": lambda v: kernels.factor(GAUSSIAN, X, tolerance=v).square().sum(),
    "limit": lambda v: plots.plot_cross_correlation(np.eye(3), limit=v),
    "test_fraction": lambda v: datasets.from_arrays(IMAGES, LABELS, test_fraction=v).train.labels,
    **{
        f"TrainConfig {name}": partial(in_config, name)
        for name in ("learning_rate", "weight_decay", "lambda_param", "momentum", "warmup_epochs")
    },
}
CHOICES = {
    "estimator": lambda v: hsic(X, Y, estimator=v),
    "route": lambda v: hsic(X, Y, route=v),
    "kernel of hsic": lambda v: hsic(X, Y, v, v),
    "kernel of cka": lambda v: hsic_lab.cka(X, Y, v, v),
    "kernel of a test": lambda v: independence.permutation_test(X, Y, v, v),
    "estimator of cka": lambda v: hsic_lab.cka(X, Y, estimator=v),
    "kernels of dhsic": lambda v: dhsic(X, Y, kernels=v),
    "kernel named": kernels.named,
    "augmentation": lambda v: views.augmentation(v, 8),
    "recipe": recipe,
    "order": lambda v: correlation.feature_order(np.eye(3), v),
    "data set": datasets.load,
    "encoder": lambda v: evaluation.extract_features(v, IMAGES),
    "model": lambda v: hsic_lab.compare_models(v, v, IMAGES),
    "layers": lambda v: hsic_lab.compare_models(Net(), Net(), IMAGES, v),
    "grid": ablation.run_ablation,
    "frame": lambda v: ablation.paired_difference(v, "level", 1, 2),
    "factor": lambda v: ablation.paired_difference(FRAME, v, 1, 2),
    "factors": lambda v: diagnostics.diagnose(X, factors=v),
    "stem": lambda v: hsic_lab.ResNetEncoder(18, v),
    "features of a table": lambda v: evaluation.probe_table(v, LABELS, LABELS),
    "Cs": lambda v: evaluation.linear_probe(X, LABELS, Y, LABELS, Cs=v),
    "panels": plots.compare_cross_correlations,
    "cka frame": plots.plot_cka,
    "probe frame": plots.plot_probe,
    "ablation frame": lambda v: plots.plot_ablation(v, "level"),
    "folder": datasets.from_folder,
    "loss of TrainConfig": lambda v: TrainConfig(loss=v),
    "projector": lambda v: TrainConfig(projector=v),
    "views": lambda v: TrainConfig(views=v),
    "config of train": lambda v: hsic_lab.train(v, "unused"),
    "read_grid": ablation.read_grid,
    "read_table": ablation.read_table,
    "make_config": ablation.make_config,
    "summarize": lambda v: ablation.summarize(v, ["level"]),
    "paired_differences": lambda v: ablation.paired_differences(v, "level", 1),
    "write_table": lambda v: ablation.write_table(v, v, "unused.csv", "command"),
    "probe_summary": evaluation.probe_summary,
    "few_label_summary": evaluation.few_label_summary,
    "plot_diagnostics": plots.plot_diagnostics,
    "plot_differences": plots.plot_differences,
    "plot_few_labels": plots.plot_few_labels,
    "plot_ablation_map": lambda v: plots.plot_ablation_map(v, "level", "seed"),
    "history_figure": lambda v: plots.history_figure(v, 8),
    "read_embeddings": report.read_embeddings,
    "write_report": lambda v: report.write_report(v, "unused.csv"),
    "write_atlas": lambda v: report.write_atlas(v, "unused.csv"),
    "CorrelationExplorer": explorer.CorrelationExplorer,
    "status": datasets.status,
    "download": datasets.download,
    "Run": training.Run.load,
    "train_or_load": lambda v: training.train_or_load(v, "unused"),
    "Sum": lambda v: kernels.Sum(v, v),
    "generator": lambda v: views.TwoViews(8)(IMAGES, v),
}
BAD_INTEGERS = [
    None,
    "1",
    "",
    2.5,
    3.0,
    math.nan,
    math.inf,
    True,
    -1,
    0,
    10**30,
    1j,
    [2],
    (2,),
    {},
    object,
    np.float64(2.5),
    np.array([2, 3]),
    torch.tensor([2, 3]),
    b"1",
    decimal.Decimal(2),
    pd.NA,
]
BAD_NUMBERS = [
    None,
    "1",
    "",
    math.nan,
    math.inf,
    -math.inf,
    -1.0,
    1j,
    [1.0],
    {},
    object,
    np.array([1.0, 2.0]),
    b"1",
    pd.NA,
    True,
]
BAD_CHOICES = [
    "gaussian",
    "",
    None,
    3,
    2.5,
    math.nan,
    True,
    ["gaussian"],
    [],
    {},
    {"a": 1},
    object,
    X,
    pd.DataFrame(),
    (),
    b"biased",
    Path("a"),
    np.str_("x"),
    torch.zeros(2),
]
GOOD_INTEGERS = [np.int64(2), np.int32(2), np.uint8(2), np.array(2), torch.tensor(2)]


def outcome(call: Callable[[], Any], plain: np.ndarray | None = None) -> str:
    """One of: equal, value, refused, and the faults "wrong value", "not finite" and "obscure ..."."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            value = call()
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        return "refused" if str(error) else "obscure error without words"
    except (TypeError, ValueError) as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        if last.filename.startswith(PACKAGE) and last.line.startswith("raise"):
            return "refused"
        if last.filename == __file__ and "argument" in str(error):
            return "refused"
        return f"obscure {type(error).__name__}: {str(error)[:110]!r} at {Path(last.filename).name}:{last.lineno}"
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        return f"obscure {type(error).__name__}: {str(error)[:110]!r} at {Path(last.filename).name}:{last.lineno}"
    try:
        value = value_of(value)
    except (TypeError, ValueError):
        return "value"
    if plain is None:
        return "value" if np.isfinite(value).all() else f"not finite: {value[:4]}"
    if value.shape == plain.shape and np.allclose(value, plain, rtol=2e-4, atol=2e-5, equal_nan=True):
        return "equal"
    return f"wrong value {value[:3]} for {plain[:3]}"


def cells(row: str) -> Iterator[tuple[str, str]]:
    """Column and outcome of every cell of a row of the table."""
    if row in ARRAYS:
        function, arrays = ARRAYS[row]
        usable = [torch.from_numpy(a) if row in TENSORS else a for a in arrays]
        plain = value_of(function(*usable))
        for position, array in enumerate(arrays):
            for kind, made, same in variants(array):
                given = [*usable[:position], made, *usable[position + 1 :]]
                yield f"argument {position}: {kind}", outcome(partial(function, *given), plain if same else None)
        return
    function, values = next((table[row], bad) for table, bad in SETTINGS if row in table)
    for value in values:
        yield f"{value!r:.40}", outcome(partial(function, value))
    if values is BAD_INTEGERS and row not in ("depth", "first", "block_size"):  # which do not accept 2
        plain = value_of(function(2))
        for value in GOOD_INTEGERS:
            yield f"{type(value).__name__} {value}", outcome(partial(function, value), plain)


TENSORS = {
    *LOSSES,
    "SupConLoss",
    "standardize",
    "cross_correlation",
    "extract_features",
    "normalize",
    "TwoViews",
    "compare_models",
}
SETTINGS = ((INTEGERS, BAD_INTEGERS), (NUMBERS, BAD_NUMBERS), (CHOICES, BAD_CHOICES))
ROWS = [*ARRAYS, *INTEGERS, *NUMBERS, *CHOICES]


# Public names without a row of their own, and why.
ELSEWHERE = {
    "results and containers, which functions of this library make": "Callback Event ImageData Images "
    "Kernel LayerTests PairedDifference ProbeResult TestResult Embeddings TwoViewLoss",
    "kernels and losses that the rows of the others cover": "InverseMultiquadric Linear Product",
    "checked tensors only, in every step of a training": "center off_diagonal squared_distances",
    "no argument, or those of another row": "data_folder demo_config demo_probe run_demo save_figures set_theme "
    "explorer_fragment extract_layers",
    "tests of their own: scikit-learn's check_estimator, tests/views, tests/datasets, tests/training": "CorruptedRows "
    "DigitScenes SelfSupervisedEncoder TensorBoardLogger",
}


def test_every_public_function_has_a_row_or_a_reason():
    table = Path(__file__).read_text().partition("# name: (function")[2].partition("BAD_INTEGERS = [")[0]
    named = set(re.findall(r"\w+", table)) | set(LOSSES) | set(re.findall(r"\w+", " ".join(ELSEWHERE.values())))
    public = {
        name
        for module in map(partial(getattr, hsic_lab), hsic_lab._MODULES)
        for name in getattr(module, "__all__", ())
        if callable(getattr(module, name))
    }
    assert len(public) > 100 and public - named == set()


def test_help_shows_short_types():
    """`ArrayLike` written out is a union of several hundred characters, once for every argument."""
    for module in map(partial(getattr, hsic_lab), hsic_lab._MODULES):
        for function in (getattr(module, name) for name in getattr(module, "__all__", ())):
            if inspect.isroutine(function) or inspect.isclass(function):
                assert "_SupportsArray" not in str(inspect.signature(function)), function
                assert module is not hsic_lab.evaluation or inspect.signature(function, eval_str=True)


def test_rows_have_different_names():
    assert [row for row, count in Counter(ROWS).items() if count > 1] == []


@pytest.mark.parametrize("row", ROWS)
def test_unusual_input_is_equal_or_refused(row):
    assert [(column, result) for column, result in cells(row) if result.split()[0] in FAULTS] == []


if __name__ == "__main__":
    results = [(row, *cell) for row in ROWS for cell in cells(row)]
    print(*(cell for cell in results if cell[2].split()[0] in FAULTS), sep="\n")
    print(Counter(result.split()[0] for _, _, result in results))

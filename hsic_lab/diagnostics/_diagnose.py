"""Is a representation healthy? One number a question, and `diagnose`: all of them in one frame, with verdicts."""

import math

import pandas as pd
import torch
from torch import Tensor

from hsic_lab._checks import as_samples, no_autocast
from hsic_lab.cka import cka_or_nan
from hsic_lab.correlation import column_moments, standardize
from hsic_lab.diagnostics._measures import (
    SPREAD_ROWS,
    Features,
    alignment,
    as_views,
    covariance_spectrum,
    entropy_rank,
    factor_dependence,
    lidar,
    power_law,
    uniformity,
)
from hsic_lab.losses._off_diagonal import split_squared_norm

# From the worst to the best: the overall verdict is the first that occurs.
_LARGEST, _SMALLEST = 1e15, 1e-18  # of a value, and of the largest standard deviation: beyond, squares leave float32
VERDICTS = (
    "complete collapse",
    "branch anti-alignment",
    "unrelated views",
    "dimensional collapse",
    "redundant",
    "healthy",
    "not judged",
)
FAULTS = VERDICTS[:4]  # the alarms; "redundant" is usual for features that no loss has decorrelated
Row = dict[str, str | float]


def feature_variance(z: Features) -> Tensor:
    """Variance (1/n) of every feature of `z` `(n, d)`, float64 `(d,)`; exactly 0 for a dead one.

    Dead is a feature that is constant up to rounding, by the rule of `standardize`.
    """
    return column_moments(as_samples(z, "z").detach())[1]


def redundancy(z_a: Features, z_b: Features | None = None) -> float:
    """Off-diagonal squared_norm of C without its noise floor: `sum_{i != j} C_ij^2 - d (d - 1) / (n - 1)`.

    `C` is the cross-correlation of `z_a` and `z_b` `(n, d)`, of `z_a` with itself if `z_b` is left out; the sum is
    HSIC with linear kernels less its diagonal and is taken through the n x n Grams where n is small against d. Between
    independent features of n rows every `C_ij^2` has the mean 1/(n - 1), so that the result is 0 on average there, and
    negative half of the time: it is not clamped. Pairs with a dead feature count neither in the sum nor in the floor.
    """
    return _redundancy(*_standardized(z_a, z_b))[0]


def feature_sum_covariance(z_a: Features, z_b: Features | None = None) -> float:
    """`1'C1 = (1/n) sum_b s_b s'_b`: the covariance between the views of the sum of the standardized features.

    It is d for uncorrelated features that agree, 0 at the optimum of the HSIC_SSL loss for twin branches (a simplex),
    and negative where branches that can tell the views apart oppose their feature sums to game that loss.
    """
    return _feature_sums(*_standardized(z_a, z_b))[0]


def diagnose(
    z_a: Features,
    z_b: Features | None = None,
    *,
    reference: Features | None = None,
    factors: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """All diagnostics of features `z_a` `(n, d)`, and of a second view `z_b` of the same images, in one tidy frame.

    One row a diagnostic: `diagnostic, value, verdict, threshold, meaning`. `threshold` is the rule that gave the
    verdict. `verdict` is "healthy", what is to look at ("complete collapse", "branch anti-alignment", "unrelated
    views", "dimensional collapse", "redundant"), or "not judged" where no bound holds for every representation. The
    overall verdict, the worst of the rows, is `frame.attrs["verdict"]`. `reference` `(n, p)` are other features of the
    same rows for CKA;
    `factors` is a data frame with a known cause a column. The rules are conventions to start looking from, not laws.

    Dead features are counted, equal rows are a complete collapse; raises ValueError or TypeError for fewer than 4
    rows, NaN, and inputs that do not match.
    """
    z_a, z_b = (as_samples(z_a, "z_a").detach(), None) if z_b is None else as_views(z_a, z_b)
    n, d = z_a.shape
    if n < 4:
        raise ValueError(f"needs at least 4 rows, got shape {(n, d)}")
    for name, z in (("z_a", z_a), ("z_b", z_b)):
        if z is not None and (largest := float(z.abs().max())) > _LARGEST:
            raise ValueError(f"{name} reaches {largest:.3g}, and squares leave float32 above {_LARGEST:g}: rescale it")
    rows = _collapse_rows(z_a, "")
    if z_b is not None:
        rows += _collapse_rows(z_b, "_b")
    rows += _correlation_rows(z_a, z_b)
    if reference is not None:
        reference = as_samples(reference, "reference").detach()
        if len(reference) != n:
            raise ValueError(f"z_a and reference must have the same number of rows, got {n} and {len(reference)}")
        value = cka_or_nan(z_a, reference)
        rows.append(_row("cka_reference", value, "unbiased linear CKA with the reference: 1 if equal, 0 if unrelated"))
    if factors is not None:
        rows += [
            _row(f"cka_{factor}", value, f"unbiased CKA with the factor {factor} ({kernel} kernel, {m} rows)")
            for factor, kernel, value, m in factor_dependence(z_a, factors).itertuples(index=False)
        ]
    frame = pd.DataFrame(rows)
    frame.attrs["verdict"] = min(frame["verdict"], key=VERDICTS.index)
    return frame


def _row(
    diagnostic: str, value: float, meaning: str, threshold: str = "none", healthy: bool | None = None, fault: str = ""
) -> Row:
    verdict = "not judged" if healthy is None or math.isnan(value) else "healthy" if healthy else fault
    return {
        "diagnostic": diagnostic,
        "value": float(value),
        "verdict": verdict,
        "threshold": threshold,
        "meaning": meaning,
    }


def _collapse_rows(z: Tensor, view: str) -> list[Row]:
    n, d = z.shape
    mean, variance = column_moments(z)
    dead, total = int((variance == 0).sum()), float(variance.sum())
    if 0 < (largest := float(variance.max().sqrt())) < _SMALLEST:
        raise ValueError(
            f"the largest standard deviation of z{view or '_a'} is {largest:.3g}, and squares leave float32 below "
            f"{_SMALLEST:g}: rescale it"
        )
    spread = math.sqrt(total / (total + float(mean.square().sum()))) if total else 0.0
    collapse = "dimensional collapse" if total else "complete collapse"
    spectrum = covariance_spectrum(z)
    rank, bound = entropy_rank(spectrum.sqrt()), 0.25 * min(n - 1, d)
    bound = max(bound, 1.01) if d > 1 else bound  # 1 is one direction, and rounding
    rows = [
        _row(
            f"relative_spread{view}",
            spread,
            "rms distance of the rows from their mean, over that from 0; where it is "
            "small, cosines (nearest neighbors, uniformity, alignment) see little but the mean",
            ">= 0.001",
            spread >= 0.001,
            "complete collapse",
        ),
        _row(
            f"dead_features{view}",
            dead,
            f"features that are constant, of {d}",
            f"<= 0.1 d = {0.1 * d:.4g}",
            dead <= 0.1 * d,
            collapse,
        ),
        _row(f"feature_variance{view}", total / d, "mean variance of the features"),
        _row(
            f"rankme{view}",
            rank,
            "dimensions in use: entropy rank of the singular values, centered",
            f">= max(0.25 min(n - 1, d), 1.01) = {bound:.4g}",
            rank >= bound,
            collapse,
        ),
        _row(
            f"effective_rank{view}",
            entropy_rank(spectrum),
            "dimensions that carry the variance: entropy rank of the covariance",
        ),
    ]
    last = min(100, int((spectrum > 0).sum()))
    if last > 11:
        rows.append(
            _row(
                f"alpha_req{view}",
                power_law(spectrum, 11, last),
                f"decay of the covariance's eigenvalues over ranks 11 to {last}: large is steep, 1 is said to be best",
            )
        )
    if (zero := int((z == 0).all(dim=1).sum())) or not total:
        reason = f"not defined: {zero} rows are 0" if zero else "all rows are equal"
        return [*rows, _row(f"uniformity{view}", math.nan if zero else 0.0, reason)]
    return [
        *rows,
        _row(
            f"uniformity{view}",
            uniformity(z),
            f"spread over the sphere: 0 in one point, about -4 all over it ({min(n, SPREAD_ROWS)} rows)",
        ),
    ]


def _correlation_rows(z_a: Tensor, z_b: Tensor | None) -> list[Row]:
    n, d = z_a.shape
    x, y = _standardized(z_a, z_b)
    alive = bool(x.any() and y.any())
    value, diagonal = _redundancy(x, y)
    # Six: three standard deviations of a sum of d (d - 1) / 2 pairs, each counted twice.
    bound = diagonal + 6 * d / (n - 1)
    redundancy_row = _row(
        "redundancy",
        value,
        "off-diagonal squared_norm of C above its noise floor; as large as the diagonal's if every feature has a copy",
        f"<= sum C_ii^2 + 6 d / (n - 1) = {bound:.4g}",
        value <= bound if alive else None,
        "redundant",
    )
    if z_b is None:
        return [redundancy_row]
    agreement = float((x * y).sum(dtype=torch.float64)) / (n * d)
    # What permutation the rows makes of it has mean 0 and, for centered columns, variance |X Y'|^2 / (n^2 d^2 (n - 1)).
    least = 3 * math.sqrt(_pairing_squared_norm(x, y) / (n - 1)) / (n * d)
    value, error = _feature_sums(x, y)
    zero = any(bool((z == 0).all(dim=1).any()) for z in (z_a, z_b))
    return [
        redundancy_row,
        _row(
            "mean_diagonal",
            agreement,
            "mean correlation of a feature with itself in the other view",
            f">= 3 standard deviations of permuted rows = {least:.3g}",
            agreement >= least if alive and least < 1 else None,
            "unrelated views",
        ),
        _row(
            "feature_sum_covariance",
            value,
            "1'C1: do the branches agree in the sum of their features?",
            f">= -3 standard errors = {-3 * error:.3g}",
            value >= -3 * error if alive else None,
            "branch anti-alignment",
        ),
        _row(
            "alignment",
            math.nan if zero else alignment(z_a, z_b),
            "not defined: rows are 0" if zero else "squared distance of the views of an image on the sphere, 0 to 4",
        ),
        _lidar_row(z_a, z_b),
    ]


def _lidar_row(z_a: Tensor, z_b: Tensor) -> Row:
    try:
        return _row(
            "lidar",
            lidar((z_a, z_b)),
            "effective number of directions in which images differ, "
            "measured by how views of one differ: at most min(n - 1, d); without meaning for unrelated views",
        )
    except ValueError as error:
        return _row("lidar", math.nan, f"not defined: {error}")


def _pairing_squared_norm(x: Tensor, y: Tensor) -> float:
    """`|X Y'|_F^2` through the smaller of `n x n` and `d x d`."""
    n, d = x.shape
    with no_autocast(x):
        squared_norm = (x @ y.T).square() if n < d else (x.T @ x) * (y.T @ y)
    return float(squared_norm.sum(dtype=torch.float64))


def _standardized(z_a: Features, z_b: Features | None) -> tuple[Tensor, Tensor]:
    if z_b is None:
        x = standardize(as_samples(z_a, "z_a").detach())
        return x, x
    return tuple(standardize(z) for z in as_views(z_a, z_b))


def _redundancy(x: Tensor, y: Tensor) -> tuple[float, float]:
    """The redundancy of standardized views, and the squared_norm of the diagonal."""
    with no_autocast(x):
        diagonal, squared_norm = split_squared_norm(x, None if y is x else y)
    alive_x, alive_y = ((z != 0).any(dim=0) for z in (x, y))
    pairs = int(alive_x.sum()) * int(alive_y.sum()) - int((alive_x & alive_y).sum())
    return float(squared_norm) - pairs / (len(x) - 1), float(diagonal.square().sum())


def _feature_sums(x: Tensor, y: Tensor) -> tuple[float, float]:
    """1'C1 of standardized views and its standard error."""
    products = x.sum(dim=1, dtype=torch.float64) * y.sum(dim=1, dtype=torch.float64)
    return float(products.mean()), float(products.std() / math.sqrt(len(x)))

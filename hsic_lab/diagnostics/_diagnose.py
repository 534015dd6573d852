"""Variance, redundancy and feature sums of a representation, and a table of all diagnostics with verdicts."""

import math

import torch
from pandas import DataFrame
from torch import Tensor

from hsic_lab._checks import as_samples, no_autocast
from hsic_lab.cka import cka_or_nan
from hsic_lab.correlation import column_moments, standardize
from hsic_lab.diagnostics import _measures as measures
from hsic_lab.diagnostics._measures import Features, as_views, covariance_spectrum, entropy_rank
from hsic_lab.losses._off_diagonal import split_squared_norm

_LARGEST, _SMALLEST = 1e15, 1e-18  # of a value and of the largest standard deviation, so that squares fit float32
# From worst to best: the overall verdict is the first that occurs. "redundant" is usual without decorrelation.
FAULTS = ("complete collapse", "branch anti-alignment", "unrelated views", "dimensional collapse")
VERDICTS = (*FAULTS, "redundant", "healthy", "not judged")

# name: (threshold, verdict if it is not met, meaning). The threshold "none" judges nothing.
# fmt: off
CRITERIA = {
    "relative_spread": (
        ">= {bound}", "complete collapse", "rms distance of the rows from their mean, over that from 0; if it is "
        "small, cosines (nearest neighbors, uniformity, alignment) see little but the mean"),
    "dead_features": ("<= 0.1 d = {bound:.4g}", "dimensional collapse", "features that are constant, of {d}"),
    "feature_variance": ("none", "", "mean variance of the features"),
    "rankme": (">= max(0.25 min(n - 1, d), 1.01) = {bound:.4g}", "dimensional collapse",
               "dimensions in use: entropy rank of the singular values, centered"),
    "effective_rank": ("none", "", "dimensions that carry the variance: entropy rank of the covariance"),
    "alpha_req": ("none", "", "decay of the eigenvalues over ranks 11 to {last}: large is steep, 1 is said to be best"),
    "uniformity": ("none", "", "spread over the sphere: 0 in one point, about -4 all over it ({rows} rows)"),
    "redundancy": (
        "<= sum C_ii^2 + 6 d / (n - 1) = {bound:.4g}", "redundant", "squared norm of C off the diagonal above its "
        "noise floor; that of the diagonal if all features have a copy"),
    "mean_diagonal": (">= 3 standard deviations of permuted rows = {bound:.3g}", "unrelated views",
                      "mean correlation of a feature with itself in the other view"),
    "feature_sum_covariance": (">= -3 standard errors = {bound:.3g}", "branch anti-alignment",
                               "1'C1: do the branches agree in the sum of their features?"),
    "alignment": ("none", "", "squared distance of the views of an image on the sphere, 0 to 4"),
    "lidar": ("none", "", "effective number of directions in which images differ, measured by how views of one differ: "
              "at most min(n - 1, d); without meaning for unrelated views"),
    "cka_reference": ("none", "", "unbiased linear CKA with the reference: 1 if equal, 0 if unrelated"),
}
# fmt: on
Row = tuple[str, float, str, str, str]


def _judge(
    name: str, value: float, bound: float = 0, view: str = "", judged: bool = True, fault: str = "", **numbers
) -> Row:
    """The row of one diagnostic; `fault` replaces the verdict of its criterion, `numbers` fill its meaning."""
    threshold, usual_fault, meaning = CRITERIA[name]
    met = value >= bound if threshold.startswith(">=") else value <= bound
    verdict = "healthy" if met else fault or usual_fault
    if threshold == "none" or not judged or math.isnan(value):
        verdict = "not judged"
    return name + view, float(value), verdict, threshold.format(bound=bound), meaning.format(**numbers)


def _not_judged(name: str, value: float, meaning: str) -> Row:
    return name, value, "not judged", "none", meaning


def diagnose(
    z_a: Features, z_b: Features | None = None, *, reference: Features | None = None, factors: DataFrame | None = None
) -> DataFrame:
    """Compute all diagnostics of a representation and judge them.

    The verdict of a row is "healthy", a fault ("complete collapse", "branch anti-alignment", "unrelated views",
    "dimensional collapse", "redundant"), or "not judged" where no bound holds for every representation. The bounds are
    conventions to start from. Features that are constant up to rounding are counted and left out of C.

    Parameters
    ----------
    z_a, z_b : Tensor or ndarray of shape (n, d)
        Features of one or two views of the same images: at least 4 rows, with squares in the range of float32.
    reference, factors : Tensor or ndarray of shape (n, p), and DataFrame with n rows, optional
        Other features of the same rows, for CKA; and known factors of variation, one per column.

    Returns
    -------
    DataFrame
        Columns `diagnostic, value, verdict, threshold, meaning`; ``frame.attrs["verdict"]`` is the worst verdict.

    Examples
    --------
    >>> import torch
    >>> from hsic_lab.diagnostics import diagnose
    >>> z = torch.randn(200, 8, generator=torch.Generator().manual_seed(0))
    >>> diagnose(z).attrs["verdict"], diagnose(z, z.flip(0)).attrs["verdict"]
    ('healthy', 'unrelated views')
    """
    z_a, z_b = (as_samples(z_a, "z_a").detach(), None) if z_b is None else as_views(z_a, z_b)
    n, d = z_a.shape
    if n < 4:
        raise ValueError(f"needs at least 4 rows, got shape {(n, d)}")
    for name, z in (("z_a", z_a), ("z_b", z_b)):
        if z is not None and (largest := float(z.abs().max())) > _LARGEST:
            raise ValueError(f"{name} reaches {largest:.3g}, and squares leave float32 above {_LARGEST:g}: rescale it")
    rows = _view_rows(z_a, "") + (_view_rows(z_b, "_b") if z_b is not None else []) + _correlation_rows(z_a, z_b)
    if reference is not None:
        reference = as_samples(reference, "reference").detach()
        if len(reference) != n:
            raise ValueError(f"z_a and reference must have the same number of rows, got {n} and {len(reference)}")
        rows.append(_judge("cka_reference", cka_or_nan(z_a, reference)))
    if factors is not None:
        rows += [
            _not_judged(f"cka_{factor}", value, f"unbiased CKA with the factor {factor} ({kernel} kernel, {m} rows)")
            for factor, kernel, value, m in measures.factor_dependence(z_a, factors).itertuples(index=False)
        ]
    frame = DataFrame(rows, columns=["diagnostic", "value", "verdict", "threshold", "meaning"])
    frame.attrs["verdict"] = min(frame["verdict"], key=VERDICTS.index)
    return frame


def _view_rows(z: Tensor, view: str) -> list[Row]:
    """Diagnostics of one view."""
    n, d = z.shape
    mean, variance = column_moments(z)
    dead, total = int((variance == 0).sum()), float(variance.sum())
    if 0 < (largest := float(variance.max().sqrt())) < _SMALLEST:
        what = f"the largest standard deviation of z{view or '_a'} is {largest:.3g}"
        raise ValueError(f"{what}, and squares leave float32 below {_SMALLEST:g}: rescale it")
    spread = math.sqrt(total / (total + float(mean.square().sum()))) if total else 0.0
    fault = "" if total else "complete collapse"
    spectrum = covariance_spectrum(z)
    least_rank = max(0.25 * min(n - 1, d), 1.01 if d > 1 else 0)  # one direction has rank 1, up to rounding
    rows = [
        _judge("relative_spread", spread, 0.001, view=view),
        _judge("dead_features", dead, 0.1 * d, view=view, fault=fault, d=d),
        _judge("feature_variance", total / d, view=view),
        _judge("rankme", entropy_rank(spectrum.sqrt()), least_rank, view=view, fault=fault),
        _judge("effective_rank", entropy_rank(spectrum), view=view),
    ]
    if (last := min(100, int((spectrum > 0).sum()))) > 11:
        rows.append(_judge("alpha_req", measures.power_law(spectrum, 11, last), view=view, last=last))
    if zero := int((z == 0).all(dim=1).sum()):
        return [*rows, _not_judged(f"uniformity{view}", math.nan, f"not defined: {zero} rows are 0")]
    if not total:
        return [*rows, _not_judged(f"uniformity{view}", 0.0, "not defined: all rows are equal")]
    return [*rows, _judge("uniformity", measures.uniformity(z), view=view, rows=min(n, measures.UNIFORMITY_ROWS))]


def _correlation_rows(z_a: Tensor, z_b: Tensor | None) -> list[Row]:
    """Diagnostics of C, and of the agreement of two views."""
    n, d = z_a.shape
    x, y = _standardized(z_a, z_b)
    alive = bool(x.any() and y.any())
    value, diagonal = _redundancy(x, y)
    # Six are three standard deviations of a sum of d (d - 1) / 2 pairs, each counted twice.
    rows = [_judge("redundancy", value, diagonal + 6 * d / (n - 1), judged=alive)]
    if z_b is None:
        return rows
    agreement = float((x * y).sum(dtype=torch.float64)) / (n * d)
    # Over permutations of the rows it has mean 0 and, for centered columns, variance |X Y'|^2 / (n^2 d^2 (n - 1)).
    with no_autocast(x):
        squares = (x @ y.T).square() if n < d else (x.T @ x) * (y.T @ y)
    least = 3 * math.sqrt(float(squares.sum(dtype=torch.float64)) / (n - 1)) / (n * d)
    total, deviation = _feature_sums(x, y)
    rows.append(_judge("mean_diagonal", agreement, least, judged=alive and least < 1))
    rows.append(_judge("feature_sum_covariance", total, -3 * deviation, judged=alive))
    for name, views in (("alignment", (z_a, z_b)), ("lidar", ((z_a, z_b),))):
        try:
            rows.append(_judge(name, getattr(measures, name)(*views)))
        except ValueError as error:
            rows.append(_not_judged(name, math.nan, f"not defined: {error}"))
    return rows


def feature_variance(z: Features) -> Tensor:
    """Variance (divisor n) of features (n, d), float64 of shape (d,); 0 for one that is constant up to rounding."""
    return column_moments(as_samples(z, "z").detach())[1]


def redundancy(z_a: Features, z_b: Features | None = None) -> float:
    """Redundancy: ``sum_{i != j} C_ij^2 - d (d - 1) / (n - 1)``, the off-diagonal of C above its noise floor.

    The sum is linear HSIC without its diagonal. For independent features ``C_ij^2`` has the mean ``1 / (n - 1)``, so
    the result is 0 on average and often negative. Pairs with a constant feature do not count.

    Parameters
    ----------
    z_a, z_b : Tensor or ndarray of shape (n, d)
        Features of the two views; `z_a` alone is taken for both.

    References
    ----------
    Zbontar et al. (2021), "Barlow Twins", arXiv:2103.03230, equation 1; Tsai et al. (2021), arXiv:2104.13712.
    """
    return _redundancy(*_standardized(z_a, z_b))[0]


def feature_sum_covariance(z_a: Features, z_b: Features | None = None) -> float:
    """Sum of the entries of C, ``1'C1``: the covariance between the views of the sum of the standardized features.

    It is d for uncorrelated features that agree, and 0 at the optimum of the HSIC_SSL loss (Tsai et al., 2021) with
    shared weights. It is negative if two branches with weights of their own oppose each other in their feature sums to
    lower that loss. Parameters are those of `redundancy`.
    """
    return _feature_sums(*_standardized(z_a, z_b))[0]


def _standardized(z_a: Features, z_b: Features | None) -> tuple[Tensor, Tensor]:
    """Both views standardized; the same tensor twice for one view."""
    if z_b is None:
        return (standardize(as_samples(z_a, "z_a").detach()),) * 2
    x, y = as_views(z_a, z_b)
    return standardize(x), standardize(y)


def _redundancy(x: Tensor, y: Tensor) -> tuple[float, float]:
    """The redundancy of standardized views, and the squared norm of the diagonal of C."""
    with no_autocast(x):
        diagonal, squared_norm, _ = split_squared_norm(x, None if y is x else y)
    alive_x, alive_y = ((z != 0).any(dim=0) for z in (x, y))
    pairs = int(alive_x.sum()) * int(alive_y.sum()) - int((alive_x & alive_y).sum())
    return float(squared_norm) - pairs / (len(x) - 1), float(diagonal.square().sum())


def _feature_sums(x: Tensor, y: Tensor) -> tuple[float, float]:
    """1'C1 of standardized views, and its standard error."""
    products = x.sum(dim=1, dtype=torch.float64) * y.sum(dim=1, dtype=torch.float64)
    return float(products.mean()), float(products.std() / math.sqrt(len(x)))

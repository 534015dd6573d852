"""Variance, redundancy and feature sums of a representation, and a table of all diagnostics with verdicts."""

import math
import textwrap

import torch
from pandas import DataFrame
from torch import Tensor

from hsic_lab._checks import as_samples, check_choice, no_autocast
from hsic_lab.cka import cka_or_nan
from hsic_lab.correlation import column_moments, standardize
from hsic_lab.diagnostics import _measures as measures
from hsic_lab.diagnostics._measures import Features, as_views, covariance_spectrum, entropy_rank, noise_edge
from hsic_lab.losses._off_diagonal import split_squared_norm

_LARGEST, _SMALLEST = 1e15, 1e-18  # of a value and of the largest standard deviation, so that squares fit float32
# From worst to best: the overall verdict is the first that occurs. "redundant" is usual without decorrelation.
FAULTS = ("complete collapse", "branch anti-alignment", "unrelated views", "dimensional collapse")
VERDICTS = (*FAULTS, "redundant", "healthy", "not judged")
KINDS = ("unknown", "projections", "features", "data")
_RANK_SHARE, _VARIANCE_SHARE = 0.13, 0.7  # of dimensional collapse; benchmarks/verdicts.py measures their error rates
_SUMMARY = ("share_above_noise", "rank_above_noise", "effective_rank", "dead_features", "redundancy", "mean_diagonal")
_REDUNDANT = "The features are correlated: squares of C off its diagonal, less those of chance, exceed those on it. "
_FEW = "The rows differ, but in far fewer directions than there are features. "
# The words for a verdict, and those that replace them for one kind of features.
EXPLANATIONS = {
    "healthy": "All rules that have a threshold hold. This does not prove that the features are useful for a task.",
    "complete collapse": "The rows hardly differ: the features are nearly the same for every input. If labels can be "
    "predicted all the same, a large mean hides the differences: subtract the mean and look again.",
    "branch anti-alignment": "The sums of the features of the two branches are negatively correlated. This can make a "
    "loss with the off-diagonal target -1 small although nothing was learned.",
    "unrelated views": "Feature i of one view does not agree with feature i of the other view. Possible reasons: "
    "nothing was learned yet, the rows are not in the same order, or the features are not (two different networks).",
    "dimensional collapse": _FEW + "If the columns have different units, divide each by its standard deviation and "
    "look again: a column with a large variance hides the others.",
    "dimensional collapse of projections": _FEW + "The features of the encoder may be better: look at them, too.",
    "dimensional collapse of features": _FEW,
    "redundant": _REDUNDANT + "Features of an encoder and raw data usually are, and that is no fault. Projections of a "
    "network that was trained to decorrelate them should not be.",
    "redundant of projections": _REDUNDANT + "If the loss asks for uncorrelated projections (Barlow Twins, HSIC_SSL, "
    "VICReg), these rows do not show it: the run may be too short, lambda too small, or the projector too wide.",
    "redundant of features": _REDUNDANT + "This is usual for the features of an encoder: a loss that decorrelates acts "
    "on the projections.",
    "redundant of data": _REDUNDANT + "This is usual for raw data: neighboring pixels, for example, are alike.",
    "not judged": "No rule could be applied.",
}

# Name: threshold, verdict if it is not met, meaning.
RULES = {
    "relative_spread": (">= {bound}", "complete collapse", "rms distance of the rows from their mean, over that from "
        "0; if it is small, cosines (nearest neighbors, uniformity, alignment) see little but the mean"),
    "dead_features": ("<= 0.4 d = {bound:.4g}", "dimensional collapse", "features that are constant, of {d}"),
    "rank_above_noise": (
        ">= max(0.13 min(n - 1, d), 1.01) = {bound:.4g}", "dimensional collapse",
        "RankMe of the directions above the noise floor"),
    "redundancy": ("<= sum C_ii^2 + 6 d / (n - 1) = {bound:.4g}", "redundant", "squared norm of C off the diagonal "
        "above its noise floor; that of the diagonal if all features have a copy"),
    "mean_diagonal": (">= 3 standard deviations of permuted rows = {bound:.3g}", "unrelated views",
        "mean correlation of a feature with itself in the other view"),
    "feature_sum_covariance": (">= -3 standard errors = {bound:.3g}", "branch anti-alignment",
        "1'C1: do the branches agree in the sum of their features?"),
}  # fmt: skip
# Meaning of the diagnostics without a threshold, and why they have none.
UNJUDGED = {
    "feature_variance": "mean variance of the features; not judged: it depends on their unit",
    "share_above_noise": "share of variance in directions above the noise floor; judged in the next row",
    "rankme": "entropy rank of the singular values, centered; not judged: it counts noise, too",
    "effective_rank": "entropy rank of the covariance: dimensions that carry the variance; not judged: it is small for "
        "the steep spectra of natural images",
    "alpha_req": "decay of the eigenvalues over ranks 11 to {last}: large is steep; not judged: 1 is said to be best, "
        "and no value is a fault",
    "uniformity": "spread over the sphere: 0 in one point, about -4 all over it ({rows} rows); not judged: classes in "
        "tight clusters may be wanted",
    "alignment": "squared distance of the views of an image on the sphere, 0 to 4; not judged: it grows with the "
        "strength of the augmentation",
    "lidar": "effective number of directions in which images differ, measured by how views of one differ: at most "
        "min(n - 1, d); not judged: it depends on the augmentation",
    "cka_reference": "unbiased linear CKA with the reference: 1 if equal, 0 if unrelated; not judged: it depends on "
        "the reference",
}  # fmt: skip
Row = tuple[str, float, str, str, str]


def _judged(
    name: str, value: float, bound: float, view: str = "", why_not: str = "", fault: str = "", **numbers: int
) -> Row:
    """The row of a diagnostic with a rule, not judged with a reason `why_not`.

    `fault` replaces the verdict of the rule, and `numbers` fill its meaning.
    """
    threshold, usual_fault, meaning = RULES[name]
    met = value >= bound if threshold.startswith(">=") else value <= bound
    verdict = "not judged" if why_not else "healthy" if met else fault or usual_fault
    meaning = meaning.format(**numbers) + (f"; not judged: {why_not}" if why_not else "")
    return name + view, float(value), verdict, threshold.format(bound=bound), meaning


def _unjudged(name: str, value: float, meaning: str = "", view: str = "", **numbers: int) -> Row:
    return name + view, float(value), "not judged", "none", meaning or UNJUDGED[name].format(**numbers)


class Diagnosis(DataFrame):
    """The table of `diagnose`. ``str()`` is short: the verdict, its explanation and the numbers behind it."""

    @property
    def _constructor(self) -> type[DataFrame]:
        return DataFrame  # a selection of rows is a plain table

    def __str__(self) -> str:
        (n, d), kind = self.attrs["shape"], self.attrs["kind"]
        first = f"Verdict: {self.attrs['verdict']} ({n} rows, {d} features{'' if kind == 'unknown' else f', {kind}'})"
        bounds = self["threshold"].replace("none", "").str.replace(" .* = ", " ", regex=True)  # without their formulas
        rows = zip(self["diagnostic"], self["value"], self["verdict"], bounds, strict=True)
        shown = (row for row in rows if row[0] in _SUMMARY or row[2] in FAULTS)
        lines = [f"  {name:22} {x:10.4g}   {verdict}{b and f' (healthy: {b})'}" for name, x, verdict, b in shown]
        return "\n".join([first, *textwrap.wrap(self.attrs["explanation"], 100), *lines])


def diagnose(
    z_a: Features, z_b: Features | None = None, *, reference: Features | None = None, factors: DataFrame | None = None,
    kind: str = "unknown",
) -> Diagnosis:  # fmt: skip
    """Table of all diagnostics of a representation, with verdicts: `diagnostic, value, verdict, threshold, meaning`.

    A verdict is "healthy", a fault ("complete collapse", "branch anti-alignment", "unrelated views", "dimensional
    collapse", "redundant"), or "not judged" where no bound holds for every representation. ``attrs["verdict"]`` is the
    worst one; ``print(frame)`` shows it with ``attrs["explanation"]`` and the numbers behind it. The bounds are
    conventions to start from. Features that are constant up to rounding are counted and left out of C.

    Features are in dimensional collapse if more than 0.4 d are constant, or if the directions above the noise floor
    carry at least 0.7 of the variance and their RankMe is below ``max(0.13 min(n - 1, d), 1.01)``. The noise floor is
    the largest eigenvalue of the covariance of n rows of white noise with the same median eigenvalue (Marchenko &
    Pastur, 1967), and 0 for fewer than 8 directions.

    Parameters
    ----------
    z_a, z_b : Tensor or ndarray of shape (n, d)
        Features of one or two views of the same images: at least 4 rows, with squares in the range of float32.
    reference, factors : Tensor or ndarray of shape (n, p), and DataFrame with n rows, optional
        Other features of the same rows, for CKA; and known factors of variation, one per column.
    kind : {"unknown", "projections", "features", "data"}, default "unknown"
        What the features are, for the explanation of the verdict: projections that a loss was trained on, features of
        an encoder, or raw data, in which constant columns are not judged.

    Examples
    --------
    >>> import torch
    >>> from hsic_lab.diagnostics import diagnose
    >>> z = torch.randn(200, 8, generator=torch.Generator().manual_seed(0))
    >>> diagnose(z).attrs["verdict"], diagnose(z, z.flip(0)).attrs["verdict"]
    ('healthy', 'unrelated views')
    """
    check_choice(kind, KINDS, "kind")
    x, y = _checked(z_a, z_b)
    n, d = x.shape
    if n < 4:
        raise ValueError(f"needs at least 4 rows, got shape {(n, d)}")
    rows = _view_rows(x, "", kind) + ([] if z_b is None else _view_rows(y, "_b", kind))
    rows += _correlation_rows(x, y)
    if reference is not None:
        reference = as_samples(reference, "reference").detach()
        if len(reference) != n:
            raise ValueError(f"z_a and reference must have the same number of rows, got {n} and {len(reference)}")
        rows.append(_unjudged("cka_reference", cka_or_nan(x, reference)))
    if factors is not None:
        for factor, kernel, value, m in measures.factor_dependence(x, factors).itertuples(index=False):
            meaning = f"unbiased CKA with it, {kernel} kernel, {m} rows; not judged: your aim"
            rows.append(_unjudged(f"cka_{factor}", value, meaning))
    frame = Diagnosis(rows, columns=["diagnostic", "value", "verdict", "threshold", "meaning"])
    verdict = min(frame["verdict"], key=VERDICTS.index)
    explanation = EXPLANATIONS.get(f"{verdict} of {kind}", EXPLANATIONS[verdict])
    if verdict == "healthy" and min(n - 1, d) < 8:
        explanation += f" {n} rows and {d} features are few: of dimensional collapse, only that to one direction shows."
    frame.attrs = {"verdict": verdict, "explanation": explanation, "kind": kind, "shape": (n, d)}
    return frame


def _view_rows(z: Tensor, view: str, kind: str) -> list[Row]:
    """Diagnostics of one view."""
    n, d = z.shape
    mean, variance = column_moments(z)
    dead, total = int((variance == 0).sum()), float(variance.sum())
    if 0 < (largest := float(variance.max().sqrt())) < _SMALLEST:
        what = f"the largest standard deviation of z{view or '_a'} is {largest:.3g}"
        raise ValueError(f"{what}, and squares leave float32 below {_SMALLEST:g}: rescale it")
    spread = math.sqrt(total / (total + float(mean.square().sum()))) if total else 0.0
    fault = "" if total else "complete collapse"
    spectrum, most = covariance_spectrum(z), min(n - 1, d)
    above = spectrum[spectrum > (noise_edge(spectrum, n, d) if most >= 8 else 0)]
    share, rank = float(above.sum() / (spectrum.sum() or 1)), entropy_rank(above.sqrt())
    bound = max(_RANK_SHARE * most, 1.01 if d > 1 else 0)  # one direction has rank 1, up to rounding
    noisy = f"less than {_VARIANCE_SHARE} of the variance is above the noise" * (total > 0 and share < _VARIANCE_SHARE)
    usual = "columns of raw data may be constant" if kind == "data" and total else ""
    rows = [
        _judged("relative_spread", spread, 0.001, view),
        _judged("dead_features", dead, 0.4 * d, view, fault=fault, why_not=usual, d=d),
        _unjudged("feature_variance", total / d, view=view),
        _unjudged("share_above_noise", share, view=view),
        _judged("rank_above_noise", rank, bound, view, noisy, fault),
        _unjudged("rankme", entropy_rank(spectrum.sqrt()), view=view),
        _unjudged("effective_rank", entropy_rank(spectrum), view=view),
    ]
    if (last := min(100, int((spectrum > 0).sum()))) > 11:
        rows.append(_unjudged("alpha_req", measures.power_law(spectrum, 11, last), view=view, last=last))
    if zero := int((z == 0).all(dim=1).sum()):
        return [*rows, _unjudged("uniformity", math.nan, f"not defined: {zero} rows are 0", view)]
    if not total:
        return [*rows, _unjudged("uniformity", 0, "not defined: all rows are equal", view)]
    return [*rows, _unjudged("uniformity", measures.uniformity(z), "", view, rows=min(n, measures.UNIFORMITY_ROWS))]


def _correlation_rows(z_a: Tensor, z_b: Tensor) -> list[Row]:
    """Diagnostics of C, and of the agreement of two views; one view is the same tensor twice."""
    n, (x, y) = len(z_a), _standardized(z_a, z_b)
    d = max(1, int(((x != 0).any(dim=0) & (y != 0).any(dim=0)).sum()))  # constant features are left out of C
    dead = "" if x.any() and y.any() else "all features are constant"
    value, diagonal = _redundancy(x, y)
    # Six are three standard deviations of a sum of d (d - 1) / 2 pairs, each counted twice.
    rows = [_judged("redundancy", value, diagonal + 6 * d / (n - 1), why_not=dead)]
    if z_b is z_a:
        return rows
    agreement = float((x * y).sum(dtype=torch.float64)) / (n * d)
    # Over permutations of the rows it has mean 0 and, for centered columns, variance |X Y'|^2 / (n^2 d^2 (n - 1)).
    with no_autocast(x):
        squares = (x @ y.T).square() if n < x.shape[1] else (x.T @ x) * (y.T @ y)
    least = 3 * math.sqrt(float(squares.sum(dtype=torch.float64)) / (n - 1)) / (n * d)
    total, deviation = _feature_sums(x, y)
    few = "" if least < 1 else "too few rows, correlations of permuted rows reach 1"
    rows.append(_judged("mean_diagonal", agreement, least, why_not=dead or few))
    rows.append(_judged("feature_sum_covariance", total, -3 * deviation, why_not=dead))
    for name, views in (("alignment", (z_a, z_b)), ("lidar", ((z_a, z_b),))):
        try:
            rows.append(_unjudged(name, getattr(measures, name)(*views)))
        except ValueError as error:
            rows.append(_unjudged(name, math.nan, f"not defined: {error}"))
    return rows


def redundancy(z_a: Features, z_b: Features | None = None) -> float:
    """Redundancy: ``sum_{i != j} C_ij^2 - d (d - 1) / (n - 1)``, the off-diagonal of C above its noise floor.

    Barlow Twins lowers the first sum (Zbontar et al. 2021, arXiv:2103.03230, equation 1), linear HSIC without its
    diagonal. The second is its mean for independent features, so the result is often negative. Pairs with a constant
    feature do not count.

    Parameters
    ----------
    z_a, z_b : Tensor or ndarray of shape (n, d)
        Features of the two views; `z_a` alone is taken for both.
    """
    return _redundancy(*_standardized(*_checked(z_a, z_b)))[0]


def feature_sum_covariance(z_a: Features, z_b: Features | None = None) -> float:
    """Sum of the entries of C, ``1'C1``: the covariance between the views of the sum of the standardized features.

    It is d for uncorrelated features that agree, 0 at the optimum of HSIC_SSL (Tsai et al., 2021) with shared weights,
    and negative if two branches oppose each other to lower that loss. Parameters are those of `redundancy`.
    """
    return _feature_sums(*_standardized(*_checked(z_a, z_b)))[0]


def _checked(z_a: Features, z_b: Features | None) -> tuple[Tensor, Tensor]:
    """Both views as tensors, the same one twice for one view; ValueError if squares of their values overflow."""
    x, y = (as_samples(z_a, "z_a").detach(),) * 2 if z_b is None else as_views(z_a, z_b)
    for name, z in (("z_a", x), ("z_b", y)):
        if (largest := float(z.abs().max())) > _LARGEST:
            raise ValueError(f"{name} reaches {largest:.3g}, and squares leave float32 above {_LARGEST:g}: rescale it")
    return x, y


def _standardized(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Both views standardized; the same tensor twice for one view."""
    return (standardize(x),) * 2 if y is x else (standardize(x), standardize(y))


def _redundancy(x: Tensor, y: Tensor) -> tuple[float, float]:
    """The redundancy of standardized views, and the squared norm of the diagonal of C."""
    with no_autocast(x):
        diagonal, squared_norm, _ = split_squared_norm(*([x] if y is x else [x, y]))
    alive_x, alive_y = ((z != 0).any(dim=0) for z in (x, y))
    pairs = int(alive_x.sum()) * int(alive_y.sum()) - int((alive_x & alive_y).sum())
    return float(squared_norm) - pairs / (len(x) - 1), float(diagonal.square().sum())


def _feature_sums(x: Tensor, y: Tensor) -> tuple[float, float]:
    """1'C1 of standardized views, and its standard error."""
    products = x.sum(dim=1, dtype=torch.float64) * y.sum(dim=1, dtype=torch.float64)
    return float(products.mean()), float(products.std() / math.sqrt(len(x)))

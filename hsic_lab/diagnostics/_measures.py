"""Ranks of a representation, spread on the sphere, agreement of two views, and dependence on known factors."""

import math
from collections.abc import Iterable, Sequence
from functools import reduce

import numpy as np
import pandas as pd
import torch
from scipy.linalg import helmert
from torch import Tensor

from hsic_lab._checks import (  # isort: skip
    as_samples, check_integer, check_number, check_views, drawn_rows, factor_values, no_autocast,
)  # fmt: skip
from hsic_lab.cka import cka_or_nan
from hsic_lab.correlation import _BLOCK_ELEMENTS, column_moments, directions, row_blocks
from hsic_lab.kernels import Delta, Gaussian, Linear

Features = Tensor | np.ndarray
UNIFORMITY_ROWS = 8192  # 34 million pairs
_TILE_ROWS = 1024


def rankme(z: Features, center: bool = True) -> float:
    """RankMe: ``exp(-sum_k p_k log p_k)`` with ``p_k = sigma_k / sum sigma``, over the singular values of Z.

    It counts the dimensions in use, from 0 for equal rows to min(n - 1, d): r equal singular values give r. Parameters
    are those of `covariance_spectrum`. The original definition (Garrido et al. 2023, arXiv:2210.02885) does not center,
    so a large mean looks like one dominant dimension, and adds 1e-7 to every p_k.

    Examples
    --------
    >>> import torch
    >>> from hsic_lab.diagnostics import rankme
    >>> round(rankme(torch.cat([torch.eye(4), -torch.eye(4)])), 6)
    4.0
    """
    return entropy_rank(covariance_spectrum(z, center).sqrt())


def effective_rank(z: Features) -> float:
    """Effective rank of the covariance, from 0 to min(n - 1, d): ``exp`` of the entropy of ``lambda_k / sum lambda``.

    It is due to Roy & Vetterli (2007, EUSIPCO). `rankme` uses the roots of these eigenvalues: it gives small directions
    more weight and is the larger of the two.
    """
    return entropy_rank(covariance_spectrum(z))


def alpha_req(z: Features, first: int = 11, last: int = 100) -> float:
    """Exponent alpha of ``lambda_k ~ k^-alpha``, fitted to the `covariance_spectrum` over the ranks `first` to `last`.

    The fit is least squares of log lambda_k on log k with weights 1/k, as in the code of Agrawal et al. ("alpha-ReQ",
    NeurIPS 2022). Ranks count from 1, and at least `last` eigenvalues of the features (n, d) must be above 0.
    """
    return power_law(covariance_spectrum(z), check_integer("first", first, 1), check_integer("last", last, 2))


def lidar(views: Features | Sequence[Features], delta: float = 1e-4) -> float:
    """LiDAR (Thilak et al., 2024, arXiv:2312.04000): the number of directions in which images differ.

    Differences between images are measured by those between views of one image. It does not say how large they are:
    pure noise has nearly min(n - 1, d).

    It is the entropy rank of ``S_w^-1/2 S_b S_w^-1/2``, from 0 to min(n - 1, d). With the mean m_i of the q views of
    image i, ``S_b = sum_i (m_i - m)(m_i - m)' / (n - 1)`` is the scatter between images and
    ``S_w = sum_ik (z_ik - m_i)(z_ik - m_i)' / (n (q - 1)) + delta I`` the scatter within them.

    Parameters
    ----------
    views, delta : array of shape (n, q, d) or sequence of q arrays of shape (n, d), and float, default 1e-4
        At least two views of every image, and regularization, in squared units of the features.
    """
    if isinstance(views, Tensor | np.ndarray):
        if views.ndim != 3:
            raise ValueError(f"views must have shape (n, q, d), got {tuple(views.shape)}")
        views = views.swapaxes(0, 1)
    parts = [as_samples(z, f"views[{i}]").detach() for i, z in enumerate(views)]
    if len({part.shape for part in parts}) > 1:
        raise ValueError(f"all views must have the same shape, got {[tuple(part.shape) for part in parts]}")
    n, q = len(parts[0]) if parts else 0, len(parts)
    if n < 2 or q < 2:
        raise ValueError(f"needs at least 2 images and 2 views of each, got {n} and {q}")
    delta = check_number("delta", delta, 0, above=True)
    stacked, d = torch.stack(parts, dim=1), parts[0].shape[1]
    # The q - 1 contrasts between the views of an image span the differences of the views from their mean.
    contrasts = torch.as_tensor(helmert(q), device=stacked.device)
    blocks = stacked.split(max(1, _BLOCK_ELEMENTS // (q * d)))
    within = _gram((contrasts @ block.double()).flatten(0, 1) for block in blocks)
    within = within / (n * (q - 1)) + delta * torch.eye(d, dtype=torch.float64, device=stacked.device)
    lower, failed = torch.linalg.cholesky_ex(within)
    if failed:
        spread = f"up to {float(within.diagonal().max()):.3g} (variance), in fewer directions than there are features"
        raise ValueError(f"views of an image differ by {spread}: delta = {delta:g} is rounding, rescale or raise delta")
    mean = sum(block.sum(dim=(0, 1), dtype=torch.float64) for block in blocks) / (n * q)
    centered = (block.double().mean(dim=1) - mean for block in blocks)
    if n < d:
        whitened = torch.linalg.solve_triangular(lower, torch.cat(list(centered)).T, upper=False)
        gram = whitened.T @ whitened
    else:
        half = torch.linalg.solve_triangular(lower, _gram(centered), upper=False)
        gram = torch.linalg.solve_triangular(lower, half.T, upper=False)
    return entropy_rank(_eigenvalues(gram, max(n, d)))


def covariance_spectrum(z: Features, center: bool = True) -> Tensor:
    """Eigenvalues lambda_1 >= lambda_2 >= ... of the covariance ``Z'Z / n``, float64 of shape (min(n, d),).

    They are computed in float64 on the smaller side (d x d or n x n). Values below ``max(n, d) 2^-52`` times the
    largest one cannot be told from rounding and count as 0.

    Parameters
    ----------
    z, center : Tensor or ndarray of shape (n, d), and bool, default True
        Features, of which those constant up to rounding count as 0; and whether to subtract the column means.
    """
    z = as_samples(z, "z").detach()
    mean, variance = column_moments(z)
    n, d = z.shape
    origin, alive = (mean, variance > 0) if center else (torch.zeros_like(mean), torch.ones_like(mean))
    if d <= n:
        parts = ((block - origin) * alive for block in row_blocks(z))
    else:
        columns = torch.arange(d, device=z.device).split(max(1, _BLOCK_ELEMENTS // n))
        parts = (((z[:, some].double() - origin[some]) * alive[some]).T for some in columns)
    return _eigenvalues(_gram(parts) / n, max(n, d))


def entropy_rank(weights: Tensor) -> float:
    """``exp`` of the entropy of weights (k,) >= 0 over their sum; 0 if all of them are 0."""
    weights = weights[weights > 0]
    return float(torch.special.entr(weights / weights.sum()).sum().exp()) if len(weights) else 0.0


def noise_edge(eigenvalues: Tensor, n: int, d: int) -> float:
    """Upper edge of the Marchenko-Pastur distribution whose median is that of descending `eigenvalues` of (n, d)."""
    few, many = sorted((n - 1, d))
    root = np.sqrt(few / many)
    angle = np.linspace(0, np.pi, 4001)  # of the eigenvalues 1 + root^2 - 2 root cos(angle), for the variance 1
    unit = 1 + root**2 - 2 * root * np.cos(angle)
    mass = np.cumsum(np.sin(angle) ** 2 / np.maximum(unit, 1e-12))
    return float(eigenvalues[:few].median() * (1 + root) ** 2 / unit[np.searchsorted(mass, mass[-1] / 2)])


def power_law(eigenvalues: Tensor, first: int, last: int) -> float:
    """The exponent of `alpha_req` for descending eigenvalues (k,)."""
    positive = int((eigenvalues > 0).sum())
    if not 1 <= first < last:
        raise ValueError(f"the ranks must be 1 <= first < last, got first {first} and last {last}")
    if last > positive:
        raise ValueError(f"last must be at most {positive}, the number of eigenvalues above 0, got {last}")
    ranks = np.arange(first, last + 1)
    logs = eigenvalues[first - 1 : last].log().cpu().numpy()
    return -float(np.polyfit(np.log(ranks), logs, 1, w=ranks**-0.5)[0])  # which squares the weights


def _gram(parts: Iterable[Tensor]) -> Tensor:
    """The sum of P'P over parts P (m, size)."""
    return reduce(Tensor.add_, (Linear().gram(part.T, None) for part in parts))


def _eigenvalues(gram: Tensor, side: int) -> Tensor:
    """Descending eigenvalues of a positive semi-definite matrix, with 0 for those that may be rounding."""
    if not gram.isfinite().all():
        raise ValueError("the squares of the features leave the range of float64: rescale them")
    values = torch.linalg.eigvalsh(gram).flip(0)
    return values.masked_fill(values <= side * torch.finfo(torch.float64).eps * values[0].abs(), 0)


def as_views(z_a: Features, z_b: Features) -> tuple[Tensor, Tensor]:
    """Two checked views (n, d) without gradients; the narrower dtype is raised to the wider."""
    z_a, z_b = as_samples(z_a, "z_a").detach(), as_samples(z_b, "z_b").detach()
    check_views(z_a, z_b)
    dtype = torch.promote_types(z_a.dtype, z_b.dtype)
    return z_a.to(dtype), z_b.to(dtype)


def alignment(z_a: Features, z_b: Features, power: float = 2) -> float:
    """Alignment: the mean of ``|u_i - v_i|^power`` over pairs of normalized rows of two views (n, d); no row may be 0.

    It is 0 if the views agree. With power 2 it is twice one minus the mean cosine similarity, at most 4. It is equation
    7 of Wang & Isola (2020), arXiv:2005.10242.
    """
    z_a, z_b = as_views(z_a, z_b)
    power = check_number("power", power, 0, above=True)
    distances = (directions("z_a", z_a) - directions("z_b", z_b)).norm(dim=1)
    return float(distances.pow(power).mean(dtype=torch.float64))


def uniformity(z: Features, t: float = 2, max_rows: int = UNIFORMITY_ROWS, seed: int = 0) -> float:
    """Uniformity: ``log mean exp(-t |u_i - u_j|^2)`` over pairs of different normalized rows.

    It is 0 if all rows have one direction, about -2 t if they spread over a sphere of many dimensions; equation 9 of
    Wang & Isola (2020), arXiv:2005.10242. It takes O(max_rows^2 d) time.

    Parameters
    ----------
    z, t : Tensor or ndarray of shape (n, d), and float, default 2
        Features, of which no row may be 0; and inverse temperature.
    max_rows, seed : int
        Of more rows than this, a random subset of this size is used, drawn with the seed.
    """
    z = as_samples(z, "z").detach()
    t, max_rows = check_number("t", t, 0, above=True), check_integer("max_rows", max_rows, 0)
    if min(len(z), max_rows) < 2:
        raise ValueError(f"needs at least 2 rows, got shape {tuple(z.shape)} and max_rows {max_rows}")
    u = directions("z", drawn_rows(z, max_rows, check_integer("seed", seed, 0)))
    sums = []
    with no_autocast(u):
        for start in range(0, len(u), _TILE_ROWS):
            exponents = (u[start : start + _TILE_ROWS] @ u[start:].T).sub_(1).mul_(2 * t)  # -t (2 - 2 cos)
            exponents[torch.ones_like(exponents, dtype=torch.bool).tril()] = -torch.inf  # each pair once
            sums.append(exponents.double().flatten().logsumexp(dim=0))
    return float(torch.stack(sums).logsumexp(dim=0)) - math.log(len(u) * (len(u) - 1) / 2)


def factor_dependence(features: Features, factors: pd.DataFrame, max_rows: int = 2048, seed: int = 0) -> pd.DataFrame:
    """Dependence of features on known factors of variation: unbiased linear CKA with each of them, near 0 for none.

    CKA is 0 for constant features, and for a factor with all values equal or all different labels. It takes O(n^2 d)
    time and O(n^2) memory. The columns of the table are `factor, kernel, cka, n`.

    Parameters
    ----------
    features, factors : Tensor or ndarray of shape (n, d), and DataFrame with n rows
        Factors by column. Integers, booleans, strings and categories take the kernel `Delta`, real numbers `Gaussian`.
    max_rows, seed : int, default 2048 and 0
        A random subset of the rows, as in `uniformity`.

    Examples
    --------
    >>> import pandas as pd, torch
    >>> from hsic_lab.diagnostics import factor_dependence
    >>> print(factor_dependence(torch.eye(2).repeat(20, 1), pd.DataFrame({"digit": [3, 7] * 20})).round(6))
      factor kernel  cka   n
    0  digit  Delta  1.0  40
    """
    features = as_samples(features, "features").detach()
    if not isinstance(factors, pd.DataFrame) or not len(factors.columns):
        raise TypeError(f"factors must be a data frame with one or more columns, got {type(factors).__name__}")
    if len(factors) != len(features):
        raise ValueError(f"features and factors must have the same number of rows, got {len(features)}, {len(factors)}")
    max_rows, seed = check_integer("max_rows", max_rows, 4), check_integer("seed", seed, 0)
    features = drawn_rows(features, max_rows, seed)
    if (n := len(features)) < 4:
        raise ValueError(f"needs at least 4 rows, got {n}")
    rows = []
    for name in factors:
        column, is_label = factor_values(factors[name], f"factors[{name!r}]")
        column, kernel_y = column.to(features.device), Delta() if is_label else Gaussian()
        column = drawn_rows(kernel_y.samples(column, f"factors[{name!r}]"), max_rows, seed)
        value = np.nan_to_num(cka_or_nan(features, column, kernel_y=kernel_y))
        rows.append({"factor": name, "kernel": type(kernel_y).__name__, "cka": float(value), "n": n})
    return pd.DataFrame(rows)

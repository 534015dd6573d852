"""How many dimensions a representation uses: RankMe, effective rank, alpha-ReQ and LiDAR, from spectra in float64.

All of them read the same eigenvalues, `lambda_1 >= lambda_2 >= ...` of the covariance `Z'Z / n` of centered rows. They
are computed on the smaller side (d x d or n x n) from blocks of rows or columns, so that no copy of Z in float64 is
made. A singular value is the root of an eigenvalue: values below `sqrt(max(n, d) 2^-52)` of the largest one (3e-6 at
50 000 rows, 7e-7 at 2048) cannot be told from rounding and count as 0. A dead feature (constant up to rounding)
counts as 0, as everywhere in this library.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd
import torch
from scipy.linalg import helmert
from torch import Tensor

from hsic_lab._checks import as_samples, check_views, is_constant, no_autocast
from hsic_lab.cka import near_one, u_center
from hsic_lab.correlation import _BLOCK_ELEMENTS, column_moments, l2_normalize, row_blocks
from hsic_lab.hsic._joint import as_column
from hsic_lab.kernels import Delta, Gaussian, Kernel, Linear

Features = Tensor | np.ndarray
_STRIP = 512


def rankme(z: Features, center: bool = True) -> float:
    """RankMe of the rows of `z` `(n, d)`: `exp(-sum_k p_k log p_k)` with `p_k = sigma_k / sum sigma`.

    The sigma_k are the singular values of the centered Z: at most min(n - 1, d) of them, and r equal ones read r. The
    definition of Garrido et al. 2023 (arXiv 2210.02885) has two differences: it does not center, so that a mean far
    from 0 passes for one dominant dimension (`center=False` is for comparison with figures from there), and it adds
    1e-7 to every p_k, which reads 1.003 for rank 1 at d = 2048. Equal rows have RankMe 0.
    Raises ValueError or TypeError for samples that are not floating, finite and at least two.
    """
    return entropy_rank(covariance_spectrum(z, center).sqrt())


def effective_rank(z: Features) -> float:
    """Effective rank (Roy & Vetterli 2007) of the covariance of `z` `(n, d)`: `exp` of the entropy of `lambda_k / tr`.

    RankMe is the same of Z itself, whose singular values are the roots of these eigenvalues: it weighs small directions
    more and is the larger of the two. Equal rows have effective rank 0. Raises as `rankme` does.
    """
    return entropy_rank(covariance_spectrum(z))


def alpha_req(z: Features, first: int = 11, last: int = 100) -> float:
    """The exponent alpha of `lambda_k ~ k^-alpha` over the ranks `first..last` (alpha-ReQ, Agrawal et al. 2022).

    Least squares of log lambda_k on log k, weighted with 1/k as in the authors' code, for `z` `(n, d)`. Raises as
    `rankme` does, and ValueError where fewer than `last` eigenvalues are above 0.
    """
    return power_law(covariance_spectrum(z), first, last)


def lidar(views: Features | Sequence[Features], delta: float = 1e-4) -> float:
    """LiDAR: the entropy rank of `S_w^-1/2 S_b S_w^-1/2` (Thilak et al. 2024, arXiv 2312.04000).

    `views` is `(n, q, d)`, q >= 2 views of n images, or a sequence of q such `(n, d)`. With the mean m_i of the views
    of image i, `S_b = sum_i (m_i - m)(m_i - m)' / (n - 1)` and `S_w = sum_ik (z_ik - m_i)(z_ik - m_i)' / (n (q - 1)) +
    delta I`: the number of directions in which images differ more than views of one image do. `delta` has the unit of
    S_w, so that LiDAR depends on the scale of the features; it is at most min(n - 1, d), and 0 where the means are
    equal. Raises ValueError or TypeError for views that do not fit together.
    """
    stacked = _stack_views(views)
    if not delta > 0:
        raise ValueError(f"delta must be positive, got {delta}")
    n, q, d = stacked.shape
    # The q - 1 contrasts between the views of an image span what is left of them without their mean.
    contrasts = torch.as_tensor(helmert(q), device=stacked.device)
    blocks = stacked.split(max(1, _BLOCK_ELEMENTS // (q * d)))
    within = _gram(((contrasts @ block.double()).flatten(0, 1) for block in blocks), d, stacked.device)
    within = within / (n * (q - 1)) + delta * torch.eye(d, dtype=torch.float64, device=stacked.device)
    lower, failed = torch.linalg.cholesky_ex(within)
    if failed:
        raise ValueError(
            f"views of one image differ by up to {float(within.diagonal().max()):.3g} (variance), beside which delta = "
            f"{delta:g} is rounding, and in fewer directions than there are features: rescale them or raise delta"
        )
    mean = sum(block.sum(dim=(0, 1), dtype=torch.float64) for block in blocks) / (n * q)
    centered = (block.double().mean(dim=1) - mean for block in blocks)
    if n < d:
        whitened = torch.linalg.solve_triangular(lower, torch.cat(list(centered)).T, upper=False)
        gram = whitened.T @ whitened
    else:
        half = torch.linalg.solve_triangular(lower, _gram(centered, d, stacked.device), upper=False)
        gram = torch.linalg.solve_triangular(lower, half.T, upper=False)
    return entropy_rank(_eigenvalues(gram, max(n, d)))


def covariance_spectrum(z: Features, center: bool = True) -> Tensor:
    """Eigenvalues of `Z'Z / n`, descending, float64, of length min(n, d); `center` takes the column means off first.

    Raises as `rankme` does, and ValueError where the squares leave the range of float64.
    """
    z = as_samples(z, "z").detach()
    mean, variance = column_moments(z)
    n, d = z.shape
    origin = mean if center else torch.zeros_like(mean)
    alive = (variance > 0) if center else torch.ones_like(variance, dtype=torch.bool)
    if d <= n:
        parts = ((block - origin) * alive for block in row_blocks(z))
    else:
        columns = torch.arange(d, device=z.device).split(max(1, _BLOCK_ELEMENTS // n))
        parts = (((z[:, some].double() - origin[some]) * alive[some]).T for some in columns)
    return _eigenvalues(_gram(parts, min(n, d), z.device) / n, max(n, d))


def entropy_rank(weights: Tensor) -> float:
    """`exp` of the entropy of weights `(k,)` >= 0 over their sum; 0 where all of them are 0."""
    weights = weights[weights > 0]
    if not len(weights):
        return 0.0
    p = weights / weights.sum()
    return float(torch.exp(-(p * p.log()).sum()))


def power_law(eigenvalues: Tensor, first: int, last: int) -> float:
    """alpha of descending eigenvalues `(k,)`, as `alpha_req` defines it."""
    positive = int((eigenvalues > 0).sum())
    if not 1 <= first < last:
        raise ValueError(f"the ranks must be 1 <= first < last, got first {first} and last {last}")
    if last > positive:
        raise ValueError(f"last must be at most {positive}, the number of eigenvalues above 0, got {last}")
    ranks = torch.arange(first, last + 1, dtype=torch.float64, device=eigenvalues.device)
    x, y = ranks.log(), eigenvalues[first - 1 : last].log()
    weights = 1 / ranks / (1 / ranks).sum()
    x, y = x - weights @ x, y - weights @ y
    return -float((weights * x) @ y / ((weights * x) @ x))


def _stack_views(views: Features | Sequence[Features]) -> Tensor:
    if isinstance(views, Tensor | np.ndarray):
        if views.ndim != 3:
            raise ValueError(f"views must have shape (n, q, d), got {tuple(views.shape)}")
        n, q, d = views.shape
        stacked = as_samples(views.reshape(n, q * d), "views").detach().reshape(n, q, d)
    else:
        parts = [as_samples(z, f"views[{i}]").detach() for i, z in enumerate(views)]
        shapes = [tuple(part.shape) for part in parts]
        if len(set(shapes)) > 1:
            raise ValueError(f"all views must have the same shape, got {shapes}")
        stacked = torch.stack(parts, dim=1) if parts else torch.empty(0, 0, 0)
    n, q, d = stacked.shape
    if n < 2 or q < 2:
        raise ValueError(f"needs at least 2 images and 2 views of each, got {n} and {q}")
    return stacked


def _gram(parts: Iterable[Tensor], size: int, device: torch.device) -> Tensor:
    """The sum of `P'P` over parts P `(m, size)` in float64."""
    total = torch.zeros(size, size, dtype=torch.float64, device=device)
    for part in parts:
        # Strips of the upper triangle: five eighths of the products at 2048 columns.
        for start in range(0, size, _STRIP):
            strip = slice(start, start + _STRIP)
            total[strip, start:].addmm_(part[:, strip].T, part[:, start:])
    return total.triu() + total.triu(1).T


def _eigenvalues(gram: Tensor, side: int) -> Tensor:
    """Descending eigenvalues of a positive semi-definite matrix; those that rounding could have made are 0."""
    if not gram.isfinite().all():
        raise ValueError("the squares of the features leave the range of float64: rescale them")
    values = torch.linalg.eigvalsh(gram).flip(0)
    return values.masked_fill(values <= side * torch.finfo(torch.float64).eps * values[0].abs(), 0)


SPREAD_ROWS = 8192  # 34 million pairs
_TILE_ROWS = 1024


def as_views(z_a: Features, z_b: Features) -> tuple[Tensor, Tensor]:
    """Two views `(n, d)`, checked, without gradients; the narrower dtype is raised to the wider."""
    z_a, z_b = as_samples(z_a, "z_a").detach(), as_samples(z_b, "z_b").detach()
    check_views(z_a, z_b)
    dtype = torch.promote_types(z_a.dtype, z_b.dtype)
    return z_a.to(dtype), z_b.to(dtype)


def alignment(z_a: Features, z_b: Features, power: float = 2) -> float:
    """Mean of `|u_i - v_i|^power` over the pairs of unit rows of `z_a`, `z_b` `(n, d)`; 0 where the views agree.

    Wang & Isola 2020 (arXiv 2005.10242), eq. 7. With power 2 it is twice one minus the mean cosine similarity.
    Raises ValueError or TypeError for views that do not fit together, zero rows and a power that is not positive.
    """
    z_a, z_b = as_views(z_a, z_b)
    if not power > 0:
        raise ValueError(f"power must be positive, got {power}")
    distances = (l2_normalize("z_a", z_a) - l2_normalize("z_b", z_b)).norm(dim=1)
    return float(distances.pow(power).mean(dtype=torch.float64))


def uniformity(z: Features, t: float = 2, max_rows: int = SPREAD_ROWS, seed: int = 0) -> float:
    """`log mean exp(-t |u_i - u_j|^2)` over the pairs of different unit rows of `z` `(n, d)` (Wang & Isola, eq. 9).

    0 where all rows point one way, about -2 t where they spread over a sphere of many dimensions. Above `max_rows`
    rows, that many drawn without replacement with `seed` stand for all. O(max_rows^2 d) time, by tiles: memory does
    not grow with the number of pairs. Raises ValueError or TypeError for fewer than two rows, zero rows, t <= 0.
    """
    z = as_samples(z, "z").detach()
    if not t > 0:
        raise ValueError(f"t must be positive, got {t}")
    if min(len(z), max_rows) < 2:
        raise ValueError(f"needs at least 2 rows, got shape {tuple(z.shape)} and max_rows {max_rows}")
    u = l2_normalize("z", drawn_rows(z, max_rows, seed))
    tiles = u.split(_TILE_ROWS)
    sums = []
    with no_autocast(u):
        for i, left in enumerate(tiles):
            for j, right in enumerate(tiles[i:], start=i):
                exponents = (left @ right.T).sub_(1).mul_(2 * t)  # -t (2 - 2 cos)
                if i == j:
                    rows, columns = torch.triu_indices(len(left), len(left), 1, device=u.device)
                    exponents = exponents[rows, columns]
                if exponents.numel():
                    sums.append(exponents.double().flatten().logsumexp(dim=0))
    pairs = len(u) * (len(u) - 1) / 2
    return float(torch.stack(sums).logsumexp(dim=0) - torch.tensor(pairs, dtype=torch.float64).log())


def drawn_rows(z: Tensor, max_rows: int, seed: int) -> Tensor:
    """All rows, or `max_rows` of them drawn without replacement; the same rows for one seed and one n."""
    if len(z) <= max_rows:
        return z
    rows = torch.randperm(len(z), generator=torch.Generator().manual_seed(seed))[:max_rows]
    return z[rows.to(z.device)]


FACTOR_ROWS = 2048


def factor_dependence(
    features: Features, factors: pd.DataFrame, kernel: Kernel | None = None, max_rows: int = FACTOR_ROWS, seed: int = 0
) -> pd.DataFrame:
    """How much `features` `(n, d)` depend on each known factor (a column of `factors`): unbiased CKA, near 0 for none.

    Integers, booleans, strings and categories are labels and take the kernel `Delta`; real factors take `Gaussian()`;
    features take `kernel`, linear if it is left out. O(n^2 d) time and O(n^2) memory, so that above `max_rows` rows
    that many are drawn with `seed`. A factor without two different or without two equal rows, and constant features,
    have 0.

    Returns one row a factor: `factor, kernel, cka, n`. Raises ValueError or TypeError for samples that do not match,
    factors that are not finite, and fewer than 4 rows.
    """
    features = as_samples(features, "features").detach()
    if not isinstance(factors, pd.DataFrame) or not len(factors.columns):
        raise TypeError(f"factors must be a data frame with one or more columns, got {type(factors).__name__}")
    if len(factors) != len(features):
        raise ValueError(f"features and factors must have the same number of rows, got {len(features)}, {len(factors)}")
    features = drawn_rows(features, max_rows, seed)
    n = len(features)
    if n < 4:
        raise ValueError(f"needs at least 4 rows, got {n}")
    gram_x = _unit_gram(kernel or Linear(), features)
    rows = []
    for name in factors:
        column = as_column(factors[name]).to(features.device)
        kernel_y = Gaussian() if column.is_floating_point() else Delta()
        column = drawn_rows(kernel_y.samples(column, f"factors[{name!r}]"), max_rows, seed)
        value = (gram_x * _unit_gram(kernel_y, column)).sum(dtype=torch.float64)
        rows.append({"factor": name, "kernel": type(kernel_y).__name__, "cka": float(value), "n": n})
    return pd.DataFrame(rows)


def _unit_gram(kernel: Kernel, x: Tensor) -> Tensor:
    """U-centered Gram of norm 1, whose products are unbiased CKA; 0 where all pairs of different rows are alike."""
    if is_constant(x):
        return torch.zeros(len(x), len(x), device=x.device)
    with no_autocast(x):
        x = near_one(x - x.mean(dim=0)) if isinstance(kernel, Linear) else x
        gram = kernel.fit(x).gram(x, None)
    centered = u_center(gram)
    return centered / (float(centered.norm()) or 1.0)

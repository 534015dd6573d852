"""Representations on the unit sphere: do the views of an image agree, do the images spread (Wang & Isola 2020)?"""

import torch
import torch.nn.functional as F
from torch import Tensor

from hsic_lab.checks import as_samples, check_views, full_precision
from hsic_lab.spectra import Features

SPREAD_ROWS = 8192  # 34 million pairs
_TILE_ROWS = 1024


def unit_rows(name: str, x: Tensor) -> Tensor:
    """The rows of `x` `(n, p)` over their lengths; ValueError for a zero row, which has no direction."""
    # The largest entry goes first: the squares of tiny or huge features would leave the float range.
    largest = x.abs().amax(dim=1, keepdim=True)
    zero = (largest[:, 0] == 0).nonzero()[:, 0]
    if len(zero):
        raise ValueError(f"{name} has {len(zero)} zero rows without direction, first row {zero[0]}")
    return F.normalize(x / largest, dim=1)


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
    distances = (unit_rows("z_a", z_a) - unit_rows("z_b", z_b)).norm(dim=1)
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
    u = unit_rows("z", drawn_rows(z, max_rows, seed))
    tiles = u.split(_TILE_ROWS)
    sums = []
    with full_precision(u):
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

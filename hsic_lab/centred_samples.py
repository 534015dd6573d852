"""Samples made ready for a test of independence: kernels fitted, Grams or factors centred, all of it in float64."""

import numpy as np
import torch
from torch import Tensor

from hsic_lab.hsic import center, paired
from hsic_lab.kernels import Gaussian, Kernel, Linear, require_finite
from hsic_lab.lowrank import factor
from hsic_lab.permutations import Labels, group_codes

Samples = Tensor | np.ndarray


def fitted_pair(
    x: Samples, y: Samples, kernel_x: Kernel | None, kernel_y: Kernel | None, at_least: int
) -> tuple[Tensor, Tensor, Kernel, Kernel]:
    """Both samples checked, floating ones in float64, and their kernels (left out: Gaussian) fitted."""
    kernel_x, kernel_y = kernel_x or Gaussian(), kernel_y or Gaussian()
    x, y = paired(x, y, kernel_x, kernel_y, at_least)
    if x.device != y.device:
        raise ValueError(f"x and y must be on one device, got {x.device} and {y.device}")
    # What is left of a flat Gram when it is centred would in float32 be rounding, which tells equal pairings apart.
    x, y = (z.double() if z.is_floating_point() else z for z in (x, y))
    # No test depends on the origin of a linear kernel, the rounding error of its Gram does.
    x, y = (z - z.mean(dim=0) if isinstance(k, Linear) and not is_constant(z) else z
            for z, k in ((x, kernel_x), (y, kernel_y)))
    return x, y, kernel_x.fit(x), kernel_y.fit(y)


def is_constant(z: Tensor, codes: Tensor | None = None) -> bool:
    """Whether all rows, or all rows of a group, are equal."""
    if codes is None:
        return bool((z == z[:1]).all())
    return all(is_constant(z[codes == code]) for code in codes.unique())


def centred_gram(kernel: Kernel, z: Tensor, groups: Labels | None = None) -> Tensor:
    """The Gram `(n, n)` less its means, within groups if there are some; ValueError if an entry is not finite."""
    gram = kernel(z).double()
    codes = None if groups is None else group_codes(groups, len(z)).to(gram.device)
    if is_constant(z, codes):
        return torch.zeros_like(gram)  # without the rounding error of a mean
    require_finite(gram, kernel)
    return center(gram) if codes is None else _minus_means(_minus_means(gram, codes).T, codes)


def centred_factor(kernel: Kernel, z: Tensor, tolerance: float, groups: Labels | None = None) -> Tensor:
    """A factor `(n, r)` of the Gram within `tolerance` of its trace, less its means, within groups if there are any."""
    if not 0 < tolerance < 1:
        raise ValueError(f"tolerance must be between 0 and 1, a share of the trace, got {tolerance!r}")
    codes = (torch.zeros(len(z), dtype=torch.int64) if groups is None else group_codes(groups, len(z))).to(z.device)
    if is_constant(z, codes):
        return kernel(z[:1]).new_zeros(len(z), 1)
    return _minus_means(factor(kernel, z, rank=len(z), tolerance=tolerance).double(), codes)


def _minus_means(rows: Tensor, codes: Tensor) -> Tensor:
    """Every row minus the mean row of its group."""
    sums = rows.new_zeros(int(codes.max()) + 1, rows.shape[1]).index_add_(0, codes, rows)
    return rows - (sums / codes.bincount()[:, None])[codes]

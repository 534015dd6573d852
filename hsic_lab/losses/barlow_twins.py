"""Barlow Twins and HSIC_SSL: losses of the cross-correlation matrix C of two views."""

from torch import Tensor

from hsic_lab._checks import check_choice, check_number, check_type
from hsic_lab.correlation import cross_correlation, l2_normalize
from hsic_lab.losses._base import TwoViewLoss
from hsic_lab.losses._off_diagonal import CONTRASTS, ROUTES, split_squared_norm


class HSICSSLLoss(TwoViewLoss):
    """HSIC_SSL loss: pulls the diagonal of C to 1 and the other entries to `off_diagonal_target`.

    ``sum_i (1 - C_ii)^2 + lambda sum_{i != j} (C_ij - t)^2``, where C is the ``(d, d)`` cross-correlation of the two
    views over the batch and t is `off_diagonal_target`: -1 here, 0 in `BarlowTwinsLoss`. The two losses differ by two
    `terms`: "feature_sum", ``-2 lambda t (1'C1 - tr C)``, where ``1'C1`` is the covariance of the feature sums of the
    two views, and "constant", ``lambda d (d - 1) t^2``. For d > 2 the target -1 cannot be reached: if C is positive
    semi-definite with unit diagonal, the mean of its off-diagonal entries is at least ``-1 / (d - 1)``. Reference: Tsai
    et al. (2021), arXiv:2104.13712, equation 5; the authors' code differs from it, see `ReferenceCodeLoss`.

    Parameters
    ----------
    lambda_param : float or None, default None
        Weight lambda of the off-diagonal entries, at least 0. None means ``1 / d``, as in Tsai et al. (2021).
    off_diagonal_target : float, default -1.0
        Target t of the off-diagonal entries of C; -1 is the choice of Tsai et al. (2021).
    gather_distributed, route, contrast
        As in `BarlowTwinsLoss`.
    """

    many_views = True

    def __init__(
        self, lambda_param: float | None = None, off_diagonal_target: float = -1.0, gather_distributed: bool = True,
        route: str = "auto", contrast: str = "dimensions",
    ) -> None:  # fmt: skip
        super().__init__(gather_distributed)
        self.off_diagonal_target = check_number("off_diagonal_target", off_diagonal_target)
        self.lambda_param = None if lambda_param is None else check_number("lambda_param", lambda_param, 0)
        self.route, self.contrast = check_choice(route, ROUTES, "route"), check_choice(contrast, CONTRASTS, "contrast")

    def _terms(self, *views: Tensor) -> dict[str, Tensor]:
        d, target = views[0].shape[1], self.off_diagonal_target
        weight = _weight(self.lambda_param, d)
        invariance, redundancy, feature_sum = split_squared_norm(
            *views, route=self.route, contrast=self.contrast, weights=(weight, -2 * target * weight)
        )
        terms = {"invariance": invariance, "redundancy": redundancy}
        if target != 0:
            terms["feature_sum"] = invariance.new_zeros(()) if feature_sum is None else feature_sum  # lambda is 0
            terms["constant"] = invariance.new_tensor(weight * d * (d - 1) * target * target)
        return terms

    def expected_if_independent(self, n: int, d: int) -> float:
        """Return the expected loss of independent views of any distribution: ``C_ij^2`` has mean ``1 / (n - 1)``."""
        self._check_shape(n, d)
        off = d * (d - 1) / (n - 1) if self.contrast == "dimensions" else d**2 / (n * (n - 1))
        return d + d / (n - 1) + _weight(self.lambda_param, d) * (off + d * (d - 1) * self.off_diagonal_target**2)

    def lower_bound(self, n: int, d: int) -> float:
        """Return the smallest loss of two identical views of shape (n, d).

        If the target is not 0, d is odd and n is 3, d - 1 or d, it can be a bound below the smallest loss.
        For the contrast "samples" it is only known for target 0 and d >= n - 1, else NotImplementedError is raised. For
        "dimensions" at target 0 it is 0 if d <= n - 1, else ``lambda (d^2 / (n - 1) - d)`` (Welch bound).
        """
        self._check_shape(n, d)
        t, rank, weight = self.off_diagonal_target, min(n - 1, d), _weight(self.lambda_param, d)
        if self.contrast == "samples":
            return weight * d**2 / (n * (n - 1)) if t == 0 and d >= n - 1 else super().lower_bound(n, d)
        if n == 2:  # standardized rows are signs: 1'C1 is the square of their sum, which is odd if d is odd
            total = d**2 if t > 0 else d % 2
            return weight * (d * (d - 1) * (1 + t**2) - 2 * t * (total - d))
        # C has trace d and `rank` eigenvalues. The target acts on the one of the constant vector, s = 1'C1 / d.
        others = rank - 1
        s = min(max(d * (1 + t * others) / rank, 0.0), float(d))
        squared_norms = [d**2 / min(n - 1, d - 1)] if d > 1 and t < 0 else []
        squared_norms.append(s**2 + (d - s) ** 2 / others - 2 * t * d * s if others else d**2 - 2 * t * d**2)
        return weight * (min(squared_norms) - d + 2 * t * d + d * (d - 1) * t**2)


class BarlowTwinsLoss(HSICSSLLoss):
    """Barlow Twins loss (Zbontar et al. 2021, arXiv:2103.03230): pulls the diagonal of C to 1, other entries to 0.

    ``sum_i (1 - C_ii)^2 + lambda sum_{i != j} C_ij^2``, where C is the ``(d, d)`` cross-correlation of the two views
    over the batch. With linear kernels ``HSIC = ||C||_F^2``, so the second term is ``lambda (HSIC - sum_i C_ii^2)``.
    Rescaling or shifting a feature does not change the loss. `terms` returns the two summands, "invariance" and
    "redundancy"; `expected_if_independent` and `lower_bound` return values to compare the loss with.

    Parameters
    ----------
    lambda_param : float or None, default 5e-3
        Weight lambda of the off-diagonal entries, at least 0. The default is that of the paper, tuned at d = 8192,
        and of lightly. None means ``1 / d``, as in Tsai et al. (2021).
    gather_distributed : bool, default True
        Under ``torch.distributed``, whether the loss uses the rows of all processes (lightly's default is False). Then
        k processes have the value and, with ``DistributedDataParallel``, the gradient of one process with all rows.
    route : {"auto", "primal", "dual"}, default "auto"
        How ``||C||_F^2`` is computed: from C of shape (d, d) ("primal"), from two Gram matrices of shape (n, n)
        ("dual"), or by the cheaper of both ("auto"). Value and gradient are the same up to rounding.
    contrast : {"dimensions", "samples"}, default "dimensions"
        What lambda weighs: pairs of different features, ``sum_{i != j} C_ij^2``, or pairs of different images,
        ``sum_{b != c} <x_b, x_c> <y_b, y_c> / n^2`` with standardized rows x and y. Both are parts of ``||C||_F^2``
        (Garrido et al. 2023, arXiv:2206.02574, theorem 3.3): "samples" is the contrastive counterpart.

    Examples
    --------
    >>> import torch
    >>> z_a = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
    >>> z_b = z_a + 0.5 * torch.randn(64, 8, generator=torch.Generator().manual_seed(1))
    >>> {name: round(term.item(), 3) for name, term in BarlowTwinsLoss(lambda_param=0.1).terms(z_a, z_b).items()}
    {'invariance': 0.118, 'redundancy': 0.096}
    """

    def __init__(
        self, lambda_param: float | None = 5e-3, gather_distributed: bool = True, route: str = "auto",
        contrast: str = "dimensions",
    ) -> None:  # fmt: skip
        super().__init__(lambda_param, 0.0, gather_distributed, route, contrast)


class ReferenceCodeLoss(TwoViewLoss):
    """HSIC_SSL or Barlow Twins as the code of Tsai et al. (2021) computes it, to measure what its extra steps change.

    The equation of `HSICSSLLoss`, with two steps before it that are in github.com/yaohungt/Barlow-Twins-HSIC, main.py,
    and not in the paper: `unit_rows` and `bessel`. With both off use `HSICSSLLoss`, which is faster.

    Parameters
    ----------
    lambda_param, off_diagonal_target, gather_distributed
        As in `HSICSSLLoss`, with the target 0 by default.
    unit_rows : bool, default True
        Scale every projection to length 1 before the columns are standardized; the loss then depends on their scales.
    bessel : bool, default True
        Standardize with ``n - 1``, and divide C by n: it is then ``(n - 1) / n`` times `cross_correlation`.
    """

    def __init__(
        self, lambda_param: float | None = None, off_diagonal_target: float = 0.0, unit_rows: bool = True,
        bessel: bool = True, gather_distributed: bool = True,
    ) -> None:  # fmt: skip
        super().__init__(gather_distributed)
        self.off_diagonal_target = check_number("off_diagonal_target", off_diagonal_target)
        self.lambda_param = None if lambda_param is None else check_number("lambda_param", lambda_param, 0)
        self.unit_rows, self.bessel = check_type("unit_rows", unit_rows, bool), check_type("bessel", bessel, bool)

    def _terms(self, z_a: Tensor, z_b: Tensor) -> dict[str, Tensor]:
        (n, d), target = z_a.shape, self.off_diagonal_target
        if self.unit_rows:
            z_a, z_b = l2_normalize(z_a), l2_normalize(z_b)
        c = cross_correlation(z_a, z_b) * ((n - 1) / n if self.bessel else 1.0)
        off = (c - target - (c.diagonal() - target).diag_embed()).square().sum()
        return {"invariance": (1 - c.diagonal()).square().sum(), "redundancy": _weight(self.lambda_param, d) * off}


def _weight(lambda_param: float | None, d: int) -> float:
    """Lambda, for None 1 / d."""
    return 1 / d if lambda_param is None else lambda_param

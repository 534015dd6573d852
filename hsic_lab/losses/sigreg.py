"""SIGReg: the squared maximum mean discrepancy between projections and the standard normal distribution."""

import math
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from scipy.linalg import eigh_tridiagonal
from torch import Tensor

from hsic_lab._checks import check_integer, check_number, matmul
from hsic_lab.kernels import squared_distances
from hsic_lab.losses._base import RandomLoss

_T = torch.linspace(0, 3, 17, dtype=torch.float64)  # frequencies of the authors' quadrature
_GAUSSIAN = torch.exp(-_T.square() / 2)  # characteristic function of N(0, 1), and the weight of the integral
_WEIGHTS = _GAUSSIAN * torch.tensor([1, *[2] * 15, 1]) * 3 / 16  # trapezoids over -3..3


class SIGRegLoss(RandomLoss):
    """Loss of LeJEPA (Balestriero and LeCun 2025, arXiv:2511.08544): similar views, normally distributed features.

    ``(1 - lambda) mean_v |z_v - mean_w z_w|^2 / d + lambda n mean_v T(Z_v)``. For one direction u, the Epps-Pulley
    distance ``int |phi(t) - exp(-t^2 / 2)|^2 exp(-t^2 / 2) dt`` compares the characteristic function phi of the n
    values ``u'z`` with that of N(0, 1): a squared maximum mean discrepancy with a Gaussian kernel. T is its mean over
    directions. Over *all* directions it is ``sqrt(2 pi) [mean_ij k(|z_i - z_j|^2 / 2) - sqrt(2) mean_i k(|z_i|^2 / 4)
    + 1 / sqrt(3)]`` with ``k(s) = 1F1(1/2, d/2, -s)``, which is ``(1 + 2 s / d)^(-1/2)`` for large d: the inverse
    multiquadric of SSL-HSIC. So the loss asks for independent features with normal marginals. It takes V >= 2 views.
    The `terms` are "invariance" and "gaussianity".

    Parameters
    ----------
    lambda_param : float, default 0.05
        Weight of the second term, between 0 and 1; the first one has the weight ``1 - lambda``.
    slices : int or None, default None
        None computes the mean over all directions, in O(n^2 d). A number draws so many directions at each call, in
        O(n d slices), and integrates with the authors' 17 frequencies up to 3, as LeJEPA and lightly do (1024).
    gather_distributed, seed : bool, default True, int, default 0
        As in `BarlowTwinsLoss`; seed of the directions, the same in all processes.
    global_views : int or None, default None
        The mean that all views are compared with is that of the first so many views, for LeJEPA the large crops; None
        for that of all views.

    Examples
    --------
    >>> import torch
    >>> from hsic_lab.losses import SIGRegLoss
    >>> z = torch.randn(512, 16, generator=torch.Generator().manual_seed(0))
    >>> loss = SIGRegLoss()
    >>> bool(loss(z, z) < loss(2 * z, 2 * z))  # scaled features are not standard normal
    True
    """

    many_views = True

    def __init__(
        self, lambda_param: float = 0.05, slices: int | None = None, gather_distributed: bool = True, seed: int = 0,
        global_views: int | None = None,
    ) -> None:  # fmt: skip
        super().__init__(gather_distributed)
        self.lambda_param = check_number("lambda_param", lambda_param, 0, 1)
        self.slices = None if slices is None else check_integer("slices", slices, 1)
        self.global_views = None if global_views is None else check_integer("global_views", global_views, 1)
        if slices is not None:
            self._generator = torch.Generator().manual_seed(check_integer("seed", seed, 0))

    def _terms(self, *views: Tensor) -> dict[str, Tensor]:
        n, d = views[0].shape
        z = torch.stack(views)
        if (self.global_views or 1) > len(views):
            raise ValueError(f"global_views must be at most the {len(views)} views, got {self.global_views}")
        if self.slices is None:
            distances = torch.stack([self._distance(view) for view in views])
        else:
            directions = torch.randn(d, self.slices, generator=self._generator)
            angles = matmul(z, (directions / directions.norm(dim=0)).to(z))[..., None] * _T.to(z)
            errors = (angles.cos().mean(dim=1) - _GAUSSIAN.to(z)).square() + angles.sin().mean(dim=1).square()
            distances = errors @ _WEIGHTS.to(z)
        return {
            "invariance": (1 - self.lambda_param) * (z - z[: self.global_views].mean(dim=0)).square().mean(),
            "gaussianity": self.lambda_param * n * distances.mean(),
        }

    @staticmethod
    def _distance(z: Tensor) -> Tensor:
        """Mean over all directions of the Epps-Pulley distance between rows `(n, d)` and N(0, 1)."""
        d = z.shape[1]
        pairs = _kummer(squared_distances(z) / 2, 0.5, d / 2).mean()
        cross = _kummer(z.square().sum(dim=1) / 4, 0.5, d / 2).mean()
        return math.sqrt(2 * math.pi) * (pairs - math.sqrt(2) * cross + 1 / math.sqrt(3))

    def expected_if_independent(self, n: int, d: int) -> float:
        """Return the expected loss of two, or `global_views`, independent views of standard normal features."""
        exact = math.sqrt(2 * math.pi) * (1 - 1 / math.sqrt(3))
        integral = exact if self.slices is None else float(_WEIGHTS @ (1 - _GAUSSIAN.square()))
        spread = 1 if self.global_views == 1 else 1 - 1 / (self.global_views or 2)
        return (1 - self.lambda_param) * spread + self.lambda_param * integral


def _kummer(s: Tensor, a: float, b: float) -> Tensor:
    """Kummer's function `1F1(a, b, -s)` for s >= 0, the expectation of `exp(-s y)` for y from Beta(a, b - a).

    With `y = x / (1 + s/b (1 - x))` the integrand is nearly constant for any s, and few nodes are enough: the relative
    error is below 1e-12 for b >= 16 and 1e-7 for b = 1, where `(1 + s/b)^-a` alone is off by 1e-2 and 2e-1.
    """
    if torch.compiler.is_compiling():  # it differentiates the sum itself
        return _Kummer.forward(s, a, b)
    return _Kummer.apply(s, a, b)


class _Kummer(torch.autograd.Function):
    """The nodes are summed one by one, and the derivative is a function of the same kind: memory stays that of `s`."""

    generate_vmap_rule = True

    @staticmethod
    def forward(s: Tensor, a: float, b: float) -> Tensor:
        ratio = (s / b).clamp(max=torch.finfo(s.dtype).max / 2)  # rows so far away that their distance overflows
        total = torch.zeros_like(s)
        for node, weight in zip(*_beta_quadrature(a, b), strict=True):
            exponent = -b * (ratio * node / (1 + ratio * (1 - node)) + torch.log1p(-ratio * node / (1 + ratio)))
            total = total + weight * exponent.exp()
        return total * (1 + ratio) ** -a

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        s, ctx.a, ctx.b = inputs
        ctx.save_for_backward(s)
        ctx.save_for_forward(s)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return gradient * _Kummer._derivative(ctx), None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: None) -> Tensor:
        return tangent * _Kummer._derivative(ctx)

    @staticmethod
    def _derivative(ctx: Any) -> Tensor:
        return -ctx.a / ctx.b * _kummer(ctx.saved_tensors[0], ctx.a + 1, ctx.b + 1)


@lru_cache
@torch.compiler.assume_constant_result
def _beta_quadrature(a: float, b: float) -> tuple[list[float], list[float]]:
    """Nodes and weights of Gaussian quadrature for Beta(a, b - a), from the recurrence of the Jacobi polynomials."""
    p, q = b - a - 1, a - 1  # weight (1 - x)^p (1 + x)^q on -1..1
    if p <= -1:
        return [1.0], [1.0]  # one dimension: y is 1
    k = np.arange(1, 24 if b < 16 else 12 if b < 64 else 8)
    total = 2 * k + p + q
    diagonal = np.concatenate([[(q - p) / (p + q + 2)], (q**2 - p**2) / (total * (total + 2))])
    squares = np.full(len(k), 4 * (1 + p) * (1 + q) / ((2 + p + q) ** 2 * (3 + p + q)))  # for k = 1, p + q = -1 too
    k, total = k[1:], total[1:]
    squares[1:] = 4 * k * (k + p) * (k + q) * (k + p + q) / (total**2 * (total + 1) * (total - 1))
    nodes, vectors = eigh_tridiagonal(diagonal, np.sqrt(squares))
    return ((1 + nodes) / 2).tolist(), np.square(vectors[0]).tolist()

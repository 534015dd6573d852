"""SIGReg: the squared maximum mean discrepancy between projections and the standard normal distribution."""

import math
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from scipy.fft import dct
from scipy.linalg import eigh_tridiagonal
from torch import Tensor
from torch.autograd import Function, forward_ad

from hsic_lab._checks import check_integer, check_number, is_transformed, matmul
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
            distances = torch.stack([_distance(view) for view in views])
        else:
            directions = torch.randn(d, self.slices, generator=self._generator)
            angles = matmul(z, (directions / directions.norm(dim=0)).to(z))[..., None] * _T.to(z)
            errors = (angles.cos().mean(dim=1) - _GAUSSIAN.to(z)).square() + angles.sin().mean(dim=1).square()
            distances = errors @ _WEIGHTS.to(z)
        return {
            "invariance": (1 - self.lambda_param) * (z - z[: self.global_views].mean(dim=0)).square().mean(),
            "gaussianity": self.lambda_param * n * distances.mean(),
        }

    def expected_if_independent(self, n: int, d: int) -> float:
        """Return the expected loss of two, or `global_views`, independent views of standard normal features."""
        exact = math.sqrt(2 * math.pi) * (1 - 1 / math.sqrt(3))
        integral = exact if self.slices is None else float(_WEIGHTS @ (1 - _GAUSSIAN.square()))
        spread = 1 if self.global_views == 1 else 1 - 1 / (self.global_views or 2)
        return (1 - self.lambda_param) * spread + self.lambda_param * integral


def _distance(z: Tensor) -> Tensor:
    """Mean over all directions of the Epps-Pulley distance between rows `(n, d)` and N(0, 1)."""
    by_autograd = torch.compiler.is_compiling() or is_transformed() or forward_ad._current_level >= 0
    # In float64, because near N(0, 1) three numbers of size 1 cancel to about 1 / n. MPS has none.
    rows = z if z.device.type == "mps" else z.double()
    return (_by_autograd if by_autograd else _Distance.apply)(rows).to(z.dtype)


def _by_autograd(z: Tensor) -> Tensor:
    """The formula of `_Distance`, which autograd differentiates to any order in any mode."""
    return _mean_distance(z.shape[1], *_arguments(z))


def _arguments(z: Tensor) -> tuple[Tensor, Tensor]:
    """Arguments of Kummer's function: of the pairs of rows, and of the rows with N(0, 1)."""
    return squared_distances(z) / 2, z.square().sum(dim=1) / 4


def _mean_distance(d: int, *arguments: Tensor) -> Tensor:
    pairs, own = (_kummer(s, 0.5, d / 2).mean() for s in arguments)
    return math.sqrt(2 * math.pi) * (pairs - math.sqrt(2) * own + 1 / math.sqrt(3))


class _Distance(Function):
    # Autograd would keep a matrix of all pairs for each of many steps.
    @staticmethod
    def forward(ctx: Any, z: Tensor) -> Tensor:
        arguments = _arguments(z)
        ctx.save_for_backward(z, *arguments)
        return _mean_distance(z.shape[1], *arguments)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        z, *arguments = ctx.saved_tensors
        if torch.is_grad_enabled():  # a second derivative may follow
            return torch.func.vjp(_by_autograd, z)[1](gradient)[0]
        n, d = z.shape
        weights, own = (_kummer(s, 1.5, d / 2 + 1) for s in arguments)  # derivatives, but for a factor
        pull = torch.addmm((own * n / math.sqrt(8) - weights.sum(dim=1))[:, None] * z, weights, z)
        return pull * (math.sqrt(8 * math.pi) / (d * n**2) * gradient)


def _kummer(s: Tensor, a: float, b: float) -> Tensor:
    """Kummer's function `1F1(a, b, -s)` for s >= 0, the expectation of `exp(-s y)` for y from Beta(a, b - a).

    It is `u^a p(u)` with `u = 1 / (1 + s/b)` and a smooth function p. Its Chebyshev polynomial of 7 terms for b = 1024,
    25 for b = 8 and 95 for b = 1 has a relative error below 1e-13 for any s.
    """
    if a == b:  # one dimension: y is 1
        return (-s).exp()
    # Blocks that stay in the cache of a core; compiled, their number would be a guard.
    blocks = [s] if torch.compiler.is_compiling() else s.reshape(-1).split(1 << 15)
    return torch.cat([_clenshaw(block, a, b) for block in blocks]).view_as(s)


def _clenshaw(s: Tensor, a: float, b: float) -> Tensor:
    u = (1 + s / b).reciprocal()
    x, before, now, (first, *others) = 2 - 4 * u, torch.zeros_like(s), torch.zeros_like(s), _chebyshev(a, b)
    for coefficient in reversed(others):
        before, now = now, torch.addcmul(coefficient - before, x, now)
    return torch.addcmul(first - before, x, now, value=0.5) * u.sqrt() * u ** int(a)


@lru_cache
@torch.compiler.assume_constant_result
def _chebyshev(a: float, b: float) -> list[float]:
    """Chebyshev coefficients of p, a function of `1 - 2 u`."""
    nodes, weights = _beta_quadrature(a, b)
    # With `y = node / (1 + s/b (1 - node))` the integrand is nearly constant for any s.
    s = np.tan(np.pi * (np.arange(128) + 0.5) / 256)[:, None] ** -2  # over b, where 1 - 2 u is a cosine
    integrand = np.exp(-b * (s * nodes / (1 + s * (1 - nodes)) + np.log1p(-s * nodes / (1 + s))))
    coefficients = dct(integrand @ weights) / 128
    coefficients[0] /= 2
    return coefficients[: 1 + np.flatnonzero(np.abs(coefficients) > 2e-15).max()].tolist()


def _beta_quadrature(a: float, b: float) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights for Beta(a, b - a), a = 0.5 or 1.5: Gaussian quadrature for the root of y (Gegenbauer)."""
    c, k = b - a - 0.5, np.arange(2, 128)  # weight (1 - x^2)^(c - 0.5) on -1..1, times x^2 for a = 1.5
    squares = np.append(0.5 / (1 + c), k * (k + 2 * c - 1) / (4 * (k + c) * (k + c - 1)))
    roots, vectors = eigh_tridiagonal(np.zeros(128), np.sqrt(squares))
    weights = np.square(vectors[0] * roots ** (a - 0.5))
    return np.square(roots), weights / weights.sum()

"""SSL-HSIC: the dependence between an embedding and the identity of its image, with any kernel."""

import torch
from torch import Tensor

from hsic_lab.correlation import standardize
from hsic_lab.hsic import center
from hsic_lab.kernels import Kernel, Linear, named
from hsic_lab.losses._base import TwoViewLoss, non_negative


class SSLHSICLoss(TwoViewLoss):
    """`-HSIC(Z, Y) + gamma sqrt(HSIC(Z, Z))`, Y the identity of the image: Li et al. 2021 (arXiv 2106.08320), eq. 5.

    For V >= 2 views of n images, N = nV embeddings and K = `kernel(Z)`, without the constant factor of one-hot labels,

    * `HSIC(Z, Y) = mean of k over two views of one image - mean of k over all pairs` (term `dependence`). Pairs of
      an embedding with itself are left out of the first mean: the authors' code has them in, which adds a constant;
    * `HSIC(Z, Z) = tr(K H K H) / N^2` (term `self_dependence`), with 1/N^2 as everywhere in this library.

    `kernel` is one of `hsic_lab.kernels` or its name there ("linear", "gaussian", "laplace", "imq": see `named`), by
    default the authors' inverse multiquadric, with the median rule in place of their learned scale. The scale of the
    rows matters, as the kernel has one; the authors normalize them to unit length before the loss.

    `standardized=True` standardizes the features of each view first. A linear kernel then gives Barlow Twins at
    lambda = 1 in another coat, `tr C` against the Frobenius norm of the covariance; without it the loss of a linear
    kernel goes with the square of the scale, and training shrinks or grows the embedding without end. gamma = 3 is the
    authors', whose views share much; under it, views that share little may collapse.

    `random_features=D` replaces the kernel by D random Fourier features, drawn anew at each call, O(n D) in place of
    O(n^2); as in the authors' code `HSIC(Z, Z)` then uses two draws. Draws come from a generator seeded with `seed`
    (the same in all processes) and leave torch's own alone.
    """

    many_views = True

    def __init__(
        self,
        kernel: Kernel | str = "imq",
        gamma: float = 3.0,
        gather_distributed: bool = True,
        random_features: int | None = None,
        seed: int = 0,
        standardized: bool = False,
    ) -> None:
        super().__init__(gather_distributed)
        non_negative(gamma=gamma)
        self.kernel = kernel if isinstance(kernel, Kernel) else named(kernel)
        self.gamma = gamma
        self.standardized = standardized
        self.random_features = random_features
        if random_features is not None:
            if random_features < 2 or random_features % 2:
                raise ValueError(f"random_features must be an even number of at least 2, got {random_features!r}")
            if isinstance(self.kernel, Linear):
                raise ValueError(f"a linear kernel is its own feature map, got random_features={random_features!r}")
            self._generator = torch.Generator().manual_seed(seed)

    def _terms(self, *views: Tensor) -> dict[str, Tensor]:
        z = torch.cat([standardize(view) for view in views] if self.standardized else views)
        kernel = self.kernel.fit(z)
        if isinstance(kernel, Linear):
            z = z - z.mean(dim=0)
            dependence, norm = _feature_dependence(z, len(views)), _cross_norm(z, z)
        elif self.random_features is not None:
            first, second = (self._random_features(kernel, z) for _ in range(2))
            dependence, norm = _feature_dependence(first, len(views)), _cross_norm(first, second)
        else:
            gram = kernel.gram(z, None)
            n = len(views[0])
            pairs = torch.cat([gram.diagonal(n * shift) for shift in range(1, len(views))])
            # The norm, not the root of a sum: at a collapsed embedding its gradient is 0 and not infinite.
            dependence, norm = pairs.mean() - gram.mean(), torch.linalg.norm(center(gram)) / len(z)
        return {"dependence": -dependence, "self_dependence": self.gamma * norm}

    def get_extra_state(self) -> Tensor:
        """Where the draws of random features stand, a part of `state_dict`: a resumed training goes on from there."""
        return torch.empty(0) if self.random_features is None else self._generator.get_state()

    def set_extra_state(self, state: Tensor) -> None:
        """Undo `get_extra_state`."""
        if len(state):
            self._generator.set_state(state)

    def _random_features(self, kernel: Kernel, z: Tensor) -> Tensor:
        """Centered features `(N, D)` whose products have the centered kernel as their mean: Rahimi and Recht 2007."""
        draws = kernel.frequencies(z.shape[1], self.random_features // 2, self._generator)
        angles = z @ draws.to(z)
        phi = torch.cat([angles.cos(), angles.sin()], dim=1) * (2 / self.random_features) ** 0.5
        return phi - phi.mean(dim=0)

    def extra_repr(self) -> str:
        return (
            f"kernel={self.kernel}, gamma={self.gamma}, random_features={self.random_features}, "
            f"standardized={self.standardized}"
        )


def _feature_dependence(phi: Tensor, views: int) -> Tensor:
    """Mean of `phi_p . phi_q` over two views of one image, features centered so that the mean over all pairs is 0."""
    parts = phi.chunk(views)
    together = sum(parts).square().sum() - phi.square().sum()
    return together / (len(parts[0]) * views * (views - 1))


def _cross_norm(x: Tensor, y: Tensor) -> Tensor:
    """`||X'Y||_F / N`, for X = Y through the smaller of `p x p` and `N x N`."""
    product = x @ x.T if x is y and x.shape[1] > len(x) else x.T @ y
    return torch.linalg.norm(product) / len(x)

"""SSL-HSIC: the dependence between projections and the identity of their images, with any kernel."""

import torch
from torch import Tensor, nn

from hsic_lab._checks import check_integer, check_number, check_type, inner_products, matmul
from hsic_lab.correlation import standardize
from hsic_lab.hsic import center
from hsic_lab.kernels import Kernel, Linear, fourier_features, named
from hsic_lab.losses._base import RandomLoss, pair_sum


class SSLHSICLoss(RandomLoss):
    """SSL-HSIC loss (Li et al. 2021, arXiv:2106.08320, equation 5): projections that depend on the image's identity.

    ``-HSIC(Z, Y) + gamma sqrt(HSIC(Z, Z))``, where Z are the N = nV projections of V >= 2 views of n images and Y is
    the identity of the image. As in the authors' code up to a factor and a constant, ``HSIC(Z, Y)`` is here the mean of
    k over two views of one image minus the mean of k over all pairs: the first mean has no pairs of a projection with
    itself. The `terms` are "dependence" and "self_dependence".

    Parameters
    ----------
    kernel : Kernel or {"imq", "gaussian", "laplace", "linear"}, default "imq"
        Kernel k of `hsic_lab.kernels`, or its name. The default is the authors' inverse multiquadric, with the median
        rule in place of their learned scale. The authors normalize rows before the loss. A bandwidth that is an
        ``nn.Parameter`` is a parameter of the loss; `torch.func.functional_call` and ``load_state_dict(assign=True)``
        do not replace it.
    gamma : float, default 3.0
        Weight of the second term, at least 0. Use less than the authors' default if views share little and collapse.
    random_features : int or None, default None
        Replace the kernel by this even number of random Fourier features, drawn at each call: time linear in n instead
        of quadratic. As in the authors' code, ``HSIC(Z, Z)`` then uses two draws.
    seed, gather_distributed : int, default 0, bool, default True
        Seed of the random features, the same in all processes; the other as in `BarlowTwinsLoss`.
    standardized : bool, default False
        Standardize the features of each view first. A linear kernel needs it, and so does the median rule in a long
        training: no gradient flows through the median, so else the scale of the projections may grow forever.
    """

    many_views = True

    def __init__(
        self, kernel: Kernel | str = "imq", gamma: float = 3.0, gather_distributed: bool = True,
        random_features: int | None = None, seed: int = 0, standardized: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(gather_distributed)
        self.kernel = kernel if isinstance(kernel, Kernel) else named(kernel)
        self.gamma, self.standardized = check_number("gamma", gamma, 0), check_type("standardized", standardized, bool)
        for place, bandwidth in enumerate(_learnable(self.kernel)):
            self.register_parameter(f"bandwidth_{place}", bandwidth)
        self.random_features = random_features
        if random_features is not None:
            if check_integer("random_features", random_features, 2) % 2:
                raise ValueError(f"random_features must be an even number of at least 2, got {random_features!r}")
            if isinstance(self.kernel, Linear):
                raise ValueError(f"a linear kernel is its own feature map, got random_features={random_features!r}")
            self._generator = torch.Generator().manual_seed(check_integer("seed", seed, 0))

    def _terms(self, *views: Tensor) -> dict[str, Tensor]:
        z = torch.cat([standardize(view) for view in views] if self.standardized else views)
        kernel = self.kernel.fit(z.detach().nan_to_num(0, 0, 0))  # NaN must reach the loss, as in all losses
        if isinstance(kernel, Linear):
            z = z - z.mean(dim=0)
            dependence = _feature_dependence(z, len(views))
            product = inner_products(z if z.shape[1] > len(z) else z.T)  # the smaller of the two
        elif self.random_features is not None:
            draws = (fourier_features(kernel, z, self.random_features, self._generator) for _ in range(2))
            first, second = (phi - phi.mean(dim=0) for phi in draws)
            dependence, product = _feature_dependence(first, len(views)), matmul(first.T, second)
        else:
            gram = kernel.gram(z, None)
            pairs = torch.cat([gram.diagonal(len(views[0]) * shift) for shift in range(1, len(views))])
            dependence, product = pairs.mean() - gram.mean(), center(gram)
        square = product.square().sum()  # `torch.linalg.norm` rounds by 1e-4 for a million entries in float32
        norm = square.where(square > 0, 1).sqrt() * (square > 0)  # with gradient 0 at 0, a collapsed projection
        return {"dependence": -dependence, "self_dependence": self.gamma / len(z) * norm}


def _learnable(kernel: Kernel) -> list[nn.Parameter]:
    """The parameters in a kernel, and in the kernels that it is made of."""
    parts = [value for value in vars(kernel).values() if isinstance(value, nn.Parameter | Kernel)]
    return [one for part in parts for one in ([part] if isinstance(part, nn.Parameter) else _learnable(part))]


def _feature_dependence(phi: Tensor, views: int) -> Tensor:
    """Mean of `phi_p . phi_q` over two views of one image, for centered features: the mean over all pairs is 0."""
    parts = phi.unflatten(0, (views, -1))
    return 2 * pair_sum(parts).sum() / (len(phi) * (views - 1))

"""What every loss of two views shares: the checks, the precision, the rows of all processes, the sum of named terms."""

from functools import reduce

import torch
from torch import Tensor, nn

from hsic_lab._checks import check_views, no_autocast
from hsic_lab._distributed import all_gather_rows, world_size


class TwoViewLoss(nn.Module):
    """A loss of projections `z_a, z_b` `(n, d)`, equal to the sum of its named `terms`.

    Computed in float32 or better under any autocast. With `gather_distributed` (the default) k processes under
    `torch.distributed` compute the value and, with DistributedDataParallel, the gradient of one process that holds
    all their rows. Differentiable once. Losses that are defined for more views take them as further arguments.
    Raises ValueError or TypeError unless all views are `(n, d)` floating tensors with n >= 2.
    """

    many_views = False

    def __init__(self, gather_distributed: bool = True) -> None:
        super().__init__()
        self.gather_distributed = gather_distributed

    def forward(self, z_a: Tensor, z_b: Tensor, *more: Tensor) -> Tensor:
        """The loss, a 0-d tensor."""
        return sum(self.terms(z_a, z_b, *more).values())

    def terms(self, z_a: Tensor, z_b: Tensor, *more: Tensor) -> dict[str, Tensor]:
        """The named parts of the loss, 0-d tensors that sum to it."""
        check_views(z_a, z_b)
        with no_autocast(z_a):
            return self._terms(*self.prepare(z_a, z_b, *more))

    def prepare(self, *views: Tensor) -> tuple[Tensor, ...]:
        """The views checked, in float32 or better, with the rows of all processes."""
        if len(views) > 2 and not self.many_views:
            raise TypeError(f"{type(self).__name__} takes two views, got {len(views)}")
        for other in views[2:]:
            check_views(views[0], other)
        dtype = reduce(torch.promote_types, (z.dtype for z in views), torch.float32)
        views = tuple(z.to(dtype) for z in views)
        if self.gathers():
            views = all_gather_rows(torch.stack(views, dim=1)).unbind(dim=1)
        if len(views[0]) < 2:
            raise ValueError(f"{type(self).__name__} needs at least 2 rows, got shape {tuple(views[0].shape)}")
        return views

    def gathers(self) -> bool:
        """Whether the rows of other processes count."""
        return self.gather_distributed and world_size() > 1

    def expected_if_independent(self, n: int, d: int) -> float:
        """The expected loss of views that have nothing to do with each other."""
        raise NotImplementedError(f"the chance level of {type(self).__name__} depends on the distribution of the data")

    def lower_bound(self, n: int, d: int) -> float:
        """The least loss of identical views, at the best n embeddings in d dimensions."""
        raise NotImplementedError(f"no closed form of the least {type(self).__name__} is known")

    def _terms(self, *views: Tensor) -> dict[str, Tensor]:
        raise NotImplementedError


def non_negative(**weights: float) -> None:
    """ValueError unless every named weight is a number of at least 0."""
    for name, value in weights.items():
        if not value >= 0:
            raise ValueError(f"{name} must be at least 0, got {value!r}")

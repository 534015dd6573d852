"""Base class of the losses: input checks, precision, rows of other processes, and the sum of named terms."""

import inspect
from collections.abc import Callable, Sequence
from functools import reduce
from itertools import accumulate, combinations
from typing import Any

import torch
from torch import Tensor, nn

from hsic_lab._checks import check_integer, check_type, check_views, is_transformed, no_autocast
from hsic_lab._distributed import all_gather_rows, world_size


class TwoViewLoss(nn.Module):
    """Base class of the losses of two or more views; a subclass implements ``_terms``.

    Losses and their gradients are computed in float32 or better under any autocast. They can be differentiated to any
    order, in forward and reverse mode; under ``torch.compile``, which has no second derivatives, once. For V > 2 views,
    which are further arguments, a loss of two views is the mean over the V (V - 1) / 2 pairs; a subclass with
    `many_views` computes it from all views at once. `gather_distributed` is as in `BarlowTwinsLoss`.
    """

    many_views = False
    min_rows = 2
    _terms: Callable[..., dict[str, Tensor]]  # from the views that `_prepare` returns to the named summands

    def __init__(self, gather_distributed: bool = True) -> None:
        super().__init__()
        # lightly's second argument of NTXentLoss is memory_bank_size, an integer.
        self.gather_distributed = check_type("gather_distributed", gather_distributed, bool)

    def forward(self, z_a: Tensor, z_b: Tensor, *more: Tensor) -> Tensor:
        """Return the loss, the sum of its `terms`, of floating-point views (n, d); row i of all is one image."""
        return reduce(torch.add, self.terms(z_a, z_b, *more).values())

    def terms(self, z_a: Tensor, z_b: Tensor, *more: Tensor) -> dict[str, Tensor]:
        """Return the summands of the loss by name, with their weights; arguments as in `forward`."""
        views = self._prepare(z_a, z_b, *more)
        with no_autocast(z_a):
            if self.many_views or len(views) == 2:
                return self._terms(*views)
            pairs = [self._terms(x, y) for x, y in combinations(views, 2)]
            return {name: reduce(torch.add, [one[name] for one in pairs]) / len(pairs) for name in pairs[0]}

    def expected_if_independent(self, n: int, d: int) -> float:
        """Return the expected loss of independent views (n, d); NotImplementedError if it depends on their values."""
        raise NotImplementedError(f"loss of independent views depends on the data for {type(self).__name__}")

    def lower_bound(self, n: int, d: int) -> float:
        """Return the smallest loss of two identical views (n, d); NotImplementedError if no closed form is known."""
        raise NotImplementedError(f"no closed form of the smallest {type(self).__name__} is known for these settings")

    def _check_shape(self, n: int, d: int) -> None:
        check_integer("n", n, self.min_rows), check_integer("d", d, 1)

    def extra_repr(self) -> str:
        names = inspect.signature(type(self)).parameters
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in names if hasattr(self, name))

    def _prepare(self, *views: Tensor) -> tuple[Tensor, ...]:
        """The views, checked, in float32 or better, with the rows of all processes."""
        for position, other in enumerate(views[1:], 2):
            check_views(views[0], other, "z_b" if position == 2 else f"view {position}")
        if any(z.dtype != torch.float32 for z in views):
            dtype = reduce(torch.promote_types, (z.dtype for z in views), torch.float32)
            views = tuple(z.to(dtype) for z in views)
        if self.gather_distributed and world_size() > 1:
            if is_transformed():
                raise NotImplementedError("torch.func cannot reach other processes: take gather_distributed=False")
            views = all_gather_rows(torch.stack(views, dim=1)).unbind(dim=1)
        if len(views[0]) < self.min_rows:
            needed = f"at least {self.min_rows} row{'s' * (self.min_rows > 1)}"
            raise ValueError(f"{type(self).__name__} needs {needed}, got shape {tuple(views[0].shape)}")
        return views


class RandomLoss(TwoViewLoss):
    """Base class of losses that may draw at random; a resumed training continues the draws of its generator."""

    _generator: Any = None

    def get_extra_state(self) -> Tensor:
        """Return the state of the generator, empty without one."""
        return torch.empty(0) if self._generator is None else self._generator.get_state()

    def set_extra_state(self, state: Tensor) -> None:
        if (self._generator is None) != (len(state) == 0):
            raise ValueError(f"{self} draws at random and the loss of this state did not, or the reverse")
        if self._generator is not None:
            self._generator.set_state(state.to("cpu", torch.uint8))


def pair_sum(x: Sequence[Tensor] | Tensor) -> Tensor:
    """The sum over v < w of the products `x_v x_w` of V tensors, from V - 1 products; for V = 1, `x^2`."""
    products = [one * before for one, before in zip(x[1:], accumulate(x), strict=False)]
    return reduce(torch.add, products) if products else x[0].square()

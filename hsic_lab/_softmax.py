"""Penalized softmax regression by L-BFGS: most of the way in float32, the end in float64."""

import torch
import torch.nn.functional as F
from torch import Tensor

_MAX_ITERATIONS = 2_000
_ROUGH_TOLERANCE = 1e-6  # of the float32 part of a fit, whose gradients are good to about 1e-7


class SoftmaxSolver:
    """Softmax regression on standardized rows in float64; `fit` starts from where the last one ended.

    `weights` are `(K, p)` and `intercept` `(K,)`, with K = 1 for two classes.
    """

    def __init__(self, x: Tensor, targets: Tensor, classes: int) -> None:
        self.x, self.targets = x, targets
        self.rough = x.float()
        k = classes if classes > 2 else 1
        # (K, p): its gradient is G'X, which is ten times faster than X'G for few classes.
        self.weights, self.intercept = x.new_zeros(k, x.shape[1]), x.new_zeros(k)

    def fit(self, C: float, tolerance: float) -> int:
        """Minimize the mean objective; returns the iterations, raises RuntimeError without convergence."""
        # Most of the way in float32, at half the price; it ends early where float32 no longer tells losses apart.
        rough, _ = self._descend(self.rough, C, max(tolerance, _ROUGH_TOLERANCE), smallest_change=1e-9)
        exact, largest = self._descend(self.x, C, tolerance, smallest_change=0)
        if not largest <= tolerance:
            raise RuntimeError(
                f"the probe did not converge: at C = {C:g} the gradient's largest entry is {largest:.2g}, above "
                f"{tolerance:g}"
            )
        return rough + exact

    def _descend(self, x: Tensor, C: float, tolerance: float, smallest_change: float) -> tuple[int, float]:
        """Iterations, and the largest entry of the gradient where they end."""
        weights, intercept = (p.to(x.dtype).requires_grad_() for p in (self.weights, self.intercept))
        optimizer = torch.optim.LBFGS(
            [weights, intercept],
            max_iter=_MAX_ITERATIONS,
            max_eval=4 * _MAX_ITERATIONS,
            tolerance_grad=tolerance,
            tolerance_change=smallest_change,
            history_size=10,
            line_search_fn="strong_wolfe",
        )

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = _mean_objective(x, self.targets, weights, intercept, C)
            loss.backward()
            return loss

        with torch.enable_grad():
            optimizer.step(closure)
            closure()
        largest = max(float(weights.grad.abs().max()), float(intercept.grad.abs().max()))
        self.weights, self.intercept = weights.detach().to(self.x.dtype), intercept.detach().to(self.x.dtype)
        return optimizer.state[weights]["n_iter"], largest

    def objective(self, C: float) -> float:
        """scikit-learn's objective, `C sum_i log-loss_i + |W|^2 / 2`."""
        return float(_mean_objective(self.x, self.targets, self.weights, self.intercept, C)) * C * len(self.x)

    def predict(self, x: Tensor) -> Tensor:
        """Positions of the classes, `(m, p) -> (m,)`."""
        logits = F.linear(x, self.weights, self.intercept)
        return logits.argmax(dim=1) if logits.shape[1] > 1 else (logits[:, 0] > 0).long()


def _mean_objective(x: Tensor, targets: Tensor, weights: Tensor, intercept: Tensor, C: float) -> Tensor:
    logits = F.linear(x, weights, intercept)
    if logits.shape[1] > 1:
        loss = F.cross_entropy(logits, targets)
    else:
        loss = F.binary_cross_entropy_with_logits(logits[:, 0], targets.to(logits.dtype))
    return loss + weights.square().sum() / (2 * C * len(x))

"""The gradient of a loss that needs the whole batch, through a network that only ever holds a part of it."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

Outputs = tuple[Tensor, ...]


def backward_in_parts(
    network: nn.Module,
    forward: Callable[[int], Outputs],
    parts: int,
    loss: Callable[[Sequence[Outputs]], Tensor],
) -> tuple[Tensor, list[Outputs]]:
    """Add the gradient of `loss` to the network's parameters, one part of the batch in memory at a time.

    Gradient caching (Gao et al. 2021, arXiv 2101.06983): `forward(i)` returns part i's outputs, first for every part
    without a graph; the loss of all outputs is differentiated with respect to them; then `forward(i)` runs again,
    with a graph, and part i's share of that gradient is passed back. As d loss / d weights is the sum over rows of
    d loss / d output times d output / d weights, the result is the gradient of the whole batch, up to rounding, with
    the loss's statistics (C, variances, negatives) those of the whole batch. The price is a second forward pass.

    `forward` must return the same for the same i both times: reseed what is random in the network. Batch
    normalisation inside the network is the exception to "exact": it uses and tracks the statistics of one part, as in
    any accumulation of gradients; a buffer moves in the second pass only. An output that does not require a gradient
    in the second pass (a target) is passed to the loss and left alone.

    Under DistributedDataParallel gradients are exchanged once, after the last part. Returns the loss, detached, and
    the outputs of all parts.
    """
    buffers = [buffer.clone() for buffer in network.buffers()]
    with torch.no_grad():
        outputs = [forward(i) for i in range(parts)]
        for buffer, before in zip(network.buffers(), buffers, strict=True):
            buffer.copy_(before)
    leaves = [tuple(output.detach().requires_grad_() for output in part) for part in outputs]
    value = loss(leaves)
    value.backward()
    unsynchronized = getattr(network, "no_sync", None)  # DistributedDataParallel has it
    for i in range(parts):
        if unsynchronized is not None and i < parts - 1:
            with unsynchronized():
                _pass_back(forward(i), leaves[i])
        else:
            _pass_back(forward(i), leaves[i])
    return value.detach(), outputs


def _pass_back(outputs: Outputs, leaves: Outputs) -> None:
    wanted = [
        (output, leaf.grad) for output, leaf in zip(outputs, leaves, strict=True)
        if output.requires_grad and leaf.grad is not None
    ]
    torch.autograd.backward(*zip(*wanted, strict=True))

"""One batch spread over several processes: every row of it, in every process, with the right gradient."""

import torch
import torch.distributed as dist
from torch import Tensor


class _AllRows(torch.autograd.Function):
    """Concatenates the rows of all processes; the gradient of a row is summed over the processes that used it."""

    @staticmethod
    def forward(ctx, rows: Tensor) -> Tensor:
        shape = torch.tensor(rows.shape, device=rows.device)
        gathered = [torch.empty_like(shape) for _ in range(dist.get_world_size())]
        dist.all_gather(gathered, shape)
        shapes = torch.stack(gathered).tolist()
        if any(other[1:] != shapes[0][1:] for other in shapes):
            raise ValueError(f"processes must hold rows of one shape, got {shapes}")
        sizes = [size for size, *_ in shapes]
        # Collectives want equal shapes, the last batch of an epoch does not have them: pad, gather, cut.
        padded = rows.new_zeros(max(sizes), *rows.shape[1:])
        padded[: len(rows)] = rows
        gathered = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(gathered, padded)
        start = sum(sizes[: dist.get_rank()])
        ctx.mine = slice(start, start + len(rows))
        return torch.cat([part[:size] for part, size in zip(gathered, sizes, strict=True)])

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        gradient = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(gradient)
        return gradient[ctx.mine]


def process_count() -> int:
    """The number of processes under `torch.distributed`, 1 without it."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def all_rows(z: Tensor) -> Tensor:
    """The rows of all processes in rank order, `(n_0 + ... + n_{k-1}, ...)`; `z` itself where there is one process.

    A loss of these rows has the same value in each of k processes, and its gradient with respect to `z` is k times
    that of one process holding all rows. `DistributedDataParallel` divides by k when it averages, so the
    parameters receive exactly the gradient of one process; the processes may hold different numbers of rows.
    Raises ValueError, in every process, where the rows differ in shape.
    """
    return _AllRows.apply(z) if process_count() > 1 else z

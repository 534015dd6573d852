"""One batch over several processes: all rows in every process, with the gradient of a single process."""

import gc
import itertools
import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd import Function


class _AllGatherRows(Function):
    """Concatenate the rows of all processes; the gradient of a row is summed over the processes that used it."""

    @staticmethod
    def forward(ctx, rows: Tensor) -> Tensor:
        shape = torch.tensor(rows.shape, device=rows.device)
        gathered = [torch.empty_like(shape) for _ in range(dist.get_world_size())]
        dist.all_gather(gathered, shape)
        shapes = torch.stack(gathered).tolist()
        if any(other[1:] != shapes[0][1:] for other in shapes):
            raise ValueError(f"processes must hold rows of one shape, got {shapes}")
        sizes = [size for size, *_ in shapes]
        padded = rows.new_zeros(max(sizes), *rows.shape[1:])  # collectives need equal shapes: pad, gather, cut
        padded[: len(rows)] = rows
        dist.all_gather(gathered := [torch.empty_like(padded) for _ in sizes], padded)
        start = sum(sizes[: dist.get_rank()])
        ctx.mine = slice(start, start + len(rows))
        return torch.cat([part[:size] for part, size in zip(gathered, sizes, strict=True)])

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return _SumRows.apply(gradient, ctx.mine)


class _SumRows(Function):
    """Sum a tensor over all processes and return rows of it; as a function, so that it can be differentiated again."""

    @staticmethod
    def forward(ctx, rows: Tensor, mine: slice) -> Tensor:
        dist.all_reduce(total := rows.clone(memory_format=torch.contiguous_format))
        return total[mine]

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        return _AllGatherRows.apply(gradient), None


def world_size() -> int:
    """The number of processes under `torch.distributed`, 1 without it."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """The number of this process, 0 if it is the only one."""
    return dist.get_rank() if world_size() > 1 else 0


def all_gather_rows(z: Tensor) -> Tensor:
    """The rows of all k processes in rank order. Gradients are k-fold: `DistributedDataParallel` averages."""
    return _AllGatherRows.apply(z) if world_size() > 1 else z


def own_rows(n: int, parts: int = 1) -> slice | Tensor:
    """The rows of a batch of n that this process holds, in the order of `own_parts`."""
    rows = torch.cat(own_parts(n, parts))
    first, end = int(rows[0]), int(rows[-1]) + 1
    return slice(first, end) if end - first == len(rows) else rows


def own_parts(n: int, parts: int) -> list[Tensor]:
    """The rows of each part of a batch of n that this process holds: contiguous, in rank order.

    The parts are those of a single process, and the processes share each: batch normalization sees the same rows.
    """
    k = world_size()
    if n < k:
        raise ValueError(f"batch_size must be at least the number of processes, {k}, got {n}")
    return [rows.tensor_split(k)[rank()] for rows in torch.arange(n).tensor_split(parts)]


def same_everywhere(values: Mapping[str, Any], device: torch.device) -> None:
    """ValueError in all processes unless each of them has the same `values`, which JSON can hold."""
    line = torch.tensor(list(json.dumps(values).encode() + b"\n"), dtype=torch.uint8, device=device)
    held = [json.loads(line) for line in bytes(all_gather_rows(line).tolist()).decode().splitlines()]
    by_name = {name: [one.get(name) for one in held] for name in values}
    if different := {name: found for name, found in by_name.items() if any(value != found[0] for value in found)}:
        raise ValueError(f"all processes must train alike, but they have (by process) {different}")


def barrier() -> None:
    """Wait until all processes are here."""
    if world_size() > 1:
        dist.barrier()


def any_process(flag: bool, device: torch.device) -> bool:
    """Whether the flag is set in at least one process."""
    if world_size() == 1:
        return flag
    dist.all_reduce(flags := torch.tensor(float(flag), device=device), dist.ReduceOp.MAX)
    return bool(flags)


_trainings = itertools.count()
_rendezvous = cache(lambda: next(dist.rendezvous("env://")))  # common store, number of this process, number of all


@contextmanager
def processes(device: torch.device) -> Iterator[None]:
    """Join the processes that `torchrun` started, if there are several, with NCCL on CUDA and gloo on the CPU."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        yield
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    store, number, count = _rendezvous()
    # Each training has its own keys: those of the one before would send a fast process to its old addresses.
    store = dist.PrefixStore(f"hsic_lab/training_{next(_trainings)}", store)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", store=store, rank=number, world_size=count)
    try:
        yield
        dist.barrier()  # no process leaves while another still listens
    except BaseException as error:
        if isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error)):
            raise RuntimeError(_why_lost(store, number, count)) from error
        store.set(f"ended_{number}", f"{type(error).__name__}: {error}")
        raise
    finally:
        gc.collect()  # networks in DistributedDataParallel must not outlive their process group
        dist.destroy_process_group()


def _why_lost(store: Any, number: int, count: int, seconds: float = 5) -> str:
    """Which process ended while this one waited for it: one that said why, or else those that say nothing."""
    silent, deadline = [other for other in range(count) if other != number], time.monotonic() + seconds
    try:
        store.set(f"ended_{number}", "")
        while silent and time.monotonic() < deadline:
            time.sleep(0.1)
            for other in [other for other in silent if store.check([f"ended_{other}"])]:
                silent.remove(other)
                if reason := store.get(f"ended_{other}").decode():
                    return f"process {other} of {count} ended: {reason}"
    except RuntimeError:  # the store went away with the process that holds it
        silent = [0]
    return f"lost process {', '.join(map(str, silent))} of {count}: it was killed, or its machine failed"


def across_processes(network: nn.Module, device: torch.device) -> Any:
    """The network with batch normalization over the rows of all processes; itself if there is one process."""
    if world_size() == 1:
        return network
    return nn.SyncBatchNorm.convert_sync_batchnorm(network) if device.type == "cuda" else _converted(network)


class AllRowsBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch normalization over the rows of all processes on the CPU, where torch has no `SyncBatchNorm`."""

    def _check_input_dim(self, input: Tensor) -> None:
        """Accept any shape (n, c, ...)."""

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        x = input.float() if input.dtype in (torch.float16, torch.bfloat16) else input
        dims, shape = [0, *range(2, x.dim())], [1, -1, *[1] * (x.dim() - 2)]
        dist.all_reduce(count := x.new_tensor(float(x.numel() // x.shape[1])))
        mean = all_gather_rows(x.sum(dims)[None]).sum(dim=0) / count
        centered = x - mean.view(shape)
        variance = all_gather_rows(centered.square().sum(dims)[None]).sum(dim=0) / count
        assert self.num_batches_tracked is not None and self.momentum is not None  # `_converted` takes no others
        assert self.running_mean is not None and self.running_var is not None
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean.to(self.running_mean), self.momentum)
            self.running_var.lerp_((variance * count / (count - 1)).to(self.running_var), self.momentum)
        scale = self.weight * (variance + self.eps).rsqrt()
        return (centered * scale.view(shape) + self.bias.view(shape)).to(input.dtype)


def _converted(module: nn.Module) -> nn.Module:
    """The module with `AllRowsBatchNorm` in place of every batch normalization."""
    if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d):
        if module.momentum is None or not (module.affine and module.track_running_stats):
            raise ValueError(f"several CPU processes need affine, tracking batch normalization, got {module!r}")
        norm = AllRowsBatchNorm(module.num_features, module.eps, module.momentum)
        norm.load_state_dict(module.state_dict())
        return norm.to(module.weight).train(module.training)
    for name, child in module.named_children():
        setattr(module, name, _converted(child))
    return module

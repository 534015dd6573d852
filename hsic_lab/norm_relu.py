"""Batch normalisation and ReLU in one, with a compiled kernel for training in bfloat16 on a CPU."""

import ctypes
import math
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor, nn
from torch.autograd import Function, forward_ad
from torch.autograd.function import once_differentiable
from torch.nn.modules.module import _has_any_global_hook

_TILE = 64  # of norm_relu.cpp


@cache
def kernel() -> ctypes.CDLL | None:
    """The compiled kernel; None where installing the package compiled none, or the CPU has no bfloat16 dot products."""
    spec = find_spec("hsic_lab._norm_relu")
    return ctypes.CDLL(spec.origin) if spec and torch.cpu._is_avx512_bf16_supported() else None


def norm_relu(x: Tensor, norm: nn.Module, relu: nn.Module) -> Tensor:
    """`relu(norm(x))`, `(n, c, h, w) -> (n, c, h, w)`, up to rounding.

    Where `kernel()` is there (an update of `ConvEncoder` is then about a tenth faster, `benchmarks/training.py`), it
    computes a plain `nn.BatchNorm2d` that trains on bfloat16 in `channels_last`, which can then be differentiated once;
    everything else, and layers with hooks, is computed by the layers themselves.
    """
    if not _applies(x, norm, relu):
        return relu(norm(x))
    y, statistics = _NormReLU.apply(x, norm.weight, norm.bias, norm.eps)
    with torch.no_grad():
        n = x.numel() // x.shape[1]
        mean, variance = statistics[0], statistics[1]
        norm.running_mean.lerp_(mean, norm.momentum)
        norm.running_var.lerp_(variance * (n / (n - 1)), norm.momentum)
        norm.num_batches_tracked += 1
    return y


def _applies(x: Tensor, norm: nn.Module, relu: nn.Module) -> bool:
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or torch._C._are_functorch_transforms_active():
        return False
    if forward_ad._current_level >= 0 or _has_any_global_hook():
        return False
    if x.device.type != "cpu" or x.dtype != torch.bfloat16 or kernel() is None:
        return False
    whole_rows = x.ndim == 4 and x.numel() > x.shape[1] > 0 and x.numel() % _width(x) == 0
    return (
        whole_rows and x.is_contiguous(memory_format=torch.channels_last)
        and type(norm) is nn.BatchNorm2d and norm.training and norm.num_features == x.shape[1]
        and norm.affine and norm.weight.dtype == torch.float32
        and norm.track_running_stats and norm.momentum is not None
        and type(relu) is nn.ReLU and not _hooked(norm) and not _hooked(relu)
    )


def _hooked(module: nn.Module) -> bool:
    return bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )


def _width(x: Tensor) -> int:
    """The channels, repeated until they fill whole tiles."""
    return math.lcm(x.shape[1], _TILE)


class _NormReLU(Function):
    # Not in two parts with setup_context: torch then inspects the signature at every call.
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        weight, bias = weight.contiguous(), bias.contiguous()
        y, statistics = torch.empty_like(x), weight.new_empty(4, x.shape[1])
        kernel().norm_relu_forward(
            *_matrix(x), _address(weight), _address(bias), ctypes.c_double(eps), _address(y), _address(statistics),
            torch.get_num_threads(),
        )
        ctx.save_for_backward(x, statistics)
        ctx.eps = eps
        ctx.mark_non_differentiable(statistics)
        return y, statistics

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor, _: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        x, statistics = ctx.saved_tensors
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        d_x, d_weight, d_bias = torch.empty_like(x), torch.empty_like(statistics[0]), torch.empty_like(statistics[0])
        kernel().norm_relu_backward(
            _address(gradient), *_matrix(x), _address(statistics), ctypes.c_double(ctx.eps), _address(d_x),
            _address(d_weight), _address(d_bias), torch.get_num_threads(),
        )
        return d_x, d_weight, d_bias, None


def _matrix(x: Tensor) -> tuple[ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64]:
    return _address(x), ctypes.c_int64(x.numel()), ctypes.c_int64(x.shape[1]), ctypes.c_int64(_width(x))


def _address(tensor: Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())

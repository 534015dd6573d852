"""Checks and conversions of arguments, shared by all public functions."""

import importlib
import inspect
import warnings
from numbers import Integral
from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor
from torch.autograd import Function


def as_samples(x: Tensor | np.ndarray, name: str, *, labels: bool = False) -> Tensor:
    """`x` as an `(n, p)` tensor of finite floats; `(n,)` is one column. With `labels`, integers and booleans pass."""
    if not isinstance(x, Tensor | np.ndarray):
        raise TypeError(f"{name} must be a torch.Tensor or a numpy.ndarray, got {type(x).__name__}")
    x = as_tensor(x)
    x = x[:, None] if x.dim() == 1 else x
    if x.dim() != 2 or x.shape[1] == 0:
        raise ValueError(f"{name} must have shape (n, p) or (n,), got {tuple(x.shape)}")
    if not x.is_floating_point():
        if labels:
            return x
        raise TypeError(f"{name} must be floating point, got {x.dtype}: use {name}.double() or the kernel Delta()")
    if not (finite := torch.isfinite(x.detach())).all():
        raise ValueError(f"{name} holds {int((~finite).sum())} values that are NaN or infinite")
    return at_least_float32(x)


def as_tensor(x: ArrayLike | Tensor, *, shared: bool = False) -> Tensor:
    """`x` as a tensor. Arrays that torch cannot wrap are copied; with `shared`, read-only memory maps are not."""
    if isinstance(x, Tensor):
        return x
    x = np.asarray(x)
    if min(x.strides, default=0) < 0 or not x.dtype.isnative or not (shared or x.flags.writeable):
        x = np.array(x, x.dtype.newbyteorder("="), order="C")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return torch.as_tensor(x)


def to_array(x: ArrayLike | Tensor) -> np.ndarray:
    """A tensor on any device, or any array-like, as a NumPy array."""
    return x.detach().cpu().numpy() if isinstance(x, Tensor) else np.asarray(x)


def as_labels(name: str, y: ArrayLike | Tensor) -> np.ndarray:
    """`y` as a vector `(n,)` of integers, booleans or strings, n >= 1."""
    y = to_array(y)
    if y.ndim != 1 or len(y) == 0:
        raise ValueError(f"{name} must have shape (n,) with n at least 1, got {y.shape}")
    if y.dtype.kind == "O" and all(isinstance(label, str) for label in y):
        y = y.astype(str)  # pandas keeps strings as objects
    if y.dtype.kind not in "biuU":
        raise ValueError(f"{name} must hold integers, booleans or strings, got dtype {y.dtype}")
    return y


def finite_rows(name: str, x: Tensor) -> Tensor:
    """`x` `(n, p)` itself; ValueError if a value is not finite."""
    if len(bad := (~x.isfinite()).any(dim=1).nonzero()[:, 0]):
        raise ValueError(f"{name} must be finite: {len(bad)} of {len(x)} rows are not, first row {bad[0]}")
    return x


def is_constant(x: Tensor) -> bool:
    """Whether all rows of `x` `(n, ...)`, n >= 1, are equal."""
    return bool((x == x[:1]).all())


def drawn_rows(x: Tensor, max_rows: int, seed: int = 0) -> Tensor:
    """All rows of `x`, or `max_rows` of them drawn without replacement; equal n and seed give equal rows."""
    if len(x) <= max_rows:
        return x
    rows = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))[:max_rows]
    return x[rows.to(x.device)]


def is_whole(value: object) -> bool:
    """Whether `value` is an integer (NumPy integers count, booleans do not)."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def only_tensors(state: dict[str, Any]) -> dict[str, Tensor]:
    """A network's `state` itself; TypeError if a value is not a tensor and cannot be saved (`get_extra_state`)."""
    if strange := {key: value for key, value in state.items() if not isinstance(value, Tensor)}:
        raise TypeError(f"all values of a network's state must be tensors to be saved, got {strange}")
    return state


def check_views(z_a: Tensor, z_b: Tensor, name_b: str = "z_b") -> None:
    """Two floating `(n, d)` tensors of one shape and device. Values are not read: that would stall a GPU."""
    for name, z in (("z_a", z_a), (name_b, z_b)):
        if not isinstance(z, Tensor):
            raise TypeError(f"{name} must be a torch.Tensor, got {type(z).__name__}")
        if not z.is_floating_point():
            raise TypeError(f"{name} must be floating point, got {z.dtype}")
        if z.dim() != 2 or z.shape[1] == 0:
            raise ValueError(f"{name} must have shape (n, d), got {tuple(z.shape)}")
    if z_a.shape != z_b.shape:
        raise ValueError(f"z_a and {name_b} must have the same shape, got {tuple(z_a.shape)} and {tuple(z_b.shape)}")
    if z_a.device != z_b.device:
        raise ValueError(f"z_a and {name_b} must be on one device, got {z_a.device} and {z_b.device}")


def at_least_float32(z: Tensor) -> Tensor:
    """`z` with half precision raised to float32: batch statistics need more than 8 bits of mantissa."""
    return z.float() if z.dtype in (torch.float16, torch.bfloat16) else z


def check_choice(value: str, accepted: tuple[str, ...], name: str) -> str:
    """`value` itself; ValueError if it is not one of `accepted`."""
    if value not in accepted:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, accepted))}, got {value!r}")
    return value


def no_autocast(tensor: Tensor) -> torch.autocast:
    """A context in which matrix products keep the dtype of their operands, under any autocast of the caller."""
    return torch.autocast(tensor.device.type, enabled=False)


def matmul(x: Tensor, y: Tensor) -> Tensor:
    """``x @ y`` of matrices without autocast, in the derivatives too: `backward` may run inside an autocast."""
    return (_Product if torch.compiler.is_compiling() else _ProductWithForwardMode).apply(x, y)


class _Product(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, y: Tensor) -> Tensor:
        with no_autocast(x):
            return x @ y

    @staticmethod
    def setup_context(ctx, inputs: tuple, output: Tensor) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        (x, y), (for_x, for_y) = ctx.saved_tensors, ctx.needs_input_grad
        return matmul(gradient, y.T) if for_x else None, matmul(x.T, gradient) if for_y else None


class _ProductWithForwardMode(_Product):  # separate because torch.compile refuses functions with a `jvp`
    @staticmethod
    def jvp(ctx, for_x, for_y) -> Tensor:
        x, y = ctx.saved_tensors
        if for_x is None or for_y is None:
            return matmul(x, for_y) if for_y is not None else matmul(for_x, y)
        return matmul(for_x, y) + matmul(x, for_y)


class CallableModule(ModuleType):
    """A module that is called like its function of the same name: `from hsic_lab import hsic; hsic(x, y)`."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return getattr(self, self.__name__.rpartition(".")[2])(*args, **kwargs)

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(getattr(self, self.__name__.rpartition(".")[2]))

    def __reduce__(self) -> tuple[Any, ...]:
        return importlib.import_module, (self.__name__,)

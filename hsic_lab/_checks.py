"""What every function on samples accepts, and the errors that say so."""

import warnings
from numbers import Integral
from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor


def as_samples(x: Tensor | np.ndarray, name: str) -> Tensor:
    """`x` as an `(n, p)` floating tensor of finite values; a vector `(n,)` is read as one column."""
    if not isinstance(x, Tensor | np.ndarray):
        raise TypeError(f"{name} must be a torch.Tensor or a numpy.ndarray, got {type(x).__name__}")
    x = as_tensor(x)
    if x.dim() == 1:
        x = x[:, None]
    if x.dim() != 2 or x.shape[1] == 0:
        raise ValueError(f"{name} must have shape (n, p) or (n,), got {tuple(x.shape)}")
    if not x.is_floating_point():
        raise TypeError(f"{name} must be floating point, got {x.dtype}; convert it, for instance {name}.double()")
    if not torch.isfinite(x.detach()).all():
        raise ValueError(f"{name} holds {int((~torch.isfinite(x.detach())).sum())} values that are NaN or infinite")
    return at_least_float32(x)


def as_tensor(x: ArrayLike | Tensor, *, shared: bool = False) -> Tensor:
    """`x` itself, or an array as a tensor, copied where torch would not read it: mirrored, foreign bytes, read-only.

    With `shared` a read-only array (a memory map) is not copied: the caller never writes to the result.
    """
    if isinstance(x, Tensor):
        return x
    x = np.asarray(x)
    native = x.dtype.newbyteorder("=")
    if min(x.strides, default=0) < 0 or x.dtype != native or not (shared or x.flags.writeable):
        x = np.array(x, native, order="C")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return torch.as_tensor(x)


def is_whole(value: object) -> bool:
    """Whether this is an integer, NumPy's too, and no truth value."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def paired_samples(x: Tensor | np.ndarray, y: Tensor | np.ndarray, at_least: int = 2) -> tuple[Tensor, Tensor]:
    """Two samples whose rows belong together, checked; the narrower dtype is raised to the wider."""
    x, y = as_samples(x, "x"), as_samples(y, "y")
    if len(x) != len(y):
        raise ValueError(f"x and y must have the same number of rows, got {len(x)} and {len(y)}")
    if len(x) < at_least:
        raise ValueError(f"needs at least {at_least} rows, got {len(x)}")
    dtype = torch.promote_types(x.dtype, y.dtype)
    return x.to(dtype), y.to(dtype)


def as_labels(name: str, y: ArrayLike | Tensor) -> np.ndarray:
    """A vector `(n,)` of integers, booleans or strings."""
    y = np.asarray(y.detach().cpu() if isinstance(y, Tensor) else y)
    if y.ndim != 1 or len(y) == 0:
        raise ValueError(f"{name} must have shape (n,) with n at least 1, got {y.shape}")
    if y.dtype.kind == "O" and all(isinstance(label, str) for label in y):
        y = y.astype(str)  # pandas keeps strings as objects
    if y.dtype.kind not in "biuU":
        raise ValueError(f"{name} must hold integers, booleans or strings, got dtype {y.dtype}")
    return y


def finite_rows(name: str, x: Tensor) -> Tensor:
    """`x` `(n, p)`, whose values are all finite; ValueError counts the rows that are not."""
    bad = (~x.isfinite()).any(dim=1).nonzero()[:, 0]
    if len(bad):
        raise ValueError(f"{name} must be finite: {len(bad)} of {len(x)} rows are not, first row {bad[0]}")
    return x


def only_tensors(state: dict[str, Any]) -> dict[str, Tensor]:
    """A network's state, which a file of tensors can hold; TypeError quotes what is none (`get_extra_state`)."""
    if strange := {key: value for key, value in state.items() if not isinstance(value, Tensor)}:
        raise TypeError(f"a network keeps state that is no tensor and cannot be saved: {strange}")
    return state


def check_views(z_a: Tensor, z_b: Tensor) -> None:
    """Two `(n, d)` floating tensors whose rows belong together. Values are not read: that would stall a GPU."""
    for name, z in (("z_a", z_a), ("z_b", z_b)):
        if not isinstance(z, Tensor):
            raise TypeError(f"{name} must be a torch.Tensor, got {type(z).__name__}")
        if not z.is_floating_point():
            raise TypeError(f"{name} must be floating point, got {z.dtype}")
        if z.dim() != 2 or z.shape[1] == 0:
            raise ValueError(f"{name} must have shape (n, d), got {tuple(z.shape)}")
    if z_a.shape != z_b.shape:
        raise ValueError(f"z_a and z_b must have the same shape, got {tuple(z_a.shape)} and {tuple(z_b.shape)}")
    if z_a.device != z_b.device:
        raise ValueError(f"z_a and z_b must be on one device, got {z_a.device} and {z_b.device}")


def at_least_float32(z: Tensor) -> Tensor:
    """Half precisions raised to float32: the statistics of a batch do not survive 8 bits of mantissa."""
    return z.float() if z.dtype in (torch.float16, torch.bfloat16) else z


def check_choice(value: str, accepted: tuple[str, ...], name: str) -> str:
    """`value` if it is one of `accepted`, else an error that lists them."""
    if value not in accepted:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, accepted))}, got {value!r}")
    return value


def no_autocast(tensor: Tensor) -> torch.autocast:
    """The context in which matrix products keep the dtype of their operands whatever the caller's autocast says."""
    return torch.autocast(tensor.device.type, enabled=False)


class CallableModule(ModuleType):
    """A module that is called as the function of its own name.

    `hsic_lab.hsic` is a module, and importing it binds that name in `hsic_lab`. So that `from hsic_lab import hsic`
    gives what can be called in any order of imports, the module itself is callable.
    """

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return getattr(self, self.__name__.rpartition(".")[2])(*args, **kwargs)

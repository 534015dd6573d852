"""Checks and conversions of arguments, shared by all public functions."""

import importlib
import inspect
import warnings
from numbers import Integral
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike
from torch import Tensor


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


def factor_values(column: ArrayLike | Tensor, name: str = "column") -> tuple[Tensor, bool]:
    """A table's column as a tensor `(n,)`, and whether its values are labels: the one rule for what a column means.

    Integers, booleans, strings, bytes and categories are labels. Floats and decimals are numbers; dates, times and
    durations are seconds after the smallest one. Missing values and columns of other or mixed types raise an error.
    """
    if isinstance(column, Tensor):
        return column, not column.is_floating_point()
    series = pd.Series(column)
    if missing := int(series.isna().sum()):
        raise ValueError(f"{name} holds {missing} missing values (None, NaN or NaT) in {len(series)} rows")
    kind = pd.api.types.infer_dtype(series)
    if kind in ("integer", "boolean", "string", "bytes", "categorical"):
        return torch.from_numpy(pd.factorize(series)[0]), True
    if kind in ("floating", "decimal", "mixed-integer-float"):
        array = series.to_numpy()
        return as_tensor(array if array.dtype.kind == "f" else array.astype(np.float64)), False
    if kind in ("datetime64", "datetime", "date"):  # to one time zone: a column may hold several
        series = pd.to_datetime(series, utc=True)
    elif kind in ("timedelta64", "timedelta"):
        series = pd.to_timedelta(series)
    else:
        raise TypeError(
            f"{name} must hold numbers, labels (integers, booleans, strings), dates or durations, got {kind}"
        )
    return as_tensor((series - series.min()).dt.total_seconds().to_numpy()), False


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


def check_whole(value: object, name: str, at_least: int) -> int:
    """`value` as an int; TypeError if it is not an integer, ValueError if it is below `at_least`."""
    if not is_whole(value) or value < at_least:  # type: ignore[operator]
        error = ValueError if is_whole(value) else TypeError
        raise error(f"{name} must be an integer of at least {at_least}, got {value!r}")
    return int(value)  # type: ignore[call-overload]


def seeded(seed: int) -> torch.Generator:
    """A generator for `seed`, an integer of at least 0, with other numbers than samples drawn with the same seed."""
    return torch.Generator().manual_seed((check_whole(seed, "seed", 0) * 2654435761 + 2654435769) % 2**32)


def only_tensors(state: dict[str, Any]) -> dict[str, Tensor]:
    """A network's `state` itself; TypeError if a value is not a tensor and cannot be saved (`get_extra_state`)."""
    if strange := {key: value for key, value in state.items() if not isinstance(value, Tensor)}:
        raise TypeError(f"all values of a network's state must be tensors to be saved, got {strange}")
    return state


def check_views(z_a: Tensor, z_b: Tensor) -> None:
    """Two floating `(n, d)` tensors of one shape and device. Values are not read: that would stall a GPU."""
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


class CallableModule(ModuleType):
    """A module that is called like its function of the same name: `from hsic_lab import hsic; hsic(x, y)`."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return getattr(self, self.__name__.rpartition(".")[2])(*args, **kwargs)

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(getattr(self, self.__name__.rpartition(".")[2]))

    def __reduce__(self) -> tuple[Any, ...]:
        return importlib.import_module, (self.__name__,)

"""Checks and conversions of arguments, shared by all public functions."""

import importlib
import inspect
import math
import re
import warnings
from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager, nullcontext
from difflib import get_close_matches
from functools import reduce
from numbers import Integral, Real
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike
from torch import Tensor
from torch.autograd import Function, forward_ad


def as_samples(x: ArrayLike | Tensor, name: str, *, labels: bool = False) -> Tensor:
    """Return `x` as an `(n, p)` tensor of finite floats; `(n,)` is one column. With `labels`, integers pass too."""
    x = with_float64(as_tensor(x, name))
    x = x[:, None] if x.dim() == 1 else x
    if x.dim() != 2 or 0 in x.shape:
        raise ValueError(f"{name} must have shape (n, p) or (n,), n and p at least 1, got {tuple(x.shape)}")
    if not x.is_floating_point():
        if labels:
            return x
        raise TypeError(f"{name} must be floating point, got {x.dtype}: convert it; labels take the kernel Delta()")
    # The sum of finite values may overflow, too, but takes a tenth of the time of looking at every value.
    if not x.detach().sum().isfinite() and not (finite := torch.isfinite(x.detach())).all():
        raise ValueError(f"{name} holds {int((~finite).sum())} values that are NaN or infinite")
    return at_least_float32(x)


def as_tensor(x: ArrayLike | Tensor, name: str = "x", *, shared: bool = False) -> Tensor:
    """Return `x`, any array-like without missing entries, as a dense tensor of real numbers.

    Arrays are copied where torch cannot wrap them; with `shared`, read-only memory maps are not.
    """
    if isinstance(x, Tensor):
        eight_bits = x.is_floating_point() and x.element_size() == 1
        if x.layout != torch.strided or x.is_complex() or x.is_quantized or x.is_meta or eight_bits:
            raise TypeError(f"{name} must be a dense tensor of real numbers, got {x.layout}, {x.dtype} on {x.device}")
        return x
    x = to_array(x, name)
    if x.dtype.kind not in "fiub":
        remedy = "" if x.dtype.kind not in "USO" else "; codes of labels are np.unique(labels, return_inverse=True)[1]"
        raise TypeError(f"{name} must hold real numbers, got dtype {x.dtype}{remedy}")
    wrapped = x.dtype.kind in "ib" or x.dtype.itemsize == 1 or (x.dtype.kind == "f" and x.dtype.itemsize <= 8)
    if min(x.strides, default=0) < 0 or not x.dtype.isnative or not (shared or x.flags.writeable) or not wrapped:
        x = np.array(x, x.dtype.newbyteorder("=") if wrapped else np.int64 if x.dtype.kind == "u" else float, order="C")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return torch.as_tensor(x)


def to_array(x: ArrayLike | Tensor, name: str = "x") -> np.ndarray:
    """Return a tensor on any device, or any array-like without missing entries, as a NumPy array."""
    if isinstance(x, Tensor):
        x = as_tensor(x, name).detach().cpu()
        return (x.float() if x.dtype == torch.bfloat16 else x).numpy()
    missing, given = 0, x
    if isinstance(x, np.ma.MaskedArray):
        missing, x = int(np.ma.getmaskarray(x).sum()), x.data
    elif isinstance(x, pd.DataFrame | pd.Series | pd.Index | pd.api.extensions.ExtensionArray):
        missing, x = int(np.sum(pd.isna(x).to_numpy() if isinstance(x, pd.DataFrame) else pd.isna(x))), x.to_numpy()
    if missing:
        raise ValueError(f"{name} holds {missing} missing values")
    try:
        x = np.asarray(x)
    except ValueError as error:
        raise ValueError(f"{name} must be an array, got parts of different lengths: {given!r:.80}") from error
    if x.ndim == 0 and x.dtype.kind not in "fiubc":
        raise TypeError(f"{name} must be an array or a tensor, got {given!r:.80}")
    if x.dtype == object:
        content = pd.api.types.infer_dtype(x.ravel(), skipna=False)
        if content in ("floating", "integer", "mixed-integer-float", "decimal"):
            return x.astype(np.int64 if content == "integer" else np.float64)
        if content in ("string", "boolean"):
            return x.astype(str if content == "string" else bool)
        if missing := int(pd.isna(x).sum()):
            raise ValueError(f"{name} holds {missing} missing values")
        raise TypeError(f"{name} must hold numbers of one kind or strings, got objects of kind {content}")
    return x


def as_labels(name: str, y: ArrayLike | Tensor) -> np.ndarray:
    """Return `y` as a vector `(n,)` of integers, booleans or strings, n >= 1."""
    y = to_array(y, name)
    if y.ndim != 1 or len(y) == 0:
        raise ValueError(f"{name} must have shape (n,) with n at least 1, got {y.shape}")
    if y.dtype.kind not in "biuU":
        raise ValueError(f"{name} must hold integers, booleans or strings, got dtype {y.dtype}")
    return y


def factor_values(column: ArrayLike | Tensor, name: str = "column") -> tuple[Tensor, bool]:
    """Return a table's column as a tensor `(n,)`, and whether its values are labels: the rule for what a column means.

    Integers, booleans, strings, bytes and categories are labels. Floats and decimals are numbers; dates, times and
    durations are seconds after the smallest one. Missing values and columns of other or mixed types raise an error, and
    so do texts of which more than half are numbers, some of them not whole.
    """
    if isinstance(column, Tensor):
        return column, not column.is_floating_point()
    if np.ndim(column) != 1 or getattr(column, "dtype", np.dtype(float)).names:
        raise ValueError(f"{name} must be a column of one value a row, got {np.shape(column)}: {column!r:.60}")
    series = pd.Series(column)
    if missing := int(series.isna().sum()):
        raise ValueError(f"{name} holds {missing} missing values (None, NaN or NaT) in {len(series)} rows")
    kind = pd.api.types.infer_dtype(series)
    if kind == "string":
        numbers = pd.to_numeric(series.str.replace(",", ".", regex=False), errors="coerce")
        if 2 * numbers.count() > len(series) and (numbers.dropna() % 1).any():
            words = f"numbers as text, {series[numbers.notna()].iloc[0]!r}, ..."
            words += "".join(f", and {text!r}" for text in series[numbers.isna()].head(1))
            raise ValueError(f"{name} holds {words}: convert them, or make them categories")
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
        raise TypeError(f"{name} must be numbers, labels (integers, booleans, strings), dates or durations, got {kind}")
    return as_tensor((series - series.min()).dt.total_seconds().to_numpy()), False


def finite_rows(name: str, x: Tensor) -> Tensor:
    """Return `x` `(n, p)` itself; ValueError if a value is not finite."""
    if len(bad := (~x.isfinite()).any(dim=1).nonzero()[:, 0]):
        raise ValueError(f"{name} must be finite: {len(bad)} of {len(x)} rows are not, first row {bad[0]} (from 0)")
    return x


def is_constant(x: Tensor) -> bool:
    """Return whether all rows of `x` `(n, ...)`, n >= 1, are equal."""
    return bool((x[:2] == x[:1]).all() and (x == x[:1]).all())


def drawn_rows(x: Tensor, max_rows: int, seed: int = 0) -> Tensor:
    """Return all rows of `x`, or `max_rows` drawn without replacement; equal n and seed give equal rows."""
    if len(x) <= max_rows:
        return x
    rows = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))[:max_rows]
    return x[rows.to(x.device)]


def is_whole(value: object) -> bool:
    """Return whether `value` is an integer (NumPy integers count, booleans do not)."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def check_type(name: str, value: Any, *accepted: type) -> Any:
    """Return `value` itself; TypeError if it is no instance of one of the `accepted` types."""
    if not isinstance(value, accepted):
        kinds = " or ".join(kind.__name__ for kind in accepted)
        raise TypeError(f"{name} must be of type {kinds}, got {type(value).__name__} {value!r:.60}")
    return value


def require_columns(frame: pd.DataFrame, columns: Sequence[str]) -> None:
    """Raise ValueError if the frame lacks one of `columns` or has no rows."""
    check_type("frame", frame, pd.DataFrame)
    if missing := [column for column in columns if not isinstance(column, str) or column not in frame]:
        raise ValueError(f"the frame lacks the columns {missing}, it has {list(frame.columns)}")
    if not len(frame):
        raise ValueError("frame must hold at least one row, got none")


def check_integer(name: str, value: Any, low: int, high: int = 2**63 - 1) -> int:
    """Return `value` as an int; TypeError if it is none, ValueError if it is not between `low` and `high`."""
    value = _item(value)
    if not is_whole(value) or not low <= value <= high:
        limit = f" and at most {high}" if is_whole(value) and value > high else ""
        error = ValueError if is_whole(value) else TypeError
        raise error(f"{name} must be an integer of at least {low}{limit}, got {value!r}")
    return int(value)


def check_number(
    name: str, value: object, low: float = -math.inf, high: float = math.inf, above: bool = False, below: bool = False
) -> float:
    """Return `value` as a finite float in [low, high], without low if `above` and high if `below`; else ValueError."""
    value = _item(value)
    number = float(value) if isinstance(value, Real) and not isinstance(value, bool) else math.nan
    at_end = (above and number == low) or (below and number == high)
    if math.isfinite(number) and low <= number <= high and not at_end:
        return number
    bound = f"above {low:g}" if above else f"of at least {low:g}" if low > -math.inf else "that is finite"
    bound = bound if high == math.inf else f"in {'(' if above else '['}{low:g}, {high:g}{')' if below else ']'}"
    raise ValueError(f"{name} must be a number {bound}, got {value!r}")


def _item(value: object) -> object:
    """Return the number in a tensor or an array without axes; anything else as it is."""
    return value.item() if isinstance(value, Tensor | np.ndarray) and value.ndim == 0 else value


def seeded(seed: int) -> torch.Generator:
    """Return a generator for `seed`, an integer from 0, with other numbers than samples drawn with that seed."""
    return torch.Generator().manual_seed((check_integer("seed", seed, 0) * 2654435761 + 2654435769) % 2**32)


def check_view(name: str, z: Tensor) -> None:
    """Raise an error unless `z` is a floating `(n, d)` tensor. Values are not read."""
    if not isinstance(z, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(z).__name__}; torch.as_tensor makes one")
    if not z.is_floating_point():
        raise TypeError(f"{name} must be floating point, got {z.dtype}")
    if z.layout != torch.strided or z.element_size() == 1:
        raise TypeError(f"{name} must be a dense tensor of at least 16 bits a value, got {z.layout}, {z.dtype}")
    if z.dim() != 2 or z.shape[1] == 0:
        raise ValueError(f"{name} must have shape (n, d), got {tuple(z.shape)}")


def check_views(z_a: Tensor, z_b: Tensor, name_b: str = "z_b") -> None:
    """Raise an error unless both are floating `(n, d)` tensors of one shape and device."""
    check_view("z_a", z_a)
    check_view(name_b, z_b)
    if z_a.shape != z_b.shape:
        raise ValueError(f"z_a and {name_b} must have the same shape, got {tuple(z_a.shape)} and {tuple(z_b.shape)}")
    if z_a.device != z_b.device:
        raise ValueError(f"z_a and {name_b} must be on one device, got {z_a.device} and {z_b.device}")


def with_float64(x: Tensor) -> Tensor:
    """Return `x` where float64 exists: on its device, or on the CPU if that is Apple's MPS."""
    return x.cpu() if x.device.type == "mps" else x


def at_least_float32(z: Tensor) -> Tensor:
    """Return `z` with half precision raised to float32: batch statistics need more than 8 bits of mantissa."""
    return z.float() if z.dtype in (torch.float16, torch.bfloat16) else z


def default_dtype() -> torch.dtype:
    """Return torch's default floating-point type, float32 if it is narrower."""
    return torch.promote_types(torch.get_default_dtype(), torch.float32)


def check_choice(value: str, accepted: Collection[str], name: str) -> str:
    """Return `value` itself; ValueError if it is not one of `accepted`."""
    if not isinstance(value, str) or value not in accepted:
        raise ValueError(f"{name} must be one of {str([*accepted])[1:-1]}, got {value!r}{near(value, accepted)}")
    return value


def near(value: object, accepted: Collection[str]) -> str:
    """Return "; did you mean ...?" with the name that is spelled alike, but for case and punctuation, or ""."""
    plain = {re.sub(r"[\W_]", "", name.lower()): name for name in accepted}
    found = get_close_matches(re.sub(r"[\W_]", "", str(value).lower()), plain, 1)
    return "".join(f"; did you mean {plain[one]!r}?" for one in found)


def no_autocast(tensor: Tensor) -> AbstractContextManager:
    """Return a context in which matrix products keep the dtype of their operands, under any autocast of the caller."""
    kind = tensor.device.type
    if kind == "meta":  # which has no autocast
        return nullcontext()
    needed = torch.is_autocast_enabled(kind) or torch.compiler.is_compiling()  # which runs backward in its own state
    return torch.autocast(kind, enabled=False) if needed else nullcontext()


def matmul(x: Tensor, y: Tensor) -> Tensor:
    """Return ``x @ y`` of matrices without autocast, in the derivatives too: `backward` may run inside an autocast."""
    if not (x.requires_grad or y.requires_grad or is_transformed() or forward_ad._current_level >= 0):
        with no_autocast(x):
            return x @ y  # a custom function takes longer than the product of two small tiles
    return (_Product if torch.compiler.is_compiling() else _ProductWithForwardMode).apply(x, y)


def row_product(x: Tensor, y: Tensor) -> Tensor:
    """Return ``x'y`` of matrices with any number of rows: one float32 product of a million loses three digits."""
    few = len(x) <= 8192  # the derivative of a split copies its rows
    blocks = [(x, y)] if few else list(zip(x.split(8192), y.split(8192), strict=True))
    return reduce(torch.add, [inner_products(a.T) if y is x else matmul(a.T, b) for a, b in blocks])


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


def inner_products(x: Tensor) -> Tensor:
    """Return ``x @ x.T`` as `matmul` does, with half the work for the gradient, and 5/8 of it for wide rows."""
    if is_transformed() or forward_ad._current_level >= 0:
        return matmul(x, x.T)
    return _InnerProducts.apply(x)


class _InnerProducts(Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        with no_autocast(x):
            if hides_values(x) or len(x) < 64 or x.shape[1] < 512:  # blocks would be slower
                return x @ x.T
            product, step = x.new_empty(len(x), len(x)), -(-len(x) // 4)
            for i in range(0, len(x), step):  # only those on and above the diagonal
                product[i : i + step, i:] = x[i : i + step] @ x[i:].T
                product[i:, i : i + step] = product[i : i + step, i:].T
            return product

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        both = gradient.T.clone(memory_format=torch.contiguous_format)  # to add transposed entries is much slower
        return matmul(both.add_(gradient), ctx.saved_tensors[0])


# torch has no public names for these questions.
is_transformed = torch._C._are_functorch_transforms_active  # within grad, jvp, vmap, ... of torch.func


def hides_values(x: Tensor) -> bool:
    """Whether to read values of `x` fails, stops a GPU, or is recorded: on meta and fake tensors, and in traces."""
    hidden = x.is_cuda or torch.compiler.is_compiling() or is_transformed() or x.is_meta or hasattr(x, "fake_mode")
    return bool(hidden or torch.jit.is_tracing() or torch._C._len_torch_dispatch_stack())


def is_vmapped(x: Tensor) -> bool:
    """Whether `x` has a dimension that `vmap` hides, so that its values cannot be read."""
    functorch = torch._C._functorch
    while functorch.is_functorch_wrapped_tensor(x) and not functorch.is_batchedtensor(x):
        x = functorch.get_unwrapped(x)
    return functorch.is_batchedtensor(x)


class CallableModule(ModuleType):
    """A module that is called like its function of the same name: `from hsic_lab import hsic; hsic(x, y)`."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return getattr(self, self.__name__.rpartition(".")[2])(*args, **kwargs)

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(getattr(self, self.__name__.rpartition(".")[2]))

    def __reduce__(self) -> tuple[Any, ...]:
        return importlib.import_module, (self.__name__,)

"""A simulated accelerator: tensors that claim another device, compute on the CPU, and refuse to mix devices.

Inside `simulated("cuda")` every way to name that device (`x.to("cuda")`, `torch.zeros(3, device=...)`, a generator)
gives a `DeviceTensor` around a CPU tensor. As on a GPU, an operation on tensors of both devices is an error, except that
elementwise operations take CPU scalars and indices may be on the CPU; `.to`, `.cpu` and `copy_` move. `simulated("mps")` also refuses float64.
The CPU's own kernels compute, so the numbers are those of the CPU to the last bit. What a device does not implement,
and autocast, are not simulated.
"""

from contextlib import contextmanager
from unittest.mock import patch

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map_only, tree_unflatten

aten = torch.ops.aten
CPU = torch.device("cpu")
COPIES = {aten.copy_.default}
INDEXING = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}


class DeviceTensor(torch.Tensor):
    """A tensor on a simulated device. `inner` is the CPU tensor that computes."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner, device):
        if device.type == "mps" and inner.dtype in (torch.float64, torch.complex128):
            raise TypeError(f"Cannot convert a MPS Tensor to {inner.dtype} dtype as MPS does not support float64.")
        assert type(inner) is torch.Tensor, type(inner)
        # For C++ the wrapper is on the CPU: the autograd engine and device guards of a real device are not there.
        self = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            layout=inner.layout,
        )
        self.inner, self.claimed = inner, device
        return self

    device = property(lambda self: self.claimed)
    is_cpu = property(lambda self: False)
    is_cuda = property(lambda self: self.claimed.type == "cuda")
    is_mps = property(lambda self: self.claimed.type == "mps")

    def get_device(self):
        return self.claimed.index

    def numpy(self, **_):
        raise TypeError(f"can't convert {self.claimed} device type tensor to numpy. Use Tensor.cpu() first.")

    def __array__(self, *_, **__):
        return self.numpy()

    def tolist(self):
        return self.inner.tolist()

    def __repr__(self, **_):
        return f"DeviceTensor({self.inner!r}, device={self.claimed})"

    def __deepcopy__(self, memo):
        copy = memo[id(self)] = DeviceTensor(self.inner.clone(), self.claimed).requires_grad_(self.requires_grad)
        if getattr(self, "_is_param", False):
            copy._is_param = True
        return copy

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        flat, spec = tree_flatten((args, kwargs or {}))
        there = [x for x in flat if isinstance(x, DeviceTensor)]
        here = [x for x in flat if isinstance(x, torch.Tensor) and not isinstance(x, DeviceTensor)]
        device = there[0].claimed
        if func not in COPIES:
            if func in INDEXING and isinstance(args[0], DeviceTensor):
                here = [x for x in here if not any(x is index for index in args[1])]
            scalars = torch.Tag.pointwise in func.tags or func in INDEXING
            written = [x for x in _written(func, args, kwargs or {}) if not isinstance(x, DeviceTensor)]
            if written or any(x.dim() or not scalars for x in here):
                shapes = ", ".join(str(tuple(x.shape)) for x in here)
                raise RuntimeError(
                    f"Expected all tensors to be on the same device, but found at least two devices, {device} and cpu! "
                    f"{func} got tensors of shape {shapes} on the cpu"
                )
        outer = {id(x.inner): x for x in there}  # an operation in place returns its argument
        flat = [x.inner if isinstance(x, DeviceTensor) else x for x in flat]
        args, kwargs = tree_unflatten(flat, spec)
        result = func(*args, **kwargs)
        own = {id(x) for x in flat if isinstance(x, torch.Tensor)}

        def wrapped(x):
            return outer.get(id(x), x) if id(x) in own else DeviceTensor(x, device)

        return tree_map_only(torch.Tensor, wrapped, result)


def _written(func, args, kwargs):
    """The tensors that an operation writes to."""
    for position, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[position] if position < len(args) else kwargs.get(argument.name)
            for x in value if isinstance(value, list | tuple) else [value]:
                if isinstance(x, torch.Tensor):
                    yield x


class _There(torch.autograd.Function):
    """A copy on the device of a CPU tensor."""

    @staticmethod
    def forward(ctx, x, device):
        return DeviceTensor(x.detach().clone(), device)

    @staticmethod
    def backward(ctx, gradient):
        return gradient.inner.clone(), None


class _Back(torch.autograd.Function):
    """A copy on the CPU of a tensor on the device."""

    @staticmethod
    def forward(ctx, x):
        ctx.claimed = x.claimed
        return x.inner.clone()

    @staticmethod
    def backward(ctx, gradient):
        return DeviceTensor(gradient.detach().clone(), ctx.claimed)


def moved(x, device):
    """`x` on another device, differentiable."""
    if isinstance(x, DeviceTensor) == (device != CPU):
        return x
    return _Back.apply(x) if device == CPU else _There.apply(x, device)


class _Devices(TorchFunctionMode):
    """Answers every call that names the device."""

    def __init__(self, device):
        super().__init__()
        self.there = device

    def named(self, value):
        """The device that a value names: the simulated one, the CPU, or None for a value that names none."""
        if not isinstance(value, str | torch.device):
            return None
        try:
            device = torch.device(value)
        except RuntimeError:  # another word
            return None
        return self.there if device.type == self.there.type else device

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        if func is torch.Tensor.cpu:
            return moved(args[0], CPU)
        if func is torch.Tensor.pin_memory:
            return args[0]
        if func is torch.Tensor.to:
            return self.to(*args, **kwargs)
        generator = kwargs.get("generator")
        if generator is None and (drawn := [x for x in args if isinstance(x, torch._C.Generator)]):
            generator = drawn[0]
        like = args and isinstance(args[0], DeviceTensor)
        device = self.named(kwargs.get("device")) or (self.there if like else CPU)
        if generator is not None and getattr(generator, "claimed", CPU).type != device.type:
            raise RuntimeError(f"Expected a {device.type!r} device type for generator but found {generator.device}")
        if kwargs.get("device") is None and name != "new_tensor":
            return func(*args, **kwargs)
        kwargs["device"] = CPU
        result = func(*args, **kwargs)
        return moved(result, device)

    def to(self, x, *args, **kwargs):
        values = [*args, *kwargs.values()]
        others = [value for value in values if isinstance(value, torch.Tensor)]
        devices = [device for value in values if (device := self.named(value))]
        device = others[0].device if others else devices[0] if devices else x.device
        rest = [others[0].dtype] if others else []
        rest += [value for value in args if not (isinstance(value, torch.Tensor) or self.named(value))]
        options = {key: value for key, value in kwargs.items() if key not in ("device", "other")}
        x = moved(x, CPU) if device == CPU else x  # the type changes on the CPU, which has every type
        return moved(torch.Tensor.to(x, *rest, **options) if rest or options else x, device)


class _Generator(torch._C.Generator):
    """A generator of the CPU that claims a device."""

    def __new__(cls, device="cpu"):
        self = super().__new__(cls, "cpu")
        self.claimed = torch.device(device)
        return self

    device = property(lambda self: self.claimed)


@contextmanager
def simulated(kind):
    """Simulate the device "cuda" or "mps" within the block; gives the device."""
    device = torch.device(kind, 0)
    with patch("torch.Generator", _Generator), _Devices(device):
        yield device

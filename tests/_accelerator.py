"""A simulated accelerator: tensors that claim another device, compute on the CPU, and refuse to mix devices.

Inside `simulated("cuda")` every way to name that device (`x.to("cuda")`, `torch.zeros(3, device=...)`, a generator)
gives a `DeviceTensor` around a CPU tensor. As on a GPU, an operation on tensors of both devices is an error, except
that elementwise operations take CPU scalars and indices may be on the CPU; `.to`, `.cpu` and `copy_` move.
`simulated("mps")` also refuses float64. The kernels of the CPU compute, so the numbers are those of the CPU. What a
device does not implement, autocast, and a `backward` that is given a gradient of the CPU are not simulated.
"""

from contextlib import ExitStack, contextmanager, nullcontext
from functools import wraps
from unittest.mock import patch

import numpy as np
import torch
import torch._dynamo  # which cannot be imported while functions of torch are replaced
from torch.utils._device import _device_constructors
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
EAGER = {aten._conj.default: torch.conj_physical, aten._neg_view.default: torch.neg}  # bits that a wrapper hides
CPU, META = torch.device("cpu"), torch.device("meta")
INDEXING = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}


class DeviceTensor(torch.Tensor):
    """A tensor on a simulated device. `inner` is the CPU tensor that computes."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner, device):
        if device.type == "mps" and inner.dtype in (torch.float64, torch.complex128):
            raise TypeError(f"Cannot convert a MPS Tensor to {inner.dtype} dtype as MPS does not support float64.")
        assert type(inner) is torch.Tensor, type(inner)
        # For C++ the wrapper is on "meta", which needs no driver; `_Factories` gives the tensors that C++ makes there.
        shape = {"strides": inner.stride(), "storage_offset": inner.storage_offset()}
        with torch.inference_mode(False):
            self = torch.Tensor._make_wrapper_subclass(cls, inner.size(), **shape, dtype=inner.dtype, device="meta")
        self.inner, self.claimed = inner, device
        return self

    device = property(lambda self: self.claimed)
    is_cpu = is_meta = property(lambda self: False)
    is_cuda = property(lambda self: self.claimed.type == "cuda")
    is_mps = property(lambda self: self.claimed.type == "mps")

    def __getitem__(self, key):
        return super().__getitem__(_index(key))

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
        return _computed(func, args, kwargs or {}, None)


def _index(key):
    """An index in which lists are tensors."""
    if isinstance(key, tuple):
        return tuple(map(_index, key))
    return torch.tensor(key) if isinstance(key, list | np.ndarray) else key


def _mapped(function, x):
    """`x` with the function applied to all that is in its lists, tuples and dictionaries."""
    if isinstance(x, list | tuple):
        return type(x)([_mapped(function, value) for value in x])
    if isinstance(x, dict):
        return {key: _mapped(function, value) for key, value in x.items()}
    return function(x)


_state = {"device": torch.Generator().get_state()}  # of the global generator of the device


@contextmanager
def _random():
    """Let the global generator of the CPU be that of the device."""
    before = torch.default_generator.get_state()
    torch.default_generator.set_state(_state["device"])
    yield
    _state["device"] = torch.default_generator.get_state()
    torch.default_generator.set_state(before)


def _computed(func, args, kwargs, device):
    """The result of an operation on tensors of the device, or of one that makes a tensor there."""
    flat = []
    _mapped(flat.append, (args, kwargs))
    there = [x for x in flat if isinstance(x, DeviceTensor)]
    here = [x for x in flat if isinstance(x, torch.Tensor) and not isinstance(x, DeviceTensor)]
    device = there[0].claimed if there else device
    assert not any(x.is_meta for x in here), f"{func} got data that C++ has lost on the way to the device"
    if func is not aten.copy_.default:
        if func in INDEXING and isinstance(args[0], DeviceTensor):
            here = [x for x in here if not any(x is index for index in args[1])]
        scalars = torch.Tag.pointwise in func.tags or func in INDEXING
        written = [x for x in _written(func, args, kwargs) if not isinstance(x, DeviceTensor)]
        if written or any(x.dim() or not scalars for x in here):
            shapes = ", ".join(str(tuple(x.shape)) for x in here)
            raise RuntimeError(
                f"Expected all tensors to be on the same device, but found at least two devices, {device} and cpu! "
                f"{func} got tensors of shape {shapes} on the cpu"
            )
    outer = {id(x.inner): x for x in there}  # an operation in place returns its argument
    if torch.Tag.inplace_view in func.tags:  # the wrapper, too, has a new shape
        with no_dispatch():
            func(*args, **kwargs)

    def inner(x):
        return x.inner if isinstance(x, DeviceTensor) else CPU if isinstance(x, torch.device) and x == META else x

    def wrapped(x):
        if not isinstance(x, torch.Tensor):
            return x
        return outer[id(x)] if id(x) in outer else DeviceTensor(x, device)

    args, kwargs = _mapped(inner, args), _mapped(inner, kwargs)
    with torch.inference_mode(False), _random() if torch.Tag.nondeterministic_seeded in func.tags else nullcontext():
        return _mapped(wrapped, EAGER.get(func, func)(*args, **kwargs))


class _Factories(TorchDispatchMode):
    """Makes the tensors that C++ asks for on "meta", such as zeros for a gradient."""

    def __init__(self, device):
        super().__init__()
        self.there = device

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if any(issubclass(kind, DeviceTensor) for kind in types) or kwargs.get("device") == META:
            return _computed(func, args, kwargs, self.there)
        return func(*args, **kwargs)


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


def _named(value, there):
    """The device that a value names: the simulated one, another one, or None for a value that names none."""
    if not isinstance(value, str | torch.device):
        return None
    device = torch.device(value)
    return there if device.type == there.type else device


def _factory(function, there):
    """A function that makes a tensor, or a method that makes one like its own, which can name the device."""

    @wraps(function)
    def make(*args, **kwargs):
        own = args[0].device if args and isinstance(args[0], torch.Tensor) else CPU
        device = _named(kwargs.pop("device", None), there) or own
        drawn = [x for x in (*args, *kwargs.values()) if isinstance(x, torch._C.Generator)]
        if drawn and drawn[0].device.type != device.type:
            raise RuntimeError(
                f"Expected a {device.type!r} device type for generator but found {drawn[0].device.type!r}"
            )
        return moved(function(*args, **kwargs), device)

    return make


def _new_tensor(there):
    """`Tensor.new_tensor`."""

    def new_tensor(x, values, *, dtype=None, device=None):
        return moved(torch.tensor(values, dtype=dtype or x.dtype), _named(device, there) or x.device)

    return new_tensor


def _to(original, there):
    """`Tensor.to`."""

    def to(x, *args, **kwargs):
        device, options = x.device, {}
        for name, value in (*((None, value) for value in args), *kwargs.items()):
            if isinstance(value, torch.Tensor):
                device, options["dtype"] = value.device, value.dtype
            elif isinstance(value, torch.dtype):
                options["dtype"] = value
            elif named := _named(value, there):
                device = named
            elif name in ("copy", "memory_format"):
                options[name] = value
        x = moved(x, CPU) if device == CPU else x  # the type changes on the CPU, which has every type
        return moved(original(x, **options) if options else x, device)

    return to


class _Generator(torch._C.Generator):
    """A generator of the CPU that claims a device."""

    def __new__(cls, device="cpu"):
        self = super().__new__(cls, "cpu")
        self.claimed = torch.device(device)
        return self

    device = property(lambda self: self.claimed)


def _driver(kind):
    """What PyTorch asks the driver of the device."""

    def put(state, *_):
        _state["device"] = state

    random = {
        "get_rng_state": lambda *_: _state["device"],
        "set_rng_state": put,
        "manual_seed": lambda seed: put(torch.Generator().manual_seed(seed).get_state()),
    }
    random = {f"{kind}.{name}": value for name, value in random.items()}
    if kind == "mps":
        return random | {"backends.mps.is_available": lambda: True}
    return random | {
        "cuda.is_available": lambda: True,
        "cuda.device_count": lambda: 1,
        "cuda.device": lambda device: nullcontext(),
        "cuda.mem_get_info": lambda device: (2, 2),  # batches are read from the memory of the CPU
        "cuda.get_device_name": lambda device: "simulated device",
        "cuda.is_bf16_supported": lambda *_: False,
    }


@contextmanager
def simulated(kind):
    """Simulate the device "cuda" or "mps" within the block; gives the device."""
    there = torch.device(kind, 0)
    with ExitStack() as stack:
        for name in {function.__name__ for function in _device_constructors()}:
            if hasattr(torch, name):
                stack.enter_context(patch.object(torch, name, _factory(getattr(torch, name), there)))
        for name in ("new_empty", "new_zeros", "new_ones", "new_full"):
            stack.enter_context(patch.object(torch.Tensor, name, _factory(getattr(torch.Tensor, name), there)))
        stack.enter_context(patch.object(torch.Tensor, "new_tensor", _new_tensor(there)))
        stack.enter_context(patch.object(torch.Tensor, "to", _to(torch.Tensor.to, there)))
        stack.enter_context(patch.object(torch.Tensor, "cpu", lambda x: moved(x, CPU)))
        stack.enter_context(patch.object(torch.Tensor, "pin_memory", lambda x: x))
        stack.enter_context(patch.object(torch, "Generator", _Generator))
        for function, value in _driver(kind).items():
            stack.enter_context(patch(f"torch.{function}", value))
        stack.enter_context(_Factories(there))
        yield there

"""Batch normalisation and ReLU in one: torch's layers in float64 are the oracle of the compiled kernel."""

import shutil

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad

from hsic_lab import norm_relu as module
from hsic_lab.encoders import ConvEncoder
from hsic_lab.norm_relu import kernel, norm_relu
from hsic_lab.resnet import ResNetEncoder

compiled = pytest.mark.skipif(kernel() is None, reason="no compiled kernel, or a CPU without bfloat16 dot products")
HALF_A_STEP = 2**-8  # of a bfloat16 number near 1, relative to it


def pictures(n, c, side, seed=0, mean=2.0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, c, side, side, generator=generator) * (0.5 + torch.rand(c, 1, 1, generator=generator))
    x += mean * torch.randn(c, 1, 1, generator=generator)
    return x.bfloat16().contiguous(memory_format=torch.channels_last)


def layer(c, seed=1):
    norm = nn.BatchNorm2d(c)
    generator = torch.Generator().manual_seed(seed)
    nn.init.normal_(norm.weight, generator=generator)
    nn.init.normal_(norm.bias, generator=generator)
    return norm


def outcome(call, x, norm, gradient):
    """Output, gradients and running statistics, all float64."""
    x = x.clone(memory_format=torch.preserve_format).requires_grad_()
    y = call(x, norm, nn.ReLU())
    y.backward(gradient.to(y.dtype))
    found = (y, x.grad, norm.weight.grad, norm.bias.grad, norm.running_mean, norm.running_var)
    return [value.detach().double() for value in found]


def by_layers(x, norm, relu):
    return relu(norm(x))


def never(*_):
    raise AssertionError("the kernel was used")


def test_the_kernel_is_there_where_it_can_be():
    if shutil.which("c++") and torch.cpu._is_avx512_bf16_supported():
        assert kernel() is not None, "install the package again: pip install -e ."


@compiled
@pytest.mark.parametrize(
    ("n", "c", "side"), [(512, 16, 32), (4, 64, 8), (64, 3, 8), (32, 10, 8), (16, 48, 4), (4, 128, 4), (8, 512, 2)]
)
@pytest.mark.parametrize("mean", [0.0, 2.0, 30.0])
def test_it_is_the_layers_up_to_the_rounding_of_its_outputs(n, c, side, mean):
    x = pictures(n, c, side, mean=mean)
    gradient = torch.randn(x.shape, generator=torch.Generator().manual_seed(2)).bfloat16()
    y, d_x, *exact = outcome(norm_relu, x, layer(c), gradient)
    oracle_y, oracle_d_x, *oracle = outcome(by_layers, x.double(), layer(c).double(), gradient)
    rows = x.numel() // c
    torch.testing.assert_close(y, oracle_y, rtol=HALF_A_STEP, atol=1e-6 * (1 + mean))
    # Rounded once; the mean and the slope in x that are taken off a gradient have their errors too.
    largest = oracle_d_x.abs().max().item()
    torch.testing.assert_close(d_x, oracle_d_x, rtol=HALF_A_STEP, atol=1e-6 * (1 + mean) * largest)
    for value, other in zip(exact, oracle, strict=True):
        torch.testing.assert_close(value, other, rtol=2e-6 * (1 + mean), atol=1e-6 * rows**0.5)
    assert (y == 0).double().mean() > 0.1, "ReLU has something to do"


@compiled
def test_sums_are_a_hundred_times_as_exact_as_those_of_the_layers():
    x, gradient = pictures(512, 16, 32), torch.ones(512, 16, 32, 32, dtype=torch.bfloat16)
    oracle = outcome(by_layers, x.double(), layer(16).double(), gradient)[2:]
    errors = {}
    for name, call in {"kernel": norm_relu, "layers": by_layers}.items():
        values = outcome(call, x, layer(16), gradient)[2:]
        errors[name] = max(((v - o).norm() / o.norm()).item() for v, o in zip(values, oracle, strict=True))
    assert errors["kernel"] < 1e-6 and errors["kernel"] < errors["layers"] / 100


@compiled
def test_the_number_of_threads_changes_no_bit():
    x, gradient = pictures(64, 16, 32), torch.randn(64, 16, 32, 32, generator=torch.Generator().manual_seed(0))
    threads = torch.get_num_threads()
    found = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            found.append(outcome(norm_relu, x, layer(16), gradient))
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        assert all(torch.equal(value, same) for value, same in zip(found[0], other, strict=True))


@compiled
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_so(value):
    x = pictures(8, 16, 8)
    x[0, 3, 0, 0] = value
    y, d_x, d_weight, *_ = outcome(norm_relu, x, layer(16), torch.ones_like(x))
    for channels in (y.transpose(0, 1), d_x.transpose(0, 1), d_weight):
        finite = channels.flatten(1).isfinite().all(1) if channels.ndim > 1 else channels.isfinite()
        assert finite.tolist() == [c != 3 for c in range(16)]


@compiled
def test_no_gradient_passes_where_relu_is_at_its_corner():
    norm = layer(16)
    with torch.no_grad():
        norm.weight.zero_(), norm.bias.zero_()
    y, d_x, d_weight, d_bias, *_ = outcome(norm_relu, pictures(8, 16, 8), norm, torch.ones(8, 16, 8, 8))
    assert not any(value.any() for value in (y, d_x, d_weight, d_bias))


@compiled
def test_any_place_in_memory_and_any_layout_of_the_gradient():
    x = pictures(8, 16, 8)
    shifted = torch.empty(x.numel() + 1, dtype=x.dtype)[1:].view(8, 8, 8, 16).permute(0, 3, 1, 2).copy_(x)
    gradient = torch.randn(x.shape, generator=torch.Generator().manual_seed(0)).bfloat16()
    expected = outcome(norm_relu, x, layer(16), gradient.contiguous(memory_format=torch.channels_last))
    strided = layer(16)
    strided.weight = nn.Parameter(torch.stack([strided.weight.detach()] * 2, dim=1)[:, 0])
    assert not strided.weight.is_contiguous()
    for found in (outcome(norm_relu, shifted, layer(16), gradient), outcome(norm_relu, x, strided, gradient)):
        assert all(torch.equal(value, other) for value, other in zip(found, expected, strict=True))


class OtherNorm(nn.BatchNorm2d):
    pass


def hooked(norm):
    norm.register_forward_hook(lambda *_: None)
    return norm


ELSEWHERE = {
    "evaluation": lambda x, norm: (x, norm.eval()),
    "float32": lambda x, norm: (x.float(), norm),
    "float16": lambda x, norm: (x.half(), norm),
    "channels first": lambda x, norm: (x.contiguous(), norm),
    "bfloat16 parameters": lambda x, norm: (x, norm.bfloat16()),
    "no parameters": lambda x, norm: (x, nn.BatchNorm2d(16, affine=False)),
    "no running statistics": lambda x, norm: (x, nn.BatchNorm2d(16, track_running_stats=False)),
    "a cumulative mean": lambda x, norm: (x, nn.BatchNorm2d(16, momentum=None)),
    "a subclass": lambda x, norm: (x, OtherNorm(16)),
    "a hook": lambda x, norm: (x, hooked(norm)),
    "rows that fill no tile": lambda x, norm: (x[:1, :, :1, :3].contiguous(memory_format=torch.channels_last), norm),
}


@pytest.mark.parametrize("case", ELSEWHERE)
def test_everything_else_is_left_to_the_layers(case, monkeypatch):
    monkeypatch.setattr(module._NormReLU, "apply", never)
    (x, norm), (_, twin) = (ELSEWHERE[case](pictures(8, 16, 4), layer(16)) for _ in range(2))
    assert torch.equal(norm_relu(x, norm, nn.ReLU()), torch.relu(twin(x)))
    assert all(torch.equal(value, twin.state_dict()[name]) for name, value in norm.state_dict().items())


def test_what_listens_or_traces_sees_the_layers(monkeypatch):
    monkeypatch.setattr(module._NormReLU, "apply", never)
    x, heard = pictures(8, 16, 4), []
    handle = torch.nn.modules.module.register_module_forward_hook(lambda layer, *_: heard.append(type(layer)))
    try:
        norm_relu(x, layer(16), nn.ReLU())
    finally:
        handle.remove()
    assert heard == [nn.BatchNorm2d, nn.ReLU]
    torch.jit.trace(lambda y: norm_relu(y, layer(16), nn.ReLU()), x, check_trace=False)
    with forward_ad.dual_level():
        norm_relu(forward_ad.make_dual(x, torch.ones_like(x)), layer(16), nn.ReLU())


def test_other_activations_and_errors_are_those_of_the_layers(monkeypatch):
    monkeypatch.setattr(module._NormReLU, "apply", never)
    x = pictures(8, 16, 4)
    assert torch.equal(norm_relu(x, layer(16), nn.GELU()), nn.GELU()(layer(16)(x)))
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        norm_relu(x[:1, :, :1, :1], layer(16), nn.ReLU())
    with pytest.raises(RuntimeError, match="16"):
        norm_relu(x, layer(8), nn.ReLU())


@compiled
def test_it_can_be_differentiated_once():
    x = pictures(8, 16, 4).requires_grad_()
    (gradient,) = torch.autograd.grad(norm_relu(x, layer(16), nn.ReLU()).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def loss_of(encoder, images):
    with torch.autocast("cpu", torch.bfloat16):
        return encoder(images.contiguous(memory_format=torch.channels_last)).float().square().mean()


def test_transforms_of_functions_take_the_layers(monkeypatch):
    monkeypatch.setattr(module, "kernel", never)
    images, encoder = torch.rand(8, 3, 8, 8), ConvEncoder(4).to(memory_format=torch.channels_last)

    class Loss(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = encoder

        def forward(self):
            return loss_of(self.encoder, images)

    def loss(parameters):
        buffers = {name: value.clone() for name, value in Loss().named_buffers()}
        return torch.func.functional_call(Loss(), (parameters, buffers), ())

    found = torch.func.grad(loss)({name: value.detach() for name, value in Loss().named_parameters()})
    monkeypatch.setattr(module, "kernel", lambda: None)
    loss_of(encoder, images).backward()
    for name, parameter in encoder.named_parameters():
        torch.testing.assert_close(found[f"encoder.{name}"], parameter.grad)


@compiled
@pytest.mark.parametrize("make", [lambda: ConvEncoder(4), lambda: ResNetEncoder(18), lambda: ResNetEncoder(50)])
def test_encoders_train_as_exactly_as_with_the_layers(make, monkeypatch):
    images = torch.rand(32, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    calls, apply = [], module._NormReLU.apply
    monkeypatch.setattr(module._NormReLU, "apply", lambda *inputs: calls.append(1) or apply(*inputs))
    found = {}
    for name, used, exact in (("kernel", kernel, False), ("layers", lambda: None, False), ("float64", kernel, True)):
        monkeypatch.setattr(module, "kernel", used)
        torch.manual_seed(0)
        encoder = make().to(torch.float64 if exact else torch.float32, memory_format=torch.channels_last)
        loss = encoder(images.double()).square().mean() if exact else loss_of(encoder, images)
        loss.backward()
        found[name] = [p.grad.double() for p in encoder.parameters()]
        found[name] += [value.double() for key, value in encoder.state_dict().items() if "running" in key]
        found[name].append(loss.detach().double().view(1))
        if name == "kernel":
            count = len(calls)
    assert count and len(calls) == count, "the kernel was used where it could be, and only there"
    kernels, layers = (
        [((v - o).norm() / o.norm()).item() for v, o in zip(found[name], found["float64"], strict=True)]
        for name in ("kernel", "layers")
    )
    assert sum(kernels) < 1.1 * sum(layers), "as far from float64 as the layers are"

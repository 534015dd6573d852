"""Public functions compute on the device of their tensors: on a simulated accelerator, with the numbers of the CPU."""

from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from _accelerator import DeviceTensor, simulated
from losses_table import LOSSES, views
from torch import nn

from hsic_lab import compare, diagnostics
from hsic_lab.cka import MinibatchCKA, StreamingLinearCKA, cka
from hsic_lab.correlation import CorrelationSummary, cross_correlation, feature_order, standardize
from hsic_lab.datasets import from_arrays
from hsic_lab.encoders import ConvEncoder, MLPProjector, ResNetEncoder
from hsic_lab.evaluation import extract_features, knn_accuracy, linear_probe
from hsic_lab.explorer import CorrelationExplorer
from hsic_lab.hsic import StreamingLinearHSIC, dhsic, hsic, hsic_matrix
from hsic_lab.independence import (
    aggregated_test,
    block_test,
    dhsic_test,
    gamma_test,
    permutation_test,
    shift_test,
    spectral_test,
)
from hsic_lab.kernels import Delta, Gaussian, InverseMultiquadric, Laplace, Linear, Polynomial, factor, median_distance
from hsic_lab.training import Run, TrainConfig, train
from hsic_lab.training._config import pick_device, resolved_precision
from hsic_lab.views import TwoViews, augmentation, normalize

Z_A, Z_B = views(24, 6, dtype=torch.float32)
LABELS = torch.arange(24) % 3
IMAGES = torch.randint(256, (8, 3, 24, 24), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
OTHER = torch.randint(256, (8, 3, 24, 24), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
HERE = torch.device("cpu")
KERNELS = {
    "linear": (Linear(), Linear()), "gaussian": (Gaussian(), Gaussian(1.5)), "laplace": (Laplace(), Laplace(2.0)),
    "imq": (InverseMultiquadric(), InverseMultiquadric()), "polynomial": (Polynomial(), Polynomial(3)),
    "sum": (Gaussian() + Linear(), Gaussian(2.0) * Laplace()),
}  # fmt: skip


def with_gradient(function, *inputs):
    """The values of a function of tensors, and its gradient, which is on the device of the inputs."""
    inputs = [x.requires_grad_() for x in inputs]
    value = function(*inputs)
    value.sum().backward()
    assert all(x.grad.device == x.device for x in inputs)
    return value.detach(), *(x.grad for x in inputs)


def loss_row(loss):
    def law(put):
        value, *gradients = with_gradient(loss, put(Z_A), put(Z_B))
        assert value.device == put(Z_A).device
        return value, gradients

    return law


def estimator_row(kernels, **options):
    return lambda put: with_gradient(
        partial(hsic, kernel_x=kernels[0], kernel_y=kernels[1], **options), put(Z_A), put(Z_B)
    )


def streamed(metric, update=2):
    def law(put):
        stream = metric()
        for a, b in zip(put(Z_A).split(7), put(Z_B).split(7), strict=True):
            stream.update(a, b)
        return stream.compute()

    return law


def permutation_result(test, *samples, **options):
    result = test(*samples, **options)
    return result.statistic, result.pvalue, result.null


def network_row(make, images=IMAGES):
    """Outputs, gradient of the weights, and running statistics of a network that was moved to the device."""

    def law(put):
        torch.manual_seed(0)
        network = make().to(put(Z_A).device)
        out = network(normalize(put(images)) if images.dtype == torch.uint8 else put(images))
        out.square().mean().backward()
        return out.detach(), [p.grad for p in network.parameters()], list(network.buffers())

    return law


def views_row(make, images=IMAGES):
    def law(put):
        device = put(images).device
        # The device's generator has the numbers of the CPU's in the simulation.
        return make()(put(images), torch.Generator(device).manual_seed(0))

    return law


def features_row(put):
    torch.manual_seed(0)
    encoder = ConvEncoder(2).to(put(Z_A).device)
    return extract_features(encoder, IMAGES), extract_features(encoder, put(IMAGES))


def compared_row(put):
    torch.manual_seed(0)
    model = ConvEncoder(2).to(put(Z_A).device)
    return [compare.compare_models(model, model, put(IMAGES), estimator=e).to_numpy() for e in ("unbiased", "biased")]


def factors_row(put):
    frame = pd.DataFrame({"class": LABELS.numpy(), "size": Z_B[:, 0].numpy()})
    return diagnostics.factor_dependence(put(Z_A), frame).iloc[:, 2].to_numpy()


def probe_row(put):
    result = linear_probe(put(Z_A), put(LABELS), put(Z_B), put(LABELS))
    return result.accuracy, result.validation_scores.values()


LAWS = {
    **{f"loss {name}": loss_row(loss) for name, (loss, *_) in LOSSES.items()},
    **{
        f"hsic {name} {estimator} {route}": estimator_row(pair, estimator=estimator, route=route)
        for name, pair in KERNELS.items()
        for estimator in ("biased", "unbiased")
        for route in ("primal",) * (name == "linear") + ("dual", "tiled")
    },
    "hsic block": estimator_row(KERNELS["gaussian"], estimator="block", block_size=8),
    "hsic labels": lambda put: hsic(put(Z_A), put(LABELS), Gaussian(), Delta(), "unbiased"),
    "hsic streaming": streamed(StreamingLinearHSIC),
    "hsic_matrix": lambda put: hsic_matrix(put(Z_A), put(Z_B), Gaussian(), normalized=True, estimator="unbiased"),
    "hsic_matrix labels": lambda put: hsic_matrix(put(Z_A), {"class": put(LABELS)}),
    "hsic_matrix permuted": lambda put: hsic_matrix(put(Z_A), put(Z_B), permutations=50),
    "dhsic": lambda put: with_gradient(lambda *z: dhsic(*z, kernels=[Gaussian()] * 3), put(Z_A), put(Z_B), put(Z_A)),
    "dhsic pair": lambda put: dhsic(put(Z_A), put(Z_B)),
    "cka": lambda put: with_gradient(cka, put(Z_A), put(Z_B)),
    "cka kernels": lambda put: cka(put(Z_A), put(Z_B), Gaussian(), Laplace(), "biased"),
    "cka of a small unbiased HSIC": lambda put: cka(
        put(Z_A) * 1e-3 + torch.eye(24, 6).to(put(Z_A)), put(Z_B), Gaussian(0.01)
    ),
    "MinibatchCKA": streamed(partial(MinibatchCKA, Gaussian())),
    "StreamingLinearCKA": streamed(StreamingLinearCKA),
    "permutation_test": lambda put: permutation_result(permutation_test, put(Z_A), put(Z_B), permutations=50),
    "permutation_test groups": lambda put: permutation_result(
        permutation_test, put(Z_A), put(Z_B), permutations=50, groups=put(LABELS)
    ),
    "aggregated_test": lambda put: permutation_result(aggregated_test, put(Z_A), put(Z_B), permutations=50),
    "dhsic_test": lambda put: permutation_result(dhsic_test, put(Z_A), put(Z_B), put(Z_A), permutations=50),
    "shift_test": lambda put: permutation_result(shift_test, put(Z_A), put(Z_B), guard=3),
    "spectral_test": lambda put: permutation_result(spectral_test, put(Z_A), put(Z_B)),
    "gamma_test": lambda put: gamma_test(put(Z_A), put(Z_B)).pvalue,
    "block_test": lambda put: block_test(put(Z_A), put(Z_B)).pvalue,
    **{
        f"kernel {name}": lambda put, pair=pair: [
            kernel(*given) for kernel in pair for given in ([put(Z_A)], [put(Z_A), put(Z_B)])
        ]
        for name, pair in KERNELS.items()
    },
    "kernel delta": lambda put: Delta()(put(LABELS)),
    "median_distance": lambda put: [median_distance(put(Z_A), norm) for norm in (1, 2)],
    **{
        f"factor {method}": lambda put, method=method: factor(Gaussian(), put(Z_A), 6, method)
        for method in ("cholesky", "nystrom", "fourier")
    },
    "standardize": lambda put: with_gradient(standardize, put(Z_A)),
    "cross_correlation": lambda put: with_gradient(cross_correlation, put(Z_A), put(Z_B)),
    "CorrelationSummary": lambda put: vars(CorrelationSummary.from_matrix(cross_correlation(put(Z_A), put(Z_B)), 24)),
    "feature_order": lambda put: feature_order(cross_correlation(put(Z_A), put(Z_B)), "cluster"),
    "TwoViews": views_row(lambda: TwoViews(16)),
    "TwoViews blur": views_row(lambda: augmentation("barlow_twins", 24)),
    "TwoViews gray": views_row(lambda: TwoViews(16), IMAGES[:, :1]),
    "TwoViews floats": views_row(lambda: TwoViews(16), IMAGES / 255),
    "normalize": lambda put: normalize(put(IMAGES)),
    "ConvEncoder": network_row(lambda: ConvEncoder(2)),
    "ResNetEncoder": network_row(lambda: nn.Sequential(ResNetEncoder(18), MLPProjector([512, 8])), IMAGES[:2]),
    "MLPProjector": network_row(lambda: MLPProjector([6, 8, 4]), Z_A),
    "extract_features": features_row,
    "compare_models": compared_row,
    "diagnose": lambda put: diagnostics.diagnose(put(Z_A), put(Z_B), reference=put(Z_B))["value"].to_numpy(),
    "factor_dependence": factors_row,
    "lidar": lambda put: diagnostics.lidar([put(Z_A), put(Z_B)]),
    "alpha_req": lambda put: diagnostics.alpha_req(put(Z_A), 1, 6),
    "alignment, uniformity": lambda put: (diagnostics.alignment(put(Z_A), put(Z_B)), diagnostics.uniformity(put(Z_A))),
    "knn_accuracy": lambda put: knn_accuracy(put(Z_A), put(LABELS), put(Z_B), put(LABELS), 5),
    "linear_probe": probe_row,
    "CorrelationExplorer": lambda put: CorrelationExplorer(put(Z_A), put(Z_B))._panels["C"].snapshots[0],
}


def on_cpu(result):
    """A nested result with its tensors on the CPU and its tables as arrays."""
    if isinstance(result, torch.Tensor):
        return result.detach().cpu()
    if isinstance(result, dict):
        return {key: on_cpu(value) for key, value in result.items()}
    if isinstance(result, list | tuple) or hasattr(result, "__next__") or type(result).__name__ == "dict_values":
        return [on_cpu(value) for value in result]
    return result


MIXED = {
    "matrix product": lambda there, here: there @ here.T,
    "cat": lambda there, here: torch.cat([there, here]),
    "scalar in a stack": lambda there, here: torch.stack([there.sum(), here.sum()]),
    "elementwise": lambda there, here: there + here,
    "where": lambda there, here: torch.where(here > 0, there, 0.0),
    "in place on the CPU": lambda there, here: here.sum().add_(there.sum()),
    "in place on the device": lambda there, here: there.add_(here),
    "index of a CPU tensor": lambda there, here: here[torch.arange(2, device=there.device)],
    "mask of the CPU": lambda there, here: there.masked_fill(here > 0, 0.0),
    "new tensor": lambda there, here: there * torch.arange(6.0),
    "generator": lambda there, here: torch.rand(3, device=there.device, generator=torch.Generator()),
    "network": lambda there, here: nn.Linear(6, 2)(there),
    "a loss": lambda there, here: LOSSES["vicreg"][0]._terms(there, here),
}


@pytest.mark.parametrize("kind", ["cuda", "mps"])
@pytest.mark.parametrize("mixing", MIXED.values(), ids=MIXED)
def test_simulation_refuses_mixed_devices(mixing, kind):
    with simulated(kind) as device, pytest.raises(RuntimeError, match="device"):
        mixing(Z_A.to(device), Z_B.clone())


def test_simulation_takes_scalars_and_moves():
    with simulated("cuda") as device:
        x = Z_A.to(device)
        assert isinstance(x, DeviceTensor) and (x.device, x.is_cuda, x.is_cpu) == (device, True, False)
        assert (x + torch.tensor(1.0)).device == x[torch.arange(2)].device == x[[0, 1]].device == device
        assert x.new_zeros(2).device == torch.zeros_like(x).device == torch.zeros(2, device="cuda").device == device
        assert x.sum().item() == float(x.sum()) == Z_A.sum().item() and x[:2, 0].tolist() == Z_A[:2, 0].tolist()
        for back in (x.cpu(), x.to("cpu"), x.to(Z_B), torch.empty(24, 6).copy_(x), x.double().cpu().float()):
            assert type(back) is torch.Tensor and torch.equal(back, Z_A)
        for convert in (np.asarray, lambda x: x.numpy()):
            with pytest.raises(TypeError, match="cuda:0"):
                convert(x)
        there = Z_A.clone().requires_grad_()
        (there.to(device) * x).sum().to("cpu").backward()
        assert torch.equal(there.grad, Z_A)


def test_simulation_refuses_float64():
    with simulated("mps") as device:
        x = Z_A.to(device)
        for use in (
            torch.Tensor.double,
            lambda x: x.sum(dtype=torch.float64),
            lambda x: Z_A.double().to(x.device),
            lambda x: torch.zeros(2, device=x.device, dtype=torch.float64),
            lambda x: x.new_tensor([1.0], dtype=torch.float64),
        ):
            with pytest.raises(TypeError, match="MPS"):
                use(x)
        assert Z_A.double().to(device, torch.float32).device == device and x.cpu().double().dtype == torch.float64


@pytest.mark.parametrize("kind", ["cuda", "mps"])
@pytest.mark.parametrize("law", LAWS.values(), ids=LAWS)
def test_numbers_are_those_of_the_cpu(law, kind):
    def here(x):
        return x.detach().clone()

    with simulated(kind) as device:
        expected, found = on_cpu(law(here)), on_cpu(law(lambda x: x.detach().to(device)))
    torch.testing.assert_close(found, expected, equal_nan=True)


class WithDropout(nn.Sequential):
    def __init__(self):
        torch.manual_seed(0)
        super().__init__(nn.Flatten(), nn.Linear(3 * 8 * 8, 16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 8))


SMALL = {
    "width": 1,
    "projector": (16, 8),
    "epochs": 1,
    "batch_size": 16,
    "snapshots": 2,
    "log_every": 1,
    "views": "solo",
}
TRAININGS = {
    "LARS": SMALL | {"optimizer": "lars", "learning_rate": 0.2},
    "momentum target, predictor, parts, monitor": SMALL
    | {"target": "momentum", "predictor": (8,), "micro_batch": 8, "monitor": "knn", "loss": "negative_cosine"},
    "own encoder with dropout": SMALL | {"optimizer": "sgd", "monitor": "linear", "loss": "vicreg"},
}


@pytest.fixture(scope="module")
def images():
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (40, 3, 8, 8), dtype=torch.uint8, generator=generator)
    return from_arrays(pixels, torch.arange(40) % 2)


@pytest.mark.parametrize("kind", ["cuda", "mps"])
@pytest.mark.parametrize("name", TRAININGS)
def test_training_is_that_of_the_cpu(tmp_path, images, name, kind):
    runs = []
    for device in ("cpu", kind):
        with simulated(kind):
            encoder = WithDropout() if name.startswith("own") else None
            config = TrainConfig(**TRAININGS[name], device=device, precision="float32")
            runs.append(train(config, tmp_path / device, images, encoder=encoder, progress=False))
            assert {p.device.type for p in runs[-1].encoder.parameters()} == {device}
    cpu, there = runs
    for column in cpu.history.columns.drop("seconds"):
        np.testing.assert_allclose(there.history[column], cpu.history[column], rtol=1e-4, atol=1e-5, err_msg=column)
    torch.testing.assert_close(there.snapshots, cpu.snapshots, rtol=1e-3, atol=1e-4)
    if len(cpu.monitor):
        assert there.monitor["accuracy"].tolist() == cpu.monitor["accuracy"].tolist()
    assert Run.load(tmp_path / kind, WithDropout() if name.startswith("own") else None).metadata["device"] == kind


def test_device_names(monkeypatch):
    assert pick_device("cpu").type == "cpu"
    with pytest.raises(ValueError, match="must be auto, cpu, mps, cuda or cuda:N, got 'xpu'"):
        pick_device("xpu")
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)
    with pytest.raises(ValueError, match="device is 'mps', but torch finds no MPS device"):
        pick_device("mps")
    for count in (0, 1):
        monkeypatch.setattr("torch.cuda.device_count", lambda count=count: count)
        with pytest.raises(ValueError, match=f"device is 'cuda:1', but torch finds {count or 'no'} CUDA device"):
            pick_device("cuda:1")
    with simulated("mps"):
        assert pick_device("mps").type == "mps" and pick_device("auto").type == "cpu"
        assert resolved_precision("auto", torch.device("mps")) == "float32"
        monkeypatch.setenv("WORLD_SIZE", "2")
        with pytest.raises(ValueError, match="'mps' is for one process, got 2 processes"):
            pick_device("mps")


def test_results_are_where_they_are_computed():
    with simulated("mps") as device:
        z_a, z_b = Z_A.to(device), Z_B.to(device)
        assert cross_correlation(z_a, z_b).device == standardize(z_a).device == device
        assert {x.device for x in (hsic(z_a, z_b), cka(z_a, z_b), Gaussian()(z_a), hsic(z_a, Z_B))} == {HERE}

"""The tiled route, the block estimator and the stream against the dual route."""

from functools import partial

import numpy as np
import pytest
import torch

from hsic_lab.cka import cka
from hsic_lab.correlation import cross_correlation
from hsic_lab.hsic import StreamingLinearHSIC, hsic
from hsic_lab.kernels import Delta, DistanceInduced, Gaussian, InverseMultiquadric, Laplace, Linear, Polynomial

KERNELS = [
    Linear(), Gaussian(1.3), Gaussian(), Laplace(), InverseMultiquadric(0.7) * Gaussian(2.0), Polynomial(3),
    DistanceInduced(),
]  # fmt: skip
ESTIMATORS = ["biased", "unbiased"]


def dependent(n, p=3, q=2):
    generator = torch.Generator().manual_seed(n)
    x, noise = (torch.randn(n, c, dtype=torch.float64, generator=generator) for c in (p, q))
    return x, x[:, :q] ** 2 + 0.5 * noise


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("block_size", [1, 7, 10, 29, 30, None])
@pytest.mark.parametrize("kernel", KERNELS, ids=repr)
def test_tiled_route_equals_dual_route(kernel, block_size, estimator):
    x, y = dependent(30)
    dual = hsic(x, y, kernel, Gaussian(), estimator, "dual")
    tiled = hsic(x, y, kernel, Gaussian(), estimator, "tiled", block_size)
    torch.testing.assert_close(tiled, dual, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("kernel", [k for k in KERNELS if k != Gaussian() and k != Laplace()], ids=repr)
def test_tiled_gradient_matches_finite_differences(kernel, estimator):
    x, y = (z.requires_grad_() for z in map(torch.Tensor.detach, dependent(7)))
    assert torch.autograd.gradcheck(lambda x, y: hsic(x, y, kernel, kernel, estimator, "tiled", 3), (x, y))


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("kind", [Gaussian, Laplace, InverseMultiquadric])
def test_tiled_gradient_of_learnable_bandwidths_matches_finite_differences(kind, estimator):
    x, y = dependent(7)
    widths = [torch.tensor(s, dtype=torch.float64, requires_grad=True) for s in (0.8, 1.4)]
    assert torch.autograd.gradcheck(lambda s, t: hsic(x, y, kind(s), kind(t), estimator, "tiled", 3), widths)


def test_tiled_backward_pass_keeps_no_gram():
    x, y = (z.requires_grad_() for z in map(torch.Tensor.detach, dependent(400)))
    kept = []

    def pack(tensor):
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        value = hsic(x, y, Gaussian(1.0), Gaussian(1.0), route="tiled", block_size=40)
    assert max(kept) < 40 * 40
    got = torch.autograd.grad(value, (x, y))
    expected = torch.autograd.grad(hsic(x, y, Gaussian(1.0), Gaussian(1.0), route="dual"), (x, y))
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_auto_route_is_tiled_for_many_rows(estimator):
    x, y = (z.float() + 100 for z in dependent(2500))
    with torch.no_grad():
        auto = hsic(x, y, Gaussian(), Gaussian(), estimator)
        assert torch.equal(auto, hsic(x, y, Gaussian(), Gaussian(), estimator, "tiled"))
        exact = hsic(x.double(), y.double(), Gaussian(), Gaussian(), estimator, "dual")
    assert auto.item() == pytest.approx(exact.item(), rel=1e-4)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("route", ["dual", "tiled"])
def test_labels_with_delta_equal_their_one_hot_code(route, estimator):
    x, _ = dependent(20)
    labels = torch.arange(20) % 3
    expected = hsic(x, torch.nn.functional.one_hot(labels).double(), Gaussian(), Linear(), estimator, "dual")
    got = hsic(x, labels, Gaussian(), Delta(), estimator, route, 7 if route == "tiled" else None)
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize(("n", "block_size"), [(40, 10), (43, 10), (19, 10)])
def test_block_estimator_is_the_mean_over_blocks_of_all_rows(n, block_size):
    x, y = dependent(n)
    pieces = zip(np.array_split(x.numpy(), n // block_size), np.array_split(y.numpy(), n // block_size), strict=True)
    expected = np.mean([hsic(a, b, Gaussian(1.0), Linear(), "unbiased").item() for a, b in pieces])
    got = hsic(x, y, Gaussian(1.0), Linear(), "block", block_size=block_size)
    assert got.item() == pytest.approx(expected, rel=1e-12)


def test_block_gradient_matches_finite_differences_and_median_rule_uses_all_rows():
    x, y = (z.requires_grad_() for z in map(torch.Tensor.detach, dependent(9)))
    kernel = Gaussian(1.0)
    assert torch.autograd.gradcheck(lambda x, y: hsic(x, y, kernel, kernel, "block", block_size=4), (x, y))
    rule, fitted = (hsic(x, y, k, kernel, "block", block_size=4) for k in (Gaussian(), Gaussian().fit(x)))
    assert torch.equal(rule, fitted)


@pytest.mark.parametrize(
    ("estimator", "block_size", "quoted"),
    [("block", None, "None"), ("block", 3, "got 3"), ("block", 31, "got 31"), ("biased", 0, "got 0")],
)
def test_bad_block_sizes_are_rejected(estimator, block_size, quoted):
    x, y = dependent(30)
    with pytest.raises(ValueError, match=quoted):
        hsic(x, y, estimator=estimator, block_size=block_size)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("sizes", [[50], [1, 20, 29], [25, 25]])
def test_stream_equals_hsic_of_all_rows(sizes, estimator):
    x, y = dependent(50, 5, 4)
    x, y = x + 1000, y - 500
    stream = StreamingLinearHSIC()
    for a, b in zip(x.split(sizes), y.split(sizes), strict=True):
        stream.update(a, b)
    torch.testing.assert_close(stream.compute(estimator), hsic(x, y, estimator=estimator), rtol=1e-9, atol=1e-12)


def test_stream_is_accurate_in_float32_and_rejects_other_widths():
    x, y = (z.float() + 1e4 for z in dependent(300))
    stream = StreamingLinearHSIC()
    with pytest.raises(ValueError, match="got 0"):
        stream.compute()
    for a, b in zip(x.split(64), y.split(64), strict=True):
        stream.update(a, b)
    exact = hsic(x.double(), y.double(), estimator="unbiased")
    assert stream.compute("unbiased").item() == pytest.approx(exact.item(), rel=1e-4)
    with pytest.raises(ValueError, match=r"\(3, 2\) columns in the chunks before, now \(2, 2\)"):
        stream.update(x[:, :2], y)


def test_a_million_rows_keep_their_digits_in_float32():
    """One float32 product over so many rows is off by 5e-4."""
    z = torch.randn(1_000_000, 2, generator=torch.Generator().manual_seed(0))
    w = z + torch.randn(1_000_000, 2, generator=torch.Generator().manual_seed(1))
    close = partial(torch.testing.assert_close, rtol=1e-5, atol=0, check_dtype=False)
    close(cross_correlation(z, z).diagonal(), torch.ones(2))
    close(hsic(z, w), hsic(z.double(), w.double()))
    close(cka(z, w), cka(z.double(), w.double()))
    stream = StreamingLinearHSIC()
    stream.update(z, w)
    close(stream.compute(), hsic(z.double(), w.double()))

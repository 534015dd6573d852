"""Barlow Twins and HSIC_SSL: both routes agree, the difference of the two losses, and their minima."""

from itertools import combinations

import pytest
import torch
from losses_table import data, minimize, views

from hsic_lab.correlation import cross_correlation, standardize
from hsic_lab.hsic import hsic
from hsic_lab.kernels import Linear
from hsic_lab.losses import (
    BarlowTwinsLoss,
    HSICSSLLoss,
    SpectralContrastiveLoss,
    SSLHSICLoss,
    VICRegLoss,
    _off_diagonal,
)
from hsic_lab.losses._off_diagonal import split_squared_norm


def gradient(loss, z_a, z_b):
    z_a = z_a.clone().requires_grad_()
    return torch.autograd.grad(loss(z_a, z_b), z_a)[0]


ROUTED = [
    lambda route: BarlowTwinsLoss(route=route),
    lambda route: BarlowTwinsLoss(None, route=route),
    lambda route: HSICSSLLoss(route=route),
    lambda route: HSICSSLLoss(1.0, 0.5, route=route),
]


@pytest.mark.parametrize("make", ROUTED)
@pytest.mark.parametrize("n, d", [(2, 1), (3, 8), (8, 3), (32, 32), (16, 200)])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_routes_agree_in_value_and_gradient(make, n, d, dtype, tolerance):
    z_a, z_b = views(n, d, dtype=dtype)
    primal, dual, auto = (make(route) for route in ("primal", "dual", "auto"))
    torch.testing.assert_close(dual(z_a, z_b), primal(z_a, z_b), rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(auto(z_a, z_b), primal(z_a, z_b), rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(
        gradient(dual, z_a, z_b), gradient(primal, z_a, z_b), rtol=100 * tolerance, atol=tolerance
    )


@pytest.mark.parametrize("target", [0.0, -1.0, 0.3])
@pytest.mark.parametrize("contrast", ["dimensions", "samples"])
@pytest.mark.parametrize("route", ["primal", "dual", "auto"])
@pytest.mark.parametrize("count", [2, 3])
def test_weight_of_zero_leaves_the_diagonal_alone(target, contrast, route, count):
    several = [z.requires_grad_() for z in (*views(12, 5), data(12, 5, 7))[:count]]
    loss = HSICSSLLoss(0.0, target, route=route, contrast=contrast)
    pairs = list(combinations(several, 2))
    expected = sum((1 - cross_correlation(x, y).diagonal()).square().sum() for x, y in pairs) / len(pairs)
    torch.testing.assert_close(loss(*several), expected, rtol=1e-12, atol=1e-12)
    found, known = (torch.autograd.grad(value, several[0])[0] for value in (loss(*several), expected))
    torch.testing.assert_close(found, known, rtol=1e-11, atol=1e-12)
    with torch.no_grad():
        assert list(loss.terms(*several)) == [
            "invariance",
            "redundancy",
            *["feature_sum", "constant"][: 2 * (target != 0)],
        ]


def largest_tensor(loss, z_a, z_b):
    """Number of elements of the largest tensor that the forward pass of the loss makes."""
    sizes = []

    class Record(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            sizes.extend(o.numel() for o in (out if isinstance(out, tuple) else (out,)) if isinstance(o, torch.Tensor))
            return out

    with Record():
        loss(z_a, z_b)
    return max(sizes)


@pytest.mark.parametrize("n, d", [(8, 300), (300, 8)])
@pytest.mark.parametrize("contrast", ["dimensions", "samples"])
@pytest.mark.parametrize("make", [BarlowTwinsLoss, HSICSSLLoss, VICRegLoss])
def test_auto_never_forms_the_larger_matrix(make, contrast, n, d):
    assert largest_tensor(make(contrast=contrast), *views(n, d)) <= 2 * n * d
    route = "primal" if n < d else "dual"
    assert largest_tensor(make(contrast=contrast, route=route), *views(n, d)) >= max(n, d) ** 2


@pytest.mark.parametrize("n, d", [(8, 300), (300, 8)])
@pytest.mark.parametrize("loss", [SpectralContrastiveLoss(), SSLHSICLoss(Linear())])
def test_spectral_and_linear_ssl_hsic_never_form_the_larger_matrix(loss, n, d):
    assert largest_tensor(loss, *views(n, d)) <= 2 * n * d


@pytest.mark.parametrize("lambda_param", [None, 1.0, 5e-3])
def test_losses_differ_by_a_rank_one_form(lambda_param):
    z_a, z_b = views(24, 6)
    d, weight = 6, lambda_param or 1 / 6
    c = cross_correlation(z_a, z_b)
    difference = weight * (d * (d - 1) + 2 * (c.sum() - c.trace()))
    torch.testing.assert_close(
        HSICSSLLoss(lambda_param)(z_a, z_b), BarlowTwinsLoss(lambda_param)(z_a, z_b) + difference, rtol=1e-12, atol=0
    )
    # 1'C1 is the covariance of the feature sums of the two views.
    sums = standardize(z_a).sum(dim=1) @ standardize(z_b).sum(dim=1) / 24
    torch.testing.assert_close(c.sum(), sums, rtol=1e-12, atol=1e-12)


def test_gradients_with_respect_to_c_differ_by_two_lambda_off_the_diagonal():
    # The columns of x are orthogonal with x'x = n I, so the gradient with respect to C is x' (dL/dy).
    n, d, weight = 40, 5, 0.3
    x = torch.linalg.qr(data(n, d) - data(n, d).mean(dim=0)).Q * n**0.5
    y = standardize(x @ data(d, d, 3)).requires_grad_()

    def by_c(target):
        c = x.T @ y / n
        (out,) = torch.autograd.grad(
            (1 - c.diagonal()).square().sum()
            + weight * split_squared_norm(x, y)[1]
            - 2 * target * weight * (c.sum() - c.trace()),
            y,
        )
        return x.T @ out

    expected = 2 * weight * (torch.ones(d, d) - torch.eye(d)).double()
    torch.testing.assert_close(by_c(-1.0) - by_c(0.0), expected, rtol=1e-12, atol=1e-12)


def test_barlow_twins_at_lambda_one_is_linear_hsic_plus_squared_error():
    z_a, z_b = views(24, 6)
    x, y = standardize(z_a), standardize(z_b)
    expected = hsic(x, y) + (x - y).square().sum() / 24 - 6
    torch.testing.assert_close(BarlowTwinsLoss(1.0)(z_a, z_b), expected, rtol=1e-12, atol=0)


def test_minimum_for_identical_views_at_target_minus_one_is_the_simplex():
    d, loss = 8, HSICSSLLoss()
    z = data(64, d).requires_grad_()
    value = minimize(lambda: loss(z, z), z)
    c = cross_correlation(z, z).detach()
    assert value == pytest.approx((d - 2) ** 2 / (d - 1), abs=1e-4)
    off = c[~torch.eye(d, dtype=bool)]
    torch.testing.assert_close(off, torch.full_like(off, -1 / (d - 1)), rtol=0, atol=1e-3)


def test_free_views_at_target_minus_one_reach_a_lower_minimum():
    d, loss = 8, HSICSSLLoss()
    z_a, z_b = data(64, d, 1).requires_grad_(), data(64, d, 2).requires_grad_()
    value = minimize(lambda: loss(z_a, z_b), z_a, z_b, steps=1000)
    r = (d**2 - 8 * d + 4) / (5 * d**2 - 8 * d + 4)
    diagonal, off = (d - 2 - 2 * (d - 1) * r) / d, -(2 + (d - 2) * r) / d
    assert value == pytest.approx(d * (1 - diagonal) ** 2 + (d - 1) * (1 + off) ** 2, abs=1e-3)
    assert value == pytest.approx(4.43077, abs=1e-3)
    c = cross_correlation(z_a, z_b).detach()
    assert float(c.diagonal().mean()) == pytest.approx(diagonal, abs=1e-2)
    assert float(c.sum()) < 0


@pytest.mark.parametrize("make", ROUTED)
@pytest.mark.parametrize("n, d", [(700, 1000), (3000, 65), (3, 44_000)])
def test_blocks_of_columns_do_not_change_the_result(make, n, d, monkeypatch):
    route = "primal" if d < n else "dual"
    z_a, z_b = views(n, d)
    assert len(_off_diagonal.column_blocks(z_a)) > 1
    expected, expected_gradient = make(route)(z_a, z_b), gradient(make(route), z_a, z_b)
    monkeypatch.setattr(_off_diagonal, "_BLOCK_ELEMENTS", n * d)
    assert len(_off_diagonal.column_blocks(z_a)) == 1
    torch.testing.assert_close(make(route)(z_a, z_b), expected, rtol=1e-12, atol=0)
    # At n = 3 the gradients of nearly constant columns are huge, and the rounding error is relative to them.
    scale = float(expected_gradient.abs().max())
    torch.testing.assert_close(gradient(make(route), z_a, z_b), expected_gradient, rtol=1e-8, atol=1e-12 * scale)


@pytest.mark.parametrize("make", ROUTED)
@pytest.mark.parametrize("route", ["primal", "dual"])
def test_float32_gradient_far_from_zero_is_that_of_float64(make, route):
    z_a, z_b = (1e4 + z for z in views(64, 8, dtype=torch.float32))
    expected = gradient(make("primal"), z_a.double(), z_b.double()).float()
    found = gradient(make(route), z_a, z_b)
    assert float((found - expected).norm() / expected.norm()) < 1e-5


@pytest.mark.parametrize("route", ["primal", "dual"])
@pytest.mark.parametrize("unit", [1e-36, 1e-17, 1e24, 1e34])
def test_a_feature_in_any_unit_gives_the_loss_and_gradient_of_float64(route, unit):
    """Squares of its values vanish or overflow in float32."""
    z_a, z_b = views(64, 8, dtype=torch.float32)
    loss, units = BarlowTwinsLoss(lambda_param=0.1, route=route), torch.ones(8, dtype=torch.float64)
    units[2], feature = unit, views(64, 1, seed=7, dtype=torch.float32)[0][:, 0]

    def value_and_gradient(dtype):
        x = z_a.to(dtype, copy=True).requires_grad_()
        (value := loss(x, z_b.to(dtype))).backward()
        return value.double(), x.grad.double() * units

    for far in (0, 10):
        z_a[:, 2] = unit * (far + feature)
        torch.testing.assert_close(
            value_and_gradient(torch.float32), value_and_gradient(torch.float64), rtol=1e-4, atol=1e-6
        )


@pytest.mark.parametrize(
    "loss",
    [BarlowTwinsLoss(), VICRegLoss(), VICRegLoss(contrast="samples", route="primal")],
    ids=["barlow_twins", "vicreg", "vicreg_samples"],
)
def test_a_million_rows_keep_their_digits_in_float32(loss):
    """One float32 product over so many rows loses up to three digits."""
    generator = torch.Generator().manual_seed(0)
    z_a, z_b = 0.5 * torch.randn(2, 1_000_000, 2, generator=generator) + 1
    z_b = z_a + z_b
    found, exact = loss.terms(z_a, z_b), loss.terms(z_a.double(), z_b.double())
    large = [name for name in exact if exact[name] > 0.1]  # the others are squares of correlations of 1e-4
    assert large
    for name in large:
        torch.testing.assert_close(found[name].double(), exact[name], rtol=1e-5, atol=0)

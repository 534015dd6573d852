"""SIGReg against hypergeometric functions of high precision, brute force over directions, and its public formula."""

import math

import mpmath
import numpy as np
import pytest
import torch
from losses_table import data, minimize, views

from hsic_lab.losses import SIGRegLoss
from hsic_lab.losses.sigreg import _chebyshev, _kummer

ARGUMENTS = [0.0, 1e-6, 0.1, 1.0, 3.0, 10.0, 30.0, 100.0, 1e3, 1e6]


@pytest.mark.parametrize("d", [1, 2, 3, 4, 8, 32, 128, 2048, 32768])
def test_kummer_function_has_a_small_relative_error_for_any_argument(d):
    s = torch.tensor(ARGUMENTS, dtype=torch.float64)
    for k in range(3):  # the function and what its first two derivatives need
        a, b = 0.5 + k, d / 2 + k
        exact = np.array([float(mpmath.hyp1f1(a, b, -mpmath.mpf(v))) for v in ARGUMENTS])
        found, normal = _kummer(s, a, b).numpy(), exact > 1e-280
        np.testing.assert_allclose(found[normal], exact[normal], rtol=1e-13)
        assert found[0] == pytest.approx(1, rel=1e-14)


def test_kummer_function_needs_as_many_terms_as_its_docstring_says():
    assert [len(_chebyshev(0.5, b)) for b in (1024, 8, 1)] == [7, 25, 95]


@pytest.mark.parametrize(("d", "apart"), [(8, 0.029), (32, 0.0068), (128, 0.0017), (1024, 0.0002)])
def test_kernel_of_all_directions_tends_to_the_inverse_multiquadric(d, apart):
    r = torch.linspace(0, 20 * math.sqrt(d), 20_001, dtype=torch.float64)
    difference = (_kummer(r.square() / 2, 0.5, d / 2) - (1 + r.square() / d).rsqrt()).abs().max()
    assert float(difference) == pytest.approx(apart, rel=0.06, abs=5e-5)


def one_direction(x):
    """Epps-Pulley distance of numbers to N(0, 1), in closed form."""
    pairs = np.exp(-((x[:, None] - x) ** 2) / 2).mean()
    return math.sqrt(2 * math.pi) * (pairs - math.sqrt(2) * np.exp(-(x**2) / 4).mean() + 1 / math.sqrt(3))


def gaussianity(loss, *z):
    """The second term of a loss, over its weight and the number of rows."""
    return float(loss.terms(*z)["gaussianity"]) / (loss.lambda_param * len(z[0]))


@pytest.mark.parametrize("d", [1, 2, 8])
def test_value_is_the_mean_over_directions(d):
    z = 1.3 * data(32, d) + 0.2
    u = data(4000, d, seed=1)
    distances = np.array([one_direction(x) for x in (z @ (u / u.norm(dim=1, keepdim=True)).T).T.numpy()])
    error = distances.std() / math.sqrt(len(distances))
    assert abs(gaussianity(SIGRegLoss(), z, z) - distances.mean()) < 4 * error + 1e-9


def published(z, directions):
    """LeJEPA's regularizer of one view, from the formula of its paper: 17 trapezoids of the even integrand."""
    t = np.linspace(0, 3, 17)
    angles = (z @ directions)[:, :, None] * t
    gap = (np.cos(angles).mean(0) - np.exp(-(t**2) / 2)) ** 2 + np.sin(angles).mean(0) ** 2
    return 2 * np.trapezoid(gap * np.exp(-(t**2) / 2), t, axis=-1).mean()


@pytest.mark.parametrize(("n", "d"), [(64, 128), (500, 3), (500, 64), (300, 1000)])
def test_float32_has_its_digits_near_the_normal_distribution(n, d):
    z = data(n, d, dtype=torch.float32)
    results = []
    for x in (z, z.double()):
        x.requires_grad_()
        loss = SIGRegLoss(1.0)(x, x)
        results.append((loss.double(), *torch.autograd.grad(loss, x)))
    (value, gradient), (exact, expected) = results
    assert abs(value / exact - 1) < 2e-7 and (gradient - expected).norm() < 2e-7 * expected.norm()


def test_slices_are_those_of_the_published_formula():
    z_a, z_b = views(40, 6)
    loss = SIGRegLoss(0.3, slices=20, seed=5)
    directions = torch.randn(6, 20, generator=torch.Generator().manual_seed(5))
    directions = (directions / directions.norm(dim=0)).double().numpy()
    expected = (published(z_a.numpy(), directions) + published(z_b.numpy(), directions)) / 2
    assert gaussianity(loss, z_a, z_b) == pytest.approx(expected, rel=1e-12)
    closed = np.mean([one_direction(x) for z in (z_a, z_b) for x in (z.numpy() @ directions).T])
    assert abs(expected - closed) < 5e-4  # the error of their quadrature


def test_slices_are_drawn_anew_and_unbiased():
    z = 1.5 * data(32, 6)
    loss, exact = SIGRegLoss(slices=16), SIGRegLoss()
    draws = np.array([gaussianity(loss, z, z) for _ in range(400)])
    assert len(set(draws)) == 400
    error = draws.std() / math.sqrt(len(draws))
    assert abs(draws.mean() - gaussianity(exact, z, z)) < 4 * error + 5e-4  # their quadrature ends at t = 3
    kept = loss.get_extra_state()
    value = gaussianity(loss, z, z)
    resumed = SIGRegLoss(slices=16, seed=9)
    resumed.set_extra_state(kept)
    assert gaussianity(resumed, z, z) == value


@pytest.mark.parametrize("slices", [None, 64])
def test_views_are_exchangeable_and_the_invariance_is_that_of_their_mean(slices):
    parts = [data(12, 4, seed) for seed in range(3)]
    first, other = (SIGRegLoss(0.3, slices)(*order) for order in (parts, parts[::-1]))
    assert float(first) == pytest.approx(float(other), rel=1e-12)
    terms = SIGRegLoss(0.3, slices).terms(*parts)
    mean = sum(parts) / 3
    expected = 0.7 * sum(float((part - mean).square().mean()) for part in parts) / 3
    assert float(terms["invariance"]) == pytest.approx(expected, rel=1e-12)
    same = SIGRegLoss(0.3, slices).terms(parts[0], parts[0], parts[0])
    assert float(same["invariance"]) < 1e-30


def test_views_are_compared_with_the_mean_of_the_global_ones():
    # The formula of LeJEPA: every view against the mean of the large crops, and the regularizer of all views.
    parts, weight = [data(12, 4, seed) for seed in range(5)], 0.3
    terms = SIGRegLoss(weight, slices=20, seed=5, global_views=2).terms(*parts)
    center = (parts[0] + parts[1]) / 2
    expected = (1 - weight) * np.mean([((part - center) ** 2).numpy() for part in parts])
    assert float(terms["invariance"]) == pytest.approx(expected, rel=1e-12)
    directions = torch.randn(4, 20, generator=torch.Generator().manual_seed(5))
    directions = (directions / directions.norm(dim=0)).double().numpy()
    expected = weight * 12 * np.mean([published(part.numpy(), directions) for part in parts])
    assert float(terms["gaussianity"]) == pytest.approx(expected, rel=1e-12)
    with pytest.raises(ValueError, match="global_views must be at most the 2 views, got 3"):
        SIGRegLoss(global_views=3)(*parts[:2])


def test_rotations_do_not_matter_over_all_directions():
    z_a, z_b = views(30, 5)
    q, _ = torch.linalg.qr(data(5, 5))
    assert float(SIGRegLoss()(z_a @ q, z_b @ q)) == pytest.approx(float(SIGRegLoss()(z_a, z_b)), rel=1e-12)


def test_minimum_has_independent_features_of_unit_variance():
    z = (0.1 * data(200, 2) @ torch.tensor([[1.0, 0.9], [0.0, 0.3]], dtype=torch.float64)).requires_grad_()
    minimize(lambda: SIGRegLoss(1.0)(z, z), z, steps=100)
    covariance = torch.cov(z.detach().T)
    torch.testing.assert_close(covariance, torch.eye(2, dtype=torch.float64), atol=0.1, rtol=0)


@pytest.mark.parametrize("far", [1e12, 1e18, 1e20, 1e30])
def test_far_rows_keep_value_and_gradient_finite(far):
    z = data(16, 4, dtype=torch.float32)
    z[0] = far  # its squared distances may overflow
    z.requires_grad_()
    value = SIGRegLoss().terms(z, z)["gaussianity"]
    value.backward()
    assert torch.isfinite(value) and torch.isfinite(z.grad[1:]).all()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"lambda_param": 1.5}, "lambda_param must be a number .*, got 1.5"),
        ({"slices": 0}, "slices must be .*, got 0"),
        ({"slices": 2.5}, "slices must be .*, got 2.5"),
        ({"global_views": 0}, "global_views must be .*, got 0"),
    ],
)
def test_bad_options_are_quoted(options, words):
    with pytest.raises((TypeError, ValueError), match=words):
        SIGRegLoss(**options)

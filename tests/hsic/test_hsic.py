"""HSIC against its definition, its routes against each other, and its properties."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hsic_lab.correlation import cross_correlation, standardize
from hsic_lab.hsic import center, hsic
from hsic_lab.kernels import Gaussian, InverseMultiquadric, Kernel, Laplace, Linear, Polynomial

KERNELS = [Linear(), Gaussian(1.3), Gaussian(), Laplace(), InverseMultiquadric(), Polynomial(), Gaussian() * Linear()]
ROUTES = [("biased", "primal"), ("biased", "dual"), ("unbiased", "primal"), ("unbiased", "dual")]
ALL_WAYS = [(*way, kernel) for way in ROUTES for kernel in KERNELS if way[1] == "dual" or kernel == Linear()]


def sample(n, p, seed=0):
    return torch.randn(n, p, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def dependent(n, p=3, q=2):
    x = sample(n, p)
    return x, x[:, :q] ** 2 + 0.5 * sample(n, q, seed=1)


def v_statistic(k, l):
    """Biased HSIC by its definition: every expectation is a mean over all tuples of rows."""
    n = len(k)
    joint = sum(k[i, j] * l[i, j] for i, j in itertools.product(range(n), repeat=2)) / n**2
    cross = sum(k[i, j] * l[i, r] for i, j, r in itertools.product(range(n), repeat=3)) / n**3
    return joint + k.mean() * l.mean() - 2 * cross


def u_statistic(k, l):
    """Unbiased HSIC: the mean over all tuples of four different rows."""
    terms = [k[i, j] * (l[i, j] + l[r, s] - 2 * l[i, r]) for i, j, r, s in itertools.permutations(range(len(k)), 4)]
    return np.mean(terms)


ORACLES = {"biased": v_statistic, "unbiased": u_statistic}


@pytest.mark.parametrize("estimator", ORACLES)
@pytest.mark.parametrize("n", [5, 6, 7, 8])
@pytest.mark.parametrize("kernel_y", KERNELS[:2], ids=repr)
@pytest.mark.parametrize("kernel_x", KERNELS, ids=repr)
def test_estimators_match_sums_over_all_tuples(kernel_x, kernel_y, n, estimator):
    x, y = dependent(n)
    expected = ORACLES[estimator](kernel_x(x).numpy(), kernel_y(y).numpy())
    assert hsic(x, y, kernel_x, kernel_y, estimator).item() == pytest.approx(expected, rel=1e-12, abs=1e-13)


@pytest.mark.parametrize("estimator", ORACLES)
@pytest.mark.parametrize(("n", "p", "q"), [(9, 3, 2), (6, 20, 30), (40, 1, 50)])
def test_primal_and_dual_agree(n, p, q, estimator):
    x, y = sample(n, p) + 5, sample(n, q, seed=1) - 3
    primal, dual, auto = (hsic(x, y, estimator=estimator, route=route) for route in ("primal", "dual", "auto"))
    torch.testing.assert_close(primal, dual, rtol=1e-11, atol=1e-13)
    torch.testing.assert_close(auto, dual, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("route", ["primal", "dual"])
def test_linear_hsic_of_standardized_columns_is_the_squared_norm_of_c(route):
    x, y = dependent(20, p=4, q=3)
    z_a, z_b = torch.cat([x, y], dim=1), torch.cat([y, x], dim=1)
    expected = cross_correlation(z_a, z_b).square().sum()
    torch.testing.assert_close(hsic(standardize(z_a), standardize(z_b), route=route), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("kernel", KERNELS, ids=repr)
def test_biased_hsic_is_the_squared_mmd_to_all_pairs_of_rows(kernel):
    x, y = dependent(7)
    n = len(x)
    k, l = kernel(x).numpy(), kernel(y).numpy()
    pairs = [(i, i) for i in range(n)]
    all_pairs = list(itertools.product(range(n), repeat=2))

    def mean(first, second):
        return np.mean([k[i, r] * l[j, s] for (i, j), (r, s) in itertools.product(first, second)])

    mmd = mean(pairs, pairs) + mean(all_pairs, all_pairs) - 2 * mean(pairs, all_pairs)
    assert hsic(x, y, kernel, kernel).item() == pytest.approx(mmd, rel=1e-12, abs=1e-13)


class Changed(Kernel):
    """A kernel with `shift` added to its Gram."""

    def __init__(self, kernel, shift):
        self.kernel, self.shift = kernel, shift

    def gram(self, x, y):
        return self.kernel.gram(x, y) + self.shift


@pytest.mark.parametrize("shift", [torch.tensor(5.0, dtype=torch.float64), torch.diag(sample(12, 1)[:, 0])])
def test_unbiased_hsic_ignores_a_constant_and_the_diagonal_of_the_gram(shift):
    x, y = dependent(12)
    kernel = Gaussian(1.0)
    expected = hsic(x, y, kernel, kernel, "unbiased")
    torch.testing.assert_close(hsic(x, y, Changed(kernel, shift), kernel, "unbiased"), expected, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("estimator", ORACLES)
@given(a=st.floats(1e-4, 1e4), b=st.floats(1e-4, 1e4))
@settings(max_examples=20, deadline=None)
def test_hsic_with_the_median_rule_ignores_the_units_of_each_sample(estimator, a, b):
    x, y = dependent(15)
    expected = hsic(x, y, Gaussian(), Gaussian(), estimator)
    torch.testing.assert_close(hsic(a * x, b * y, Gaussian(), Gaussian(), estimator), expected, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize(("estimator", "route"), ROUTES)
def test_hsic_is_symmetric_and_ignores_the_order_of_the_rows(estimator, route):
    x, y = dependent(15)
    kernels = (Linear(), Linear()) if route == "primal" else (Linear(), Gaussian())
    expected = hsic(x, y, *kernels, estimator, route)
    torch.testing.assert_close(hsic(y, x, *kernels[::-1], estimator, route), expected, rtol=1e-12, atol=0)
    order = torch.randperm(15, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(hsic(x[order], y[order], *kernels, estimator, route), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize(("estimator", "route", "kernel"), [way for way in ALL_WAYS if "median" not in repr(way)])
def test_gradient_matches_finite_differences(estimator, route, kernel):
    x, y = dependent(6)
    x, y = x.requires_grad_(), y.detach().requires_grad_()
    assert torch.autograd.gradcheck(lambda x, y: hsic(x, y, kernel, kernel, estimator, route), (x, y))


@pytest.mark.parametrize("estimator", ORACLES)
def test_gradient_of_a_learnable_bandwidth_matches_finite_differences(estimator):
    x, y = dependent(6)
    s = torch.tensor(1.3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda s: hsic(x, y, Gaussian(s), Linear(), estimator), (s,))


@pytest.mark.parametrize(("estimator", "route", "kernel"), ALL_WAYS)
def test_constant_sample_has_hsic_zero(kernel, estimator, route):
    y = sample(10, 2).requires_grad_()
    value = hsic(torch.full((10, 3), 7.0, dtype=torch.float64), y, kernel, kernel, estimator, route)
    assert abs(value.item()) < 1e-14
    assert torch.isfinite(torch.autograd.grad(value, y)[0]).all()


@pytest.mark.parametrize(
    ("estimator", "route", "kernel"),
    [way for way in ALL_WAYS if way[2] in KERNELS[:5]],  # the others depend on the origin
)
def test_float32_is_accurate_under_a_large_offset(kernel, estimator, route):
    x, y = (z.float() + 1e4 for z in dependent(200))
    exact = hsic(x.double(), y.double(), kernel, kernel, estimator, route)
    got = hsic(x, y, kernel, kernel, estimator, route)
    assert got.dtype == torch.float32
    assert got.item() == pytest.approx(exact.item(), rel=1e-4)


@pytest.mark.parametrize("kernel", KERNELS, ids=repr)
def test_unbiased_hsic_of_independent_samples_has_mean_zero(kernel):
    def draws(estimator, times):
        samples = ((sample(12, 2, s), sample(12, 2, s + 10_000)) for s in range(times))
        return np.array([hsic(x, y, kernel, kernel, estimator) for x, y in samples])

    values, biased = draws("unbiased", 600), draws("biased", 100)
    assert abs(values.mean()) < 4 * values.std() / len(values) ** 0.5
    assert 0.3 < (values < 0).mean() < 0.8
    assert biased.min() > 0 and biased.mean() > 10 * biased.std() / len(biased) ** 0.5  # its bias is about 1/n


def test_gaussian_hsic_approaches_linear_hsic_at_large_bandwidths():
    x, y = dependent(20)
    y = x[:, :2] + y
    linear = hsic(x, y)
    torch.testing.assert_close(1e6 * 1e6 * hsic(x, y, Gaussian(1e3), Gaussian(1e3)), linear, rtol=1e-4, atol=0)


def test_centering_is_multiplication_by_h():
    k = sample(9, 9)
    h = torch.eye(9, dtype=torch.float64) - 1 / 9
    torch.testing.assert_close(center(k), h @ k @ h)


def test_bad_input_is_rejected():
    x, y = dependent(5)
    nan = torch.full((5, 1), torch.nan)
    for error, quoted, call in (
        (ValueError, "4 rows, got 3", lambda: hsic(x[:3], y[:3], estimator="unbiased")),
        (ValueError, "2 rows, got 1", lambda: hsic(x[:1], y[:1])),
        (ValueError, "5 and 4", lambda: hsic(x, y[:4])),
        (ValueError, "5 values that are NaN", lambda: hsic(x, nan)),
        (ValueError, "'song'", lambda: hsic(x, y, estimator="song")),
        (ValueError, "'fast'", lambda: hsic(x, y, route="fast")),
        (ValueError, "Gaussian", lambda: hsic(x, y, Gaussian(), route="primal")),
        (TypeError, "torch.int64", lambda: hsic(x, torch.arange(5), kernel_y=Gaussian())),
        (TypeError, "an array or a tensor, got 'x'", lambda: hsic("x", y)),
    ):
        with pytest.raises(error, match=quoted):
            call()


def test_vectors_arrays_and_mixed_precision_are_accepted():
    x, y = dependent(8, 1, 1)
    expected = hsic(x, y)
    assert torch.equal(hsic(x[:, 0], y[:, 0]), expected)
    assert torch.equal(hsic(x.numpy(), y.numpy()), expected)
    assert hsic(x.float(), y).dtype == torch.float64
    with torch.autocast("cpu", torch.bfloat16):
        under = hsic(x.float(), y.float(), Gaussian(), route="dual")
    assert torch.equal(under, hsic(x.float(), y.float(), Gaussian(), route="dual"))


def test_center_accepts_a_stack_of_grams():
    stack = torch.randn(3, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    h = torch.eye(5, dtype=torch.float64) - 1 / 5
    torch.testing.assert_close(center(stack), h @ stack @ h, rtol=1e-12, atol=1e-12)

"""HSIC against its definition, its routes against each other, and its properties."""

import itertools

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hsic_lab.correlation import cross_correlation, standardize
from hsic_lab.hsic import center, hsic, hsic_matrix

from hsic_lab.kernels import (  # isort: skip
    Delta, DistanceInduced, Gaussian, InverseMultiquadric, Kernel, Laplace, Linear, Polynomial, Product, Sum,
)  # fmt: skip

KERNELS = [
    Linear(), Gaussian(1.3), Gaussian(), Laplace(), InverseMultiquadric(), Polynomial(), Gaussian() * Linear(),
    DistanceInduced(),
]  # fmt: skip
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


@pytest.mark.parametrize("offset", [0.0, 1e6])
@pytest.mark.parametrize("route", ["dual", "tiled"])
def test_distance_covariance_is_twice_the_root_of_hsic(route, offset):
    x, y = dependent(25)
    a, b = (np.linalg.norm(z.numpy()[:, None] - z.numpy(), axis=2) for z in (x, y))
    center_a, center_b = (d - d.mean(0) - d.mean(1)[:, None] + d.mean() for d in (a, b))
    kernel = DistanceInduced()
    got = 4 * hsic(x + offset, y - offset, kernel, kernel, "biased", route)
    assert got.item() == pytest.approx((center_a * center_b).mean(), rel=1e-8)  # Székely et al. (2007), definition 4
    n, off = 25, ~np.eye(25, dtype=bool)  # and the U-centered distances of Székely and Rizzo (2014)
    u_a, u_b = (
        off * (d - d.sum(0) / (n - 2) - d.sum(1)[:, None] / (n - 2) + d.sum() / ((n - 1) * (n - 2))) for d in (a, b)
    )
    got = 4 * hsic(x + offset, y - offset, kernel, kernel, "unbiased", route)
    assert got.item() == pytest.approx((u_a * u_b).sum() / (n * (n - 3)), rel=1e-8)


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


def exact_hsic(x, y, kernel_x, kernel_y, estimator):
    """HSIC in extended precision, from differences and centered rows."""
    grams = [exact_gram(z - z.mean(dim=0), z, kernel) for z, kernel in ((x.double(), kernel_x), (y.double(), kernel_y))]
    n = len(x)
    if estimator == "biased":
        k, l = (g - g.mean(0) - g.mean(1)[:, None] + g.mean() for g in grams)
        return float((k * l).sum() / n**2)
    k, l = (np.where(np.eye(n), 0, g - g[~np.eye(n, dtype=bool)].mean()) for g in grams)
    middle = k.sum() * l.sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) * (k.sum(1) @ l.sum(1))
    return float(((k * l).sum() + middle) / (n * (n - 3)))


def exact_gram(centered, z, kernel):
    if isinstance(kernel, Sum | Product):
        first, second = (exact_gram(centered, z, part) for part in (kernel.first, kernel.second))
        return first + second if isinstance(kernel, Sum) else first * second
    rows, centered = z.numpy().astype(np.longdouble), centered.numpy().astype(np.longdouble)
    if isinstance(kernel, Linear):
        return centered @ centered.T
    differences = rows[:, None] - rows
    if isinstance(kernel, DistanceInduced):
        return -np.sqrt((differences**2).sum(axis=2)) / 2
    s = kernel.fit(z).bandwidth
    if isinstance(kernel, Laplace):
        return np.exp(-abs(differences).sum(axis=2) / s)
    squares = (differences**2).sum(axis=2)
    return np.exp(-squares / (2 * s**2)) if isinstance(kernel, Gaussian) else 1 / np.sqrt(1 + squares / s**2)


HARD = {
    "offset 1e6": lambda x, y: (x + 1e6, y + 1e6),
    "offset 1e4": lambda x, y: (x - 1e4, y + 1e4),
    "one far row": lambda x, y: (torch.cat([x[:1] + 1e5, x[1:]]), y),
    "log-normal": lambda x, y: ((3 * x).exp(), (3 * x[:, :2]).exp() + y),
    "two clusters": lambda x, y: (x + 1e5 * (torch.arange(len(x)) % 2)[:, None], y + 1e5),
}
ORIGIN_FREE = [
    *KERNELS[:5],
    DistanceInduced(),
    Linear() + Linear(),
    Gaussian(1.3) + Linear(),
    Linear() + Gaussian(2.0) * Laplace(3.0),
]


@pytest.mark.parametrize("estimator", ORACLES)
@pytest.mark.parametrize("kernel", ORIGIN_FREE, ids=repr)
@pytest.mark.parametrize("data", HARD)
def test_float32_is_accurate_on_every_route(data, kernel, estimator):
    x, y = (z.float() for z in HARD[data](*dependent(150)))
    exact = exact_hsic(x, y, kernel, kernel, estimator)
    rel = 1e-3 if data == "one far row" and "Linear" in repr(kernel) else 1e-4  # the far row outweighs all others
    for route, size in (("primal", None), ("dual", None), ("tiled", None), ("tiled", 40)):
        if route != "primal" or kernel == Linear():
            got = hsic(x, y, kernel, kernel, estimator, route, size)
            assert got.dtype == torch.float32
            assert got.item() == pytest.approx(exact, rel=rel), route


# One far row of both samples: the terms with it are larger than the result by its powers, and must not be rounded.
@pytest.mark.parametrize("dtype, rel", [(torch.float32, 1e-5), (torch.float64, 1e-5)], ids=str)
@pytest.mark.parametrize("n, far", [(500, 3e4), (101, 1e5), (500, 1e8), (500, 1e12)])
def test_unbiased_hsic_with_a_shared_outlier_is_accurate_on_every_route(n, far, dtype, rel):
    x, y = (z[:, :1].to(dtype) for z in dependent(n))
    y = y + x
    x[0] = y[0] = far
    k, l = (np.outer(z, z) for z in (z.numpy()[:, 0].astype(np.longdouble) for z in (x, y)))
    np.fill_diagonal(k, 0), np.fill_diagonal(l, 0)
    middle = k.sum() * l.sum() / ((n - 1) * (n - 2)) - 2 * (k.sum(1) @ l.sum(1)) / np.longdouble(n - 2)
    exact = float(((k * l).sum() + middle) / (n * (n - 3)))
    for got in (*(hsic(x, y, estimator="unbiased", route=route) for route in ("primal", "dual", "tiled")),
                hsic_matrix(x, y, estimator="unbiased")):  # fmt: skip
        assert got.item() == pytest.approx(exact, rel=rel)


@pytest.mark.parametrize("estimator", ORACLES)
@pytest.mark.parametrize("kernel", [Gaussian(30.0), InverseMultiquadric(30.0), Laplace(100.0)], ids=repr)
def test_float32_is_accurate_at_wide_bandwidths(kernel, estimator):
    x, y = (z.float() for z in dependent(200))
    exact = exact_hsic(x, y, kernel, kernel, estimator)
    for route, size in (("dual", None), ("tiled", None), ("tiled", 40)):
        assert hsic(x, y, kernel, kernel, estimator, route, size).item() == pytest.approx(exact, rel=2e-4), route


def hsic_of_ignite(x, y, sigma_x, sigma_y):
    """Equation 5 of Song et al. (2012) as pytorch-ignite tests its metric against NumPy, without its clipping at 0."""
    grams = []
    for z, sigma in ((x.numpy(), sigma_x), (y.numpy(), sigma_y)):
        squares = ((z[:, None] - z) ** 2).sum(axis=2)
        grams.append(np.exp(-squares / (2 * sigma**2)) * (1 - np.eye(len(z))))
    k, l = grams
    n, ones = len(x), np.ones(len(x))
    middle = (ones @ k @ ones) * (ones @ l @ ones) / ((n - 1) * (n - 2)) - 2 / (n - 2) * (ones @ k @ l @ ones)
    return (np.trace(k @ l) + middle) / (n * (n - 3))


@pytest.mark.parametrize("sigma", [1.0, 3.0, 9.0])
@pytest.mark.parametrize("case", ["independent", "linear", "nonlinear"])
def test_unbiased_gaussian_hsic_matches_the_reference_of_ignite(case, sigma):
    n, p, q = {"independent": (10, 50, 30), "linear": (10, 10, 15), "nonlinear": (20, 5, 3)}[case]
    for seed in range(3):
        x, noise = sample(n, p, seed), sample(n, q, seed + 100)
        mixed = x @ sample(p, q, seed + 200) * 3
        waves = torch.stack([mixed[:, 0].sin(), mixed[:, 1].cos(), (mixed[:, 2] / 3).exp()], dim=1)
        y = {"independent": noise, "linear": mixed + 1e-4 * noise, "nonlinear": waves + 1e-4 * noise[:, :3]}[case]
        expected = hsic_of_ignite(x, y, sigma, sigma)
        for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-6)):
            got = hsic(x.to(dtype), y.to(dtype), Gaussian(sigma), Gaussian(sigma), "unbiased")
            assert got.item() == pytest.approx(expected, abs=tolerance)


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


@pytest.mark.parametrize("estimator", ["biased", "unbiased"])
@pytest.mark.parametrize("kernel", [Linear(), Gaussian(), Polynomial(), Laplace()], ids=repr)
def test_backward_inside_autocast_is_that_of_float32(kernel, estimator):
    x, y = (z.float() for z in dependent(24, 3, 3))
    gradients = []
    for dtype in (None, torch.bfloat16):
        z = x.clone().requires_grad_()
        with torch.autocast("cpu", dtype, enabled=dtype is not None):
            hsic(z, y, kernel, kernel, estimator).backward()
        gradients.append(z.grad)
    torch.testing.assert_close(*gradients, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("route", ["dual", "tiled"])
@pytest.mark.parametrize("kernel", [Polynomial(), Linear() * Linear(), Polynomial() + Gaussian()], ids=repr)
def test_powers_keep_their_digits_far_from_the_origin(kernel, route):
    x, y = (1e4 + z.float() for z in dependent(50, 3, 2))  # in float32 the Grams were rounding error alone
    exact = (z.double().numpy().astype(np.longdouble) for z in (x, y))
    k, l = ((z @ z.T + isinstance(kernel, Polynomial | Sum)) ** 2 for z in exact)
    h = np.eye(50) - np.longdouble(1) / 50
    value = hsic(x, y, kernel, kernel, "biased", route, block_size=16)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(float((h @ k @ h * l).sum() / 2500), rel=1e-5)
    unbiased = hsic(x, y, kernel, kernel, "unbiased", route, block_size=16)
    assert unbiased.item() == pytest.approx(hsic(x.double(), y.double(), kernel, kernel, "unbiased").item(), rel=1e-5)


def centered_exactly(gram, estimator):
    """``H K H``, or for the unbiased estimator K without its diagonal and with rows that sum to 0."""
    n, kept = len(gram), 1 - np.eye(len(gram)) * (estimator == "unbiased")
    total, rows = (gram * kept).sum(), (gram * kept).sum(axis=1)
    a, b = (n - 2, (n - 1) * (n - 2)) if estimator == "unbiased" else (n, n**2)
    return kept * (gram - rows[:, None] / a - rows / a + total / b)


@pytest.mark.parametrize(("offset", "rel"), [(0, 1e-13), (1e4, 1e-9), (1e6, 2e-6), (1e7, 5e-4)])
@pytest.mark.parametrize("estimator", ["biased", "unbiased"])
@pytest.mark.parametrize("kernel", [Polynomial(), Polynomial() + Linear()], ids=repr)
def test_every_route_keeps_the_digits_of_powers_that_float64_has(kernel, estimator, offset, rel):
    """Rows of such Grams are larger than what HSIC is made of by up to the offset squared."""
    x = offset + sample(60, 1)
    y = x + sample(60, 1, seed=1)
    inner = [z.numpy().astype(np.longdouble) @ z.numpy().astype(np.longdouble).T for z in (x, y)]
    k, l = (centered_exactly((p + 1) ** 2 + p * isinstance(kernel, Sum), estimator) for p in inner)
    value, own = (k * l).sum(), np.sqrt((k * k).sum() * (l * l).sum())
    divisor = 60 * 57 if estimator == "unbiased" else 3600
    for route in ("dual", "tiled"):
        got = hsic(x, y, kernel, kernel, estimator, route, block_size=16).item()
        assert got == pytest.approx(float(value / divisor), rel=rel)
    assert hsic_matrix(x, y, kernel, kernel, estimator).item() == pytest.approx(float(value / divisor), rel=rel)
    normalized = hsic_matrix(x, y, kernel, kernel, estimator, normalized=True).item()
    assert normalized == pytest.approx(float(value / own), rel=rel)


POWERS = Polynomial(), Polynomial() + Gaussian()


@pytest.mark.parametrize("estimator", ["biased", "unbiased", "block"])
@pytest.mark.parametrize("route", ["dual", "tiled"])
@pytest.mark.parametrize("kernel", [Linear(), Gaussian(1.0), InverseMultiquadric(1.0), *POWERS], ids=repr)
def test_kernels_of_two_precisions_meet_in_float32(kernel, route, estimator):
    """Powers are computed in float64, the other kernels of float32 samples in float32."""
    x, y = (100 + z.float() for z in dependent(40, 2, 2))
    for power in POWERS:
        for a, b, kernel_a, kernel_b in ((x, y, kernel, power), (y, x, power, kernel)):
            value = hsic(a, b, kernel_a, kernel_b, estimator, route, block_size=10)
            exact = hsic(a.double(), b.double(), kernel_a, kernel_b, estimator, "dual", block_size=10)
            assert value.dtype == torch.float32
            assert value.item() == pytest.approx(exact.item(), rel=2e-5)
    labels = torch.arange(40) % 3
    torch.set_default_dtype(torch.float64)
    try:
        value = hsic(x, labels, kernel, Delta(), estimator, route, block_size=10)
    finally:
        torch.set_default_dtype(torch.float32)
    exact = hsic(x.double(), labels, kernel, Delta(), estimator, route, block_size=10)
    assert value.item() == pytest.approx(exact.item(), rel=2e-5) and value.dtype == torch.float32


@pytest.mark.parametrize("route", ["dual", "tiled"])
def test_an_outlier_costs_a_wide_kernel_no_digits_of_the_unbiased_estimator(route):
    x, y = (z.float() for z in dependent(700, 1, 1))
    x[0], y[1] = 1e3, -1e3
    exact = hsic(x.double(), y.double(), Gaussian(100.0), Gaussian(100.0), "unbiased").item()
    assert hsic(x, y, Gaussian(100.0), Gaussian(100.0), "unbiased", route).item() == pytest.approx(exact, rel=1e-5)
    matrix = hsic_matrix(x, y, Gaussian(100.0), Gaussian(100.0), "unbiased")
    assert matrix.item() == pytest.approx(exact, rel=1e-5)


def test_powers_without_digits_are_refused():
    x, y = dependent(50)
    for estimator in ("biased", "unbiased"):
        with pytest.raises(ValueError, match=r"Polynomial.*up to rounding error: standardize"):
            hsic(1e9 + x, y, Polynomial(), Gaussian(), estimator)
        with pytest.raises(ValueError, match=r"Polynomial.* on y\['far'\] up to rounding error: standardize"):
            hsic_matrix(y, {"far": 1e9 + x[:, 0]}, Polynomial(), Polynomial(), estimator)
    assert hsic(torch.full_like(x, 1e9), y, Polynomial(), Gaussian()) == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_labels_are_compared_in_float32_or_better_whatever_the_default_type(dtype):
    labels = torch.arange(3000) % 3
    expected = hsic(labels, labels, Delta(), Delta(), "unbiased")
    torch.set_default_dtype(dtype)
    try:
        value = hsic(labels, labels, Delta(), Delta(), "unbiased")
    finally:
        torch.set_default_dtype(torch.float32)
    assert value.dtype == torch.float32
    assert torch.equal(value, expected)


UNITS = [(torch.float32, unit) for unit in (1e-30, 1e-21, 3e-12, 1e12, 8e18, 1e19, 1e30)]
UNITS += [(torch.float64, unit) for unit in (1e-300, 1e-160, 7e153, 1e250)]


@pytest.mark.parametrize(("dtype", "unit"), UNITS, ids=str)
@pytest.mark.parametrize("kernel", [Gaussian(), InverseMultiquadric(), Laplace(), Gaussian() * Laplace()], ids=repr)
def test_a_median_bandwidth_gives_the_same_in_every_unit(kernel, dtype, unit):
    x, y = (z.to(dtype) for z in dependent(40))
    expected = torch.stack([hsic(x, y, kernel, kernel), *hsic_matrix(x, y, kernel, kernel).flatten()])
    x, y = x * unit, y * unit
    found = torch.stack([hsic(x, y, kernel, kernel), *hsic_matrix(x, y, kernel, kernel).flatten()])
    torch.testing.assert_close(found, expected, rtol=1e-5 if dtype == torch.float32 else 1e-12, atol=0)


@pytest.mark.parametrize("unit", [1e-30, 1e-12, 3e-12, 1e12, 1e25])
def test_matrix_of_linear_kernels_is_exact_in_every_unit_of_float32(unit):
    x, y = ((unit * z).float() for z in dependent(40))
    exact = hsic_matrix(x.double(), y.double(), normalized=True)
    torch.testing.assert_close(hsic_matrix(x, y, normalized=True), exact, rtol=1e-6, atol=1e-9)
    for far in (1e-25, 1e25):
        torch.testing.assert_close(hsic_matrix(far * x.double(), far * y.double(), normalized=True), exact)
    values = hsic_matrix(x.double(), y.double())
    torch.testing.assert_close(hsic_matrix(x, y) / unit**4, values / unit**4, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("route", ["dual", "tiled"])
@pytest.mark.parametrize("estimator", ["biased", "unbiased"])
def test_powers_of_a_constant_sample_far_from_zero_have_hsic_0(estimator, route):
    x = torch.full((60, 1), 1e8 + 0.1, dtype=torch.float64)
    assert hsic(x, sample(60, 1), Polynomial(3), Gaussian(), estimator, route) == 0


def test_matrix_takes_a_series_and_names_the_shape_of_what_it_does_not_take():
    x, y = dependent(20, 1, 1)
    series = pd.Series(x[:, 0].numpy(), name="x")
    assert torch.equal(hsic_matrix(series, y), hsic_matrix(x, y))
    with pytest.raises(TypeError, match=r"got Tensor of shape \(20, 1, 1\)"):
        hsic_matrix(x[:, :, None], y)

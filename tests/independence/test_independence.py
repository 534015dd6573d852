"""Tests of independence: exact values of statistic and null, and the measured level of every test."""

import itertools
import re
import subprocess
import sys

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from scipy import stats

from hsic_lab._checks import seeded
from hsic_lab.hsic import center, dhsic, hsic
from hsic_lab.hsic._joint import ShiftedGram, shift_orders, shifted_hsic
from hsic_lab.independence._approximate import permutation_moments, weighted_chi_squares
from hsic_lab.kernels import Delta, DistanceInduced, Gaussian, Linear, Polynomial

from hsic_lab.independence import (  # isort: skip
    aggregated_test, block_test, dhsic_test, gamma_test, permutation_test, shift_test, spectral_test,
)  # fmt: skip

TESTS = (permutation_test, aggregated_test, gamma_test, spectral_test, block_test)
SEEDED = (permutation_test, aggregated_test, spectral_test)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(n, p, seed=0):
    return torch.randn(n, p, dtype=torch.float64, generator=generator(seed))


def dependent(n, seed=0):
    x = normal(n, 1, seed)
    return x, x.square() + 0.5 * normal(n, 1, seed + 1000)


def permutations_of(n, count, seed):
    """The permutations of the rows of y that a test scores: shifts along random orders, the identity first."""
    orders = shift_orders(n, count, seeded(seed))
    back = orders[0].argsort()  # row orders[0, i] of x meets row orders[j, i + s] of y
    return torch.stack([order.roll(-s)[back] for order in orders for s in range(n)])


# Statistics, nulls, p-values


@pytest.mark.parametrize("kernels", [(None, None), (Linear(), Gaussian(0.7)), (DistanceInduced(), DistanceInduced())])
@pytest.mark.parametrize(
    "test, estimator", [(permutation_test, "unbiased"), (gamma_test, "biased"), (spectral_test, "biased")]
)
def test_statistic_is_hsic(test, estimator, kernels):
    x, y = dependent(40)
    expected = hsic(x, y, *(kernel or Gaussian() for kernel in kernels), estimator=estimator)
    assert test(x, y, *kernels).statistic == pytest.approx(float(expected), rel=1e-10)


def direct(gram_x, gram_y, pi):
    """Unbiased HSIC by its definition (Song et al. 2012, equation 5), with the rows of y permuted."""
    k, l, n = gram_x.copy(), gram_y[np.ix_(pi, pi)], len(pi)
    np.fill_diagonal(k, 0), np.fill_diagonal(l, 0)
    middle = k.sum() * l.sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) * (k.sum(axis=0) @ l.sum(axis=0))
    return ((k * l).sum() + middle) / (n * (n - 3))


@pytest.mark.parametrize("stored, tile", [(True, None), (False, 128), (False, 4)])
@pytest.mark.parametrize("n", [4, 5, 8, 29, 64, 97, 150])  # 29 and 97 are padded; tiles of 4 rows lie in 5 columns
def test_shifts_match_direct_sums_within_the_rounding_error(n, stored, tile, monkeypatch):
    monkeypatch.setattr("hsic_lab.hsic._joint._TILE", tile)
    x, y = 1e3 * normal(n, 2), normal(n, 1, 1).round()
    kernels = ([Linear(), Gaussian(1e3), DistanceInduced()], [Delta(), Gaussian(), Polynomial(2)])
    kernels = [[kernel.fit(z) for kernel in side] for side, z in zip(kernels, (x, y), strict=True)]
    orders = shift_orders(n, n + 1, generator())  # two orders
    grams = ([ShiftedGram(k, z, stored) for k in side] for side, z in zip(kernels, (x, y), strict=True))
    values, rounding = shifted_hsic(*grams, orders)
    back = orders[0].argsort()
    permutations = [order.roll(-s)[back].numpy() for order in orders for s in range(n)]
    for (i, k), (j, l) in itertools.product(enumerate(kernels[0]), enumerate(kernels[1])):
        expected = np.array([direct(k(x).numpy(), l(y).numpy(), pi) for pi in permutations])
        assert np.abs(values[i, j].numpy() - expected).max() <= rounding[i, j] <= 1e-8 * expected.std()


def test_null_is_hsic_of_the_permuted_rows():
    x, y = dependent(30)
    result = permutation_test(x, y, permutations=40, seed=3)
    expected = [hsic(x, y[pi], Gaussian(), Gaussian(), "unbiased") for pi in permutations_of(30, 40, 3)]
    torch.testing.assert_close(result.null, torch.stack(expected[1:]), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("permutations, out_of", [(1, 12), (11, 12), (12, 24), (999, 1008), (np.int64(23), 24)])
def test_result_says_out_of_how_many_values_its_pvalue_is(permutations, out_of):
    x, y = dependent(12)
    for test in (permutation_test, aggregated_test):
        result = test(x, y, permutations=permutations)
        assert result.out_of == 1 + len(result.null) == out_of and f"out of {out_of}" in repr(result)
        assert result.pvalue * out_of == pytest.approx(round(result.pvalue * out_of))
    assert gamma_test(x, y).out_of is None


@pytest.mark.parametrize("permutations", [3, 8, 17])  # less than n - 1, n - 1, and two random orders
def test_pvalues_are_uniform_on_their_grid(permutations):
    ranks = []
    for seed in range(900):
        result = permutation_test(normal(9, 1, seed), normal(9, 1, 10_000 + seed), permutations=permutations, seed=seed)
        ranks.append(round(result.pvalue * result.out_of))
    counts = np.bincount(ranks, minlength=result.out_of + 1)[1:]
    assert stats.chisquare(counts).pvalue > 0.001


def test_ties_of_discrete_samples_are_counted_exactly():
    """For two binary samples the statistic depends only on the count of (1, 1), so ties are known exactly."""
    for seed, n in enumerate((5, 10, 37, 90)):
        x, y = torch.randint(2, (2, n), generator=generator(seed)).double()
        draws = permutations_of(n, 500, seed)
        scores = {int(x @ y[pi]): float(hsic(x, y[pi], Gaussian(), Gaussian(), "unbiased")) for pi in draws}
        rows = (x + 1e4) / 3, (y - 1e4) / 3  # with rounding
        expected = np.mean([scores[int(x @ y[pi])] >= scores[int(x @ y)] - 1e-12 for pi in draws])
        assert permutation_test(x, y, permutations=500, seed=seed).pvalue == pytest.approx(expected)
        assert permutation_test(*rows, permutations=500, seed=seed).pvalue == pytest.approx(expected)


def test_order_of_a_sample_with_the_same_seed_does_not_matter():
    """A sample drawn with the test's own seed was sorted by the random order, and its near shifts resembled it."""
    x = torch.rand(150, 1, dtype=torch.float64, generator=generator())
    y = torch.sin(20 * x) + 0.3 * normal(150, 1)
    assert aggregated_test(x, y, seed=0).pvalue < 0.01 and aggregated_test(x, y, seed=1).pvalue < 0.01


def test_large_samples_take_less_memory_than_a_gram():
    code = """
import resource, torch
from hsic_lab.independence import permutation_test
x = torch.randn(2, 7000, 1, dtype=torch.float64)
permutation_test(x[0, :3000], x[1, :3000], permutations=1)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
result = permutation_test(*x)
assert result.out_of == 7000 and resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 * 1024  # of 374 MiB
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("test", SEEDED)
@pytest.mark.parametrize("n", [8, 30])
def test_pvalue_counts_the_null_and_the_observed_statistic(test, n):
    levels = torch.randint(0, 2, (n, 2), generator=generator(n)).double()  # two levels: many ties
    result = test(levels[:, 0], levels[:, 1])
    assert result.pvalue == (1 + int((result.null >= result.statistic).sum())) / (1 + len(result.null))


def test_error_for_labels_names_the_kernel_for_them():
    with pytest.raises(TypeError, match=r"y must be floating point, got torch.int64.*the kernel Delta\(\)"):
        permutation_test(normal(20, 2), torch.arange(20) % 3)


@pytest.mark.parametrize("kernel", [Linear(), Gaussian()])
def test_permutation_moments_are_those_of_all_permutations(kernel):
    x, y = normal(6, 2), normal(6, 3, 1).square()
    k, l = center(kernel(x)), center(Linear()(y))  # the diagonal of a linear kernel is not constant
    values = [float((k * l[list(pi)][:, list(pi)]).mean()) for pi in itertools.permutations(range(6))]
    mean, variance = permutation_moments(k, l)
    assert mean == pytest.approx(np.mean(values), rel=1e-10)
    assert variance == pytest.approx(np.var(values), rel=1e-10)


def test_moments_agree_with_the_published_ones_for_a_unit_diagonal():
    """Gretton et al. 2008, eq. 9 of the supplement and theorem 4: equal up to terms of relative order 1/n."""
    n, (x, y) = 300, (normal(300, 1), normal(300, 2, 1))
    k, l = Gaussian().fit(x)(x), Gaussian().fit(y)(y)
    mean, variance = permutation_moments(center(k), center(l))
    mu_x, mu_y = ((g.sum() - n) / (n * (n - 1)) for g in (k, l))
    squares = (center(k) * center(l) / 6).square()
    squares = (squares.sum() - squares.diagonal().sum()) / (n * (n - 1))
    published = 72 * (n - 4) * (n - 5) / (n * (n - 1) * (n - 2) * (n - 3)) * squares
    assert mean == pytest.approx(float((1 + mu_x * mu_y - mu_x - mu_y) / n), rel=0.01)
    assert variance == pytest.approx(float(published), rel=0.1)  # theirs is estimated from the pairs as observed


@pytest.mark.parametrize("kernel", [Linear(), Gaussian()])
@pytest.mark.parametrize("test", [gamma_test, spectral_test])
def test_approximate_pvalues_are_near_the_exact_ones(test, kernel):
    for seed in range(10):
        x, y = normal(100, 2, seed), normal(100, 2, 100 + seed)
        exact = permutation_test(x, y, kernel, kernel, permutations=4000).pvalue
        assert test(x, y, kernel, kernel).pvalue == pytest.approx(exact, abs=0.06)


def test_small_pvalues_of_the_gamma_test_are_not_rounded_to_zero():
    x = normal(400, 1)
    assert 0 < gamma_test(x, x).pvalue < 1e-20


def test_weighted_chi_squares_have_the_mean_and_variance_of_their_weights():
    a, b = 0.5 ** torch.arange(12.0), torch.tensor([3.0, 1.0, 0.0])
    draws = weighted_chi_squares(a, b, 100_000, generator())
    variance = float(2 * a.square().sum() * b.square().sum())
    assert float(draws.mean()) == pytest.approx(float(a.sum() * b.sum()), abs=4 * (variance / 1e5) ** 0.5)
    assert float(draws.var()) == pytest.approx(variance, rel=0.05)


def test_block_statistic_is_the_mean_of_unbiased_hsic_over_shuffled_blocks():
    x, y = dependent(26)
    result = block_test(x, y, Linear(), Linear(), block_size=5, seed=2)
    order = torch.randperm(26, generator=seeded(2))
    values = [hsic(x[b], y[b], estimator="unbiased") for b in order[:25].view(5, 5)]
    score = np.mean(values) / stats.sem(values)
    assert result.statistic == pytest.approx(np.mean(values), rel=1e-9)
    assert result.pvalue == pytest.approx(stats.t(4).sf(score), rel=1e-9)


def test_blocks_that_differ_by_rounding_count_as_equal():
    x = (torch.arange(100) % 2).double()
    for seed in range(5):  # their spread says nothing about their positive mean
        with pytest.raises(ValueError, match=r"all 2 blocks have HSIC 0\.\d+: take another block_size"):
            block_test(x, 3 * x + 0.1, block_size=50, seed=seed)


def test_block_test_finds_dependence_in_sorted_rows():
    x = torch.linspace(-3, 3, 2000, dtype=torch.float64)
    assert block_test(x, x.square()).pvalue < 1e-4


# Many bandwidths


def test_aggregated_over_one_pair_is_the_permutation_test():
    for seed in range(5):
        x, y = normal(40, 1, seed), normal(40, 1, 50 + seed)
        single = permutation_test(x, y, permutations=99, seed=seed)
        assert aggregated_test(x, y, scales=np.ones(1), permutations=99, seed=seed).pvalue == single.pvalue


def level_by_bisection(shares, level):
    """The largest u, to 2^-50, for which at most `level` of the pairings have a share `(m, N)` of u or less."""
    low, high = 0.0, 1.0
    for _ in range(50):
        u = (low + high) / 2
        low, high = (u, high) if float((shares <= u).any(dim=0).double().mean()) <= level else (low, u)
    return low


def test_aggregated_rejects_where_bisection_for_the_level_rejects():
    """HSICAgg's u on the same pairings; the tie-break may reject only if the smallest share is the next one above u."""
    scales, decisions = (0.5, 1.0, 2.0), []
    for seed in range(6):
        x, y = normal(20, 1, seed), normal(20, 1, 50 + seed)
        y = y + (x.square() if seed % 2 else 0)
        result = aggregated_test(x, y, scales=scales, permutations=199, seed=seed)
        kernels_x, kernels_y = ([Gaussian(s * Gaussian().fit(z).bandwidth) for s in scales] for z in (x, y))
        values = torch.stack(
            [
                torch.stack([hsic(x, y[pi], k, l, "unbiased") for pi in permutations_of(20, 199, seed)])
                for k, l in itertools.product(kernels_x, kernels_y)
            ]
        )
        shares = (values[:, None, :] >= values[:, :, None] - 1e-12).double().mean(dim=2)
        np.testing.assert_allclose(result.components["pvalue"], shares[:, 0], atol=1e-12)
        smallest = shares.amin(dim=0)
        for level in (0.05, 0.1, 0.3):
            u = level_by_bisection(shares, level)
            rejects = float(smallest[0]) <= u
            decisions.append(rejects)
            following = smallest[smallest > u].min()
            assert (result.pvalue <= level) == rejects or (not rejects and smallest[0] == following)
    assert 0 < sum(decisions) < len(decisions)


def test_aggregated_finds_the_scale_that_one_bandwidth_misses():
    x = torch.rand(150, 1, dtype=torch.float64, generator=generator())
    y = torch.sin(20 * x) + 0.3 * normal(150, 1)
    assert permutation_test(x, y).pvalue > 0.05 > 0.01 > aggregated_test(x, y).pvalue


# Groups


def test_groups_remove_the_dependence_that_they_explain_and_no_other():
    groups = np.repeat(np.arange(4), 25)
    shift = 3 * torch.from_numpy(groups)[:, None].double()
    x, y = normal(100, 1, 2) + shift, normal(100, 1, 22) + shift
    for test in (permutation_test, aggregated_test):
        assert test(x, y).pvalue < 0.01
        assert test(x, y, groups=groups).pvalue > 0.05
        assert test(x, y + (x - shift), groups=groups).pvalue < 0.01
        assert "within groups" in test(x, y, groups=groups).method


# Series


def autoregressive(seed, n=400, slope=0.0):
    series, noise = np.zeros((2, n)), np.random.default_rng(seed).normal(size=(2, n))
    for t in range(1, n):
        series[:, t] = 0.9 * series[:, t - 1] + noise[:, t]
    return series[0], series[1] + slope * series[0]


def test_shift_test_scores_the_shifts_in_time_outside_the_guard():
    x, y = autoregressive(0, n=25)
    k, l = (Gaussian()(torch.from_numpy(z)).numpy() for z in (x, y))
    values = [direct(k, l, np.roll(np.arange(25), -s)) for s in range(25)]
    result = shift_test(x, y, guard=4)
    assert result.statistic == pytest.approx(values[0], rel=1e-9) and result.out_of == 19
    np.testing.assert_allclose(result.null, values[4:22], rtol=1e-7, atol=1e-12)
    assert result.pvalue == np.mean([value >= values[0] - 1e-12 for value in [values[0], *values[4:22]]])


def test_independent_series_are_rejected_by_permutations_but_not_by_shifts_in_time():
    pvalues = np.array(
        [
            (
                permutation_test(*autoregressive(seed), permutations=99, seed=seed).pvalue,
                shift_test(*autoregressive(seed), guard=40).pvalue,
                shift_test(*autoregressive(seed, slope=1.0), guard=40).pvalue,
            )
            for seed in range(100)
        ]
    )
    rejected = (pvalues <= 0.05).sum(axis=0)
    assert rejected[0] > 50 and rejected[1] <= stats.binom.ppf(0.995, 100, 0.05) and rejected[2] > 80


@pytest.mark.parametrize("guard, error", [(0, ValueError), (11, ValueError), (2.0, TypeError), ("3", TypeError)])
def test_a_guard_that_is_not_accepted_is_quoted(guard, error):
    with pytest.raises(error, match=f"guard.*got {guard!r}"):
        shift_test(normal(20, 1), normal(20, 1, 1), guard=guard)


# Several samples


@pytest.mark.parametrize("kernels", [[Gaussian(1.0), Linear(), Gaussian(0.5)], [Gaussian(1.0)] * 2], ids=len)
def test_joint_test_compares_dhsic_with_its_permuted_values(kernels):
    samples = [normal(4, 1, seed) for seed in range(len(kernels))]
    result = dhsic_test(*samples, kernels=kernels, permutations=10)
    assert result.statistic == pytest.approx(float(dhsic(*samples, kernels=kernels)), abs=1e-12)
    orders = itertools.product(itertools.permutations(range(4)), repeat=len(kernels) - 1)
    values = [
        float(dhsic(samples[0], *(z[[*o]] for z, o in zip(samples[1:], some, strict=True)), kernels=kernels))
        for some in orders
    ]
    distances = np.abs(np.array(values)[:, None] - result.null.numpy()).min(axis=0)
    assert distances.max() < 1e-12 and result.out_of == 12


def test_joint_test_finds_what_pairs_do_not_show_and_holds_its_level():
    bits = torch.randint(2, (2, 60), generator=generator())
    assert dhsic_test(*bits, bits[0] ^ bits[1], kernels=[Delta()] * 3, permutations=199).pvalue == 1 / 200
    pvalues = [
        dhsic_test(*(normal(7, 1, 3 * s + j) for j in range(3)), permutations=19, seed=s).pvalue for s in range(600)
    ]
    assert_level({a: int((np.array(pvalues) <= a).sum()) for a in (0.05, 0.2)}, draws=600)


# Level; benchmarks/independence.py has more measurements.

FAMILIES = {
    "normal": lambda n, g: (g.normal(size=(n, 2)), g.normal(size=(n, 1))),
    "heavy-tailed": lambda n, g: (np.clip(g.standard_cauchy((n, 1)), -1e6, 1e6), g.standard_t(2, (n, 1))),
    "discrete": lambda n, g: (g.poisson(2.0, (n, 1)).astype(float), g.integers(0, 6, (n, 2)).astype(float)),
    "tied": lambda n, g: (g.integers(0, 2, (n, 1)).astype(float), g.normal(size=(n, 1)).round(1)),
    "sorted": lambda n, g: (np.sort(g.normal(size=(n, 1)), axis=0), g.exponential(size=(n, 1))),
    "unequal-scale": lambda n, g: (g.normal(size=(n, 2)) * [1e-4, 1e-3], 1e4 * g.normal(size=(n, 3)) + 1e6),
}


def rejections(run, n, families, draws):
    pvalues = []
    for i in range(draws):
        x, y = FAMILIES[families[i % len(families)]](n, np.random.default_rng([n, i]))
        pvalues.append(run(torch.from_numpy(x), torch.from_numpy(y), i).pvalue)
    return {level: int((np.array(pvalues) <= level + 1e-12).sum()) for level in (0.1, 0.05, 0.01)}


def assert_level(counts, draws, conservative=False):
    for level, count in counts.items():
        low, high = stats.binom.interval(0.99, draws, level)
        low = 0 if conservative else low
        assert low <= count <= high, f"{count} of {draws} at {level}"


EXACT = {
    "permutation": lambda x, y, i: permutation_test(x, y, permutations=99, seed=i),
    "aggregated": lambda x, y, i: aggregated_test(x, y, None, Linear(), permutations=99, scales=(0.5, 2.0), seed=i),
    "grouped": lambda x, y, i: permutation_test(x, y, permutations=99, groups=np.arange(len(x)) % 3, seed=i),
}
APPROXIMATE = {
    "gamma": lambda x, y, i: gamma_test(x, y),
    "spectral": lambda x, y, i: spectral_test(x, y, draws=200, seed=i),
    "block": lambda x, y, i: block_test(x, y, seed=i),
}


@pytest.mark.parametrize(
    "name, n, draws",
    [*(("permutation", n, 1200) for n in (5, 8, 20)), *((name, 100, 300) for name in ("permutation", "aggregated"))]
    + [(name, 20, 300) for name in ("aggregated", "grouped")],
)
def test_exact_tests_hold_their_level(name, n, draws):
    # Few rows of few values have few statistics, and ties count against rejection.
    assert_level(rejections(EXACT[name], n, list(FAMILIES), draws), draws, conservative=n < 20)


@pytest.mark.parametrize("name", APPROXIMATE)
def test_approximate_tests_hold_their_level_at_100_rows(name):
    assert_level(rejections(APPROXIMATE[name], 100, list(FAMILIES), 300), 300, conservative=name == "block")


def test_few_blocks_of_wide_samples_hold_their_level():
    pvalues = [block_test(normal(40, 200, seed), normal(40, 200, 1000 + seed), seed=seed).pvalue for seed in range(800)]
    assert_level({level: int((np.array(pvalues) <= level).sum()) for level in (0.1, 0.05, 0.01)}, 800)


# Seeds, state, input


@pytest.mark.parametrize("test", TESTS)
def test_labels_take_the_delta_kernel(test):
    labels = torch.arange(60) % 3
    x = normal(60, 1) + 2 * labels[:, None]
    shuffled = labels[torch.randperm(60, generator=torch.Generator().manual_seed(0))]
    assert test(x, labels, None, Delta()).pvalue < 0.02 < test(x, shuffled, None, Delta()).pvalue


@pytest.mark.parametrize("test", SEEDED)
def test_result_depends_on_the_seed_only(test):
    x, y = normal(25, 1), normal(25, 2, 1)
    state = torch.random.get_rng_state()
    first, again, other = test(x, y, seed=4), test(x, y, seed=4), test(x, y, seed=5)
    assert torch.equal(first.null, again.null) and first.pvalue == again.pvalue
    assert not torch.equal(first.null, other.null) and first.statistic == pytest.approx(other.statistic, rel=0.3)
    assert torch.equal(state, torch.random.get_rng_state())


@pytest.mark.parametrize("test", TESTS)
def test_distance_covariance_far_from_the_origin_has_the_same_pvalue(test):
    (x, y), kernel = dependent(60), DistanceInduced()
    assert test(x + 1e8, y - 1e8, kernel, kernel).pvalue == pytest.approx(test(x, y, kernel, kernel).pvalue, rel=1e-3)


@pytest.mark.parametrize("test", TESTS)
def test_scale_and_container_do_not_matter(test):
    x, y = dependent(60)
    expected = test(x, y).pvalue
    assert test(x[:, 0], y.numpy()).pvalue == expected
    assert test(1e-5 * x, 1e5 * y).pvalue == pytest.approx(expected, rel=1e-6)
    assert test(x.clone().requires_grad_(), y).pvalue == expected


@pytest.mark.parametrize("kernel", [None, Linear()])
@pytest.mark.parametrize("test", TESTS)
def test_a_constant_is_independent_of_everything(test, kernel):
    x, constant = normal(30, 2), torch.full((30, 2), 0.1, dtype=torch.float64)
    for pair in ((x, constant), (constant, x), (constant, constant)):
        result = test(*pair, kernel, kernel)
        assert result.pvalue == 1 and "degenerate: every draw has this statistic" in result.method
        assert result.statistic == pytest.approx(0, abs=0.01 if test is aggregated_test else 0)
    x, constant = x.repeat(2, 1), constant.repeat(2, 1)
    result = test(torch.cat([x, constant], dim=1), x, kernel, kernel)
    assert result.pvalue < 0.05 and "degenerate" not in result.method  # one such column suffices


def test_labels_that_all_differ_are_called_degenerate():
    result = permutation_test(*dependent(30), Delta())
    assert result.pvalue == 1 and "degenerate" in result.method


@pytest.mark.parametrize(
    "test, n", [(permutation_test, 3), (aggregated_test, 3), (gamma_test, 3), (spectral_test, 3), (block_test, 7)]
)
def test_too_few_rows_are_refused(test, n):
    with pytest.raises(ValueError, match=f"got {n}"):
        test(normal(n, 1), normal(n, 1, 1))


@pytest.mark.parametrize("test", TESTS)
@pytest.mark.parametrize(
    "change, error, words",
    [
        (lambda x: x[:-1], ValueError, "20 and 19"),
        (lambda x: x.index_fill(0, torch.tensor([3]), torch.nan), ValueError, "1 values that are NaN"),
        (lambda x: "text", TypeError, "got 'text'"),
        (lambda x: (10 * x).long(), TypeError, "int64"),
        (lambda x: x[:, :, None], ValueError, r"\(20, 1, 1\)"),
    ],
)
def test_samples_that_are_not_accepted_are_quoted(test, change, error, words):
    with pytest.raises(error, match=words):
        test(normal(20, 1), change(normal(20, 1, 1)))


@pytest.mark.parametrize("test", TESTS)
@pytest.mark.parametrize("units, kernel", [(6e40, Polynomial(8)), (1e200, DistanceInduced())], ids=repr)
def test_a_kernel_that_overflows_has_no_pvalue(test, units, kernel):
    x, y = (units * (2 + normal(50, 1, seed)) for seed in (0, 1))
    for pair, kernels in (((x, y / units), (kernel, None)), ((y / units, x), (None, kernel))):
        with pytest.raises(ValueError, match=r"leaves the range of torch\.float64"):
            test(*pair, *kernels)


@pytest.mark.parametrize("test", TESTS)
def test_large_float32_values_do_not_overflow(test):
    x, y = (1e20 * (2 + normal(50, 1, seed)).float() for seed in (0, 1))
    assert test(x, y).pvalue == pytest.approx(test(x / 1e20, y / 1e20).pvalue, rel=0.02) and test(x, y).pvalue > 0.01


# Nearly diagonal Grams: all pairings of distinct rows have the same statistic, up to rounding.
@pytest.mark.parametrize("test", [permutation_test, aggregated_test])
@pytest.mark.parametrize("n", [5, 43, 49, 50, 64, 100, 129])
def test_pairings_with_equal_statistics_are_ties(test, n):
    labels, one_hot = torch.arange(n), torch.eye(n)
    for sample, kernel in ((labels, Delta()), (one_hot, None), (one_hot, Gaussian(0.1)), (9 * one_hot, Gaussian(1.0))):
        assert test(sample, sample[torch.randperm(n)], kernel, kernel, permutations=99).pvalue == 1


def exact_pvalue(x, y, kernel, permutations, seed=0):
    """p-value of whole numbers, from multiples of unbiased HSIC in Python's integers, with all ties."""
    n = len(x)
    k, l = (np.outer(z, z) for z in (np.array([int(v) for v in z], dtype=object) for z in (x, y)))
    if isinstance(kernel, Polynomial):
        k, l = (k + int(kernel.offset)) ** kernel.degree, (l + int(kernel.offset)) ** kernel.degree
    k[np.arange(n), np.arange(n)] = l[np.arange(n), np.arange(n)] = 0
    values = []
    for order in permutations_of(n, permutations, seed).numpy():
        m = l[np.ix_(order, order)]
        rows = (k.sum(axis=1) * m.sum(axis=1)).sum()
        values.append((n - 1) * (n - 2) * (k * m).sum() + k.sum() * m.sum() - 2 * (n - 1) * rows)
    return sum(value >= values[0] for value in values) / len(values)


@pytest.mark.parametrize("offset", [0, 1000, 300_000])
@pytest.mark.parametrize("kernel", [Linear(), Polynomial(2), Polynomial(3)], ids=repr)
def test_ties_of_whole_numbers_are_exact_far_from_zero(kernel, offset):
    for seed in range(8):
        x, noise = torch.randint(3, (2, 30), generator=generator(seed)).double()
        y = (x + noise).clamp(max=2)
        y = y if seed % 2 else noise
        expected = exact_pvalue(offset + x, offset + y, kernel, 89)
        pvalue = permutation_test(offset + x, offset + y, kernel, kernel, permutations=89).pvalue
        # Far from 0 a polynomial has values that differ by less than its rounding; they may only count as ties.
        assert expected <= pvalue <= expected + (0.03 if offset == 300_000 and kernel != Linear() else 0)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("test", TESTS)
@pytest.mark.parametrize("kernel", [Linear(), Linear() + Gaussian(), Polynomial(2)], ids=repr)
def test_dependence_is_found_in_unix_time(test, kernel):
    x = normal(100, 1)
    assert test(1.7e9 + 3600 * x, x + 0.5 * normal(100, 1, 1), kernel, Linear()).pvalue < 0.02


@pytest.mark.parametrize("kernel", [Linear(), Gaussian(), Gaussian(1e4)], ids=repr)
@pytest.mark.parametrize("offset", [0, 1e4, 1e6, 1e7])
def test_joint_test_of_two_samples_ignores_the_origin(kernel, offset):
    x = normal(100, 1)
    y = x + 0.5 * normal(100, 1, 1)
    result = dhsic_test(offset + x, offset + y, kernels=[kernel] * 2, permutations=499)
    assert result.pvalue == 0.002 and result.statistic == pytest.approx(hsic(x, y, kernel, kernel).item(), rel=1e-6)


def test_rounding_is_never_a_silent_pvalue():
    x, y = normal(100, 1), normal(100, 1) + normal(100, 1, 1)
    for kernel, far in ((Gaussian(1e9), 0), (Polynomial(2), 1e9)):
        for test in (permutation_test, aggregated_test, shift_test):
            with pytest.warns(UserWarning, match="equal up to rounding"):
                test(far + x, y, kernel, **({"guard": 5} if test is shift_test else {}))
        for test in (gamma_test, spectral_test):
            with pytest.raises(ValueError, match="is constant on this sample up to rounding"):
                test(far + x, y, kernel)


@pytest.mark.parametrize("scale", [1e-100, 1e-70, 1e70, 1e78, 1e100])
@pytest.mark.parametrize("test", [*TESTS, dhsic_test])
def test_units_do_not_matter_within_the_range(test, scale):
    x, y, kernels = normal(60, 1), normal(60, 1) + normal(60, 1, 1), (Linear(), Linear())
    options = {"kernels": kernels} if test is dhsic_test else dict(zip(("kernel_x", "kernel_y"), kernels, strict=True))
    if 1e-80 < scale < 1e75:
        assert test(scale * x, scale * y, **options).pvalue == pytest.approx(test(x, y, **options).pvalue, rel=1e-6)
    else:
        with pytest.raises(ValueError, match=r"the range of (torch\.)?float64"):
            test(scale * x, scale * y, **options)


@pytest.mark.parametrize("n", [44, 64])
def test_level_holds_if_the_diagonals_dominate(n):
    rejected = {"narrow": 0, "many labels": 0}
    for seed in range(60):
        x, y = normal(n, 6, 2 * seed).float(), normal(n, 6, 2 * seed + 1).float()
        generator = torch.Generator().manual_seed(seed)
        few = [torch.randint(20 * n, (n,), generator=generator) for _ in range(2)]
        for name, pair, kernel in (("narrow", (x, y), Gaussian(0.1)), ("many labels", few, Delta())):
            result = permutation_test(*pair, kernel, kernel, permutations=99, seed=seed)
            rejected[name] += result.pvalue <= 0.05
    assert max(rejected.values()) <= stats.binom.ppf(0.999, 60, 0.05)


@pytest.mark.parametrize(
    "test, options, words",
    [
        (dhsic_test, {"kernels": Delta()}, "kernels must be of type list or tuple, got Delta"),
        *((test, {"permutations": 0}, "got 0") for test in (permutation_test, aggregated_test, dhsic_test)),
        *((test, {"seed": -1}, "seed.*got -1") for test in (*SEEDED, block_test, dhsic_test)),
        *((test, {"groups": np.zeros(19)}, r"\(20,\).*\(19,\)") for test in (permutation_test, aggregated_test)),
        *((test, {"groups": np.arange(20)}, "20 groups for 20 rows") for test in (permutation_test, aggregated_test)),
        (permutation_test, {"groups": np.full(20, np.nan)}, "20 labels that are NaN"),
        (aggregated_test, {"scales": ()}, "scales"),
        (aggregated_test, {"scales": -0.5}, "each of scales must be a number above 0, got -0.5"),
        (aggregated_test, {"scales": (1.0, -2.0)}, "-2.0"),
        (aggregated_test, {"scales": "abc"}, "scales .* got 'abc'"),
        (aggregated_test, {"scales": ("a",)}, "each of scales must be a number above 0, got 'a'"),
        (spectral_test, {"draws": 0}, "got 0"),
        (block_test, {"block_size": 3}, "got 3"),
        (block_test, {"block_size": 11}, "got 11"),
    ],
)
def test_options_that_are_not_accepted_are_quoted(test, options, words):
    with pytest.raises((TypeError, ValueError), match=words):
        test(normal(20, 1), normal(20, 1, 1), **options)


@pytest.mark.parametrize("value", ["1", 10.0, True, None, [99]])
def test_whole_numbers_of_another_type_are_refused(value):
    options = {"permutations": (permutation_test, aggregated_test, dhsic_test), "draws": (spectral_test,)}
    options |= {"seed": (*SEEDED, block_test, dhsic_test)}
    for name, test in ((name, test) for name, tests in options.items() for test in tests):
        with pytest.raises(
            TypeError, match=rf"{name} must be an integer of at least [01], got {re.escape(repr(value))}"
        ):
            test(normal(20, 1), normal(20, 1, 1), **{name: value})
        assert test(normal(20, 1), normal(20, 1, 1), **{name: np.int64(9)}).pvalue > 0


@pytest.mark.parametrize("test", TESTS)
def test_plot_shows_the_statistic_and_the_null(test):
    result = test(*dependent(40))
    ax = result.plot()
    assert ax.lines[-1].get_xdata()[0] == result.statistic
    assert ax.patches or ax.collections
    other = plt.subplots()[1]
    assert result.plot(other) is other
    plt.close("all")


def test_only_plot_imports_matplotlib():
    code = "import sys, torch; from hsic_lab.independence import gamma_test; gamma_test(torch.rand(9), torch.rand(9)); "
    code += "assert 'matplotlib' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("test", TESTS)
def test_a_gpu_gives_the_same_answer(test):
    x, y = dependent(60)
    assert test(x.cuda(), y.cuda()).pvalue == pytest.approx(test(x, y).pvalue, abs=1e-3)


def test_results_can_be_compared_and_collected():
    x, y = normal(20, 1), normal(20, 1, 1)
    result = permutation_test(x, y)
    assert result == result and result != permutation_test(x, y) and result in [result]


def test_each_kernel_of_a_joint_test_may_be_left_out():
    x, labels = normal(30, 1), torch.arange(30) % 3
    found, expected = (dhsic_test(x, labels, kernels=[kernel, Delta()]) for kernel in (None, Gaussian()))
    assert torch.equal(found.null, expected.null)
    assert dhsic(x, labels, kernels=[None, Delta()]) == dhsic(x, labels, kernels=[Linear(), Delta()])


def test_missing_groups_are_counted():
    with pytest.raises(ValueError, match="groups holds 10 missing values"):
        permutation_test(normal(20, 1), normal(20, 1, 1), groups=["a", None] * 10)


def test_small_pvalues_of_the_gamma_distribution_are_too_small_for_few_skewed_rows():
    pvalues = []
    for seed in range(2000):
        x, y = -torch.rand(2, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).log()
        pvalues.append(gamma_test(x**3, y**3).pvalue)
    assert sum(p <= 0.01 for p in pvalues) > stats.binom.ppf(0.999, 2000, 0.01)

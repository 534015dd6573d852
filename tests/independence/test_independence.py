"""Tests of independence: exact values of statistic and null, and the measured level of every test."""

import itertools
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
from hsic_lab.independence import aggregated_test, block_test, gamma_test, permutation_test, spectral_test
from hsic_lab.independence._approximate import permutation_moments, weighted_chi_squares
from hsic_lab.kernels import Delta, Gaussian, Linear, Polynomial

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


@pytest.mark.parametrize("kernels", [(None, None), (Linear(), Gaussian(0.7))])
@pytest.mark.parametrize(
    "test, estimator", [(permutation_test, "unbiased"), (gamma_test, "biased"), (spectral_test, "biased")]
)
def test_statistic_is_hsic(test, estimator, kernels):
    x, y = dependent(40)
    expected = hsic(x, y, *(kernel or Gaussian() for kernel in kernels), estimator=estimator)
    assert test(x, y, *kernels).statistic == pytest.approx(float(expected), rel=1e-10)


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


def test_block_test_finds_dependence_in_sorted_rows():
    x = torch.linspace(-3, 3, 2000, dtype=torch.float64)
    assert block_test(x, x.square()).pvalue < 1e-4


# Many bandwidths


def test_aggregated_over_one_pair_is_the_permutation_test():
    for seed in range(5):
        x, y = normal(40, 1, seed), normal(40, 1, 50 + seed)
        single = permutation_test(x, y, permutations=99, seed=seed)
        assert aggregated_test(x, y, scales=(1.0,), permutations=99, seed=seed).pvalue == single.pvalue


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


# Level; benchmarks/independence.py has more measurements.

FAMILIES = {
    "heavy-tailed": lambda n, g: (np.clip(g.standard_cauchy((n, 1)), -1e6, 1e6), g.standard_t(2, (n, 1))),
    "discrete": lambda n, g: (g.poisson(2.0, (n, 1)).astype(float), g.integers(0, 6, (n, 2)).astype(float)),
    "unequal-scale": lambda n, g: (g.normal(size=(n, 2)) * [1e-4, 1e-3], 1e4 * g.normal(size=(n, 3)) + 1e6),
}


def rejections(run, n, families, draws=1000):
    pvalues = []
    for i in range(draws):
        x, y = FAMILIES[families[i % len(families)]](n, np.random.default_rng([n, i]))
        pvalues.append(run(torch.from_numpy(x), torch.from_numpy(y), i).pvalue)
    return {level: int((np.array(pvalues) <= level + 1e-12).sum()) for level in (0.05, 0.01)}


def assert_level(counts, draws=1000, conservative=False):
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
    "name, n, families",
    [
        *(("permutation", 20, [family]) for family in FAMILIES),
        *((name, 20, list(FAMILIES)) for name in ("aggregated", "grouped")),
        *((name, 100, list(FAMILIES)) for name in ("permutation", "aggregated")),
    ],
)
def test_exact_tests_hold_their_level(name, n, families):
    assert_level(rejections(EXACT[name], n, families))


@pytest.mark.parametrize("name", APPROXIMATE)
def test_approximate_tests_hold_their_level_at_100_rows(name):
    assert_level(rejections(APPROXIMATE[name], 100, list(FAMILIES)), conservative=name == "block")


def test_independent_series_are_rejected_far_too_often():
    """Rows of a series are not exchangeable; the docstring of `permutation_test` says so."""
    rejected = 0
    for seed in range(20):
        series = np.zeros((2, 300))
        noise = np.random.default_rng(seed).normal(size=series.shape)
        for t in range(1, 300):
            series[:, t] = 0.9 * series[:, t - 1] + noise[:, t]
        rejected += permutation_test(*series, permutations=99, seed=seed).pvalue <= 0.05
    assert rejected >= 10


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
        assert result.pvalue == 1
        assert result.statistic == pytest.approx(0, abs=0.01 if test is aggregated_test else 0)
    x, constant = x.repeat(2, 1), constant.repeat(2, 1)
    assert test(torch.cat([x, constant], dim=1), x, kernel, kernel).pvalue < 0.05  # one such column suffices


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
        (lambda x: x.tolist(), TypeError, "got list"),
        (lambda x: (10 * x).long(), TypeError, "int64"),
        (lambda x: x[:, :, None], ValueError, r"\(20, 1, 1\)"),
    ],
)
def test_samples_that_are_not_accepted_are_quoted(test, change, error, words):
    with pytest.raises(error, match=words):
        test(normal(20, 1), change(normal(20, 1, 1)))


@pytest.mark.parametrize("test", TESTS)
@pytest.mark.parametrize("units, kernel", [(6e40, Polynomial(8)), (1e200, Gaussian())], ids=repr)
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
        *((test, {"permutations": 0}, "got 0") for test in (permutation_test, aggregated_test)),
        *((test, {"groups": np.zeros(19)}, r"\(20,\).*\(19,\)") for test in (permutation_test, aggregated_test)),
        *((test, {"groups": np.arange(20)}, "20 groups for 20 rows") for test in (permutation_test, aggregated_test)),
        (permutation_test, {"groups": np.full(20, np.nan)}, "20 labels that are NaN"),
        (aggregated_test, {"scales": ()}, "scales"),
        (aggregated_test, {"scales": (1.0, -2.0)}, "-2.0"),
        (spectral_test, {"draws": 0}, "got 0"),
        (block_test, {"block_size": 3}, "got 3"),
        (block_test, {"block_size": 11}, "got 11"),
    ],
)
def test_options_that_are_not_accepted_are_quoted(test, options, words):
    with pytest.raises(ValueError, match=words):
        test(normal(20, 1), normal(20, 1, 1), **options)


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

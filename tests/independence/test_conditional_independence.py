"""Tests of independence within groups and given a continuous variable."""

import itertools

import numpy as np
import pytest
import torch
from scipy import stats

from hsic_lab.independence import aggregated_test, conditional_test, permutation_test
from hsic_lab.independence._approximate import RIDGES, SCALES
from hsic_lab.kernels import Delta, Gaussian, Linear

TESTS = {
    "grams": permutation_test,
    "aggregated": lambda *args, **options: aggregated_test(*args, scales=(0.5, 1.0), **options),
}
each_test = pytest.mark.parametrize("test", TESTS.values(), ids=TESTS)


def grouped(n, seed, slope):
    """x and y rise from group to group; within a group y has the given slope in x."""
    rng = np.random.default_rng(seed)
    group = rng.integers(3, size=n)
    within, noise = rng.normal(size=(2, n))
    return 2 * group + within, 2 * group + slope * within + 0.6 * noise, group


@each_test
@pytest.mark.parametrize("slope", [-0.6, 0.6])
def test_dependence_that_opposes_the_groups_is_found(test, slope):
    x, y, group = grouped(200, 0, slope)
    assert test(x, y, permutations=199, groups=group).pvalue == 1 / 200


@each_test
def test_level_holds_if_only_the_group_is_shared(test):
    rejected = 0
    for seed in range(200):
        x, y, group = grouped(30, seed, slope=0.0)
        rejected += test(x, y, permutations=19, groups=group, seed=seed).pvalue <= 0.05
    assert 1 <= rejected <= 10 + 4 * (200 * 0.05 * 0.95) ** 0.5  # 10 are expected


@pytest.mark.parametrize("kernel", [Linear(), Gaussian(1.3)], ids=repr)
def test_statistic_is_unbiased_hsic_of_grams_centered_within_groups(kernel):
    x, y, group = grouped(40, 3, slope=-0.3)
    h = np.eye(40)
    for g in np.unique(group):
        h[np.ix_(group == g, group == g)] -= 1 / (group == g).sum()
    k, el = (h @ kernel(torch.from_numpy(z)).numpy() @ h for z in (x, y))
    for gram in (k, el):
        np.fill_diagonal(gram, 0)
    expected = (k * el).sum() + k.sum() * el.sum() / (39 * 38) - 2 / 38 * k.sum(axis=0) @ el.sum(axis=0)
    expected /= 40 * 37
    found = permutation_test(x, y, kernel, kernel, permutations=9, groups=group)
    assert found.statistic == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    "groups", [[0, 0, 1, 1, 1, 2], [0, 1, 0, 1, 0, 1], [3, 1, 1, 2, 2, 2, 2], list("aaaaaab")], ids=str
)
def test_null_is_the_statistic_of_permutations_within_groups(groups):
    n, groups = len(groups), np.array(groups)
    x, y = np.random.default_rng(0).normal(size=(2, n))
    result = permutation_test(x, y, permutations=60, groups=groups)
    orders = [pi for pi in map(list, itertools.permutations(range(n))) if (groups[pi] == groups).all()]
    kernels = [Gaussian().fit(torch.from_numpy(z)[:, None]) for z in (x, y)]
    expected = [permutation_test(x, y[pi], *kernels, permutations=1, groups=groups).statistic for pi in orders]
    distances = np.abs(np.array(expected)[:, None] - result.null.numpy())
    assert distances.min(axis=0).max() < 1e-13 and result.out_of >= 61
    # Every permutation is as likely as any other.
    result = permutation_test(x, y, permutations=2000, groups=groups)
    values, counts = np.unique(np.round(expected, 12), return_counts=True)
    found = np.abs(values[:, None] - result.null.numpy()).argmin(axis=0)
    shares = np.bincount(found, minlength=len(values)) / len(found)
    assert np.abs(shares - counts / len(orders)).max() < 0.06


@each_test
def test_constant_within_groups_is_independent_within_groups(test):
    _, y, group = grouped(60, 1, slope=0.5)
    assert test(0.1 * group, y, permutations=19, groups=group).pvalue == 1


# Given a continuous variable


def normal(n, p=None, seed=0):
    return np.random.default_rng(seed).normal(size=n if p is None else (n, p))


# z, and what x and y are at conditional independence
CONFOUNDED = {
    "linear": lambda z, e, f: (2 * z + 0.3 * e, -z + 0.3 * f),
    "curved": lambda z, e, f: (z**2 + 0.3 * e, np.sin(2 * z) + z**2 + 0.3 * f),
    "spread": lambda z, e, f: (z + np.abs(z) * e, z**2 + np.exp(z / 2) * f),
    "three columns": lambda z, e, f: (z.sum(axis=-1) + 0.5 * e, z.sum(axis=-1) + 0.5 * f),
    "heavy-tailed": lambda z, e, f: (z + 0.5 * e, z - 0.5 * f),
}


def confounded(name, n, seed):
    rng = np.random.default_rng([n, seed])
    z = rng.normal(size=(n, 3)) if name == "three columns" else rng.normal(size=n)
    z = rng.standard_t(2, size=n) if name == "heavy-tailed" else z
    e, f = rng.normal(size=(2, n))
    return *CONFOUNDED[name](z, e, f), z, e


@pytest.mark.parametrize("name", CONFOUNDED)
def test_level_holds_where_only_z_is_shared(name):
    draws, rejected, found = 60, 0, 0
    for seed in range(draws):
        x, y, z, e = confounded(name, 60, seed)
        rejected += conditional_test(x, y, z, draws=99, seed=seed).pvalue <= 0.05
        if seed < 15:
            assert permutation_test(x, y, permutations=19).pvalue <= 0.1 or name == "spread"
            found += conditional_test(x, y + e, z, draws=99, seed=seed).pvalue <= 0.05
    assert rejected <= stats.binom.ppf(0.995, draws, 0.05) and found >= 12


def test_dependence_whose_sign_depends_on_z_is_found():
    (x, f), z = normal((2, 100)), normal(100, seed=1)
    assert conditional_test(x, np.sign(z) * x + 0.5 * f, z, draws=199).pvalue == 1 / 200


def test_statistic_and_null_match_numpy():
    x, y, z, _ = confounded("curved", 25, 0)
    x, y = np.stack([x, x**2], axis=1), y[:, None]

    def gram(v, scale=1.0):
        distances = np.linalg.norm(v[:, None] - v, axis=2)
        pairs = np.sort(distances[np.triu_indices(len(v), 1)])
        return np.exp(-(distances**2) / (2 * (scale * pairs[(len(pairs) - 1) // 2]) ** 2))

    def residual_matrix(k):
        """R of the least mean squared error of predicting a row from the others, each by a regression of its own."""
        least = np.inf, None
        for scale, ridge in itertools.product(SCALES, RIDGES):
            kz, error = gram(z[:, None], scale), 0.0
            for i in range(25):
                rest = np.arange(25) != i
                w = kz[i, rest] @ np.linalg.inv(kz[np.ix_(rest, rest)] + ridge * np.eye(24))
                error += k[i, i] - 2 * w @ k[rest, i] + w @ k[np.ix_(rest, rest)] @ w
            least = min(least, (error, (scale, ridge)))
        scale, ridge = least[1]
        return ridge * np.linalg.inv(gram(z[:, None], scale) + ridge * np.eye(25))

    product, h = gram(z[:, None]), np.eye(25) - 1 / 25
    for v in (x, y):
        v = v - v.mean(axis=0)
        k = h @ gram(residual_matrix(v @ v.T) @ v) @ h
        r = residual_matrix(k)
        product = product * (r @ k @ r.T)
    np.fill_diagonal(product, 0)
    result = conditional_test(x, y, z, draws=1000)
    assert result.statistic == pytest.approx(product.sum() / (25 * 24), rel=1e-6) and result.out_of == 1001
    spread = 2**0.5 * np.linalg.norm(product) / (25 * 24)  # of random signs
    assert float(result.null.std()) == pytest.approx(spread, rel=0.15)
    assert abs(float(result.null.mean())) < 4 * spread / 1000**0.5
    assert result.pvalue == (1 + int((result.null >= result.statistic).sum())) / 1001


def test_labels_constants_and_seeds():
    z = normal(80)
    labels = torch.from_numpy((z + 0.5 * normal(80, seed=1) > 0).astype(int))
    y = torch.from_numpy(z + 0.5 * normal(80, seed=2))
    assert (
        conditional_test(labels, y, z, Delta()).pvalue > 0.05 > conditional_test(labels, y + labels, z, Delta()).pvalue
    )
    assert conditional_test(np.full(80, 0.1), y, z).pvalue == 1
    first, again, other = (conditional_test(z + normal(80, seed=3), y, z, seed=s) for s in (0, 0, 1))
    assert torch.equal(first.null, again.null) and not torch.equal(first.null, other.null)
    assert first.pvalue == pytest.approx(
        conditional_test(1e6 * (z + normal(80, seed=3)), 1e-6 * y - 3, 100 - 7 * z).pvalue, abs=0.01
    )
    with pytest.raises(ValueError, match="z must have the 80 rows of x and y, on cpu, got 79"):
        conditional_test(y, y, z[1:])
    with pytest.raises(TypeError, match=r"z must be floating point, got torch.int64.*the kernel Delta"):
        conditional_test(y, y, labels)


@pytest.mark.parametrize("unit", [2.0**-530, 2.0**530])
def test_regressions_are_those_of_any_unit(unit):
    x, y, z = (normal(40, 1, seed) for seed in range(3))
    assert conditional_test(unit * x, y, z).pvalue == conditional_test(x, y, z).pvalue


def test_level_is_too_high_with_few_rows():
    rejected = 0
    for seed in range(300):  # the noise of both samples grows with z
        z, a, b = torch.randn(3, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        rejected += conditional_test(z * a, z * b, z, draws=199).pvalue <= 0.05
    assert rejected > stats.binom.ppf(0.999, 300, 0.05)

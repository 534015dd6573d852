"""Tests of independence within groups."""

import itertools

import numpy as np
import pytest
import torch

from hsic_lab.independence import aggregated_test, permutation_test
from hsic_lab.kernels import Gaussian, Linear

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

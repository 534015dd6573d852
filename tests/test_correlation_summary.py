"""The numbers beside a heatmap, against NumPy written as loops and against matrices with known answers."""

import matplotlib

matplotlib.use("Agg")

import numpy as np
import pytest
import torch

from hsic_lab.correlation import (
    ORDERS,
    CorrelationSummary,
    cross_correlation,
    expected_squared_norm,
    feature_order,
    off_diagonal,
    spectrum,
)
from hsic_lab.plots._heatmaps import matrix_figure


def some_matrix(d, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, (d, d))


@pytest.mark.parametrize("d", [2, 3, 17])
def test_summary_against_loops(d):
    c, n = some_matrix(d), 40
    others = [c[i, j] for i in range(d) for j in range(d) if i != j]
    np.testing.assert_array_equal(off_diagonal(c), others)
    got = CorrelationSummary.from_matrix(torch.tensor(c), n)
    assert got.mean_diagonal == pytest.approx(sum(c[i, i] for i in range(d)) / d)
    assert got.mean_off_diagonal == pytest.approx(sum(others) / len(others))
    assert got.off_diagonal_squared_norm == pytest.approx(sum(value**2 for value in others))
    assert got.rms_off_diagonal == pytest.approx((sum(value**2 for value in others) / len(others)) ** 0.5)
    ones = np.ones(d)
    assert got.total == pytest.approx(ones @ c @ ones)
    assert (got.expected_squared_norm, got.lower_bound) == (pytest.approx(d * (d - 1) / (n - 1)), -1 / (d - 1))
    np.testing.assert_allclose(spectrum(c) ** 2, np.linalg.eigvalsh(c.T @ c)[::-1], atol=1e-5)


@pytest.mark.parametrize("n", [8, 32, 200])
def test_noise_floor_is_what_unrelated_features_show(n):
    generator = torch.Generator().manual_seed(n)
    found = []
    for _ in range(30):
        shared = torch.randn(n, 40, generator=generator, dtype=torch.float64)
        found.append(CorrelationSummary.from_matrix(cross_correlation(shared, shared + 0), n).off_diagonal_squared_norm)
    assert np.mean(found) == pytest.approx(expected_squared_norm(n, 40), rel=0.03)


def test_orders_are_permutations_that_do_what_they_say():
    c = some_matrix(30)
    for by in ORDERS:
        assert sorted(feature_order(c, by)) == list(range(30))
    np.testing.assert_array_equal(feature_order(c), np.arange(30))
    assert (np.diff(np.diagonal(c)[feature_order(c, "diagonal")]) <= 0).all()
    tied = np.eye(5)
    np.testing.assert_array_equal(feature_order(tied, "diagonal"), np.arange(5))


@pytest.mark.parametrize("seed", range(3))
def test_clustering_puts_copies_side_by_side(seed):
    group = np.random.default_rng(seed).permutation(np.repeat(np.arange(6), 5))
    c = np.where(group[:, None] == group, 0.8, 0.0) + 0.1 * some_matrix(30, seed)
    ordered = group[feature_order(c, "cluster")]
    assert (np.diff(ordered) != 0).sum() == 5  # six runs of one group each


@pytest.mark.parametrize("dead_a, dead_b", [([], []), ([1, 4, 5], [1, 4, 5]), ([0, 2], [2, 6]), (range(7), range(7))])
def test_constant_features_are_left_out_and_counted(dead_a, dead_b):
    a, b = np.random.default_rng(0).normal(size=(2, 50, 7))
    a[:, [*dead_a]], b[:, [*dead_b]] = 3, 0
    c = cross_correlation(torch.from_numpy(a), torch.from_numpy(b))
    got = CorrelationSummary.from_matrix(c, 50)
    pairs = [(i, j) for i in range(7) for j in range(7) if i not in dead_a and j not in dead_b]
    values = {(i, j): np.corrcoef(a[:, i], b[:, j])[0, 1] for i, j in pairs}
    diagonal = [value for (i, j), value in values.items() if i == j] or [0]
    others = [value for (i, j), value in values.items() if i != j] or [0]
    assert got.n_constant == len({*dead_a, *dead_b})
    assert got.mean_diagonal == pytest.approx(np.mean(diagonal))
    assert got.rms_diagonal == pytest.approx(np.mean(np.square(diagonal)) ** 0.5)
    assert got.mean_off_diagonal == pytest.approx(np.mean(others))
    assert got.rms_off_diagonal == pytest.approx(np.mean(np.square(others)) ** 0.5)
    assert got.expected_squared_norm == pytest.approx((len(others) if pairs else 0) / 49)
    live = 7 - got.n_constant
    assert got.lower_bound == (-1 / (live - 1) if live > 1 else -1)


BAD = {
    "one feature": (np.ones((1, 1)), r"\(1, 1\)"),
    "not square": (np.ones((3, 4)), r"\(3, 4\)"),
    "NaN": (np.full((3, 3), np.nan), "9 of its 9 entries"),
    "vector": (np.ones(4), r"\(4,\)"),
}


@pytest.mark.parametrize(("c", "words"), BAD.values(), ids=BAD)
def test_bad_matrices_are_refused(c, words):
    for act in (
        lambda m: CorrelationSummary.from_matrix(m, 10),
        feature_order,
        spectrum,
        lambda m: matrix_figure({"": m}, {"": 9}, 1.0, {"": np.arange(3)}),
    ):
        with pytest.raises(ValueError, match=words):
            act(c)


def test_bad_choices_are_refused():
    with pytest.raises(ValueError, match="'cluster', got 'size'"):
        feature_order(np.eye(3), "size")
    for n, d in ((1, 5), (5, 1)):
        with pytest.raises(ValueError, match=f"must be an integer of at least 2, got {min(n, d)}"):
            expected_squared_norm(n, d)
    with pytest.raises(ValueError, match="at least one"):
        matrix_figure({}, {}, 1.0, {})

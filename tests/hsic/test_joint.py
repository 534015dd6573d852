"""Joint HSIC and the matrix of HSIC against `hsic` and against definitions."""

import itertools
import math
from decimal import Decimal
from fractions import Fraction
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from hsic_lab._checks import factor_values
from hsic_lab.cka import cka
from hsic_lab.hsic import _joint as joint
from hsic_lab.hsic import dhsic, hsic, hsic_matrix
from hsic_lab.independence import dhsic_test, permutation_test
from hsic_lab.kernels import Delta, DistanceInduced, Gaussian, Laplace, Linear, Polynomial


def sample(n, p, seed=0):
    return torch.randn(n, p, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kernel", [Linear(), Gaussian(), Laplace(), DistanceInduced()], ids=repr)
def test_dhsic_with_a_constant_is_hsic_of_the_other_two(kernel):
    x, y = sample(15, 3), sample(15, 2, 1)
    constant, one = torch.ones(15, dtype=torch.float64), Delta()
    got = dhsic(x, y, constant, kernels=[kernel, kernel, one])
    torch.testing.assert_close(got, hsic(x, y, kernel, kernel), rtol=1e-10, atol=0)


def test_dhsic_is_accurate_in_float32():
    x, y, z = ((sample(400, 2, seed) + 1e3).float() for seed in range(3))
    for samples, kernels in (((x, y), [Linear()] * 2), ((x, y, z), [Gaussian(1.0)] * 3)):
        got, expected = dhsic(*samples, kernels=kernels), dhsic(*(s.double() - 1e3 for s in samples), kernels=kernels)
        assert got.dtype == torch.float32
        torch.testing.assert_close(got.double(), expected, rtol=1e-4, atol=0)


# With linear kernels of one column, dHSIC is the squared mean of the product minus the product of the means.
@pytest.mark.parametrize("offset", [0, 1e3, 1e4, 1e6])
@pytest.mark.parametrize("m", [2, 3, 4, 5])
def test_dhsic_far_from_zero_matches_exact_fractions(m, offset):
    x, y, z, noise = sample(60, 4, 7).T
    samples = [offset + column for column in (x, x + y, x * y, z + x, noise)[:m]]
    rows = [[Fraction(float(value)) for value in column] for column in samples]
    joint = sum(math.prod(row) for row in zip(*rows, strict=True)) / 60
    exact = float((joint - math.prod(sum(column) / 60 for column in rows)) ** 2)
    assert dhsic(*samples).item() == pytest.approx(exact, rel=1e-8)
    result = dhsic_test(*samples, kernels=[Linear()] * m, permutations=59)
    assert result.statistic == pytest.approx(exact, rel=1e-8)
    assert ((result.null >= 0) & (result.null != result.statistic)).all()


def test_kernels_that_are_constant_up_to_rounding_are_refused():
    x, y = sample(30, 1), sample(30, 1, 1)
    for function in (dhsic, dhsic_test):
        with pytest.raises(ValueError, match=r"Gaussian\(bandwidth=10000000000.0\) is constant on this sample"):
            function(x, y, y, kernels=[Gaussian(1.0), Gaussian(1e10), Gaussian(1.0)])


@pytest.mark.parametrize("kernels", [[Gaussian(1.0), Linear()], [Gaussian(1.0), DistanceInduced(), Linear()]], ids=repr)
def test_dhsic_is_the_squared_mmd_to_all_combinations_of_rows(kernels):
    n = 4
    samples = [sample(n, 2, seed) for seed in range(len(kernels))]
    grams = [k(x).numpy() for k, x in zip(kernels, samples, strict=True)]
    rows = [(i,) * len(kernels) for i in range(n)]
    combinations = list(itertools.product(range(n), repeat=len(kernels)))

    def mean(first, second):
        pairs = itertools.product(first, second)
        return np.mean([np.prod([g[i, j] for g, i, j in zip(grams, a, b, strict=True)]) for a, b in pairs])

    expected = mean(rows, rows) + mean(combinations, combinations) - 2 * mean(rows, combinations)
    assert dhsic(*samples, kernels=kernels).item() == pytest.approx(expected, rel=1e-12)


def test_dhsic_detects_dependence_of_pairwise_independent_variables():
    a, b = torch.randint(0, 2, (2, 400), generator=torch.Generator().manual_seed(0))
    signs = [a, b, a ^ b]  # pairwise independent, jointly dependent
    together = dhsic(*signs, kernels=[Delta()] * 3)
    pairs = [hsic(s, t, Delta(), Delta()) for s, t in itertools.combinations(signs, 2)]
    assert together > 10 * max(pairs)


def test_dhsic_gradient_matches_finite_differences_and_bad_input_is_rejected():
    samples = [sample(6, 2, seed).requires_grad_() for seed in range(3)]
    assert torch.autograd.gradcheck(lambda *s: dhsic(*s, kernels=[Gaussian(1.0)] * 3), samples)
    with pytest.raises(ValueError, match="got 1"):
        dhsic(samples[0])
    with pytest.raises(ValueError, match="2 kernels for 3"):
        dhsic(*samples, kernels=[Linear()] * 2)
    with pytest.raises(ValueError, match=r"\[6, 5\]"):
        dhsic(samples[0], samples[1][:5])
    with pytest.raises(TypeError, match=r"samples\[1\]"):
        dhsic(samples[0], torch.arange(6))


@pytest.mark.parametrize("entries", [joint._ENTRIES, 200])
@pytest.mark.parametrize("estimator", ["biased", "unbiased"])
@pytest.mark.parametrize("kernel", [None, Gaussian(), Laplace(1.0), DistanceInduced()], ids=repr)
def test_matrix_holds_hsic_of_every_pair_of_columns(kernel, estimator, entries, monkeypatch):
    monkeypatch.setattr(joint, "_ENTRIES", entries)  # 200 gives several blocks of rows
    x = sample(30, 3) + 50
    table = pd.DataFrame({"class": np.arange(30) % 4, "scale": x[:, 0] ** 2, "name": list("abc") * 10})
    got = hsic_matrix(x, table, kernel, kernel, estimator)
    columns = {"class": torch.arange(30) % 4, "scale": x[:, 0] ** 2, "name": torch.arange(30) % 3}
    for (i, column), (j, (name, other)) in itertools.product(enumerate(x.T), enumerate(columns.items())):
        kernel_y = kernel if name == "scale" else Delta()
        expected = hsic(column, other, kernel, kernel_y, estimator)
        torch.testing.assert_close(got[i, j], expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("estimator", ["biased", "unbiased"])
def test_normalized_matrix_is_one_for_equal_columns_and_zero_for_constant_ones(estimator):
    x = sample(40, 3).float()
    constant = torch.full((40, 1), 0.1)
    x_and, y_and = torch.cat([x, constant], 1), torch.cat([-3 * x, constant], 1)
    got = hsic_matrix(x_and, y_and, Gaussian(), Gaussian(), estimator, normalized=True)
    torch.testing.assert_close(got[:3, :3].diagonal(), torch.ones(3, dtype=torch.float64), atol=1e-4, rtol=0)
    assert (got[3] == 0).all() and (got[:, 3] == 0).all()
    assert got[:3, :3].triu(1).abs().max() < 0.5
    linear = hsic_matrix(x, x, normalized=True)
    np.testing.assert_allclose(linear, np.corrcoef(x.numpy(), rowvar=False) ** 2, atol=1e-5)


@pytest.mark.parametrize("estimator", ["biased", "unbiased"])
@pytest.mark.parametrize("kernel", [Linear(), Polynomial(3), Gaussian()], ids=repr)
def test_constant_column_of_many_rows_gives_exactly_zero(kernel, estimator):
    # A float32 sum over millions of equal entries has a larger rounding error than a float64 one.
    x = torch.stack([torch.full((3000,), 0.1), torch.full((3000,), 123.456), sample(3000, 1)[:, 0].float()], dim=1)
    got = hsic_matrix(x, x, kernel, kernel, estimator, normalized=True)
    assert (got[:2] == 0).all() and (got[:, :2] == 0).all()
    assert got[2, 2].item() == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("estimator", ["biased", "unbiased"])
def test_matrix_of_many_rows_is_accurate_in_float32(estimator):
    x, y = sample(3000, 2).float(), sample(3000, 2, 1).float()  # independent: HSIC is a small difference
    got = hsic_matrix(x, y, Gaussian(1.0), Gaussian(1.0), estimator)
    expected = hsic_matrix(x.double(), y.double(), Gaussian(1.0), Gaussian(1.0), estimator)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-8)


@pytest.mark.parametrize("other", [torch.arange(20) % 3, sample(20, 2).float()])
def test_columns_of_either_side_may_have_a_narrower_dtype(other):
    x = sample(20, 2)
    kernel = Linear() if other.is_floating_point() else Delta()
    expected = hsic(x[:, 0], other.reshape(20, -1)[:, 0], kernel_y=kernel)
    torch.testing.assert_close(hsic_matrix(x, other)[0, 0], expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(hsic_matrix(other, x)[0, 0], expected, rtol=1e-6, atol=0)


def test_mappings_and_frames_are_accepted_and_bad_input_is_rejected():
    x = sample(10, 2)
    factors = {"class": torch.arange(10) % 2, "x": x[:, 0]}
    assert torch.equal(hsic_matrix(x, factors), hsic_matrix(x.numpy(), pd.DataFrame(factors)))
    for error, quoted, call in (
        (ValueError, "10 and 9", lambda: hsic_matrix(x, x[:9])),
        (ValueError, "NaN", lambda: hsic_matrix(x, x * torch.nan)),
        (ValueError, "at least 4", lambda: hsic_matrix(x[:3], x[:3], estimator="unbiased")),
        (ValueError, r"lengths \[9, 10\]", lambda: hsic_matrix(x, {"a": x[:, 0], "b": x[:9, 0]})),
        (TypeError, "list", lambda: hsic_matrix(x, x.tolist())),
        (ValueError, r"different names, got \['a', 'a'\]", lambda: hsic_matrix(x, pd.DataFrame(x, columns=["a", "a"]))),
    ):
        with pytest.raises(error, match=quoted):
            call()


TIMES = pd.to_datetime(["2024-03-01 12:00", "2024-01-01", "2024-06-30 06:30", "2024-02-02"], format="ISO8601")
SECONDS = (TIMES - TIMES.min()).total_seconds()
NUMBERS = [1.5, -2.0, 7.25, 0.0]


@pytest.mark.parametrize(
    "column, expected",
    [
        *((pd.Series(NUMBERS, dtype=dtype), NUMBERS) for dtype in ("float64", "float32", "object", "Float64")),
        (pd.Series([Decimal(str(v)) for v in NUMBERS]), NUMBERS),
        (pd.Series([1, 2.5, 3, 4], dtype=object), [1, 2.5, 3, 4]),
        (np.array(NUMBERS, ">f8")[::-1], NUMBERS[::-1]),
        *((given, SECONDS) for given in (TIMES, TIMES.to_series())),
        (TIMES.tz_localize("Europe/Berlin"), SECONDS - [0, 0, 3600, 0]),  # summer time
        (pd.Series(TIMES.tz_localize("UTC")).astype(object), SECONDS),
        (pd.Series(TIMES.to_pydatetime(), dtype=object), SECONDS),
        (pd.Series(TIMES.date, dtype=object), [5184000, 0, 15638400, 2764800]),
        *((given, SECONDS) for given in (TIMES - TIMES.min(), pd.Series((TIMES - TIMES.min()).to_pytimedelta()))),
    ],
    ids=repr,
)
def test_numbers_dates_and_durations_are_numbers(column, expected):
    values, is_label = factor_values(column)
    assert not is_label and values.is_floating_point()
    np.testing.assert_allclose(values, expected, rtol=0, atol=0)
    assert hsic_matrix({"a": values}, {"b": pd.Series(column)}, normalized=True)[0, 0] == pytest.approx(1)


@pytest.mark.parametrize(
    "column",
    [
        pd.Series([3, 1, 3, 2], dtype=dtype)
        for dtype in ("int64", "uint16", "Int64", "str", "category", "object", "string")
    ]
    + [np.array(list("cacb")), np.array([b"c", b"a", b"c", b"b"]), pd.Series(list("cacb"), dtype=object)]
    + [pd.Series([30.5, 1, 30.5, 2]).astype("category"), torch.tensor([3, 1, 3, 2])],
    ids=repr,
)
def test_integers_strings_and_categories_are_labels(column):
    values, is_label = factor_values(column)
    assert is_label and not values.is_floating_point() and values[0] == values[2]
    assert len(values.unique()) == 3


@pytest.mark.parametrize(
    "column",
    [
        *(pd.Series([1.5, None, None, 2.0], dtype=dtype) for dtype in ("float64", "object", "Float64")),
        pd.Series([Decimal(1), None, None, Decimal(2)]),
        pd.Series([1, None, None, 2], dtype=object),
        *(pd.Series([1, None, None, 2], dtype=dtype) for dtype in ("Int64", "category")),
        pd.Series(["a", None, None, "b"], dtype=object),
        *(pd.Series([TIMES[0], pd.NaT, None, TIMES[1]], dtype=dtype) for dtype in (None, "object")),
        pd.Series([True, None, None, False], dtype="boolean"),
        pd.Series([None] * 2 + [pd.Timedelta(1)] * 2),
    ],
    ids=repr,
)
def test_missing_values_are_counted(column):
    for call in (lambda: hsic_matrix({"a": column}, sample(4, 1)), lambda: hsic_matrix(sample(4, 1), {"a": column})):
        with pytest.raises(ValueError, match=r"\['a'\] holds 2 missing values .* in 4 rows"):
            call()


@pytest.mark.parametrize("column", [[1, "a"], [1j, 2], [(1, 2), (3, 4)], [1.5, Decimal(2)]], ids=repr)
def test_columns_of_other_or_mixed_types_are_refused(column):
    with pytest.raises(TypeError, match=r"x\['a'\] must be numbers, labels"):
        hsic_matrix(pd.DataFrame({"a": pd.Series(column)}), sample(2, 1))


@pytest.mark.parametrize("columns", [joint._COLUMNS, 2])
def test_pvalues_of_the_matrix_are_those_of_each_pair_and_step_down(columns, monkeypatch):
    monkeypatch.setattr(joint, "_COLUMNS", columns)
    x = sample(40, 3)
    y = {"own": x[:, 0] + 0.5 * sample(40, 1, 1)[:, 0], "label": torch.arange(40) % 3, "constant": torch.ones(40)}
    found = hsic_matrix(x, y, Gaussian(), Gaussian(), normalized=True, permutations=99, seed=4)
    assert torch.equal(found.hsic, hsic_matrix(x, y, Gaussian(), Gaussian(), normalized=True))
    pairs = list(itertools.product(x.T, y.values()))
    tests = [
        permutation_test(a, b, None, None if b.is_floating_point() else Delta(), permutations=99, seed=4)
        for a, b in pairs
    ]
    np.testing.assert_allclose(found.pvalue.flatten(), [test.pvalue for test in tests], atol=1e-12)
    values = np.array([[test.statistic, *test.null] for test in tests])
    with np.errstate(invalid="ignore"):
        scores = np.nan_to_num(
            (values - values.mean(axis=1, keepdims=True)) / values.std(axis=1, ddof=1, keepdims=True)
        )
    order, largest, before = np.argsort(-scores[:, 0], kind="stable"), 0, 0
    for rank, pair in enumerate(order):
        largest = scores[order[rank:]].max(axis=0)
        before = max(before, np.mean(largest >= scores[pair, 0] - 1e-9))
        assert found.adjusted.flatten()[pair] == pytest.approx(before)
    assert (
        found.adjusted[0, 0] == 1 / 120 and (found.adjusted[:, 2] == 1).all() and (found.adjusted >= found.pvalue).all()
    )


def test_pvalues_of_the_matrix_count_ties_in_float32(monkeypatch):
    monkeypatch.setattr(joint, "can_store", lambda n, grams: False)
    x, y = (sample(80, 1, seed).sign().float() / 3 + 1e3 for seed in (0, 1))
    found = hsic_matrix(x, y, Gaussian(5.0), Gaussian(5.0), permutations=300).pvalue
    exact = permutation_test((x > 1e3).double(), (y > 1e3).double(), permutations=300).pvalue
    assert float(found) == pytest.approx(exact)


def test_adjusted_pvalues_hold_the_level_of_all_pairs_together():
    below = np.zeros(2)
    for seed in range(300):
        found = hsic_matrix(
            sample(12, 4, seed), sample(12, 3, 1000 + seed).exp(), Gaussian(), Linear(), permutations=19, seed=seed
        )
        below += [bool((found.pvalue <= 0.1).any()), bool((found.adjusted <= 0.1).any())]
    assert below[1] <= stats.binom.ppf(0.995, 300, 0.1) < below[0]


@pytest.mark.parametrize(
    "options", [{"permutations": "9"}, {"permutations": 9.0}, {"permutations": 9, "seed": True}], ids=str
)
def test_permutations_of_the_matrix_are_an_integer(options):
    with pytest.raises(TypeError, match=f"must be an integer of at least [01], got {list(options.values())[-1]!r}"):
        hsic_matrix(sample(9, 1), sample(9, 1, 1), **options)
    with pytest.raises(ValueError, match="at least 4, got 3"):
        hsic_matrix(sample(3, 1), sample(3, 1, 1), permutations=9)


@pytest.mark.parametrize("estimator", ["biased", "unbiased"])
@pytest.mark.parametrize("bandwidth", [1.0, 10.0, 100.0, 300.0])
def test_wide_kernels_keep_their_digits_in_float32(bandwidth, estimator):
    """All entries of such a Gram are nearly 1: products of them would round what HSIC is made of."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, 1, generator=generator)
    y = x + torch.randn(200, 1, generator=generator)
    kernel = Gaussian(bandwidth)
    double = (x.double(), y.double(), kernel, kernel, estimator)
    close = partial(torch.testing.assert_close, rtol=5e-3, atol=0)
    close(hsic_matrix(x, y, kernel, kernel, estimator)[0, 0], hsic(*double))
    close(hsic_matrix(x, y, kernel, kernel, estimator, normalized=True)[0, 0], cka(*double))

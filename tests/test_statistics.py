"""Intervals and paired differences against SciPy, their coverage by simulation, and what is refused."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from hsic_lab._statistics import _holm, _tested, mean_interval
from hsic_lab.ablation import paired_difference, paired_differences, summarize
from hsic_lab.evaluation import probe_summary


def table(first, second, **columns):
    rows = [
        {"loss": loss, "seed": seed, "evaluation": "linear", "accuracy": value}
        for loss, values in (("a", first), ("b", second))
        for seed, value in enumerate(values)
    ]
    return pd.DataFrame(rows).assign(**columns)


@pytest.mark.parametrize("n", [2, 5, 30])
def test_interval_is_that_of_scipy(n):
    values = np.random.default_rng(n).normal(3, 2, n)
    low, high = stats.t.interval(0.95, n - 1, values.mean(), stats.sem(values))
    np.testing.assert_allclose(mean_interval(values), (values.mean(), low, high), rtol=1e-12)
    np.testing.assert_allclose(mean_interval([*values, np.nan]), (values.mean(), low, high), rtol=1e-12)


def test_paired_interval_is_that_of_the_paired_t_test_and_covers():
    generator = np.random.default_rng(0)
    covered = 0
    for _ in range(400):
        shared = generator.normal(0.7, 0.2, 5)  # shared by both sides, removed by pairing
        first, second = shared + generator.normal(0, 0.01, 5), shared + 0.02 + generator.normal(0, 0.01, 5)
        found = paired_difference(table(first, second), "loss", "a", "b")
        covered += found.low <= 0.02 <= found.high
    interval = stats.ttest_rel(second, first).confidence_interval(0.95)
    np.testing.assert_allclose((found.low, found.high), interval, rtol=1e-9)
    assert found.high - found.low < 0.1
    assert abs(covered - 380) <= 3 * np.sqrt(400 * 0.95 * 0.05)


@pytest.mark.parametrize(
    ("second", "words"),
    [
        ([0.5, 0.6, 0.7], "b minus a: +0.0 points, 95 % interval +0.0 to +0.0, 3 seeds: no difference shown"),
        ([0.71, 0.80, 0.91], "b is ahead"),
        ([0.31, 0.40, 0.51], "a is ahead"),
        ([0.6], "b minus a: +10.0 points, 1 seed (2 without a run of both): one seed shows no difference"),
        ([np.nan, 0.61, 0.7], "2 seeds (1 without a run of both)"),
    ],
)
def test_verdict_of_the_interval(second, words):
    assert words in str(paired_difference(table([0.5, 0.6, 0.7], second), "loss", "a", "b"))


def test_order_of_rows_is_irrelevant_and_names_are_used():
    frame = table([0.1, 0.2, 0.4], [0.2, 0.2, 0.9])
    shuffled = frame.sample(frac=1, random_state=0)
    names = ("Barlow Twins", "HSIC_SSL")
    one, other = (paired_difference(f, "loss", "a", "b", names=names) for f in (frame, shuffled))
    assert str(one) == str(other) and str(one).startswith("HSIC_SSL minus Barlow Twins: +20.0 points")


def test_ambiguous_frames_are_refused():
    frame = table([0.1, 0.2], [0.3, 0.4])
    with pytest.raises(ValueError, match=r"no run has loss = 'c'; there are \['a', 'b'\]"):
        paired_difference(frame, "loss", "a", "c")
    with pytest.raises(ValueError, match=r"seed 0 of loss = 'a' occurs twice: .* one level of size$"):
        sizes = (frame.assign(size=size)[["size", *frame.columns]] for size in (8, 64))
        paired_difference(pd.concat(sizes), "loss", "a", "b")
    for ask in (
        lambda: paired_difference(frame, "los", "a", "b"),
        lambda: paired_differences(frame, "los", "a"),
        lambda: paired_differences(frame, "loss", "a", by=["los"]),
        lambda: paired_differences(frame, "loss", "a", value="los"),
        lambda: summarize(frame, ["los"]),
    ):
        with pytest.raises(ValueError, match=r"lacks the columns \['los'\]"):
            ask()
    with pytest.raises(ValueError, match="no evaluation 'knn'"):
        paired_difference(frame, "loss", "a", "b", evaluation="knn")
    with pytest.raises(ValueError, match="no seed has a finished run of both"):
        paired_difference(table([0.1, np.nan], [np.nan, 0.4]), "loss", "a", "b")


def test_summary_keeps_the_tables_order_and_counts_seeds():
    frame = pd.concat([table([0.3, 0.5], [0.1], size=64), table([0.2, np.nan], [0.4], size=8)])
    summary = summarize(frame, ["size", "loss"])
    assert summary[["size", "loss"]].to_numpy().tolist() == [[64, "a"], [64, "b"], [8, "a"], [8, "b"]]
    np.testing.assert_allclose(summary["mean"], [0.4, 0.1, 0.2, 0.4])
    assert summary["seeds"].tolist() == [2, 1, 1, 1]
    assert summary["n_failed"].tolist() == [0, 0, 1, 0]
    np.testing.assert_allclose(summary["low"][0], 0.4 - stats.t.ppf(0.975, 1) * 0.1)


def test_levels_of_another_factor_are_not_averaged():
    frame = pd.concat([table([0.3, 0.5], [0.1, 0.2], size=64), table([0.2, 0.1], [0.4, 0.3], size=8)])
    with pytest.raises(ValueError, match=r"seed 0 occurs twice in {'loss': 'a'}"):
        summarize(frame, ["loss"])


def test_only_accuracy_is_given_in_points():
    frame = table([50.0, 60.0], [55.5, 65.0]).rename(columns={"accuracy": "rankme"})
    found = str(paired_difference(frame, "loss", "a", "b", value="rankme"))
    assert found.startswith("b minus a: +5.25 rankme, ") and found.endswith("b has more")


def test_an_empty_cell_is_a_level():
    frame = table([0.1, 0.2, 0.4], [0.2, 0.2, 0.9]).assign(kernel=lambda f: f["loss"].map({"a": None, "b": "gaussian"}))
    found = paired_difference(frame, "kernel", None, "gaussian")
    assert str(found).startswith("gaussian minus None: +20.0 points")
    frame = frame.assign(lambda_param=lambda f: f["loss"].map({"a": None, "b": 0.1}))
    assert frame["lambda_param"].dtype == float
    (forward,), (back,) = (paired_differences(frame, "lambda_param", level).to_dict("records") for level in (None, 0.1))
    assert forward["mean"] == -back["mean"] == pytest.approx(0.2)
    assert (forward["first"], forward["second"]) == ("None", "0.1")


def test_p_values_are_those_of_scipy():
    generator = np.random.default_rng(1)
    first, second = generator.normal(0.5, 0.02, (2, 6))
    found = paired_difference(table(first, second), "loss", "a", "b")
    assert found.p == pytest.approx(stats.ttest_rel(second, first).pvalue)
    for center in (0.0, 0.004, -0.004, 0.03):  # both one-sided tests, the larger p-value
        differences = center + generator.normal(0, 0.004, 6)
        found = paired_difference(table(first, first + differences), "loss", "a", "b")
        sides = [
            stats.ttest_1samp(differences, at, alternative=side) for at, side in ((-0.01, "greater"), (0.01, "less"))
        ]
        assert found.p_same == pytest.approx(max(one.pvalue for one in sides))
    assert np.isnan(paired_difference(table([0.1], [0.2]), "loss", "a", "b").p)


def test_sameness_and_difference_have_their_levels():
    generator = np.random.default_rng(2)
    wrong, same = 0, 0
    for noise in generator.normal(0, 0.004, (400, 2, 5)):
        difference, at_the_edge = (_tested(pd.Series(x), ("a", "b"), "accuracy") for x in (noise[0], 0.01 + noise[1]))
        wrong += difference.p < 0.05
        same += at_the_edge.p_same < 0.05
    bound = 3 * np.sqrt(400 * 0.05 * 0.95)  # at the edge of the margin, "same" is said in 5 % of cases
    assert abs(wrong - 20) <= bound and abs(same - 20) <= bound


def test_holm_is_the_step_down_of_its_definition():
    p = np.array([0.01, 0.04, np.nan, 0.03, 0.005])
    np.testing.assert_allclose(_holm(p), [0.03, 0.06, np.nan, 0.06, 0.02])
    for seed in range(20):  # never below the p-value, never above Bonferroni, and in the same order
        p = np.random.default_rng(seed).uniform(0, 0.2, 7)
        found = _holm(p)
        assert (found >= p).all() and (found <= np.minimum(1, 7 * p) + 1e-15).all()
        assert (np.diff(found[np.argsort(p)]) >= 0).all()


def test_differences_of_every_level_stand_in_one_table():
    frame = pd.concat([table([0.5, 0.6, 0.7], [0.55, 0.66, 0.74], size=64), table([0.5, 0.6], [0.6, np.nan], size=8)])
    found = paired_differences(frame, "loss", "a", by=["size"], names={"b": "B"})
    assert found[["size", "first", "second", "seeds", "n_failed"]].to_numpy().tolist() == [
        [64, "a", "B", 3, 0],
        [8, "a", "B", 1, 1],
    ]
    one = paired_difference(frame[frame["size"] == 64], "loss", "a", "b")
    assert (found["mean"][0], found["low"][0], found["p"][0]) == (one.mean, one.low, one.p)
    assert found["p_holm"][0] == one.p and np.isnan(found["p_holm"][1])  # one seed has no p-value and is not counted
    assert found["verdict"].tolist() == ["B ahead", "not decided"]
    lost = table([0.5, 0.6], [np.nan, np.nan], size=4)
    assert paired_differences(lost, "loss", "a")[["seeds", "verdict"]].to_numpy().tolist() == [[0, "no result"]]
    with pytest.raises(ValueError, match="no level other than 'a'"):
        paired_differences(frame[frame["loss"] == "a"], "loss", "a", by=["size"])
    with pytest.raises(ValueError, match="seed 0 of loss = 'a' occurs twice"):
        paired_differences(frame, "loss", "a")


def test_a_value_that_is_not_finite_counts_as_failed():
    frame = table([1.0, 2.0, 3.0], [1.5, np.inf, 3.7]).rename(columns={"accuracy": "loss_value"})
    found = paired_difference(frame, "loss", "a", "b", value="loss_value")
    assert found.mean == pytest.approx(0.6) and found.n_failed == 1 and 0 < found.p < 1


def test_numbers_of_labels_are_not_averaged():
    table = pd.DataFrame({"representation": "pixels", "per_class": [10, 90], "accuracy": [0.2, 0.8]})
    with pytest.raises(ValueError, match="per_class: use few_label_summary"):
        probe_summary(table)

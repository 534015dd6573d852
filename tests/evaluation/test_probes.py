"""The torch probe against scikit-learn's optimum; few-label curves, intervals and the confusion matrix."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import t as student_t
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from hsic_lab import _softmax as softmax
from hsic_lab.evaluation import _probes as probes
from hsic_lab.evaluation import confusion, few_label_curve, few_label_summary, linear_probe
from hsic_lab.evaluation._probes import fast_probe


@pytest.fixture(scope="module")
def digits():
    x, y = load_digits(return_X_y=True)
    return x[:600], y[:600], x[600:1000], y[600:1000]


def objective(x, y, C, coef, intercept):
    """C sum log-loss + |W|^2 / 2, written for labels 0..k-1."""
    logits = x @ coef.T + intercept
    logits = np.hstack([np.zeros_like(logits), logits]) if logits.shape[1] == 1 else logits
    losses = np.logaddexp.reduce(logits, axis=1) - logits[np.arange(len(y)), y]
    return C * losses.sum() + np.square(coef).sum() / 2


@pytest.mark.parametrize("classes", [2, 10])
@pytest.mark.parametrize("C", [1e-3, 1.0])
def test_the_optimum_is_scikit_learns(digits, classes, C):
    train_x, train_y, test_x, test_y = digits
    train_y, test_y = train_y % classes, test_y % classes
    scaler = StandardScaler().fit(train_x)
    oracle = LogisticRegression(C=C, tol=1e-9, max_iter=20_000).fit(scaler.transform(train_x), train_y)
    result = fast_probe(train_x, train_y, test_x, test_y, C=C, tolerance=1e-7)  # beyond what float32 resolves
    np.testing.assert_allclose(result.coef, oracle.coef_, atol=1e-4)
    np.testing.assert_allclose(result.intercept, oracle.intercept_, atol=1e-3)
    expected = objective(scaler.transform(train_x), train_y, C, oracle.coef_, oracle.intercept_)
    assert result.loss == pytest.approx(expected, rel=1e-7)
    x = (torch.as_tensor(train_x) - result.mean) / result.scale
    assert result.loss == pytest.approx(objective(x.numpy(), train_y, C, result.coef.numpy(), result.intercept.numpy()))
    np.testing.assert_array_equal(result.predictions, oracle.predict(scaler.transform(test_x)))
    assert (result.C, result.validation_scores) == (C, {})


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_choice_and_the_accuracy_are_the_linear_probes(digits, dtype):
    train_x, train_y, test_x, test_y = digits
    fast = fast_probe(torch.tensor(train_x, dtype=dtype), train_y, torch.tensor(test_x, dtype=dtype), test_y, seed=3)
    slow = linear_probe(train_x, train_y, test_x, test_y, seed=3)
    assert list(fast.validation_scores) == list(slow.validation_scores)
    for C, score in slow.validation_scores.items():
        assert fast.validation_scores[C] == pytest.approx(score, abs=1 / 120 + 1e-9)  # one held row
    assert fast.C == slow.C and fast.accuracy == pytest.approx(slow.accuracy, abs=1 / 400 + 1e-9)
    assert fast.coef.dtype == torch.float64 and fast.coef.shape == (10, 64) and fast.seconds > 0 and fast.iterations > 1
    assert (fast.n_train, fast.n_test, fast.classes.tolist()) == (600, 400, list(range(10)))
    assert fast.accuracy == np.mean(fast.predictions == test_y)
    assert len(repr(fast)) < 500  # a line or two, without the arrays


def test_test_labels_choose_nothing_and_constant_columns_count_nothing(digits):
    train_x, train_y, test_x, test_y = digits
    first = fast_probe(*digits)
    second = fast_probe(train_x, train_y, test_x, np.roll(test_y, 7))
    assert first.validation_scores == second.validation_scores
    np.testing.assert_array_equal(first.predictions, second.predictions)
    padded = [np.hstack([1e4 * x + 3e4, np.full((len(x), 2), 0.1)]) for x in (train_x, test_x)]
    third = fast_probe(padded[0], train_y, padded[1], test_y)
    assert third.accuracy == pytest.approx(first.accuracy, abs=1 / 400 + 1e-9)
    assert (third.coef[:, -2:] == 0).all() and third.coef.isfinite().all()


def test_labels_may_be_strings(digits):
    train_x, train_y, test_x, test_y = digits
    names = np.array(["even", "odd"])
    result = fast_probe(train_x, names[train_y % 2], test_x, names[test_y % 2], C=0.1)
    assert result.classes.tolist() == ["even", "odd"] and result.accuracy > 0.85 and result.coef.shape == (1, 64)


def test_no_convergence_is_an_error(digits, monkeypatch):
    monkeypatch.setattr(softmax, "_MAX_ITERATIONS", 2)
    with pytest.raises(RuntimeError, match=r"did not converge: at C = 0[.]5 "):
        fast_probe(*digits, C=0.5)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_the_gpu_finds_the_same_optimum(digits):
    train_x, train_y, test_x, test_y = digits
    here = fast_probe(*digits, C=0.1)
    there = fast_probe(torch.tensor(train_x, device="cuda"), train_y, torch.tensor(test_x), test_y, C=0.1)
    assert there.coef.device.type == "cuda" and there.accuracy == pytest.approx(here.accuracy, abs=1e-3)
    assert there.loss == pytest.approx(here.loss, rel=1e-4)


# --- few labels


def test_the_curve_probes_nested_balanced_subsets(digits, monkeypatch):
    train_x, train_y, test_x, test_y = digits
    seen = []

    def spy(x, y, *test, seed):
        seen.append((seed, len(y), {tuple(row) for row in x}, np.bincount(y).tolist()))
        return linear_probe(x, y, *test, seed=seed)

    monkeypatch.setattr(probes, "linear_probe", spy)
    features = {"pixels": (train_x, test_x), "few": (train_x[:, 20:40], test_x[:, 20:40])}
    table = few_label_curve(features, train_y, test_y, per_class=(5, 20), seeds=2)
    assert list(table.columns) == ["representation", "per_class", "seed", "accuracy", "C", "n_test", "chance"]
    assert len(table) == 8 and table["per_class"].tolist() == [5, 5, 20, 20] * 2 and set(table["n_test"]) == {400}
    assert [counts for *_, counts in seen] == [[5] * 10] * 2 + [[20] * 10] * 2 + [[5] * 10] * 2 + [[20] * 10] * 2
    sets = {(seed, n): rows for seed, n, rows, _ in seen[:4]}
    assert sets[0, 50] < sets[0, 200] and sets[1, 50] < sets[1, 200] and sets[0, 50] != sets[1, 50]
    summary = few_label_summary(table).set_index(["representation", "per_class"])
    assert summary.loc[("pixels", 20), "mean"] > summary.loc[("pixels", 5), "mean"] > table["chance"].max()


def test_the_interval_is_students():
    values = [0.5, 0.6, 0.55, 0.7]
    table = pd.DataFrame({"representation": "a", "per_class": 10, "accuracy": values})
    row = few_label_summary(pd.concat([table, table.head(1).assign(per_class=50)])).set_index("per_class")
    low, high = student_t.interval(0.95, 3, np.mean(values), np.std(values, ddof=1) / 2)
    np.testing.assert_allclose(row.loc[10, ["mean", "low", "high", "seeds"]].astype(float), [0.5875, low, high, 4])
    assert math.isnan(row.loc[50, "low"]) and row.loc[50, "mean"] == 0.5


# --- confusion


def test_confusion_counts_true_rows_and_predicted_columns():
    true, predicted = np.array([0, 0, 1, 2, 2, 2]), np.array([0, 1, 1, 2, 0, 2])
    frame = confusion(true, predicted, ["ant", "bee", "cat", "dog"])
    assert frame.to_numpy().tolist() == [[1, 1, 0, 0], [0, 1, 0, 0], [1, 0, 2, 0], [0, 0, 0, 0]]
    assert frame.loc["cat", "ant"] == 1 and (frame.index.name, frame.columns.name) == ("true", "predicted")
    words = confusion(torch.tensor([3, 7]), [7, 7])
    assert words.loc[3, 7] == 1 and words.to_numpy().sum() == 2


X, Y = np.arange(20.0).reshape(10, 2), np.arange(10) % 2


@pytest.mark.parametrize(
    ("call", "quoted"),
    [
        (lambda: fast_probe(X, Y[:9], X, Y), "10 rows and train_y 9"),
        (lambda: fast_probe(X, Y, X, Y, C=0.0), r"\(0.0,\)"),
        (lambda: fast_probe(X, Y, X, Y, strengths=()), r"\(\)"),
        (lambda: fast_probe(X * np.nan, Y, X, Y), "10 of 10 rows"),
        (lambda: fast_probe(X[:1], Y[:1], X, Y), "two classes"),
        (lambda: few_label_curve({}, Y, Y), r"got \[\], "),
        (lambda: few_label_curve({"a": (X, X)}, Y, Y, (5, 6)), r"and 5, the rows of class 0, got \[5, 6\]"),
        (lambda: few_label_curve({"a": (X, X)}, Y, Y, (2,)), r"between 4, of which one .*got \[2\]"),
        (lambda: few_label_curve({"a": (X, X)}, Y, Y, (2,), seeds=0), r"\[2\] and 0"),
        (lambda: few_label_curve({"a": (X, X[:, :1])}, Y, Y, (5,)), "2 features and test_x 1"),
        (lambda: few_label_curve(X, Y, X, Y), "features must map a name"),
        (lambda: confusion(Y, Y[:3]), "got 10, 3"),
        (lambda: confusion(Y, Y, ["a"]), r"0 to 0, got also \[1\]"),
    ],
)
def test_bad_input(call, quoted):
    with pytest.raises((ValueError, TypeError), match=quoted):
        call()


def test_what_is_constant_up_to_rounding_counts_nothing(digits):
    train_x, train_y, test_x, test_y = digits
    rounding = np.float32(1e12) * (1 + np.float32(2**-23) * (np.arange(1000) % 3 - 1).astype(np.float32))
    padded = [np.hstack([x.astype(np.float32), part[:, None]]) for x, part in
              ((train_x, rounding[:600]), (test_x, rounding[600:]))]  # fmt: skip
    found = fast_probe(padded[0], train_y, padded[1], test_y)
    assert found.accuracy == pytest.approx(fast_probe(*digits).accuracy, abs=1 / 400 + 1e-9)
    assert (found.coef[:, -1] == 0).all() and found.scale[-1] == torch.inf


def test_a_range_that_cannot_be_squared_and_a_class_of_one_are_named(digits):
    train_x, train_y, test_x, test_y = digits
    with pytest.raises(ValueError, match=r"features reach 1\.6e\+156, and squares leave torch\.float64"):
        fast_probe(1e155 * train_x, train_y, 1e155 * test_x, test_y)
    names = np.where(np.arange(600) == 17, "rare", train_y.astype(str))
    with pytest.raises(ValueError, match="class 'rare' has 1"):
        fast_probe(train_x, names, test_x, test_y.astype(str))
    large = [(x * 1e9 + 1e17).astype(np.int64) for x in (train_x, test_x)]
    assert fast_probe(large[0], train_y, large[1], test_y).accuracy > 0.85

"""Linear probes on any device, few-label curves and their intervals."""

import math
import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import t as student_t
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from hsic_lab import evaluation as probes
from hsic_lab.encoders import MLPProjector
from hsic_lab.evaluation import (
    extract_features,
    extract_layers,
    few_label_curve,
    few_label_summary,
    linear_probe,
    probe_table,
)  # fmt: skip


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
def test_model_minimizes_the_documented_objective(digits, classes, C):
    train_x, train_y, test_x, test_y = digits
    train_y, test_y = train_y % classes, test_y % classes
    x = StandardScaler().fit_transform(train_x)
    oracle = LogisticRegression(C=C, tol=1e-9, max_iter=20_000).fit(x, train_y)
    model = linear_probe(train_x, train_y, test_x, test_y, Cs=(C,)).model[-1]
    least = objective(x, train_y, C, oracle.coef_, oracle.intercept_)
    assert least * (1 - 1e-9) <= objective(x, train_y, C, model.coef_, model.intercept_) <= least * 1.001
    assert model.coef_.shape == (1 if classes == 2 else 10, 64)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_tensors_give_the_result_of_arrays(digits, dtype):
    train_x, train_y, test_x, test_y = digits
    tensors = linear_probe(torch.tensor(train_x, dtype=dtype), train_y, torch.tensor(test_x, dtype=dtype), test_y)
    arrays = linear_probe(*digits)
    assert tensors.validation_scores == arrays.validation_scores
    np.testing.assert_array_equal(tensors.predictions, arrays.predictions)
    assert len(repr(arrays)) < 500, "a line or two, without the arrays"


def test_labels_may_be_strings(digits):
    train_x, train_y, test_x, test_y = digits
    names = np.array(["even", "odd"])
    result = linear_probe(train_x, names[train_y % 2], test_x, names[test_y % 2])
    assert result.classes.tolist() == ["even", "odd"] and result.accuracy > 0.85


def test_feature_that_is_constant_up_to_rounding_has_weight_0(digits):
    train_x, train_y, test_x, test_y = digits
    rounding = np.float32(1e12) * (1 + np.float32(2**-23) * (np.arange(1000) % 3 - 1).astype(np.float32))
    padded = [
        np.hstack([x.astype(np.float32), part[:, None], np.full((len(x), 1), 0.1, dtype=np.float32)])
        for x, part in ((train_x, rounding[:600]), (test_x, rounding[600:]))
    ]
    found = linear_probe(padded[0], train_y, padded[1], test_y)
    assert found.accuracy == pytest.approx(linear_probe(*digits).accuracy, abs=1 / 400 + 1e-9)
    assert (found.model[-1].coef_[:, -2:] == 0).all() and np.isfinite(found.model[-1].coef_).all()
    np.testing.assert_array_equal(found.model.predict(padded[1]), found.predictions)


def test_features_whose_squares_overflow_are_refused(digits):
    train_x, train_y, test_x, test_y = digits
    with pytest.raises(ValueError, match=r"features reach 1\.6e\+156, and their squares overflow"):
        linear_probe(1e155 * train_x, train_y, 1e155 * test_x, test_y)


def test_large_integers_keep_their_digits(digits):
    train_x, train_y, test_x, test_y = digits
    large = [(x * 1e9 + 1e17).astype(np.int64) for x in (train_x, test_x)]
    assert linear_probe(large[0], train_y, large[1], test_y).accuracy > 0.85


# --- tensors that stay on their device

ON_DEVICE = """
import sys
import numpy as np
import torch
from sklearn.datasets import load_digits
from hsic_lab import evaluation as probes
from hsic_lab.evaluation import few_label_curve, linear_probe

assert probes._dispatches()
x, y = load_digits(return_X_y=True)
x[:, 0] = 3.3
train, test = torch.tensor(x[:600]), torch.tensor(x[600:1000])
for labels in (y, np.array(list("abcdefghij"))[y], y % 2 == 0):
    splits = train, labels[:600], test, labels[600:1000]
    features = {"pixels": (train, test)}
    expected = linear_probe(*splits)
    curve = few_label_curve(features, labels[:600], labels[600:1000], (10,), seeds=2)
    stayed = []
    if sys.argv[1] == "cpu":
        probes._for_sklearn, own = lambda x: stayed.append(x.device.type) or x, probes._for_sklearn
    found = linear_probe(train.to(sys.argv[1]), *splits[1:])
    features = {"pixels": (train.to(sys.argv[1]), test)}
    assert few_label_curve(features, labels[:600], labels[600:1000], (10,), seeds=2).equals(curve)
    if sys.argv[1] == "cpu":
        probes._for_sklearn = own
        assert stayed
    assert found.C == expected.C and found.accuracy == expected.accuracy
    assert found.validation_scores == expected.validation_scores
    assert (found.predictions == expected.predictions).all()
    assert (found.model.predict(test.numpy()) == found.predictions).all()
    assert np.allclose(found.model[-1].coef_, expected.model[-1].coef_, atol=1e-3)
"""
CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")


@pytest.mark.skipif(not LogisticRegression().__sklearn_tags__().array_api_support, reason="needs scikit-learn 1.9")
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=[pytest.mark.cuda, CUDA])])
def test_tensors_that_stay_on_their_device_give_the_result_of_numpy(device):
    environment = os.environ | {"SCIPY_ARRAY_API": "1"}
    done = subprocess.run([sys.executable, "-c", ON_DEVICE, device], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif("SCIPY_ARRAY_API" in os.environ, reason="SciPy dispatches in this process")
def test_a_variable_set_after_scipy_was_imported_is_not_used(monkeypatch):
    monkeypatch.setenv("SCIPY_ARRAY_API", "1")
    assert not probes._dispatches()


# --- few labels


def test_curve_probes_nested_balanced_subsets(digits, monkeypatch):
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


def test_interval_of_the_summary_is_students():
    values = [0.5, 0.6, 0.55, 0.7]
    table = pd.DataFrame({"representation": "a", "per_class": 10, "accuracy": values})
    row = few_label_summary(pd.concat([table, table.head(1).assign(per_class=50)])).set_index("per_class")
    low, high = student_t.interval(0.95, 3, np.mean(values), np.std(values, ddof=1) / 2)
    np.testing.assert_allclose(row.loc[10, ["mean", "low", "high", "seeds"]].astype(float), [0.5875, low, high, 4])
    assert math.isnan(row.loc[50, "low"]) and row.loc[50, "mean"] == 0.5


X, Y = np.arange(20.0).reshape(10, 2), np.arange(10) % 2


@pytest.mark.parametrize(
    ("call", "quoted"),
    [
        (lambda: linear_probe(X, Y, X, Y, Cs=(0.0,)), "got 0.0"),
        (lambda: linear_probe(X[:1], Y[:1], X, Y), "two classes"),
        (lambda: linear_probe(X, np.where(Y + X[:, 0] == 0, "rare", "a"), X, ["a"] * 10), "class 'rare' has 1"),
        (lambda: few_label_curve({}, Y, Y, (5,)), "got none"),
        (lambda: few_label_curve({"a": (X, X)}, Y, Y, ()), "per_class must hold .*, got none"),
        (lambda: few_label_curve({"a": (X, X)}, Y, Y, (5, 6)), r"and 5, the rows of class 0, got \[5, 6\]"),
        (lambda: few_label_curve({"a": (X, X)}, Y, Y, (2,)), r"between 4, of which one .*got \[2\]"),
        (lambda: few_label_curve({"a": (X, X)}, Y, Y, (2,), seeds=0), "seeds must be an integer of at least 1, got 0"),
        (lambda: few_label_curve({"a": (X, X[:, :1])}, Y, Y, (5,)), "2 features and test_x 1"),
        (lambda: few_label_curve(X, Y, Y, (5,)), "features must be of type Mapping"),
        (lambda: few_label_curve({"a": (X, X)}, Y, Y, (5.0,)), "got 5.0"),
    ],
)
def test_bad_probe_input_is_refused(call, quoted):
    with pytest.raises((ValueError, TypeError), match=quoted):
        call()


def oracle_cka_with_labels(x, y):
    """Unbiased linear CKA with one-hot labels (Song et al. 2012, equation 5), in NumPy float64."""
    k, same = x @ x.T, (y[:, None] == y).astype(float)
    n = len(y)

    def hsic(k, m):
        k, m = k - np.diag(np.diag(k)), m - np.diag(np.diag(m))
        rest = k.sum() * m.sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) * k.sum(0) @ m.sum(0)
        return (np.trace(k @ m) + rest) / (n * (n - 3))

    return hsic(k, same) / math.sqrt(hsic(k, k) * hsic(same, same))


def test_layers_are_compared_by_accuracy_dependence_on_the_labels_and_rank(digits):
    train_x, train_y, test_x, test_y = digits
    mixed = np.random.default_rng(0).normal(size=(64, 90))
    features = {
        "pixels": (train_x, test_x), "wide": (train_x @ mixed, test_x @ mixed),
        "constant": (train_x, np.full_like(test_x, 0.1)), "whole": (train_x.astype(int), test_x.astype(int)),
    }  # fmt: skip
    table = probe_table(features, train_y, test_y, 2, 200, layers=True)
    plain = probe_table(features, train_y, test_y, 2, 200)
    pd.testing.assert_frame_equal(table.drop(columns=["cka_labels", "rankme"]), plain)
    for name, (_, x) in features.items():
        rows = table[table["representation"] == name]
        x = np.asarray(x, float)
        sigma = np.linalg.svd(x - x.mean(axis=0), compute_uv=False)
        p = sigma[sigma > 1e-9 * len(x)] / sigma.sum()
        assert rows["rankme"].tolist() == [pytest.approx(math.exp(-(p * np.log(p)).sum()) * p.any(), rel=1e-6)] * 2
        if name == "constant":
            assert rows["cka_labels"].isna().all()
        else:
            oracle = oracle_cka_with_labels(x - x.mean(0), test_y)
            assert rows["cka_labels"].tolist() == [pytest.approx(oracle, rel=1e-6)] * 2


def test_layers_of_a_projector_start_with_linear_maps():
    torch.manual_seed(0)
    images, encoder = torch.rand(9, 3, 2, 2), torch.nn.Flatten()
    projectors = {
        "linear": (torch.nn.Linear(12, 4), ["encoder", "projector 1"]),
        "hidden": (MLPProjector([12, 6, 4]), ["encoder", "projector 1", "projector 2"]),
        "norm first": (torch.nn.Sequential(torch.nn.ReLU(), torch.nn.Linear(12, 4), torch.nn.Tanh()),
                       ["encoder", "projector 1", "projector 2"]),
        "none": (torch.nn.Sequential(), ["encoder"]),
    }  # fmt: skip
    for projector, names in projectors.values():
        layers = extract_layers(encoder, projector, images)
        assert list(layers) == names
        whole = extract_features(torch.nn.Sequential(encoder, projector), images)
        torch.testing.assert_close(layers[names[-1]], whole)
    with pytest.raises(TypeError, match="projector must be of type Sequential or Linear, got Bilinear"):
        extract_layers(encoder, torch.nn.Bilinear(12, 12, 4), images)  # its layers may be called in any order

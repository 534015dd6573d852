"""Frozen features, linear probe and weighted nearest neighbors against brute force and scikit-learn."""

import warnings
from dataclasses import FrozenInstanceError
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from hsic_lab import evaluation
from hsic_lab.compare import compare_models
from hsic_lab.evaluation import extract_features, knn_accuracy, linear_probe, probe_summary, probe_table


@pytest.fixture(scope="module")
def digits():
    x, y = load_digits(return_X_y=True)
    return x[:600], y[:600], x[600:1000], y[600:1000]


def encoder():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = nn.Linear(12, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Linear(6, 5)
        return nn.Sequential(nn.Flatten(), *layers)


def images(n=7):
    return torch.randint(0, 256, (n, 3, 2, 2), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


# --- features


def test_arrays_are_refused_as_images():
    with pytest.raises(TypeError, match=r"images must be a torch.Tensor, got ndarray; torch.as_tensor makes one"):
        extract_features(nn.Identity(), np.ones((4, 13)))


@pytest.mark.parametrize("batch_size", [1, 3, 7, 512])
def test_features_are_the_eval_mode_output(batch_size):
    net = encoder()
    features = extract_features(net, images(), batch_size)
    expected = net.eval()(images().float() / 127.5 - 1).detach()
    torch.testing.assert_close(features, expected)
    assert features.dtype == torch.float32 and not features.is_inference() and not features.requires_grad


def test_float_images_are_passed_on_unchanged():
    x = torch.linspace(-3, 5, 14).reshape(7, 2)
    assert torch.equal(extract_features(nn.Identity(), x), x)


def test_double_encoder_gives_float32():
    assert extract_features(nn.Identity(), torch.ones(2, 3, dtype=torch.float64)).dtype == torch.float32


@pytest.mark.parametrize("fails", [False, True])
def test_encoder_is_unchanged(fails):
    net = encoder().train()
    net[2].eval()  # a frozen BatchNorm inside a training network
    flags = [module.training for module in net.modules()]
    before = {name: value.clone() for name, value in net.state_dict().items()}
    if fails:
        with pytest.raises(RuntimeError):
            extract_features(net, torch.ones(4, 13))
    else:
        extract_features(net, images(), batch_size=2)
    assert [module.training for module in net.modules()] == flags
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


@pytest.mark.parametrize(
    ("net", "x", "error", "quoted"),
    [
        (nn.Identity(), images(), ValueError, r"\(7, 3, 2, 2\)"),
        (nn.Flatten(0), torch.ones(4, 3), ValueError, r"\(12,\)"),
        (nn.Flatten(), torch.ones(0, 3), ValueError, r"\(0, 3\)"),
        (nn.Flatten(), images()[0], ValueError, r"\(3, 2, 2\)"),
        (nn.Flatten(), images().long(), ValueError, "int64"),
        (nn.Identity(), torch.tensor([[1.0], [np.nan]]), ValueError, "1 of 2 rows are not, first row 1"),
        (nn.LSTM(2, 2), torch.ones(4, 2), TypeError, "tuple"),
    ],
)
def test_bad_images_and_encoders_are_refused(net, x, error, quoted):
    with pytest.raises(error, match=quoted):
        extract_features(net, x)


def test_batch_size_must_be_positive():
    for size in (0, 2.5, "8", None):
        with pytest.raises((ValueError, TypeError), match=f"batch_size must be .* got {size!r}"):
            extract_features(nn.Flatten(), images(), size)


# --- linear probe


def test_search_for_c_stops_where_weaker_penalties_overfit():
    rng = np.random.default_rng(0)
    y = np.repeat([0, 1], 60)
    x = rng.normal(size=(120, 200))
    x[:, 0] += 1.5 * y  # one informative direction, 199 to overfit with
    scores = linear_probe(x, y, x, y).validation_scores
    best = max(scores.values())
    assert list(scores)[-1] < 10 and all(score < best for score in list(scores.values())[-2:])
    assert best in list(scores.values())[:-2]


def test_probe_equals_the_pipeline_of_scikit_learn_at_the_chosen_c(digits):
    train_x, train_y, test_x, test_y = digits
    result = linear_probe(*digits)
    oracle = make_pipeline(StandardScaler(), LogisticRegression(C=result.C, max_iter=5000))
    oracle.fit(train_x, train_y)
    assert result.accuracy == oracle.score(test_x, test_y) > 0.85
    np.testing.assert_array_equal(result.predictions, oracle.predict(test_x))
    scores = result.validation_scores
    assert max(scores, key=scores.get) == result.C
    tried = list(scores)
    assert tried == [1e-3, 1e-2, 1e-1, 1.0, 10.0][: len(tried)]
    assert len(tried) == 5 or max(scores[C] for C in tried[-2:]) < result.validation_scores[result.C]
    assert (result.n_train, result.n_test, result.classes.tolist()) == (600, 400, list(range(10)))
    assert result.model.score(test_x, test_y) == result.accuracy
    with pytest.raises(FrozenInstanceError):
        result.accuracy = 1.0


def test_test_rows_do_not_choose_c(digits):
    train_x, train_y, test_x, test_y = digits
    shuffled = np.random.default_rng(0).permutation(test_y)
    first, second = linear_probe(*digits), linear_probe(train_x, train_y, test_x, shuffled)
    assert first.validation_scores == second.validation_scores
    np.testing.assert_array_equal(first.predictions, second.predictions)


def test_tie_takes_the_stronger_penalty():
    x = np.concatenate([np.full((20, 1), -1.0), np.full((20, 1), 1.0)])
    y = np.repeat(["left", "right"], 20)
    result = linear_probe(x, y, x, y, Cs=(10.0, 0.1, 1.0))
    assert (result.C, result.accuracy) == (0.1, 1.0)
    assert list(result.validation_scores) == [0.1, 1.0, 10.0]


def test_constant_features_and_rescaled_columns_change_nothing(digits):
    train_x, train_y, test_x, test_y = digits
    scale = 10.0 ** np.random.default_rng(0).integers(-6, 7, 64)
    wide = [np.hstack([x * scale, np.full((len(x), 2), 3.3)]) for x in (train_x, test_x)]
    plain, padded = linear_probe(*digits), linear_probe(wide[0], train_y, wide[1], test_y)
    assert np.isfinite(padded.model[-1].coef_).all()
    assert padded.accuracy == pytest.approx(plain.accuracy, abs=0.01)


def test_collapsed_features_give_chance():
    y = np.arange(50) % 2
    assert linear_probe(np.ones((50, 3)), y, np.ones((50, 3)), y).accuracy == 0.5


def test_seed_decides_the_split_and_global_state_stays(digits):
    as_tensors = [torch.as_tensor(values) for values in digits]
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    one, two, three = linear_probe(*digits), linear_probe(*as_tensors), linear_probe(*digits, seed=1)
    assert one.validation_scores == two.validation_scores != three.validation_scores
    np.testing.assert_array_equal(np.random.get_state()[1], state)  # noqa: NPY002


def test_missing_convergence_raises(digits, monkeypatch):
    monkeypatch.setattr(evaluation, "_MAX_ITERATIONS", 2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a caller's filter must not hide it
        with pytest.raises(RuntimeError, match="did not converge"):
            linear_probe(*digits)


X, Y = np.arange(20.0).reshape(10, 2), np.arange(10) % 2
BAD_SPLITS = [
    ((X[:9], Y, X, Y), "9 rows and train_y 10"),
    ((X, Y, X, Y[:3]), "10 rows and test_y 3"),
    ((X, Y, X[:, :1], Y), "2 features and test_x 1"),
    ((X * np.nan, Y, X, Y), "10 of 10 rows"),
    ((X, Y, np.where(X == 4, np.inf, X), Y), "test_x must be finite: 1 of 10 rows are not, first row 2"),
    ((X, Y * 0 + 3, X, Y * 0 + 3), r"\[3\]"),
    ((X, Y, X, Y + 1), r"lacks: \[2\]"),
    ((X[:0], Y[:0], X, Y), r"\(0, 2\)"),
    ((X, Y, X[:0], Y[:0]), r"\(0, 2\)"),
    ((X[0], Y, X, Y), r"\(2,\)"),
    ((X, np.eye(2)[Y], X, Y), r"\(10, 2\)"),
    ((X, Y + 0.5, X, Y), "float64"),
]


@pytest.mark.parametrize("probe", [linear_probe, partial(knn_accuracy, k=1)])
@pytest.mark.parametrize(("data", "quoted"), BAD_SPLITS)
def test_bad_splits_are_refused(probe, data, quoted):
    with pytest.raises(ValueError, match=quoted):
        probe(*data)


@pytest.mark.parametrize(
    ("options", "quoted"),
    [
        ({"Cs": ()}, r"\(\)"),
        ({"Cs": (1.0, 0.0)}, "got 0.0"),
        ({"Cs": (1.0, np.inf)}, "got inf"),
        ({"Cs": ["a"]}, "got 'a'"),
        ({"validation": 1.0}, "1.0"),
        ({"validation": "half"}, "'half'"),
        ({"validation": 0.01}, "split into 10 and 0"),
        ({"seed": -1}, "got -1"),
        ({"seed": 0.5}, "got 0.5"),
        ({"seed": None}, "got None"),
    ],
)
def test_bad_options_are_refused(options, quoted):
    with pytest.raises((ValueError, TypeError), match=quoted):
        linear_probe(X, Y, X, Y, **options)


def test_numbers_of_numpy_and_torch_are_numbers(digits):
    train_x, train_y, test_x, test_y = (part[:300] for part in digits)
    splits = train_x, train_y, test_x, test_y
    plain = linear_probe(*splits, Cs=(0.01, 0.1), validation=0.3, seed=3)
    typed = linear_probe(*splits, Cs=np.float32([0.01, 0.1]), validation=np.float64(0.3), seed=np.int64(3))
    np.testing.assert_array_equal(plain.predictions, typed.predictions)
    assert list(typed.validation_scores) == pytest.approx([0.01, 0.1]) and type(typed.C) is float
    assert knn_accuracy(*splits, k=np.int32(7), temperature=torch.tensor(0.25)) == knn_accuracy(*splits, 7, 0.25)
    table = probe_table({"x": (train_x, test_x)}, train_y, test_y, splits=np.int64(1), n_train=np.uint8(200))
    assert table["n_train"].tolist() == [200]


MASKED = np.ma.masked_array(X, X == 4)
ODD = {
    # name: features, error, words
    "sparse array": (sparse.csr_array(X), TypeError, "csr_array|object|[Ss]parse"),
    "sparse matrix": (sparse.csr_matrix(X), TypeError, "csr_matrix|object|[Ss]parse"),
    "sparse tensor": (torch.tensor(X).to_sparse(), TypeError, "sparse"),
    "complex array": (X * 1j, TypeError, "complex"),
    "complex tensor": (torch.tensor(X) * 1j, TypeError, "complex"),
    "masked": (MASKED, ValueError, "1 missing"),
    "words": (X.astype(str), TypeError, "real numbers"),
    "dates": (X.astype("datetime64[D]"), TypeError, "real numbers"),
    "none among numbers": (np.array([[None, 1.0]] * 10), ValueError, "10 missing"),
    "objects": (np.array([[{}, 1.0]] * 10), TypeError, "objects|mixed"),
    "ragged": ([[1.0], [1.0, 2.0]] * 5, ValueError, "different lengths|inhomogeneous"),
}


@pytest.mark.parametrize("probe", [linear_probe, knn_accuracy])
@pytest.mark.parametrize(("x", "error", "words"), ODD.values(), ids=ODD)
def test_features_that_are_no_table_of_real_numbers_are_refused(probe, x, error, words):
    for splits, name in (((x, Y, X, Y), "train_x"), ((X, Y, x, Y), "test_x")):
        with pytest.raises(error, match=rf"{name}[\s\S]*({words})"):
            probe(*splits)


FORMS = {
    "swapped bytes": lambda x: x.astype(">f8"),
    "negative strides": lambda x: x[::-1, ::-1][::-1, ::-1],
    "read-only": lambda x: np.lib.stride_tricks.as_strided(x, writeable=False),
    "float16": lambda x: x.astype(np.float16),
    "longdouble": lambda x: x.astype(np.longdouble),
    "unsigned": lambda x: x.astype(np.uint16),
    "objects": lambda x: x.astype(object),
    "masked, nothing missing": lambda x: np.ma.masked_array(x, False),
    "data frame": lambda x: pd.DataFrame(x).convert_dtypes(),
    "list": lambda x: x.tolist(),
    "bfloat16": lambda x: torch.tensor(x).bfloat16(),
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_every_form_of_the_same_numbers_gives_the_same_result(digits, form):
    train_x, train_y, test_x, test_y = (part[:200] for part in digits)
    train_y, test_y = train_y % 3, test_y % 3
    labels = {np.dtype(np.uint8): train_y.astype(np.uint8), ">i4": train_y.astype(">i4"), "list": train_y.tolist()}
    expected = linear_probe(train_x, train_y, test_x, test_y, Cs=(0.1,))
    found = linear_probe(form(train_x), train_y, form(test_x), test_y, Cs=(0.1,))
    assert found.accuracy == pytest.approx(expected.accuracy, abs=0.011)
    near = knn_accuracy(train_x, train_y, test_x, test_y, k=3)
    for y in (train_y[::-1][::-1], *labels.values()):
        assert knn_accuracy(form(train_x), y, form(test_x), test_y, k=3) == near


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("given", [torch.uint8, torch.float32, torch.float64, torch.float16])
def test_network_of_any_floating_type_gives_float32_features(dtype, given):
    x = images(40)
    expected = extract_features(encoder(), x)
    x = x if given == torch.uint8 else (x.float() / 127.5 - 1).to(given)
    found = extract_features(encoder().to(dtype), x, batch_size=np.int64(16))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0.05, atol=0.05)
    buffers_only = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(12, affine=False)).to(dtype)
    assert extract_features(buffers_only, x).dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_layers_of_networks_in_other_precisions_are_compared(dtype):
    expected = compare_models(encoder(), encoder(), images(40))
    found = compare_models(encoder().to(dtype), encoder(), images(40))
    np.testing.assert_allclose(found, expected, atol=0.02)


def test_complex_features_of_an_encoder_are_refused():
    class Fourier(nn.Module):
        def forward(self, x):
            return torch.fft.fft(x.flatten(1))

    with pytest.raises(TypeError, match=r"real features, got torch\.complex64"):
        extract_features(Fourier(), images())


@pytest.mark.parametrize("n, k", [(2, 1), (10, 3), (360, 19), (5000, 71), (40_000, 200), (1_000_000, 200)])
def test_default_number_of_neighbors_grows_with_the_rows(n, k):
    assert evaluation.default_neighbors(n) == k


def test_default_neighbors_suit_a_small_data_set(digits):
    train_x, train_y, test_x, test_y = digits
    small = train_x[:360], train_y[:360], test_x, test_y
    assert knn_accuracy(*small) == knn_accuracy(*small, k=19) > knn_accuracy(*small, k=200) + 0.1


def test_a_class_with_one_row_cannot_be_split():
    with pytest.raises(ValueError, match=r"class .*7.* has 1"):
        linear_probe(X, np.where(np.arange(10) == 0, 7, Y), X, Y)


# --- table


def test_table_holds_paired_splits(digits):
    train_x, train_y, test_x, test_y = digits
    features = {"pixels": (train_x, test_x), "again": (train_x.copy(), test_x)}
    features["few"] = (train_x[:, :20], test_x[:, :20])
    table = probe_table(features, train_y, test_y, splits=2, n_train=200)
    assert list(table.columns) == ["representation", "split", "accuracy", "C", "n_train", "n_test", "chance"]
    assert table["representation"].tolist() == ["pixels"] * 2 + ["again"] * 2 + ["few"] * 2
    assert table["split"].tolist() == [0, 1] * 3
    assert set(table["n_train"]) == {200} and set(table["n_test"]) == {400}
    pixels, again, few = (table["accuracy"].to_numpy()[i : i + 2] for i in (0, 2, 4))
    np.testing.assert_array_equal(pixels, again)
    assert pixels[0] != pixels[1] and (few < pixels).all()
    commonest = np.bincount(train_y).argmax()
    assert table["chance"].tolist() == [np.mean(test_y == commonest)] * 6
    summary = probe_summary(table)
    assert summary.index.tolist() == ["pixels", "again", "few"] and summary["splits"].tolist() == [2, 2, 2]
    np.testing.assert_allclose(summary.loc["few"], [few.mean(), few.std(ddof=1), 2])


@pytest.mark.parametrize(
    ("features", "options", "quoted"),
    [({}, {}, "none"), ({"a": (X, X)}, {"splits": 0}, "got 0"), ({"a": (X, X)}, {"n_train": 10}, "at most 9, got 10")],
)
def test_bad_table_input_is_refused(features, options, quoted):
    with pytest.raises(ValueError, match=quoted):
        probe_table(features, Y, Y, **options)


# --- nearest neighbors


def brute_force_knn(train_x, train_y, test_x, test_y, k, temperature):
    right = 0
    for row, label in zip(test_x, test_y, strict=True):
        similarity = train_x @ row / (np.linalg.norm(train_x, axis=1) * np.linalg.norm(row))
        votes = np.zeros(train_y.max() + 1)
        for i in np.argsort(-similarity)[:k]:
            votes[train_y[i]] += np.exp(similarity[i] / temperature)
        right += votes.argmax() == label
    return right / len(test_y)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 40), st.floats(0.05, 5), st.floats(1e-3, 1e3))
def test_knn_equals_the_brute_force_vote(seed, k, temperature, scale):
    rng = np.random.default_rng(seed)
    train_y, test_y = np.arange(40) % 3, rng.integers(0, 3, 30)
    train_x = rng.normal(size=(40, 4)) + train_y[:, None]
    test_x = rng.normal(size=(30, 4)) + test_y[:, None]
    expected = brute_force_knn(train_x, train_y, test_x, test_y, k, temperature)
    assert knn_accuracy(train_x * scale, train_y, test_x, test_y, k, temperature) == expected


def test_knn_weights_decide_against_the_majority():
    # One near neighbor of class 1 against two of class 0 at right angles: exp(1/T) against 2.
    x, y = np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]]), np.array([1, 0, 0])
    query = (np.array([[1.0, 0.0]]), np.array([1]))
    assert knn_accuracy(x, y, *query, k=3, temperature=0.5) == 1.0
    assert knn_accuracy(x, y, *query, k=3, temperature=2.0) == 0.0


def test_knn_blocks_change_nothing(digits, monkeypatch):
    whole = knn_accuracy(*digits, k=20)
    monkeypatch.setattr(evaluation, "_BLOCK_ELEMENTS", 600 * 7)
    assert knn_accuracy(*digits, k=20) == whole > 0.85


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_knn_survives_extreme_scales_and_temperatures(digits, scale):
    train_x, train_y, test_x, test_y = digits
    data = (torch.tensor(train_x * scale).float(), train_y, torch.tensor(test_x * scale).float(), test_y)
    nearest = knn_accuracy(*digits, k=1)
    assert knn_accuracy(*data, k=1) == nearest
    assert knn_accuracy(*data, k=50, temperature=1e-6) == pytest.approx(nearest, abs=0.01)


def test_knn_takes_string_labels():
    letters = np.array(["a", "b"])[(X[:, 0] > 9).astype(int)]
    for labels in (letters, letters.astype(object), pd.Series(letters)):  # pandas keeps strings as objects
        assert knn_accuracy(X - 9, labels, X[:1] - 9, ["a"], k=3) == 1.0


def test_fewer_rows_than_k_all_vote_with_a_warning():
    with pytest.warns(UserWarning, match="k = 200 is larger than the 10 training rows"):
        found = knn_accuracy(X - 9, Y, X - 9, Y, k=200)
    assert found == knn_accuracy(X - 9, Y, X - 9, Y, k=10)


@pytest.mark.parametrize(
    ("data", "options", "quoted"),
    [
        ((X, Y, X, Y), {"k": 0}, "got 0"),
        ((X, Y, X, Y), {"k": 2.5}, "got 2.5"),
        ((X, Y, X, Y), {"k": True}, "got True"),
        ((X, Y, X, Y), {"k": "3"}, "got '3'"),
        ((X, Y, X, Y), {"k": 1, "temperature": "hot"}, "got 'hot'"),
        ((X, Y, X, Y), {"k": 1, "temperature": 0.0}, "got 0.0"),
        ((X * (X > 5), Y, X, Y), {"k": 1}, "train_x has 3 zero rows"),
        ((X, Y, X * (X > 3), Y), {"k": 1}, "test_x has 2 zero rows"),
    ],
)
def test_bad_neighbor_input_is_refused(data, options, quoted):
    with pytest.raises((ValueError, TypeError), match=quoted):
        knn_accuracy(*data, **options)

"""`SelfSupervisedEncoder`: scikit-learn's contract, and equality with `train`."""

import copy

import joblib
import numpy as np
import pandas as pd
import pytest
import sklearn
import torch
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks
from torch import nn

from hsic_lab.datasets import from_arrays
from hsic_lab.estimator import CorruptedRows, SelfSupervisedEncoder
from hsic_lab.evaluation import extract_features
from hsic_lab.training import TrainConfig, train

SMALL = {"epochs": 2, "width": 2, "projector": (16, 8), "batch_size": 64, "random_state": 0}
DIGITS, LABELS = load_digits(return_X_y=True)
IMAGES = (DIGITS[:200].reshape(-1, 8, 8) * 15).astype(np.uint8)
ROWS = np.random.default_rng(0).normal(size=(150, 5)) @ np.random.default_rng(1).normal(size=(5, 12))


@parametrize_with_checks(
    [
        SelfSupervisedEncoder(epochs=2, width=1, projector=(8,)),
        SelfSupervisedEncoder("hsic_ssl", epochs=1, width=1, projector=(4,), random_state=3),
    ]
)
def test_scikit_learn_contract(estimator, check):
    check(estimator)


LAYOUTS = {
    "n h w": lambda x: (x, None),
    "n h w 1": lambda x: (x[..., None], None),
    "n 1 h w": lambda x: (x[:, None], None),
    "a tensor": lambda x: (torch.from_numpy(x), None),
    "flat": lambda x: (x.reshape(len(x), -1), (8, 8)),
    "flat, a channel": lambda x: (x.reshape(len(x), -1), [1, 8, 8]),
    "floats": lambda x: (x / 255, None),
}


@pytest.fixture(scope="module")
def on_images():
    return SelfSupervisedEncoder(**SMALL).fit(IMAGES)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_images_in_any_layout(layout, on_images):
    x, shape = layout(IMAGES)
    model = SelfSupervisedEncoder(**SMALL, image_shape=shape)
    features = model.fit_transform(x)
    assert features.dtype == np.float32 and features.shape == (200, 32) and model.n_features_in_ == 64
    np.testing.assert_array_equal(features, on_images.transform(IMAGES))
    np.testing.assert_array_equal(features[:9], model.transform(IMAGES[:9].reshape(9, 64)), "rows are accepted too")


def test_fit_equals_train(on_images, tmp_path):
    seed = int(np.random.RandomState(0).randint(np.iinfo(np.int32).max))
    config = TrainConfig(epochs=2, width=2, projector=(16, 8), batch_size=64, seed=seed, snapshots=2)
    run = train(config, tmp_path / "run", from_arrays(IMAGES, LABELS[:200], IMAGES, LABELS[:200]), False)
    images = torch.from_numpy(IMAGES)[:, None]
    assert torch.equal(extract_features(run.encoder, images), torch.from_numpy(on_images.transform(IMAGES)))
    np.testing.assert_array_equal(on_images.correlation_, run.snapshots[6])
    pd.testing.assert_frame_equal(on_images.history_.drop(columns="seconds"), run.history.drop(columns="seconds"))


def test_features_of_rows_separate_hidden_classes():
    """A hidden class shifts 20 of 40 columns a little; five columns are large noise; the probe has 2 labels a class."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 4, 1200)
    x = rng.normal(size=(1200, 45)) * np.r_[np.ones(40), np.full(5, 30.0)]
    x[:, :20] += rng.normal(size=(4, 20))[y] * 2
    few = np.concatenate([np.flatnonzero(y[:200] == label)[:2] for label in range(4)])

    def accuracy(model):
        features = model.transform(x)
        return LogisticRegression().fit(features[few], y[few]).score(features[200:], y[200:])

    settings = {"width": 4, "projector": (64, 32), "random_state": 0}
    trained = SelfSupervisedEncoder(**settings, epochs=40).fit(x)
    untrained = SelfSupervisedEncoder(**settings, epochs=1, learning_rate=1e-12).fit(x)
    assert trained.correlation_.diagonal().mean() > untrained.correlation_.diagonal().mean() + 0.2
    assert accuracy(trained) > accuracy(untrained) + 0.1


def test_pipeline_and_grid_search():
    model = make_pipeline(SelfSupervisedEncoder(**SMALL), LogisticRegression(max_iter=5000))
    search = GridSearchCV(model, {"selfsupervisedencoder__loss": ["barlow_twins", "hsic_ssl"]}, cv=2)
    search.fit(DIGITS[:600], LABELS[:600])
    assert search.cv_results_["mean_test_score"].min() > 0.4, "chance is 0.1"
    names = search.best_estimator_[:-1].get_feature_names_out()
    assert names[[0, -1]].tolist() == ["selfsupervisedencoder0", "selfsupervisedencoder31"]


@pytest.mark.parametrize("x", [IMAGES, ROWS], ids=["images", "rows"])
def test_seeds_clones_and_pickles(x, tmp_path):
    before = torch.random.get_rng_state()
    model = SelfSupervisedEncoder(**SMALL).fit(x)
    features = model.transform(x)
    assert torch.equal(before, torch.random.get_rng_state())
    np.testing.assert_array_equal(clone(model).fit(x).transform(x), features)
    assert np.abs(clone(model).set_params(random_state=1).fit(x).transform(x) - features).max() > 0.01
    joblib.dump(model, tmp_path / "model.joblib")
    np.testing.assert_array_equal(joblib.load(tmp_path / "model.joblib").transform(x), features)
    with pytest.raises(NotFittedError):
        clone(model).transform(x)


@pytest.mark.parametrize(("n", "batch"), [(2, 2), (63, 63), (64, 64), (200, 64)])
def test_batch_is_at_most_all_rows(n, batch):
    seen = []

    def views(images, generator):
        seen.append(len(images))
        return images / 255, images.flip(-1) / 255

    model = SelfSupervisedEncoder(**SMALL, views=views).fit(IMAGES[:n])
    assert seen[0] == n and set(seen[1:]) == {batch} and len(seen) == 1 + 2 * (n // batch)
    assert model.history_["step"].iloc[-1] == 2 * (n // batch)


def test_progress_bar_only_if_verbose(capsys):
    SelfSupervisedEncoder(**SMALL).fit(IMAGES)
    silent = capsys.readouterr()
    assert silent.err == silent.out == ""
    SelfSupervisedEncoder(**SMALL, verbose=1).fit(IMAGES)
    assert "off-diagonal" in capsys.readouterr().err


@pytest.mark.parametrize("x", [IMAGES, ROWS], ids=["images", "rows"])
def test_own_encoder_is_copied(x):
    own = nn.Sequential(nn.Flatten(), nn.Linear(x[0].size, 6), nn.BatchNorm1d(6))
    before = copy.deepcopy(own.state_dict())
    model = SelfSupervisedEncoder(**SMALL, encoder=own).fit(x)
    assert model.transform(x).shape == (len(x), 6)
    assert all(torch.equal(before[name], value) for name, value in own.state_dict().items())
    assert not torch.equal(next(iter(model.encoder_.parameters())), own[1].weight)


@pytest.mark.parametrize("calls", [1, 4])
@pytest.mark.parametrize("x", [IMAGES, ROWS], ids=["images", "rows"])
def test_interrupted_fit_keeps_the_networks(calls, x):
    class Views:
        left = calls

        def __call__(self, x, generator):
            if not self.left:
                raise KeyboardInterrupt
            self.left -= 1
            x = x / 255 if x.dtype == torch.uint8 else x
            return x, x.flip(0)

    model = SelfSupervisedEncoder(**SMALL, views=Views())
    with pytest.raises(KeyboardInterrupt):
        model.fit(x)
    assert model.transform(x).shape == (len(x), 32) and np.isfinite(model.correlation_).all()


@pytest.mark.parametrize(
    ("settings", "x", "words"),
    [
        ({}, IMAGES * 2.0, "must be in \\[0, 1\\]"),
        ({}, (IMAGES * 255).astype(np.int64), "images as int64: convert them to uint8"),
        ({"image_shape": (8, 8)}, DIGITS.astype(np.int32), "images as int32"),
        ({}, IMAGES[:1], "minimum of 2 is required"),
        ({}, np.zeros((4, 3, 8, 3)), "on both"),
        ({"image_shape": (9, 8)}, DIGITS, "\\(9, 8\\) does not fit the 64 columns"),
        ({"encoder": "resnet18"}, ROWS, "'auto' or a module where X holds rows, got 'resnet18'"),
        ({"encoder": "vgg"}, IMAGES, "'vgg'"),
        ({"loss": "barlow"}, ROWS, "'barlow'"),
        ({"batch_size": 1}, ROWS, "batch_size must be an integer of at least 2, got 1"),
        ({"batch_size": "64"}, ROWS, "batch_size must be an integer of at least 2, got '64'"),
        ({"encoder": None}, IMAGES, r"encoder \(auto, a name or a module\) must be of type Module, got NoneType None"),
        ({"image_shape": 8}, DIGITS, "image_shape must be of type list or tuple, got int 8"),
        ({}, np.where(ROWS > 2, np.nan, ROWS), "NaN"),
    ],
)
def test_bad_input_is_quoted(settings, x, words):
    with pytest.raises((TypeError, ValueError), match=words):
        SelfSupervisedEncoder(**SMALL | settings).fit(x)


def test_transform_refuses_other_images(on_images):
    with pytest.raises(ValueError, match=r"shape \(4, 16\), fit saw \(8, 8\)"):
        on_images.transform(IMAGES.reshape(-1, 4, 16))
    with pytest.raises(ValueError, match=r"shape \(3, 4\), fit saw rows of numbers"):
        SelfSupervisedEncoder(**SMALL).fit(ROWS).transform(ROWS.reshape(-1, 3, 4))


def test_views_and_encoder_receive_standardized_rows_unrounded():
    rows = ROWS * 10.0 ** np.arange(-6, 6)
    expected = StandardScaler().fit_transform(rows).astype(np.float32)
    seen = []

    def views(x, generator):
        seen.append(x)
        return x, -x

    encoder = nn.Linear(12, 6)
    encoder.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    SelfSupervisedEncoder(**SMALL, encoder=encoder, views=views).fit(rows).transform(rows)
    both = set(map(bytes, expected)) | set(map(bytes, -expected))
    assert all(x.dtype == torch.float32 and x.shape[1:] == (12,) for x in seen)
    assert {bytes(row.numpy()) for x in seen for row in x.detach()} == both


def test_corruption_replaces_entries_within_columns_with_the_given_probability():
    """Each column takes its own values only; an entry changes with the given probability; the views are independent."""
    rows = torch.arange(4000.0)[:, None] + torch.tensor([0.0, 10_000, 20_000])
    view_a, view_b = CorruptedRows(0.3)(rows, torch.Generator().manual_seed(0))
    for view in (view_a, view_b):
        assert torch.equal((view // 10_000), (rows // 10_000))
        assert ((view != rows).float().mean(dim=0) - 0.3 * (1 - 1 / 4000)).abs().max() < 4 * (0.21 / 4000) ** 0.5
    both = ((view_a != rows) & (view_b != rows)).float().mean()
    assert abs(both - 0.09) < 4 * (0.09 * 0.91 / 12_000) ** 0.5, "independent of each other"
    for bad in (0, 1, float("nan"), "x"):
        with pytest.raises(ValueError, match=f"corruption must be a .*, got {bad!r}"):
            CorruptedRows(bad)


@pytest.mark.parametrize("output", ["pandas", "default"])
def test_settings_of_scikit_learn_change_the_container_only(output):
    plain = SelfSupervisedEncoder(**SMALL).fit(ROWS)
    with sklearn.config_context(transform_output=output):
        features = SelfSupervisedEncoder(**SMALL).fit(ROWS).transform(ROWS)
        assert isinstance(features, pd.DataFrame) == (output == "pandas")
    np.testing.assert_array_equal(features, plain.transform(ROWS))

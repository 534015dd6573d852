"""Recipes, methods with a predictor, monitors and callbacks, in whole small runs."""

import builtins
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from test_resume import images

from hsic_lab.datasets import ImageData, Images
from hsic_lab.encoders import PooledEncoder
from hsic_lab.training import Run, TensorBoardLogger, TrainConfig, recipe, train
from hsic_lab.training import _setup as pairs
from hsic_lab.training._run import MONITOR
from hsic_lab.training._setup import make_loss
from hsic_lab.training._trainer import make_monitor
from hsic_lab.views import TwoViews

TINY = {
    "width": 1,
    "projector": (8, 4),
    "batch_size": 16,
    "epochs": 2,
    "warmup_epochs": 1,
    "snapshots": 2,
    "log_every": 1,
    "device": "cpu",
    "precision": "float32",
}


@pytest.fixture(autouse=True)
def few_held_out_pairs(monkeypatch):
    monkeypatch.setattr(pairs, "SNAPSHOT_PAIRS", 16)


VIEWS = {"tsai2021": ("tsai2021", False), "official": ("barlow_twins", False), "solo": ("solo", True)}


@pytest.mark.parametrize("name", VIEWS)
def test_recipes_are_settings(name):
    config = recipe(name)
    assert config.encoder in ("resnet18", "resnet50") and config.epochs == 1000
    assert (config.views, config.trust_clip) == VIEWS[name]
    assert recipe(name, seed=3).seed == 3
    with pytest.raises(ValueError, match="'note'"):
        recipe("note")


def test_speedrun_recipe_trains_on_small_views(tmp_path):
    config = recipe("cpu_speedrun", **TINY | {"view_size": 6})
    assert (config.dataset, config.encoder) == ("cifar10", "pooled")
    run = train(config, tmp_path / "run", images(), False)
    loaded = Run.load(tmp_path / "run").encoder
    assert isinstance(loaded, PooledEncoder) and loaded.out_features == 28 * config.width
    batch = torch.rand(4, 3, 8, 8)  # features are of whole images, whatever the side of the views
    with torch.no_grad():
        torch.testing.assert_close(loaded(batch), run.encoder(batch))


def test_official_learning_rates_scale_with_the_batch():
    assert recipe("official").learning_rate == pytest.approx(1.6)
    assert recipe("official", batch_size=512).bias_learning_rate == pytest.approx(0.0096)


@pytest.mark.parametrize(
    "changes",
    [
        {"encoder": "resnet18"},
        {"predictor": (8,), "target": "stop_gradient", "loss": "negative_cosine"},
        {"predictor": (8,), "target": "momentum", "loss": "negative_cosine", "optimizer": "lars"},
        {"precision": "bfloat16", "micro_batch": 5, "optimizer": "sgd"},
    ],
)
def test_methods_train_and_load(tmp_path, changes):
    run = train(TrainConfig(**TINY | changes), tmp_path / "run", images(), False)
    loaded = Run.load(tmp_path / "run")
    batch = torch.rand(4, 3, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(loaded.encoder(batch), run.encoder(batch))
    assert run.history["loss"].nunique() == 8


def labelled() -> ImageData:
    """Two classes that one pixel tells apart; the test split's labels are nonsense that nothing may read."""
    data = images()
    labels = torch.arange(64) % 2
    data.train.images[:, 0] = (labels * 255).to(torch.uint8)[:, None, None]
    train_split = type(data.train)(data.train.images, labels)
    return ImageData("labelled", train_split, type(data.test)(data.test.images, 1 - labels), ("a", "b"))


@pytest.mark.parametrize("kind", ["knn", "linear"])
def test_monitor_reads_training_labels_only(kind):
    row = make_monitor(kind, labelled())(torch.nn.Flatten())
    assert row["accuracy"] == 1
    assert row["n_bank"] + row["n_queries"] == 64 and row["n_queries"] == 12
    assert row["split"].startswith("training images") and row["protocol"]
    shuffled = labelled()
    shuffled.train.labels[:] = torch.randint(2, (64,), generator=torch.Generator().manual_seed(0))
    assert make_monitor(kind, shuffled)(torch.nn.Flatten())["accuracy"] < 0.9
    assert make_monitor("none", labelled()) is None


def test_callbacks_receive_every_event(tmp_path):
    heard = []
    config = TrainConfig(**TINY | {"monitor": "knn", "monitor_every": 1})
    run = train(config, tmp_path / "run", images(), False, callbacks=[heard.append])
    steps = ["step"] * 4
    assert [event.kind for event in heard] == ["snapshot", *steps, "monitor", *steps, "snapshot", "monitor"]
    assert [event.step for event in heard if event.kind == "monitor"] == [4, 8]
    assert [event.values["loss"] for event in heard if event.kind == "step"] == list(run.history["loss"])
    table = pd.read_csv(tmp_path / "run" / MONITOR)
    assert list(table["epoch"]) == [1, 2] and table["protocol"].str.contains("kNN").all()
    pd.testing.assert_frame_equal(Run.load(tmp_path / "run").monitor, table)


def test_own_views_and_encoder_are_used(tmp_path):
    calls = []

    def views(images, generator):
        calls.append(len(images))
        return TwoViews(8, jitter=0, grayscale=0)(images, generator)

    encoder = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 5))
    run = train(TrainConfig(**TINY), tmp_path / "run", images(), False, encoder=encoder, views=views)
    assert calls.count(16) >= 8
    assert run.config.encoder == "custom" and run.encoder is encoder
    other = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 5))
    assert torch.equal(Run.load(tmp_path / "run", other).encoder[1].weight, encoder[1].weight)
    with pytest.raises(ValueError, match="'custom'"):
        Run.load(tmp_path / "run")


def test_logs_of_tensorboard_can_lie_in_the_folder_of_the_run(monkeypatch, tmp_path):
    written = []

    class Writer:
        def __init__(self, folder):
            Path(folder).mkdir(parents=True)
            self.add_scalar, self.flush = lambda *values: written.append(values), lambda: None

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", SimpleNamespace(SummaryWriter=Writer))
    logger = TensorBoardLogger(tmp_path / "run" / "logs")
    run = train(TrainConfig(**TINY), tmp_path / "run", images(), False, callbacks=[logger])
    last = run.history.iloc[-1]
    assert ("step/loss", last["loss"], last["step"]) in written


def test_missing_tensorboard_is_explained(monkeypatch, tmp_path):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "torch.utils.tensorboard":
            raise ModuleNotFoundError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ModuleNotFoundError, match="pip install tensorboard"):
        TensorBoardLogger(tmp_path)


def test_loss_receives_its_options(tmp_path):
    assert make_loss(TrainConfig(loss="nt_xent", loss_options={"temperature": 0.2})).temperature == 0.2
    with pytest.raises(ValueError, match=r"'nt_xent' does not take .*: it takes only temperature, "):
        TrainConfig(loss="nt_xent", lambda_param=0.1)
    with pytest.raises(ValueError, match=r"does not take .*: gather_distributed must be of type bool, got int 3"):
        TrainConfig(loss_options={"gather_distributed": 3})
    assert np.isclose(make_loss(TrainConfig(lambda_param=0.3)).lambda_param, 0.3)


def test_solo_recipe_has_the_lambda_of_its_code():
    assert recipe("solo").lambda_param == 0.0051
    with pytest.raises(ValueError, match="batch_size must be a whole number of at least 2, got None"):
        recipe("official", batch_size=None)


def test_monitor_warns_of_collapsed_features_and_refuses_small_classes():
    data = labelled()
    with pytest.warns(UserWarning, match="cannot evaluate the features: train_x has .* zero rows"):
        row = make_monitor("knn", data)(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Threshold(9.0, 0.0)))
    assert np.isnan(row["accuracy"]) and row["n_bank"] > 0
    n = len(data.train)
    labels = torch.zeros(n, dtype=torch.int64)
    labels[:8] = torch.arange(8) // 2 + 1  # pairs, of which a stratified split puts a row on either side now and then
    few = torch.arange(64) % 12
    with pytest.raises(ValueError, match="each part needs a row for each of the 12 classes"):
        make_monitor("linear", replace(data, train=Images(data.train.images, few)))
    with pytest.raises(ValueError, match=r"at least 2 training rows, class [1-4] has 1"):
        make_monitor("linear", replace(data, train=Images(data.train.images, labels)))
    labels[:8] = torch.arange(8)  # one image each
    with pytest.raises(ValueError, match=f"monitor 'knn' cannot divide the training images of '{data.name}': .*member"):
        make_monitor("knn", replace(data, train=Images(data.train.images, labels)))

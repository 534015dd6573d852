"""Training: the content of a run, its dependence on the settings, and errors during training."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

from hsic_lab.cli import app
from hsic_lab.correlation import cross_correlation, standardize
from hsic_lab.datasets import DigitScenes, ImageData, Images, from_arrays, load
from hsic_lab.training import LOSSES, Run, TrainConfig, train, train_or_load
from hsic_lab.training import _setup as pairs
from hsic_lab.training import _trainer as trainer
from hsic_lab.training._run import FILES, HISTORY, SETTINGS, SNAPSHOTS, WEIGHTS
from hsic_lab.training._setup import TrainingPairs, held_out_pairs, seed_of
from hsic_lab.views import augmentation, normalize

CPU = torch.device("cpu")
ALL = slice(None)
TINY = {
    "width": 2,
    "projector": (8, 4),
    "batch_size": 16,
    "epochs": 2,
    "warmup_epochs": 0.5,
    "snapshots": 3,
    "log_every": 1,
    "device": "cpu",
    "precision": "float32",
}


@pytest.fixture(autouse=True)
def few_held_out_pairs(monkeypatch):
    monkeypatch.setattr(pairs, "SNAPSHOT_PAIRS", 128)


@pytest.fixture(scope="module")
def scenes() -> ImageData:
    return load("digit_scenes", n_train=48, n_test=32)


@pytest.fixture(scope="module")
def images() -> ImageData:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (48, 3, 16, 16), generator=generator, dtype=torch.uint8)
    split = Images(images, torch.arange(48) % 3)
    return ImageData("pictures", split, split, ("a", "b", "c"))


def tiny(**changes) -> TrainConfig:
    return TrainConfig(**TINY | changes)


@pytest.mark.parametrize("loss", sorted(LOSSES))
def test_run_holds_what_its_docstring_says(tmp_path, scenes, loss):
    run = train(tiny(loss=loss), tmp_path / "run", scenes, progress=False)
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == sorted(FILES)
    assert run.status == "finished"
    assert list(run.history["step"]) == [1, 2, 3, 4, 5, 6]
    assert run.history["epoch"].iloc[-1] == 2
    terms = run.history.columns[2 + 1 : list(run.history.columns).index("diagonal")]
    torch.testing.assert_close(
        torch.tensor(run.history[list(terms)].sum(axis=1).to_numpy()),
        torch.tensor(run.history["loss"].to_numpy()),
        rtol=1e-5,
        atol=1e-5,
    )
    assert list(run.snapshots) == [0, 3, 6]
    assert all(c.shape == (4, 4) for c in run.snapshots.values())


def test_load_returns_the_trained_run(tmp_path, scenes):
    run = train(tiny(), tmp_path / "run", scenes, progress=False)
    loaded = Run.load(tmp_path / "run")
    assert loaded.status == "finished"
    assert loaded.config == run.config
    pd.testing.assert_frame_equal(loaded.history, run.history, check_exact=False, rtol=1e-12)
    for name in ("encoder", "projector"):
        a, b = getattr(run, name).state_dict(), getattr(loaded, name).state_dict()
        assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
    assert all(torch.equal(run.snapshots[step], loaded.snapshots[step]) for step in run.snapshots)
    assert all(torch.equal(run.samples[step], loaded.samples[step]) for step in run.snapshots)
    assert not loaded.encoder.training


def test_last_snapshot_is_c_of_held_out_pairs(tmp_path, scenes):
    run = train(tiny(), tmp_path / "run", scenes, progress=False)
    with torch.no_grad():
        z_a, z_b = (run.projector(run.encoder(view)) for view in held_out_pairs(scenes, tiny(), CPU))
    torch.testing.assert_close(run.snapshots[6], cross_correlation(z_a, z_b), rtol=1e-4, atol=1e-5)
    kept = torch.stack([standardize(z)[:256] for z in (z_a, z_b)])
    torch.testing.assert_close(run.samples[6].float(), kept, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", ["scenes", "images"])
def test_run_is_a_function_of_its_settings(tmp_path, kind, request):
    data = request.getfixturevalue(kind)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    runs = [train(tiny(seed=seed), tmp_path / str(i), data, progress=False) for i, seed in enumerate((0, 0, 1))]
    assert torch.equal(torch.get_rng_state(), state), "the global generator moved"
    same, again, other = (run.history["loss"].to_numpy() for run in runs)
    assert (same == again).all()
    assert (same != other).all()
    for key, value in runs[0].encoder.state_dict().items():
        assert torch.equal(value, runs[1].encoder.state_dict()[key])


def test_every_epoch_has_its_own_pairs_and_every_image_once(images):
    pairs = TrainingPairs(images, tiny(), CPU, ALL)
    batches = [batch for epoch in range(2) for batch in pairs.epoch(epoch)]
    assert all(view.shape == (16, 3, 16, 16) for batch in batches for view in batch)
    assert not torch.equal(batches[0][0], batches[3][0])
    generator = torch.Generator().manual_seed(seed_of(0, 0))
    order = torch.randperm(48, generator=generator)
    assert sorted(order.tolist()) == list(range(48))


def test_training_learns_what_the_views_share(tmp_path):
    data = load("digit_scenes", n_train=640, n_test=32)
    # A background is learnt in a few steps, a digit takes hundreds.
    config = tiny(width=8, projector=(32, 8), batch_size=64, epochs=4, snapshots=2, shared=("background",))
    run = train(config, tmp_path / "run", data, progress=False)
    before, after = (c.diagonal().mean() for c in (run.snapshots[0], run.snapshots[40]))
    assert after > before + 0.2, (before, after)


def test_nan_in_a_batch_stops_and_keeps_the_run(tmp_path, scenes, monkeypatch):
    epoch = TrainingPairs.epoch

    def poisoned(self, number, skip=0):
        for a, b in epoch(self, number, skip):
            yield (a * float("nan") if number == 1 else a), b

    monkeypatch.setattr(TrainingPairs, "epoch", poisoned)
    with pytest.raises(FloatingPointError, match=r"step 4 of 6: the loss is nan"):
        train(tiny(), tmp_path / "run", scenes, progress=False)
    run = Run.load(tmp_path / "run")
    assert run.status.startswith("failed: step 4")
    assert list(run.history["step"]) == [1, 2, 3]
    assert list(run.snapshots) == [0, 3]
    for network in (run.encoder, run.projector):
        assert all(torch.isfinite(value).all() for value in network.state_dict().values())


def test_run_stopped_before_the_first_step_loads(tmp_path, scenes, monkeypatch):
    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(trainer.Trainer, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(tiny(), tmp_path / "run", scenes, progress=False)
    run = Run.load(tmp_path / "run")
    assert (run.status, len(run.history), list(run.snapshots)) == ("interrupted", 0, [0])


def test_ctrl_c_leaves_a_usable_run(tmp_path, scenes, monkeypatch):
    step = trainer.Trainer.step

    def interrupted(self, *args):
        if self.step_count == 4:
            raise KeyboardInterrupt
        return step(self, *args)

    monkeypatch.setattr(trainer.Trainer, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(tiny(), tmp_path / "run", scenes, progress=False)
    run = Run.load(tmp_path / "run")
    assert run.status == "interrupted"
    assert list(run.history["step"]) == [1, 2, 3, 4]


def test_failed_write_leaves_the_previous_file(tmp_path, scenes, monkeypatch):
    run = train(tiny(), tmp_path / "run", scenes, progress=False)
    weights = (tmp_path / "run" / WEIGHTS).read_bytes()

    def half_written(tensors, path):
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr("hsic_lab.training._run.save_file", half_written)
    with pytest.raises(OSError, match="disk full"):
        run.save()
    assert (tmp_path / "run" / WEIGHTS).read_bytes() == weights
    assert len(list((tmp_path / "run").iterdir())) == len(FILES), "a temporary file was left behind"


@pytest.mark.parametrize("name", FILES)
def test_damaged_file_is_named(tmp_path, scenes, name):
    train(tiny(), tmp_path / "run", scenes, progress=False)
    (tmp_path / "run" / name).write_bytes(b"\x00\x01")
    with pytest.raises(ValueError, match=f"{name} is damaged"):
        Run.load(tmp_path / "run")


def test_train_or_load_trains_once(tmp_path, scenes, monkeypatch):
    first = train_or_load(tiny(), tmp_path / "run", scenes, progress=False)
    stamp = (tmp_path / "run" / WEIGHTS).stat().st_mtime_ns
    second = train_or_load(tiny(), tmp_path / "run", scenes, progress=False)
    assert (tmp_path / "run" / WEIGHTS).stat().st_mtime_ns == stamp
    assert second.config == first.config
    with pytest.raises(FileExistsError, match="other settings"):
        train_or_load(tiny(seed=3), tmp_path / "run", scenes, progress=False)
    settings = json.loads((tmp_path / "run" / SETTINGS).read_text()) | {"state": "interrupted"}
    (tmp_path / "run" / SETTINGS).write_text(json.dumps(settings))
    assert train_or_load(tiny(), tmp_path / "run", scenes, progress=False).status == "finished"
    assert (tmp_path / "run" / WEIGHTS).stat().st_mtime_ns != stamp


def test_train_or_load_compares_data_by_name_and_content(tmp_path, monkeypatch):
    settings = tiny(batch_size=16)
    pixels = torch.randint(256, (80, 3, 12, 12), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    mine, other, more = (
        from_arrays(images, torch.arange(len(images)) % 2, name=name)
        for images, name in ((pixels[:40], "mine"), (pixels[:40], "other"), (pixels, "mine"))
    )
    train_or_load(settings, tmp_path / "run", mine, progress=False)
    with pytest.raises(FileExistsError, match="dataset 'mine', not 'other'"):
        train_or_load(settings, tmp_path / "run", other, progress=False)
    with pytest.raises(FileExistsError, match="on other images, 32 x 3"):
        train_or_load(settings, tmp_path / "run", more, progress=False)
    named = replace(settings, dataset="digits")  # overruled by the data, each time
    for _ in range(2):
        assert train_or_load(named, tmp_path / "named", mine, progress=False).config.dataset == "mine"
    for label in "ab":
        (tmp_path / "pics" / label).mkdir(parents=True)
        for number in range(20):
            plt.imsave(tmp_path / "pics" / label / f"{number}.png", np.random.default_rng(number).random((12, 12, 3)))
    monkeypatch.chdir(tmp_path)
    for name in ("pics", "./pics", f"../{tmp_path.name}/pics", str(tmp_path / "pics")):
        assert train_or_load(replace(settings, dataset=name), "folder", progress=False).metadata["train_images"] == 32


def test_no_run_is_overwritten_and_other_folders_are_refused(tmp_path, scenes):
    train(tiny(), tmp_path / "run", scenes, progress=False)
    with pytest.raises(FileExistsError, match="already holds a run"):
        train(tiny(), tmp_path / "run", scenes, progress=False)
    with pytest.raises(FileNotFoundError, match="is not a run"):
        Run.load(tmp_path)
    (tmp_path / "run" / SNAPSHOTS).unlink()
    with pytest.raises(FileNotFoundError, match=f"{SNAPSHOTS} is missing: the run was never saved whole"):
        Run.load(tmp_path / "run")
    assert (tmp_path / "run" / HISTORY).exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"views": "byol"}, "'default', 'tsai2021'.*'byol'"),
        ({"loss": "barlow"}, "'barlow_twins', 'hsic_ssl'.*'barlow'"),
        ({"precision": "fp8"}, "'fp8'"),
        ({"epochs": "8"}, "epochs must be a whole number of at least 1, got '8'"),
        ({"view_size": 1}, "view_size must be a whole number of at least 2, a list of them, or None, got 1"),
        ({"view_size": [8, 1]}, r"view_size must be a whole number of at least 2, .* got \[8, 1\]"),
        ({"views_per_image": 1}, "views_per_image must be a whole number of at least 2, got 1"),
        ({"epochs": 8.5}, "epochs must be a whole number of at least 1, got 8.5"),
        ({"warmup_epochs": "1"}, "warmup_epochs must be a finite number of at least 0, or None, got '1'"),
        ({"projector": 128}, "projector must be a list of positive widths, got 128"),
        ({"loss": "vicreg", "lambda_param": 0.01}, "VICReg's lambda_param weighs its invariance.*lambda_param=0.01"),
        ({"batch_size": 1}, "batch_size must be a whole number of at least 2, got 1"),
        ({"epochs": 0, "warmup_epochs": 0}, "epochs must be a whole number of at least 1, got 0"),
        ({"learning_rate": 0.0}, "learning_rate must be a finite number above 0, got 0.0"),
        ({"learning_rate": float("nan")}, "learning_rate must be a finite number above 0, got nan"),
        ({"warmup_epochs": 3}, "warmup_epochs must be in 0..2"),
        ({"projector": ()}, "projector must hold at least one width"),
        ({"projector": (8, 0)}, r"projector must be a list of positive widths, got \(8, 0\)"),
        ({"shared": (1,)}, r"shared must be a list of names, got \(1,\)"),
        ({"snapshots": 1}, "snapshots must be a whole number of at least 2, got 1"),
        ({"weight_decay": float("inf")}, "weight_decay must be a finite number of at least 0, got inf"),
        ({"trust_clip": "no"}, "trust_clip must be true or false, got 'no'"),
        ({"compile": 0}, "compile must be true or false, got 0"),
        ({"dataset": 3}, "dataset must be a string, got 3"),
        ({"shared": "digit"}, "shared must be a list of names, got 'digit'"),
        ({"loss_options": None}, "loss_options must be a dictionary that JSON can hold, got None"),
        ({"loss_options": {"lambda_param": np.float32(0.1)}}, "JSON can hold, got {'lambda_param': np.float32"),
    ],
)
def test_bad_settings(changes, message):
    with pytest.raises(ValueError, match=message):
        tiny(**changes)


def test_batch_larger_than_the_data_is_an_error(tmp_path, scenes):
    with pytest.raises(ValueError, match="batch_size 64 is larger than the 48"):
        train(tiny(batch_size=64), tmp_path / "run", scenes, progress=False)
    assert not (tmp_path / "run").exists()


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_training_on_cuda(tmp_path, scenes):
    run = train(tiny(device="auto", precision="auto"), tmp_path / "run", scenes, progress=False)
    assert run.metadata["device"] == "cuda"
    assert Run.load(tmp_path / "run").status == "finished"


def test_scene_pairs_share_what_is_asked_for(scenes):
    config = tiny(shared=("background",))
    a, b = next(TrainingPairs(scenes, config, CPU, ALL).epoch(0))
    first, second = DigitScenes("train").pairs(16, torch.Generator().manual_seed(seed_of(0, 0)), ("background",))
    torch.testing.assert_close(a, normalize(first))
    torch.testing.assert_close(b, normalize(second))


@pytest.fixture(scope="module")
def partly_labelled(images) -> ImageData:
    """48 labelled images and 40 without labels, each image of one gray level of its own."""
    levels = torch.arange(88, dtype=torch.uint8)[:, None, None, None].expand(88, 1, 4, 4)
    train, rest = Images(levels[:48], torch.arange(48) % 3), Images(levels[48:], torch.full((40,), -1))
    return ImageData("partly", train, Images(levels[:20], torch.arange(20) % 3), ("a", "b", "c"), rest)


def as_it_is(images, generator):
    """Views that only draw, so that an image can be recognized and a skipped batch would be missed."""
    torch.rand(len(images), generator=generator)
    return images, images.clone()


def test_an_epoch_shows_every_image_labelled_or_not_once(partly_labelled):
    pairs = TrainingPairs(partly_labelled, tiny(batch_size=11), CPU, ALL, as_it_is)
    for epoch in range(2):
        seen = torch.cat([a[:, 0, 0, 0] for a, _ in pairs.epoch(epoch)])
        assert len(pairs) == 8 and sorted(seen.add(1).mul(127.5).round().int().tolist()) == list(range(88))
    with pytest.raises(ValueError, match="batch_size 89 is larger than the 88"):
        TrainingPairs(partly_labelled, tiny(batch_size=89), CPU, ALL)


def test_unlabelled_images_count_in_the_run(tmp_path, partly_labelled):
    run = train(tiny(), tmp_path / "run", partly_labelled, progress=False)
    assert run.metadata["train_images"] == 88 and run.history["step"].iloc[-1] == 2 * (88 // 16)


def test_mapped_images_are_not_copied(tmp_path):
    """Batches and held-out pairs read only the images that they show."""
    (tmp_path / "x").write_bytes(torch.arange(64 * 48).to(torch.uint8).numpy().tobytes())
    mapped = torch.from_file(str(tmp_path / "x"), size=64 * 48, dtype=torch.uint8).view(64, 3, 4, 4)
    data = ImageData("mapped", Images(mapped, torch.arange(64) % 2), Images(mapped, torch.arange(64) % 2), ("a", "b"))
    sizes = []

    def views(images, generator):
        sizes.append(len(images))
        return images, images

    pairs = TrainingPairs(data, tiny(), CPU, ALL, views)
    assert pairs.source.parts[0].data_ptr() == mapped.data_ptr()
    list(pairs.epoch(0))
    held_out_pairs(data, tiny(), CPU, views)
    assert sizes == [16, 16, 16, 16, 64]


@pytest.mark.parametrize("name", ["tsai2021", "simclr", "solo"])
def test_views_are_a_setting(images, name):
    views = augmentation(name, 16, blur=0.0) if name != "simclr" else augmentation(name, 16)
    batch = next(TrainingPairs(images, tiny(views=name), CPU, ALL).epoch(0))
    expected = next(TrainingPairs(images, tiny(), CPU, ALL, views).epoch(0))
    other = next(TrainingPairs(images, tiny(), CPU, ALL).epoch(0))
    assert all(torch.equal(view, same) for view, same in zip(batch, expected, strict=True))
    assert not torch.equal(batch[0], other[0])
    held_out = held_out_pairs(images, tiny(views=name), CPU)
    assert torch.equal(held_out[0], held_out_pairs(images, tiny(), CPU, views)[0])


def test_side_of_the_views_is_a_setting(images):
    batch = next(TrainingPairs(images, tiny(view_size=12), CPU, ALL).epoch(0))
    expected = next(TrainingPairs(images, tiny(), CPU, ALL, augmentation("default", 12)).epoch(0))
    assert all(torch.equal(view, same) for view, same in zip(batch, expected, strict=True))
    assert batch[0].shape[2:] == held_out_pairs(images, tiny(view_size=12), CPU)[0].shape[2:] == (12, 12)


def test_impossible_views_are_an_error(tmp_path, scenes, images):
    for changes, views in (({"views": "solo"}, None), ({"view_size": 8}, None), ({}, as_it_is)):
        with pytest.raises(ValueError, match="digit_scenes takes views='default'"):
            train(tiny(**changes), tmp_path / "run", scenes, progress=False, views=views)
    with pytest.raises(ValueError, match="got both: views='solo'"):
        train(tiny(views="solo"), tmp_path / "run", images, progress=False, views=as_it_is)
    with pytest.raises(ValueError, match="got both: views='default', view_size=8"):
        train(tiny(view_size=8), tmp_path / "run", images, progress=False, views=as_it_is)
    with pytest.raises(ValueError, match="below 20 pixels"):
        train(tiny(views="barlow_twins"), tmp_path / "run", images, progress=False)
    assert not (tmp_path / "run").exists()


def test_run_without_a_newer_setting_has_its_default(tmp_path, scenes):
    train(tiny(), tmp_path / "run", scenes, progress=False)
    settings = json.loads((tmp_path / "run" / SETTINGS).read_text())
    for name in ("views", "trust_clip"):
        del settings["config"][name]
    (tmp_path / "run" / SETTINGS).write_text(json.dumps(settings))
    assert Run.load(tmp_path / "run").config.views == "default"
    assert train_or_load(tiny(), tmp_path / "run", scenes, progress=False).status == "finished"
    with pytest.raises(FileExistsError, match="views 'default', not 'tsai2021'"):
        train_or_load(tiny(views="tsai2021"), tmp_path / "run", scenes, progress=False)


@pytest.mark.parametrize("kind", ["scenes", "images"])
def test_skipped_batches_and_rows_change_nothing_else(kind, request):
    data = request.getfixturevalue(kind)
    whole = list(TrainingPairs(data, tiny(), CPU, ALL).epoch(1))
    for skip, rows in ((2, ALL), (1, slice(3, 9))):
        part = list(TrainingPairs(data, tiny(), CPU, rows).epoch(1, skip))
        assert len(part) == 3 - skip
        for batch, expected in zip(part, whole[skip:], strict=True):
            assert all(torch.equal(view, other[rows]) for view, other in zip(batch, expected, strict=True))


@pytest.mark.parametrize("loss", sorted(LOSSES))
def test_training_on_three_views_minimizes_the_loss_of_three_views(tmp_path, images, loss):
    config = tiny(loss=loss, views_per_image=3, epochs=1)
    run = train(config, tmp_path / "run", images, progress=False)
    encoder, projector = pairs.make_networks(config, 3)
    batch = next(TrainingPairs(images, config, CPU, ALL).epoch(0))
    with torch.no_grad():
        z = projector(encoder(torch.cat(batch))).chunk(3)
        assert run.history["loss"][0] == pytest.approx(float(pairs.make_loss(config)(*z)), rel=1e-4)
    c = cross_correlation(*(one.double() for one in z[:2])).numpy()
    off = c[~np.eye(len(c), dtype=bool)]
    expected = {"diagonal": c.diagonal().mean(), "off_diagonal": off.mean(), "rms_off_diagonal": (off**2).mean() ** 0.5}
    assert run.history.loc[0, list(expected)].to_dict() == pytest.approx(expected, abs=1e-4)
    assert list(run.snapshots) == [0, 2, 3] and run.snapshots[3].shape == (4, 4)
    assert Run.load(tmp_path / "run").config.views_per_image == 3


@pytest.mark.parametrize("size", [None, (16, 8, 8, 16)])
@pytest.mark.parametrize("target", ["same", "momentum"])
def test_resumed_training_on_several_views_has_the_same_bits(tmp_path, images, size, target):
    config = tiny(views_per_image=4, view_size=size, micro_batch=6, target=target, predictor=(4,), loss="sigreg")
    config = replace(config, loss_options={"slices": 8, "global_views": 2})

    def interrupt(event):
        if event.kind == "step" and event.step == 4:
            raise KeyboardInterrupt

    whole = train(config, tmp_path / "whole", images, progress=False)
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "run", images, progress=False, callbacks=[interrupt])
    again = train(config, tmp_path / "run", images, progress=False, resume=True)
    assert whole.history["loss"].tolist() == again.history["loss"].tolist()
    for name, value in whole.encoder.state_dict().items():
        assert torch.equal(value, again.encoder.state_dict()[name]), name


def test_views_of_several_sizes_are_batches_of_their_own_for_the_encoder(tmp_path, images):
    config = tiny(views_per_image=4, view_size=[16, 16, 8, 8], epochs=1)
    run, seen = train(config, tmp_path / "run", images, progress=False), []
    batch = next(TrainingPairs(images, config, CPU, ALL).epoch(0))
    assert [tuple(view.shape) for view in batch] == [(16, 3, 16, 16)] * 2 + [(16, 3, 8, 8)] * 2
    online = pairs.OnlineNetwork(run.encoder, run.projector)
    online.encoder.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    _, z = online(*pairs.split_views(batch, [16])[0])
    assert len(z) == 64 and [len(one) for one in seen] == [32, 32]
    assert torch.equal(torch.cat(batch[:2]), seen[0]) and torch.equal(torch.cat(batch[2:]), seen[1])


def test_several_views_that_do_not_fit_are_an_error(tmp_path, scenes, images):
    with pytest.raises(ValueError, match=r"one for each view.*got view_size=\(16, 8\), views_per_image=3"):
        tiny(views_per_image=3, view_size=(16, 8))
    with pytest.raises(ValueError, match=r"it holds pairs, got .*views_per_image=3"):
        train(tiny(views_per_image=3), tmp_path / "run", scenes, progress=False)
    with pytest.raises(ValueError, match="must return views_per_image=2 views, got 1"):
        train(tiny(), tmp_path / "run", images, progress=False, views=lambda batch, generator: (batch,))
    with pytest.raises(ValueError, match="must return views_per_image=3 views, got 2"):
        train(tiny(views_per_image=3), tmp_path / "run", images, progress=False, views=as_it_is)
    three = train(
        tiny(views_per_image=3), tmp_path / "three", images, progress=False, views=lambda x, _: (x, x.flip(3), x)
    )
    assert three.status == "finished"


def test_number_of_views_is_set_on_the_command_line(tmp_path):
    settings = ["width=1", "projector=8-4", "views_per_image=4", "view_size=[8, 8, 6, 6]", "log_every=1"]
    command = ["train", str(tmp_path / "run"), "--dataset", "digits", "--epochs", "1", "--device", "cpu"]
    done = CliRunner().invoke(app, [*command, *(part for one in settings for part in ("--set", one))])
    assert done.exit_code == 0, done.output
    config = Run.load(tmp_path / "run").config
    assert (config.views_per_image, config.view_size) == (4, (8, 8, 6, 6))


@pytest.mark.parametrize(("epochs", "warmup"), [(1, 0.5), (2, 1.0), (22, 1.5)])
def test_short_run_has_a_short_warm_up(epochs, warmup):
    assert TrainConfig(epochs=epochs).warmup_epochs == warmup


def test_files_that_do_not_fit_together_are_named(tmp_path, scenes):
    train(tiny(), tmp_path / "run", scenes, progress=False)
    settings = json.loads((tmp_path / "run" / SETTINGS).read_text())
    settings["config"]["width"] = 3
    (tmp_path / "run" / SETTINGS).write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=f"{WEIGHTS} does not fit the encoder"):
        Run.load(tmp_path / "run")
    (tmp_path / "run" / SETTINGS).write_text("{}")
    with pytest.raises(ValueError, match=f"{SETTINGS} is damaged .it lacks"):
        Run.load(tmp_path / "run")


def test_settings_of_numpy_and_of_older_files_are_understood():
    config = tiny(seed=np.int64(3), learning_rate=np.float32(1), epochs=np.int32(2), projector=(np.int64(8), 4))
    assert json.loads(json.dumps(asdict(config)))["seed"] == 3 and config.projector == (8, 4)
    assert tiny(dataset=Path("pictures")).dataset == "pictures"
    assert TrainConfig.from_json({"shared": ["crop"]}).shared == ("crop",), "not read unless images are scenes"
    before = TrainConfig.from_json({"loss": "vicreg", "lambda_param": 9.0, "loss_options": {"mu_param": 2.0}})
    assert (before.lambda_param, before.loss_options) == (None, {"lambda_param": 9.0, "mu_param": 2.0})
    before = TrainConfig.from_json({"loss": "hsic_ssl", "loss_options": {"target": -0.5}, "views": "report"})
    assert (before.loss_options, before.views) == ({"off_diagonal_target": -0.5}, "tsai2021"), "names of version 0.1"


def test_held_out_pairs_are_of_every_class(tmp_path, monkeypatch):
    monkeypatch.setattr(pairs, "SNAPSHOT_PAIRS", 12)
    labels = torch.arange(48) // 16
    images = (labels * 100).to(torch.uint8)[:, None, None, None].expand(-1, 1, 8, 8).contiguous()

    def kept(order):
        split = Images(images[order], labels[order])
        config = tiny(dataset="ordered")
        views = held_out_pairs(ImageData("ordered", split, split, ("a", "b", "c")), config, CPU, lambda x, g: (x, x))
        return views[0][:, 0, 0, 0].unique(return_counts=True)[1].tolist()

    assert kept(torch.arange(48)) == [4, 4, 4]
    assert kept(torch.arange(48).view(3, 16)[[1, 2, 0]].flatten()) == [4, 4, 4]
    run = train(tiny(), tmp_path / "run", load("digit_scenes", n_train=48, n_test=32), progress=False)
    assert run.metadata["held_out_pairs"] == 12

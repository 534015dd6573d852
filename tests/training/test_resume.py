"""A killed training resumes to the result of an uninterrupted one, after SIGKILL, SIGTERM and damaged files."""

import json
import multiprocessing
import random
import signal
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pandas as pd
import pytest
import torch

from hsic_lab.datasets import ImageData, Images
from hsic_lab.training import Run, TrainConfig, train, train_or_load
from hsic_lab.training import _setup as pairs
from hsic_lab.training._run import FOLDER, KEPT, SETTINGS, Checkpoint, load_checkpoint, save_checkpoint

# A fresh interpreter for every kill would spend a minute on imports: children are forked from one that has them.
server = multiprocessing.get_context("forkserver")
server.set_forkserver_preload(["hsic_lab.training", "torch._dynamo"])  # the latter: at an optimizer's first step


class Noisy(torch.nn.Module):
    """An encoder with batch normalization and dropout; the random state must be resumed too."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.body = torch.nn.Sequential(
            torch.nn.Flatten(), torch.nn.Linear(3 * 64, 16), torch.nn.BatchNorm1d(16), torch.nn.Dropout(0.2)
        )

    def forward(self, images):
        return self.body(images)


def images() -> ImageData:
    images = torch.randint(256, (64, 3, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    split = Images(images, torch.arange(64) % 4)
    return ImageData("pictures", split, split, ("a", "b", "c", "d"))


def config(**changes) -> TrainConfig:
    settings = {
        "projector": (8, 4),
        "batch_size": 16,
        "epochs": 12,
        "snapshots": 5,
        "log_every": 1,
        "device": "cpu",
        "precision": "float32",
        "monitor": "knn",
        "monitor_every": 3,
    }
    return TrainConfig(**settings | changes)


def work(folder: str, changes: dict, reached) -> None:
    """A training to be killed. It reports its number of steps."""
    torch.set_num_threads(1)
    pairs.SNAPSHOT_PAIRS = 16

    def tell(event) -> None:
        reached.value = event.step
        time.sleep(0.002)

    train(config(**changes), folder, images(), False, resume=True, encoder=Noisy(), callbacks=[tell])


def start(folder: Path, changes: dict, step: int = 0):
    """The process of a training in `folder`, once it has made `step` steps."""
    reached = server.Value("i", -1)
    process = server.Process(target=work, args=(str(folder), changes, reached))
    process.start()
    while reached.value < step and process.is_alive():
        time.sleep(0.001)
    return process


def finish(folder: Path, changes: dict) -> Run:
    process = start(folder, changes)
    process.join(60)
    assert process.exitcode == 0
    return Run.load(folder, Noisy())


def assert_same(run: Run, other: Run) -> None:
    for network in ("encoder", "projector"):
        a, b = getattr(run, network).state_dict(), getattr(other, network).state_dict()
        assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a), network
    pd.testing.assert_frame_equal(
        run.history.drop(columns="seconds"), other.history.drop(columns="seconds"), check_exact=True
    )
    pd.testing.assert_frame_equal(run.monitor, other.monitor, check_exact=True)
    for one, two in ((run.snapshots, other.snapshots), (run.samples, other.samples)):
        assert one.keys() == two.keys() == run.snapshots.keys()
        assert all(torch.equal(one[step], two[step]) for step in one)


METHODS = {
    "adamw": {},
    "lars, BYOL, parts of the batch": {
        "optimizer": "lars",
        "learning_rate": 0.2,
        "bias_learning_rate": 0.01,
        "loss": "negative_cosine",
        "predictor": (8,),
        "target": "momentum",
        "micro_batch": 6,
    },
    "sgd, checkpoints every third epoch": {"optimizer": "sgd", "learning_rate": 0.05, "checkpoint_every": 3},
}


@pytest.mark.parametrize("method", METHODS)
def test_run_killed_at_any_moment_resumes_to_the_same_result(tmp_path, method):
    changes = METHODS[method]
    whole = finish(tmp_path / "whole", changes)
    assert len(whole.history) == 48 and len(whole.monitor) == 4
    moments = random.Random(method)
    for step in sorted(moments.sample(range(1, 46), 4)):
        process = start(tmp_path / "killed", changes, step)
        time.sleep(moments.uniform(0, 0.02))  # within a step, an evaluation, or the writing of a file
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL, "the training was over before it could be killed"
    run = finish(tmp_path / "killed", changes)
    assert run.status == "finished"
    assert_same(run, whole)
    assert not (tmp_path / "killed" / FOLDER).exists()
    assert not list((tmp_path / "killed").glob(".*")), "a temporary file was left behind"


def test_sigterm_checkpoints_the_present_step(tmp_path):
    changes = {"checkpoint_every": 12}
    process = start(tmp_path / "run", changes, 7)
    process.terminate()
    process.join(30)
    assert process.exitcode == 128 + signal.SIGTERM
    checkpoint = load_checkpoint(tmp_path / "run" / FOLDER)
    assert 7 <= checkpoint.step < 48
    assert [row["step"] for row in checkpoint.values["history"]] == list(range(1, checkpoint.step + 1))
    assert json.loads((tmp_path / "run" / SETTINGS).read_text())["state"] == "interrupted"
    assert_same(finish(tmp_path / "run", changes), finish(tmp_path / "whole", changes))


def checkpoints(folder: Path, steps=(1, 2, 3)) -> None:
    for step in steps:
        save_checkpoint(folder, Checkpoint(step, {"w": torch.full((4,), float(step))}, {"history": [step] * 20}))


def flip(path: Path, where: float) -> None:
    content = bytearray(path.read_bytes())
    content[int(where * (len(content) - 1))] ^= 1
    path.write_bytes(bytes(content))


@pytest.mark.parametrize("kind", ["json", "safetensors"])
@pytest.mark.parametrize(
    "damage",
    [
        lambda path: flip(path, 0.1),
        lambda path: flip(path, 0.6),
        lambda path: flip(path, 1.0),
        Path.unlink,
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes()[:-3]),
    ],
    ids=["flip 0.1", "flip 0.6", "flip last", "gone", "empty", "cut"],
)
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(tmp_path, kind, damage, recwarn):
    checkpoints(tmp_path)
    assert len(list(tmp_path.glob("*.json"))) == KEPT == 2
    damage(tmp_path / f"step_00000003.{kind}")
    found = load_checkpoint(tmp_path)
    assert (found.step, found.values["history"]) == (2, [2] * 20)
    assert torch.equal(found.tensors["w"], torch.full((4,), 2.0))
    said = [str(warning.message) for warning in recwarn]
    if not (tmp_path / "step_00000003.json").exists():
        assert not said, "without its JSON file, a checkpoint has never been finished"
    else:
        assert len(said) == 1 and "step_00000003" in said[0] and "the one before it" in said[0]


def test_no_checkpoint_is_none_and_only_damaged_ones_raise(tmp_path, recwarn):
    assert load_checkpoint(tmp_path / "absent") is None
    checkpoints(tmp_path, [1, 2])
    for step in (1, 2):
        flip(tmp_path / f"step_0000000{step}.json", 0.5)
    with pytest.raises(ValueError, match=r"step_00000002.json is damaged.*step_00000001.*remove .* to start over"):
        load_checkpoint(tmp_path)
    assert not recwarn, "no warning names a checkpoint as used"


def test_other_files_in_the_folder_stay(tmp_path):
    (tmp_path / ".ipynb_checkpoints").mkdir()
    (tmp_path / "notes.safetensors").write_bytes(b"mine")
    (tmp_path / ".step_00000001.json.tmp").write_bytes(b"half")
    checkpoints(tmp_path)
    assert (tmp_path / ".ipynb_checkpoints").is_dir() and (tmp_path / "notes.safetensors").exists()
    assert not (tmp_path / ".step_00000001.json.tmp").exists()


class Stop:
    """A callback that sends a signal after a step."""

    def __init__(self, step, number=signal.SIGINT) -> None:
        self.step, self.number = step, number

    def __call__(self, event) -> None:
        if event.kind == "step" and event.step == self.step:
            signal.raise_signal(self.number)


def test_random_features_of_a_loss_are_resumed(tmp_path, monkeypatch):
    monkeypatch.setattr(pairs, "SNAPSHOT_PAIRS", 16)
    changes = {"width": 1, "epochs": 3, "monitor": "none", "loss": "ssl_hsic", "loss_options": {"random_features": 16}}
    with pytest.raises(KeyboardInterrupt):
        train(config(**changes), tmp_path / "run", images(), False, callbacks=[Stop(6)])
    run = train(config(**changes), tmp_path / "run", images(), False, resume=True)
    assert_same(run, train(config(**changes), tmp_path / "whole", images(), False))


def test_checkpoint_without_loss_state_resumes(tmp_path, monkeypatch):
    monkeypatch.setattr(pairs, "SNAPSHOT_PAIRS", 16)
    changes = {"width": 1, "epochs": 3, "monitor": "none", "loss": "ssl_hsic"}
    with pytest.raises(KeyboardInterrupt):
        train(config(**changes), tmp_path / "run", images(), False, callbacks=[Stop(6)])
    settings = json.loads((tmp_path / "run" / SETTINGS).read_text())
    for name in ("views", "pictures"):
        del settings["facts"][name]
    (tmp_path / "run" / SETTINGS).write_text(json.dumps(settings))
    found = load_checkpoint(tmp_path / "run" / FOLDER)
    found.tensors = {name: value for name, value in found.tensors.items() if not name.startswith("loss.")}
    save_checkpoint(tmp_path / "run" / FOLDER, found)
    run = train(config(**changes), tmp_path / "run", images(), False, resume=True)
    assert_same(run, train(config(**changes), tmp_path / "whole", images(), False))


@pytest.mark.parametrize(
    ("number", "error"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)], ids=["Ctrl-C", "SIGTERM"]
)
def test_stop_in_the_last_step_loses_nothing(tmp_path, monkeypatch, number, error):
    monkeypatch.setattr(pairs, "SNAPSHOT_PAIRS", 16)
    changes = {"width": 1, "epochs": 1, "monitor": "none"}
    with pytest.raises(error):
        train(config(**changes), tmp_path / "run", images(), False, callbacks=[Stop(4, number)])
    finished = train_or_load(config(**changes), tmp_path / "run", images(), False)
    assert_same(finished, train(config(**changes), tmp_path / "whole", images(), False))
    assert not (tmp_path / "run" / FOLDER).exists()


class Tied(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one = self.other = torch.nn.Linear(3 * 64, 16)

    def forward(self, images):
        return self.one(images.flatten(1)) + self.other(images.flatten(1)).relu()


def test_encoder_may_use_a_weight_twice(tmp_path, monkeypatch):
    monkeypatch.setattr(pairs, "SNAPSHOT_PAIRS", 16)
    changes = {"epochs": 1, "monitor": "none"}
    run = train(config(**changes), tmp_path, images(), False, encoder=Tied())
    again = Run.load(tmp_path, Tied())
    assert torch.equal(again.encoder.one.weight, run.encoder.one.weight) and again.encoder.one is again.encoder.other


def test_damaged_checkpoint_costs_one_epoch(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(pairs, "SNAPSHOT_PAIRS", 16)
    changes = {"width": 1, "epochs": 4, "monitor": "none"}

    def stop(event):
        if event.kind == "step" and event.step == 14:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(config(**changes), tmp_path / "run", images(), False, callbacks=[stop])
    flip(tmp_path / "run" / FOLDER / "step_00000012.safetensors", 0.9)
    with pytest.warns(UserWarning, match="step_00000012.json is damaged"):
        run = train_or_load(config(**changes), tmp_path / "run", images(), False)
    assert "after step 8 of 16" in capsys.readouterr().out
    assert_same(run, train(config(**changes), tmp_path / "whole", images(), False))


def test_resume_refuses_other_settings_and_returns_a_finished_run(tmp_path, monkeypatch):
    monkeypatch.setattr(pairs, "SNAPSHOT_PAIRS", 16)
    changes = {"width": 1, "epochs": 2, "monitor": "none"}
    run = train(config(**changes), tmp_path, images(), False, resume=True)
    again = train(config(**changes), tmp_path, images(), False, resume=True)
    assert_same(run, again)
    with pytest.raises(ValueError, match=r"other settings.*seed 0, not 5"):
        train(config(seed=5, **changes), tmp_path, images(), False, resume=True)
    others = images()
    others.train.images[5] += 1
    with pytest.raises(ValueError, match=r"on other images, 64 x 3 x 8 x 8 \(\w+\); those of 'pictures' are 64 x 3"):
        train(config(**changes), tmp_path, others, False, resume=True)
    others = replace(images(), test=images().test.subset(slice(32)))
    for call in (partial(train, resume=True), train_or_load):  # C would be of other held-out pairs
        with pytest.raises((ValueError, FileExistsError), match="had other test images or labels, 64 x 3 x 8 x 8"):
            call(config(**changes), tmp_path, others, progress=False)

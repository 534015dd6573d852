"""Training a user's own encoder: its mode, callbacks and interruptions do not change the result."""

import os
import threading

import pytest
import torch
from test_resume import assert_same
from torch import nn

from hsic_lab.datasets import ImageData, Images
from hsic_lab.training import TrainConfig, train
from hsic_lab.training import _setup as pairs
from hsic_lab.training import _train as training
from hsic_lab.training._setup import TargetNetwork

SETTINGS = {
    "batch_size": 12,
    "epochs": 4,
    "projector": (8, 4),
    "log_every": 1,
    "snapshots": 3,
    "device": "cpu",
    "precision": "float32",
}
MOMENTUM = SETTINGS | {"target": "momentum", "predictor": (8,)}


@pytest.fixture(autouse=True)
def few_held_out_pairs(monkeypatch):
    monkeypatch.setattr(pairs, "SNAPSHOT_PAIRS", 16)


@pytest.fixture(scope="module")
def images() -> ImageData:
    images = torch.randint(256, (40, 3, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    split = Images(images, torch.arange(40) % 4)
    return ImageData("pictures", split, split, ("a", "b", "c", "d"))


def network(*more: nn.Module) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        body = [nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten()]
        return nn.Sequential(*body, *more)


def at_step(step: int, act):
    def callback(event):
        if event.kind == "step" and event.step == step:
            act(event)

    return callback


def fail(event):
    raise RuntimeError("a plot failed")


def interrupt(event):
    raise KeyboardInterrupt


@pytest.mark.parametrize("settings", [SETTINGS, MOMENTUM])
def test_mode_of_encoder_or_callback_does_not_matter(tmp_path, images, settings):
    config = TrainConfig(**settings)
    run = train(config, tmp_path / "train", images, False, encoder=network().train())
    assert_same(train(config, tmp_path / "eval", images, False, encoder=network().eval()), run)
    evaluates = at_step(2, lambda event: event.run.encoder.eval())
    assert_same(train(config, tmp_path / "callback", images, False, encoder=network(), callbacks=[evaluates]), run)


@pytest.mark.parametrize("settings", [SETTINGS, MOMENTUM])
@pytest.mark.parametrize("accident, step", [(fail, 1), (interrupt, 2), (fail, 5), (interrupt, 10)])
def test_encoder_resumes_after_an_error(tmp_path, images, settings, accident, step):
    config = TrainConfig(**settings)
    whole = train(config, tmp_path / "whole", images, False, encoder=network())
    encoder = network()
    with pytest.raises((RuntimeError, KeyboardInterrupt)):
        train(config, tmp_path / "run", images, False, encoder=encoder, callbacks=[at_step(step, accident)])
    assert_same(train(config, tmp_path / "run", images, False, encoder=encoder, resume=True), whole)


class Counting(nn.Module):
    """Scales its input by the number of calls, a buffer outside its state."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()), persistent=False)

    def forward(self, x):
        if self.training:
            self.calls += 1
        return x * (1 + self.calls / 10)


class Caching(Counting):
    """Stores its input in a buffer that is None at first."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("cache", None, persistent=False)

    def forward(self, x):
        self.cache = x.detach()
        return super().forward(x)


@pytest.mark.parametrize("module", [Counting, Caching])
def test_buffers_outside_the_state_are_resumed(tmp_path, images, module):
    config = TrainConfig(**MOMENTUM)
    whole = train(config, tmp_path / "whole", images, False, encoder=network(module()))
    with pytest.raises(RuntimeError):
        train(config, tmp_path / "run", images, False, encoder=network(module()), callbacks=[at_step(8, fail)])
    assert_same(train(config, tmp_path / "run", images, False, encoder=network(module()), resume=True), whole)


class Remembering(nn.Identity):
    def get_extra_state(self):
        return {"words": 3}

    def set_extra_state(self, state):
        pass


def test_state_that_is_no_tensor_is_named_before_the_first_step(tmp_path, images):
    with pytest.raises(TypeError, match=r"encoder\.5\._extra_state.*'words': 3"):
        train(TrainConfig(**SETTINGS), tmp_path / "run", images, False, encoder=network(Remembering()))


def test_target_runs_once_for_each_part(tmp_path, images, monkeypatch):
    passes = []
    original = TargetNetwork.forward
    monkeypatch.setattr(TargetNetwork, "forward", lambda self, x: passes.append(len(x)) or original(self, x))
    train(TrainConfig(**MOMENTUM | {"epochs": 1, "micro_batch": 4}), tmp_path / "run", images, False)
    assert passes == [8] * 9, "3 steps of 3 parts of 4 pairs"


def test_threads_give_the_result_of_one_thread(tmp_path, images):
    config = TrainConfig(**SETTINGS | {"width": 2})
    alone = train(config, tmp_path / "alone", images, False)
    runs = {}
    threads = [
        threading.Thread(target=lambda i=i: runs.update({i: train(config, tmp_path / str(i), images, False)}))
        for i in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for run in runs.values():
        assert_same(run, alone)
    assert len(runs) == 3


def test_views_of_other_lengths_are_an_error(tmp_path, images):
    def views(images, generator):
        return images[:5], images[:5]

    with pytest.raises(ValueError, match=r"views must keep their 12 images, got \[5, 5\]"):
        train(TrainConfig(**SETTINGS), tmp_path / "run", images, False, views=views)
    settings = TrainConfig(**SETTINGS | {"epochs": 1})
    run = train(settings, tmp_path / "iterator", images, False, views=lambda x, _: iter((x, x)))
    assert run.status == "finished"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_child_forked_during_a_training_can_train(tmp_path, images):
    holds, done = threading.Event(), threading.Event()

    def hold(event):
        holds.set()
        done.wait(60)

    other = threading.Thread(
        target=train,
        args=(TrainConfig(**SETTINGS | {"epochs": 1}), tmp_path / "run", images, False),
        kwargs={"callbacks": [at_step(1, hold)]},
    )
    other.start()
    assert holds.wait(60)
    child = os.fork()
    if child == 0:  # nothing of torch here: a forked thread pool may hang by itself
        os._exit(0 if training.training_lock().acquire(timeout=5) else 1)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert not training.training_lock().acquire(blocking=False), "the parent still trains"
    done.set()
    other.join()
    assert code == 0

"""Attacks on the folder of a run: nothing is lost, nothing is half done, and every refusal is a sentence.

`python tests/training/test_robustness.py SECONDS` (`make soak`) repeats the attacks at random and counts them.
"""

import contextlib
import errno
import json
import os
import random
import signal
import stat
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path

import pytest
import torch
from test_resume import Stop, assert_same, config, finish, images, server, start

from hsic_lab._io import replace_file
from hsic_lab.cli import main
from hsic_lab.training import Run, TrainConfig, train, train_or_load
from hsic_lab.training import _data as pairs
from hsic_lab.training import _train as training
from hsic_lab.training._run import FILES, FOLDER, HISTORY, LOCK, SETTINGS, SNAPSHOTS, WEIGHTS, load_checkpoint

TINY = {"width": 1, "epochs": 3, "snapshots": 3, "monitor": "none"}
OPERATIONS = ("replace", "fsync", "mkdir", "unlink", "rmdir")  # what the library asks of a file system


@pytest.fixture(autouse=True)
def one_thread_and_few_held_out_pairs(monkeypatch):
    monkeypatch.setattr(pairs, "SNAPSHOT_PAIRS", 16)
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # the number decides the last bits
    yield
    torch.set_num_threads(before)


def tiny(folder: Path, **changes) -> Run:
    return train(config(**TINY | changes), folder, images(), False, resume=True)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Run:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pairs, "SNAPSHOT_PAIRS", 16)
        torch.set_num_threads(1)
        return tiny(tmp_path_factory.mktemp("whole") / "run")


@contextlib.contextmanager
def operations(act):
    """Call `act(number)` before each operation on files within the block."""
    count, before = iter(range(10**9)), {name: getattr(os, name) for name in OPERATIONS}

    def watched(name):
        def call(*arguments, **more):
            if not str(arguments[0]).endswith(LOCK):  # of another library, which has its own tests
                act(next(count))
            return before[name](*arguments, **more)

        return call

    for name in OPERATIONS:
        setattr(os, name, watched(name))
    try:
        yield
    finally:
        for name, original in before.items():
            setattr(os, name, original)


def fails_from(first: int, last: float, number: int = errno.ENOSPC):
    def act(count: int) -> None:
        if first <= count <= last:
            raise OSError(number, os.strerror(number))

    return act


def assert_whole(folder: Path, whole: Run) -> None:
    assert_same(Run.load(folder), whole)
    assert sorted(path.name for path in folder.iterdir()) == sorted(FILES), "something was left behind"


def full_disk(folder: Path, rng: random.Random, whole: Run) -> None:
    """The disk is full for some operations, or from one on; there is room again when the training is resumed."""
    first = rng.randrange(70)
    last = first if rng.random() < 0.3 else float("inf")
    with operations(fails_from(first, last, rng.choice([errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EIO]))):
        with contextlib.suppress(OSError):
            tiny(folder)
    tiny(folder)
    assert_whole(folder, whole)


def killed_work(folder: str, at: int) -> None:
    torch.set_num_threads(1)
    pairs.SNAPSHOT_PAIRS = 16
    with operations(lambda count: os.kill(os.getpid(), signal.SIGKILL) if count == at else None):
        tiny(Path(folder))


def killed(folder: Path, rng: random.Random, whole: Run) -> None:
    """The process is killed at an operation on files, perhaps twice."""
    for _ in range(rng.choice([1, 2])):
        process = server.Process(target=killed_work, args=(str(folder), rng.randrange(60)))
        process.start()
        process.join(120)
    tiny(folder)
    assert_whole(folder, whole)


def damage(path: Path, rng: random.Random) -> None:
    content = bytearray(path.read_bytes())
    kind = rng.choice(["flip", "cut", "gone", "empty"])
    if kind == "flip":
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    elif kind == "cut":
        content = content[: rng.randrange(len(content))]
    path.unlink() if kind == "gone" else path.write_bytes(b"" if kind == "empty" else content)


def interrupted(folder: Path, step: int = 9) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(config(**TINY), folder, images(), False, callbacks=[Stop(step)])


def damaged(folder: Path, rng: random.Random, whole: Run) -> None:
    """A file of an interrupted run is damaged: the training goes on, or a sentence names the file."""
    interrupted(folder)
    files = [path for path in folder.rglob("*") if path.is_file()]
    damage(broken := rng.choice(files), rng)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            run = tiny(folder)
        except (ValueError, FileExistsError) as error:
            assert broken.name == SETTINGS and SETTINGS in str(error)
            return
    assert all(str(folder) in str(warning.message) for warning in said)
    if broken.name == SNAPSHOTS:
        assert len(said) == 1, "lost snapshots are said"
        run.snapshots = whole.snapshots
    assert_same(run, whole)


def damaged_at_rest(folder: Path, rng: random.Random, whole: Run) -> None:
    """A file of a finished run is damaged: the error names it."""
    tiny(folder)
    damage(broken := folder / rng.choice(FILES), rng)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            Run.load(folder)
        except (ValueError, FileNotFoundError) as error:
            assert broken.name in str(error) and "\n" not in str(error)[:40]
        else:
            assert broken.name == SETTINGS and said, "the content of run.json is not needed to the letter"


def pair_work(folder: str, seed: int, answers) -> None:
    torch.set_num_threads(1)
    pairs.SNAPSHOT_PAIRS = 16
    try:
        train(config(**TINY | {"seed": seed}), folder, images(), False, resume=True, callbacks=[lambda e: time.sleep(0.02)])
        answers.put((seed, "finished"))
    except (OSError, ValueError) as error:
        answers.put((seed, f"{type(error).__name__}: {error}"))


def pair(folder: Path, rng: random.Random, whole: Run) -> None:
    """Two processes train in one folder, with equal or other settings: the folder is the run of one of them."""
    answers = server.Queue()
    seeds = [0, rng.choice([0, 1])]
    processes = [server.Process(target=pair_work, args=(str(folder), seed, answers)) for seed in seeds]
    for process in processes:
        process.start()
        time.sleep(rng.choice([0, 0.2]))
    found = [answers.get(timeout=120) for _ in seeds]
    for process in processes:
        process.join(60)
    ends = [seed for seed, said in found if said == "finished"]
    assert ends, found
    for _, said in found:
        assert said == "finished" or "another process" in said or "other settings" in said, said
    run = Run.load(folder)
    assert run.status == "finished" and {run.config.seed} == set(ends)
    if run.config.seed == 0:
        assert_whole(folder, whole)


ATTACKS = {attack.__name__: attack for attack in (full_disk, killed, damaged, damaged_at_rest, pair)}
SEEDS = {"full_disk": 8, "killed": 4, "damaged": 5, "damaged_at_rest": 3, "pair": 2}


@pytest.mark.parametrize(("name", "seed"), [(name, seed) for name, n in SEEDS.items() for seed in range(n)])
def test_attack_is_survived(tmp_path, whole, name, seed):
    ATTACKS[name](tmp_path / "run", random.Random(f"{name} {seed}"), whole)


def soak(seconds: float) -> None:
    torch.set_num_threads(1)
    pairs.SNAPSHOT_PAIRS = 16
    seed, deadline, tried, survived = time.time_ns() % 10**6, time.monotonic() + seconds, Counter(), Counter()
    with tempfile.TemporaryDirectory() as folder:
        whole = tiny(Path(folder) / "whole")
        while time.monotonic() < deadline:
            for name, attack in ATTACKS.items():
                tried[name] += 1
                try:
                    with contextlib.redirect_stdout(None):
                        attack(Path(folder) / f"{name}_{tried[name]}", random.Random(f"{seed} {tried[name]}"), whole)
                    survived[name] += 1
                except Exception as error:
                    print(f"{name}, seed {seed} {tried[name]}: {type(error).__name__}: {error}", flush=True)
    print(*(f"{name}: {n} tried, {survived[name]} survived" for name, n in tried.items()), sep="\n")
    sys.exit(survived != tried)


if __name__ == "__main__":
    soak(float(sys.argv[1]))

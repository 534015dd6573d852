"""Training in 2 and 3 processes gives the loss curve, weights, statistics and files of one process."""

import multiprocessing
import os
import re
import signal
import socket
import time
from contextlib import nullcontext

import pandas as pd
import pytest
import torch
from test_resume import images

from hsic_lab._distributed import any_process, own_rows, processes
from hsic_lab.training import Run, TrainConfig, train
from hsic_lab.training import _setup as pairs

server = multiprocessing.get_context("forkserver")
server.set_forkserver_preload(["hsic_lab.training", "torch._dynamo"])

SETTINGS = {
    "width": 1,
    "projector": (8, 4),
    "batch_size": 16,
    "epochs": 3,
    "snapshots": 3,
    "log_every": 1,
    "device": "cpu",
    "precision": "float32",
    "learning_rate": 1e-3,
    "warmup_epochs": 1,
    "monitor": "knn",
    "monitor_every": 2,
}
CASES = {
    "barlow twins": {},
    "hsic_ssl, parts of the batch": {"loss": "hsic_ssl", "micro_batch": 3, "projector": (4,)},
    "barlow twins, parts of the batch": {"micro_batch": 5},
    "a layer without use": {},
    "vicreg, 13 rows": {"loss": "vicreg", "batch_size": 13},
    "byol, lars": {
        "loss": "negative_cosine",
        "predictor": (6,),
        "target": "momentum",
        "optimizer": "lars",
        "learning_rate": 0.1,
    },
}


class WithoutNorm(torch.nn.Module):
    """An encoder without batch normalization, for which training in parts is exact."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.body = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 64, 16), torch.nn.Tanh())

    def forward(self, images):
        return self.body(images)


class Unused(WithoutNorm):
    """An encoder with a layer that its output does not depend on."""

    def __init__(self) -> None:
        super().__init__()
        self.never = torch.nn.Linear(3, 3)


ENCODERS = {"hsic_ssl, parts of the batch": WithoutNorm, "a layer without use": Unused}


def encoder(case):
    return ENCODERS[case]() if case in ENCODERS else None


def join(rank, count, port):
    torch.set_num_threads(1)
    pairs.SNAPSHOT_PAIRS = 16
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(count), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))


def work(rank, count, port, folder):
    join(rank, count, port)
    # Three processes are joined once, two anew for every training. The first one is late, as one that writes files.
    with processes(torch.device("cpu")) if count == 3 else nullcontext():
        for case in CASES:
            time.sleep(0.5 if rank == 0 else 0)
            config = TrainConfig(**SETTINGS | CASES[case])
            run = train(config, f"{folder}/{case}", images(), False, encoder=encoder(case))
            torch.save(run.encoder.state_dict(), f"{folder}/{case}.{rank}.pt")


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder, port = tmp_path_factory.mktemp("parallel"), free_port()
    for count in (1, 2, 3):
        (folder / str(count)).mkdir()
        arguments = [(rank, count, port + 10 * count, str(folder / str(count))) for rank in range(count)]
        children = [server.Process(target=work, args=each, daemon=True) for each in arguments]
        for child in children:
            child.start()
        for child in children:
            child.join(60)
            child.kill()  # one that failed leaves the others waiting
        assert [child.exitcode for child in children] == [0] * count
    return folder


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("count", [2, 3])
def test_several_processes_give_the_run_of_one(folder, case, count):
    runs = [Run.load(folder / str(k) / case, encoder(case)) for k in (1, count)]
    assert runs[1].metadata["processes"] == count
    one, several = (run.history.drop(columns="seconds") for run in runs)
    assert one["loss"].nunique() == len(one)
    pd.testing.assert_frame_equal(several, one, check_exact=False, rtol=1e-3, atol=1e-4)
    for name in ("encoder", "projector"):
        states = [getattr(run, name).state_dict() for run in runs]
        torch.testing.assert_close(states[1], states[0], rtol=1e-2, atol=1e-3)
    for step, c in runs[0].snapshots.items():
        torch.testing.assert_close(runs[1].snapshots[step], c, rtol=1e-2, atol=1e-2)
    assert list(runs[1].monitor["step"]) == list(runs[0].monitor["step"])


@pytest.mark.parametrize("case", CASES)
def test_all_processes_end_with_the_same_weights(folder, case):
    states = [torch.load(folder / "3" / f"{case}.{rank}.pt") for rank in range(3)]
    for name, value in states[0].items():
        for other in states[1:]:
            torch.testing.assert_close(other[name], value, rtol=1e-5, atol=1e-6)


def other_images():
    data = images()
    data.train.images[:] = 255 - data.train.images
    return data


def as_it_is(x, generator):
    return x, x


TROUBLES = {  # what each of two processes is given, and what all of them say
    "seed": ([{"seed": 0}, {"seed": 1}], r"all processes must train alike, .*'seed': \[0, 1\]"),
    "images": ([{}, {"data": other_images}], r"alike, .*'images': \['64 x 3 x 8 x 8 \(\w+\)', '64 x 3"),
    "precision": ([{}, {"precision": "bfloat16"}], r"alike, .*'resolved precision': \['float32', 'bfloat16'\]"),
    "views": ([{"views": as_it_is}, {}], r"alike, .*'own views': \[True, False\]"),
    "resume": ([{"resume": True}, {}], r"alike, .*'resume': \[True, False\]"),
    "encoder": ([{"encoder": WithoutNorm}, {"encoder": Unused}], r"alike, .*'encoders': .*'never.weight', 3, 3"),
    "an error in one": ([{}, {"batch_size": 1000}], r"batch_size.* 1000|all processes must train alike"),
}


def disagree(rank, port, folder, said):
    join(rank, 2, port)
    for name, (given, _) in TROUBLES.items():
        mine = dict(given[rank])
        more = {key: mine.pop(key) for key in ("views", "resume") if key in mine}
        data, encoder = mine.pop("data", images)(), mine.pop("encoder", lambda: None)()
        try:
            train(TrainConfig(**SETTINGS | mine), f"{folder}/{name}", data, False, encoder=encoder, **more)
            said.put((name, rank, "finished"))
        except Exception as error:
            said.put((name, rank, f"{type(error).__name__}: {error}"))


def test_processes_that_differ_say_so_before_the_first_step(tmp_path):
    said, port = server.Queue(), free_port()
    children = [server.Process(target=disagree, args=(rank, port, str(tmp_path), said), daemon=True) for rank in (0, 1)]
    for child in children:
        child.start()
    found = [said.get(timeout=120) for _ in range(2 * len(TROUBLES))]
    for name, _, message in found:
        assert re.search(TROUBLES[name][1], message) and message.startswith("ValueError"), (name, message)
    assert len(found) == 2 * len(TROUBLES) and not list(tmp_path.iterdir())


class Ends:
    """Views that end the process of one rank in its third batch."""

    def __init__(self, rank: int, how) -> None:
        self.here, self.how, self.count = int(os.environ["RANK"]) == rank, how, 0

    def __call__(self, x, generator):
        self.count += 1
        if self.here and self.count == 4:
            self.how()
        return x, x


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


def fail():
    raise OSError("the disk of this process is gone")


def end_early(rank, count, port, folder, who, how, said):
    join(rank, count, port)
    try:
        train(TrainConfig(**SETTINGS), folder, images(), False, views=Ends(who, how))
    except Exception as error:
        said.put((rank, f"{type(error).__name__}: {error}"))


@pytest.mark.parametrize(("who", "count"), [(1, 2), (0, 2), (2, 3)])
@pytest.mark.parametrize("how", [kill, fail])
def test_process_that_ends_is_named_by_the_others(tmp_path, who, count, how):
    said, port, started = server.Queue(), free_port(), time.monotonic()
    arguments = [(rank, count, port, str(tmp_path / "run"), who, how, said) for rank in range(count)]
    children = [server.Process(target=end_early, args=each, daemon=True) for each in arguments]
    for child in children:
        child.start()
    found = dict(said.get(timeout=60) for _ in range(count - (how is kill)))
    assert time.monotonic() - started < 60
    for rank in {*range(count)} - {who}:
        reason = "it was killed, or its machine failed" if how is kill else "OSError: the disk of this process is gone"
        assert f"process {who} of {count}" in found[rank] and (who == 0 or reason in found[rank]), found


def test_one_process_holds_all_gather_rows():
    assert own_rows(7) == slice(0, 7)
    assert any_process(True, torch.device("cpu")) and not any_process(False, torch.device("cpu"))

"""Training in 2 and 3 processes gives the loss curve, weights, statistics and files of one process."""

import multiprocessing
import os
import socket
import time
from contextlib import nullcontext

import pandas as pd
import pytest
import torch
from test_resume import images

from hsic_lab._distributed import any_process, own_rows, processes
from hsic_lab.training import Run, TrainConfig, train
from hsic_lab.training import _data as pairs

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


def encoder(case):
    return WithoutNorm() if "micro_batch" in CASES[case] else None


def work(rank, count, port, folder):
    torch.set_num_threads(1)
    pairs.SNAPSHOT_PAIRS = 16
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(count), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    # Three processes are joined once, two anew for every training. The first one is late, as one that writes files.
    with processes(torch.device("cpu")) if count == 3 else nullcontext():
        for case in CASES:
            time.sleep(0.5 if rank == 0 else 0)
            config = TrainConfig(**SETTINGS | CASES[case])
            run = train(config, f"{folder}/{case}", images(), False, encoder=encoder(case))
            torch.save(run.encoder.state_dict(), f"{folder}/{case}.{rank}.pt")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("parallel")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
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


def test_one_process_holds_all_gather_rows():
    assert own_rows(7) == slice(0, 7)
    assert any_process(True, torch.device("cpu")) and not any_process(False, torch.device("cpu"))

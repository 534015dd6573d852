"""One run of a grid: trained, evaluated, kept; asked for again, it is read."""

import json
import time
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from hsic_lab import __version__
from hsic_lab.ablation_data import cut, load_data
from hsic_lab.config import TrainConfig
from hsic_lab.datasets import ImageData
from hsic_lab.diagnostics import rankme
from hsic_lab.evaluation import extract_features, knn_accuracy, linear_probe
from hsic_lab.files import replace_file
from hsic_lab.grids import Planned
from hsic_lab.hardware import processor
from hsic_lab.runs import Run, plain
from hsic_lab.training import train_once

RESULT, RUN, LOCK = "result.json", "run", "lock"
NEIGHBOURS, TEMPERATURE = 200, 0.5
_VERSION = 2  # of what a stored result holds: results of another version are evaluated again


def run_one(
    planned: Planned, folder: Path, evaluations: tuple[str, ...], data: ImageData | None, retry_failed: bool,
    wait: bool = False,
) -> list[dict[str, Any]] | None:
    """The rows of one training: read, or made; None if another process is at it and `wait` is not set."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        # The system lets go of the lock when its holder dies, however it dies.
        with FileLock(folder / LOCK, timeout=-1 if wait else 0):
            rows = stored_rows(planned, folder, evaluations, retry_failed)
            if rows is None:
                rows = _made(planned, folder, evaluations, data)
                content = _identity(planned, evaluations) | {"rows": rows}
                replace_file(folder / RESULT, lambda path: path.write_text(json.dumps(content, indent=1)))
            return rows
    except Timeout:
        return None


def _made(
    planned: Planned, folder: Path, evaluations: tuple[str, ...], data: ImageData | None
) -> list[dict[str, Any]]:
    facts = {"hardware": processor(), "threads": torch.get_num_threads(), "torch": torch.__version__,
             "hsic_lab": __version__}
    started = time.perf_counter()
    try:
        data = load_data(planned.config.dataset, planned.data) if data is None else cut(data, planned.data)
        run = train_once(planned.config, folder / RUN, data, progress=False)
        return _evaluated(run, data, evaluations, facts)
    except Exception as error:  # whatever went wrong with this run is its result; the others go on
        state = f"failed: {type(error).__name__}: {error}"
        seconds = time.perf_counter() - started
        return [{"evaluation": name, "accuracy": float("nan"), "state": state, "seconds": seconds} | facts
                for name in evaluations]


def _evaluated(run: Run, data: ImageData, evaluations: tuple[str, ...], facts: dict[str, Any]) -> list[dict[str, Any]]:
    c = run.snapshots[max(run.snapshots)].double()
    d, diagonal = len(c), c.diagonal()
    shared = {
        "state": run.state, "diagonal": diagonal.mean().item(),
        "off_diagonal": ((c.sum() - diagonal.sum()) / max(1, d * (d - 1))).item(),
        "energy": (c.square().sum() - diagonal.square().sum()).item(),
        "steps": int(run.history["step"].iloc[-1]), "seconds": run.history["seconds"].iloc[-1],
    } | facts | {name: run.facts[name] for name in ("hardware", "precision", "threads")}
    train_x, test_x = (extract_features(run.encoder, split.images) for split in (data.train, data.test))
    shared["rankme"] = rankme(test_x)
    shared |= {"split": f"{data.name} test", "n_train": len(train_x), "n_test": len(test_x)}
    labels = data.train.labels, data.test.labels
    k = min(NEIGHBOURS, len(train_x))
    measure = {
        "linear": lambda: linear_probe(train_x, labels[0], test_x, labels[1]).accuracy,
        "knn": lambda: knn_accuracy(train_x, labels[0], test_x, labels[1], k=k, temperature=TEMPERATURE),
    }
    protocol = {
        "linear": "logistic regression on frozen features, penalty chosen on a part of the training split",
        "knn": f"weighted kNN, k = {k}, temperature {TEMPERATURE}",
    }
    return [{"evaluation": name, "accuracy": measure[name](), "protocol": protocol[name]} | shared
            for name in evaluations]


def _identity(planned: Planned, evaluations: tuple[str, ...]) -> dict[str, Any]:
    """What a stored result must say of itself to be the result that is asked for."""
    return {"version": _VERSION, "config": plain(planned.config), "data": planned.data, "evaluations": [*evaluations]}


def stored_rows(
    planned: Planned, folder: Path, evaluations: tuple[str, ...], retry_failed: bool
) -> list[dict[str, Any]] | None:
    path = folder / RESULT
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text())
        content["config"] = plain(TrainConfig()) | content["config"]  # settings younger than the file
        rows, config = content.pop("rows"), content["config"]
        same = content == _identity(planned, evaluations)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error}): remove it, and the run is evaluated again") from error
    if config != plain(planned.config):  # a default has changed since: neither answer with it nor write over it
        raise ValueError(f"{path} was made under other defaults: move {path.parent} away or choose another folder")
    if not same or (retry_failed and any(row["state"] != "finished" for row in rows)):
        return None
    return rows

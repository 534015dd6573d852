"""The images of a grid's runs: what identifies them, and the part of a set that a grid asks for."""

import hashlib
import json
import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from filelock import FileLock, Timeout
from joblib import Parallel, delayed
from tqdm.auto import tqdm

from hsic_lab import __version__
from hsic_lab._io import replace_file
from hsic_lab.ablation._grids import Grid, Planned, read_grid
from hsic_lab.datasets import LOADERS, ImageData, check_name, data_folder, full_name, load
from hsic_lab.datasets._folders import digest, find_images
from hsic_lab.diagnostics import rankme
from hsic_lab.evaluation import extract_features, knn_accuracy, linear_probe
from hsic_lab.training import Run, TrainConfig, train_or_load
from hsic_lab.training._config import processor

SCENES = "digit_scenes"


def load_data(dataset: str, sizes: dict[str, Any]) -> ImageData:
    return _loaded(dataset, tuple(sorted(sizes.items())), data_folder())


@lru_cache(maxsize=2)  # a process that makes many runs reads its images once
def _loaded(dataset: str, sizes: tuple[tuple[str, Any], ...], folder: Path) -> ImageData:
    return load(dataset, **dict(sizes)) if dataset == SCENES else cut(load(dataset, folder), dict(sizes))


def cut(data: ImageData, sizes: Mapping[str, Any]) -> ImageData:
    """The `n_train` and `n_test` images of each split that `Grid.data` means."""
    for split, images in (("train", data.train), ("test", data.test)):
        n = sizes.get(f"n_{split}", len(images))
        if n > len(images):
            raise ValueError(f"n_{split} must be at most the {len(images)} images of {data.name}, got {n}")
        if n < len(images):
            data = replace(data, **{split: images.sample(n)})
    return data


def with_data(plan: list[Planned], data: ImageData | None) -> list[Planned]:
    """The plan with what the trained-on set is called and, of a set of the user's own, what it holds now."""
    if data is not None:
        own = {"sha256": _fingerprint(data)}
        return [replace(one, config=replace(one.config, dataset=data.name), data=one.data | own) for one in plan]
    contents: dict[str, dict[str, str]] = {}
    for name in {one.config.dataset for one in plan}:
        check_name(name)
        folder = Path(full_name(name))
        contents[name] = {} if name in LOADERS else {"folder": digest(find_images(folder), folder)}
    return [
        replace(
            one,
            config=replace(one.config, dataset=full_name(one.config.dataset)),
            data=one.data | contents[one.config.dataset],
        )
        for one in plan
    ]


def _fingerprint(data: ImageData) -> str:
    content = hashlib.sha256()
    for split in (data.train, data.test, *filter(None, [data.unlabelled])):
        for tensor in (split.images, split.labels):
            content.update(str(tuple(tensor.shape)).encode() + tensor.cpu().contiguous().numpy().tobytes())
    return content.hexdigest()[:16]


RESULT, RUN, LOCK = "result.json", "run", "lock"
NEIGHBORS, TEMPERATURE = 200, 0.5
_VERSION = 2  # of what a stored result holds: results of another version are evaluated again


def run_one(
    planned: Planned,
    folder: Path,
    evaluations: tuple[str, ...],
    data: ImageData | None,
    retry_failed: bool,
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
                content = _identity(planned, evaluations) | {"config": asdict(planned.config), "rows": rows}
                replace_file(folder / RESULT, lambda path: path.write_text(json.dumps(content, indent=1)))
            return rows
    except Timeout:
        return None


def _made(planned: Planned, folder: Path, evaluations: tuple[str, ...], data: ImageData | None) -> list[dict[str, Any]]:
    metadata = {
        "hardware": processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "hsic_lab": __version__,
    }
    started = time.perf_counter()
    try:
        data = load_data(planned.config.dataset, planned.data) if data is None else cut(data, planned.data)
        run = train_or_load(planned.config, folder / RUN, data, progress=False)
        return _evaluated(run, data, evaluations, metadata)
    except Exception as error:  # whatever went wrong with this run is its result; the others go on
        state = f"failed: {type(error).__name__}: {error}"
        seconds = time.perf_counter() - started
        return [
            {"evaluation": name, "accuracy": float("nan"), "state": state, "seconds": seconds} | metadata
            for name in evaluations
        ]


def _evaluated(
    run: Run, data: ImageData, evaluations: tuple[str, ...], metadata: dict[str, Any]
) -> list[dict[str, Any]]:
    c = run.snapshots[max(run.snapshots)].double()
    d, diagonal = len(c), c.diagonal()
    shared = (
        {
            "state": run.status,
            "diagonal": diagonal.mean().item(),
            "off_diagonal": ((c.sum() - diagonal.sum()) / max(1, d * (d - 1))).item(),
            "energy": (c.square().sum() - diagonal.square().sum()).item(),
            "steps": int(run.history["step"].iloc[-1]),
            "seconds": run.history["seconds"].iloc[-1],
        }
        | metadata
        | {name: run.metadata[name] for name in ("hardware", "precision", "threads")}
    )
    train_x, test_x = (extract_features(run.encoder, split.images) for split in (data.train, data.test))
    shared["rankme"] = rankme(test_x)
    shared |= {"split": f"{data.name} test", "n_train": len(train_x), "n_test": len(test_x)}
    labels = data.train.labels, data.test.labels
    k = min(NEIGHBORS, len(train_x))
    measure = {
        "linear": lambda: linear_probe(train_x, labels[0], test_x, labels[1]).accuracy,
        "knn": lambda: knn_accuracy(train_x, labels[0], test_x, labels[1], k=k, temperature=TEMPERATURE),
    }
    protocol = {
        "linear": "logistic regression on frozen features, penalty chosen on a part of the training split",
        "knn": f"weighted kNN, k = {k}, temperature {TEMPERATURE}",
    }
    return [
        {"evaluation": name, "accuracy": measure[name](), "protocol": protocol[name]} | shared for name in evaluations
    ]


def _identity(planned: Planned, evaluations: tuple[str, ...]) -> dict[str, Any]:
    """What a stored result must say of itself to be the result that is asked for."""
    return {"version": _VERSION, "config": planned.config, "data": planned.data, "evaluations": [*evaluations]}


def stored_rows(
    planned: Planned, folder: Path, evaluations: tuple[str, ...], retry_failed: bool
) -> list[dict[str, Any]] | None:
    path = folder / RESULT
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text())
        content["config"] = TrainConfig.from_json(content["config"])  # settings younger than the file
        rows, config = content.pop("rows"), content["config"]
        same = content == _identity(planned, evaluations)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error}): remove it, and the run is evaluated again") from error
    if config != planned.config:  # a default has changed since: neither answer with it nor write over it
        raise ValueError(f"{path} was made under other defaults: move {path.parent} away or choose another folder")
    if not same or (retry_failed and any(row["state"] != "finished" for row in rows)):
        return None
    return rows


def write_table(frame: pd.DataFrame, grid: Grid, path: Path, command: str) -> None:
    """The table as a CSV file that begins, behind `#`, with the question, the base settings, the data, the command."""
    plan = {"base": dict(grid.base), "cross": dict(grid.cross), "listed": list(grid.listed), "data": dict(grid.data)}
    head = {"question": grid.question} | plan | {"command": command}
    lines = [f"# {name}: {value if isinstance(value, str) else json.dumps(value)}" for name, value in head.items()]
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "\n".join(lines) + "\n" + frame.to_csv(index=False)
    replace_file(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def read_table(path: str | os.PathLike) -> pd.DataFrame:
    """A table that `write_table` wrote, the lines at its head in `attrs`: question, base, data, command.

    Raises ValueError naming the file if it is no such table.
    """
    head: dict[str, str] = {}
    with open(path, encoding="utf-8") as file:
        for line in file:
            if not line.startswith("# "):
                break
            name, _, value = line[2:].rstrip("\n").partition(": ")
            head[name] = value
        file.seek(0)
        frame = pd.read_csv(file, skiprows=len(head))
    if not {"question", "command"} <= head.keys() or "evaluation" not in frame:
        raise ValueError(f"{path} is no table of an ablation: it begins with {list(head) or list(frame.columns)[:3]}")
    frame.attrs.update(head)
    return frame


def run_ablation(
    grid: Grid | Mapping[str, Any] | str | os.PathLike,
    folder: str | Path = "runs/ablations",
    *,
    seeds: int | Sequence[int] | None = None,
    data: ImageData | None = None,
    n_jobs: int | None = None,
    progress: bool = True,
    retry_failed: bool = False,
) -> pd.DataFrame:
    """Train and evaluate all that the grid plans; one row a run and evaluation.

    grid:    a `Grid`, its mapping or the path of its TOML file; `seeds` in place of those that it names
    folder:  every run is kept in `folder/KEY`, KEY being the hash of its settings and data: called again, only what is
             missing is done, a killed training goes on from its last checkpoint, grids share the runs they have in
             common, and other processes may work on the same folder at the same time
    data:    a set of your own in place of the config's `dataset`, cut to the grid's `n_train` and `n_test`; its
             images and labels enter the hash, as names, lengths and times of change of files do in a `dataset` folder
    n_jobs:  processes, as in joblib: None is 1 or what `joblib.parallel_config` says, -1 one a core. Cores are divided
             among local processes. Under `parallel_config("dask")` or `("ray")` the runs go to that cluster, whose
             workers must see `folder`, each with one thread (training seeds the generator of its process)
    retry_failed: runs that failed before are tried again

    Columns: `grid, run` (the key), the grid's factors, `dataset, loss, batch_size, d, learning_rate, epochs, seed`;
    `evaluation` ("linear", "knn"), `accuracy`, `split, protocol, n_train, n_test`; `state` ("finished", or
    "failed: why" with NaN for what could not be measured); of C on held-out pairs `diagonal, off_diagonal` (means)
    and `energy` (sum of squared off-diagonal entries); `rankme` of the test features; `steps, seconds` (of training),
    `hardware, precision, threads, torch, hsic_lab`. Raises ValueError, before it trains anything, for a grid that is
    not accepted.
    """
    grid = grid if isinstance(grid, Grid) else read_grid(grid)
    grid = grid if seeds is None else replace(grid, seeds=seeds)
    folder = Path(folder).absolute()
    plan = with_data(grid.plan(), data)
    evaluations = tuple(grid.evaluate)
    runs = {one.key: one for one in plan}
    results = {key: stored_rows(one, folder / key, evaluations, retry_failed) for key, one in runs.items()}
    missing = {key: runs[key] for key, rows in results.items() if rows is None}
    with _progress(grid, folder, plan, progress):
        tasks = [delayed(run_one)(one, folder / key, evaluations, data, retry_failed) for key, one in missing.items()]
        results |= zip(missing, Parallel(n_jobs=n_jobs)(tasks), strict=True)
        # What another process holds is waited for last, when there is nothing else to do.
        for key, one in missing.items():
            if results[key] is None:
                results[key] = run_one(one, folder / key, evaluations, data, retry_failed, wait=True)
    rows = []
    for one in plan:
        settings = {name: _cell(value) for name, value in one.factors.items()}
        shown = ("dataset", "loss", "batch_size", "epochs", "seed")
        settings |= {name: getattr(one.config, name) for name in shown if name not in settings}
        settings["learning_rate"] = one.config.learning_rate  # what was used, also where a rule made it
        settings["d"] = one.config.projector[-1]
        rows += [{"grid": grid.name, "run": one.key} | settings | row for row in results[one.key]]
    return pd.DataFrame(rows)


def _cell(value: Any) -> Any:
    """A factor's value as a table holds it."""
    if isinstance(value, list | tuple):
        return "-".join(map(str, value)) or "none"
    return json.dumps(value) if isinstance(value, dict) else value


@contextmanager
def _progress(grid: Grid, folder: Path, plan: list[Planned], shown: bool) -> Iterator[None]:
    """A bar of the runs that are done, with the time left: counted on disk, whoever does them, wherever."""
    done = threading.Event()

    def count() -> int:
        return sum((folder / one.key / RESULT).exists() for one in plan)

    with tqdm(total=len(plan), initial=count(), desc=grid.name, unit="run", disable=not shown) as bar:

        def watch() -> None:
            while not done.wait(1.0):
                bar.update(count() - bar.n)

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        try:
            yield
        finally:
            done.set()
            watcher.join()
            bar.update(count() - bar.n)

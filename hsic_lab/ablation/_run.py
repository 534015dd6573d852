"""Running the trainings of a grid, keeping their results, and writing tables."""

import json
import os
import signal
import threading
import time
import warnings
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from functools import cache, lru_cache
from itertools import groupby, takewhile
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from joblib import Parallel, delayed
from tqdm.auto import tqdm

from hsic_lab import __version__
from hsic_lab._checks import check_type
from hsic_lab._io import progress_options, remove_leftovers, replace_file, sole_process
from hsic_lab.ablation._grids import Grid, Planned, read_grid
from hsic_lab.cka import cka_or_nan
from hsic_lab.correlation import off_diagonal
from hsic_lab.datasets import LOADERS, ImageData, data_folder, load
from hsic_lab.datasets._folders import content_digest
from hsic_lab.datasets._published import check_name, full_name
from hsic_lab.diagnostics import rankme
from hsic_lab.evaluation import NEIGHBORS, extract_layers, knn_accuracy, knn_protocol, linear_probe
from hsic_lab.training import Run, TrainConfig, train_or_load
from hsic_lab.training._config import hardware, pick_device
from hsic_lab.training._run import SETTINGS, DamagedRun, of_the_machine, remove_run

RESULT, LOCK = "result.json", "lock"
LAYERS = "layers"  # beside the names of the evaluations of a run
LINEAR_PROTOCOL = "logistic regression on frozen features, penalty chosen on a part of the training split"
_VERSION = 2  # of the content of a stored result; results of another version are evaluated again
_RUNNING = threading.Lock()  # held by a worker while it makes a run
Rows = list[dict[str, Any]]
Names = tuple[str, ...]


def run_ablation(
    grid: Grid | Mapping[str, Any] | str | os.PathLike, folder: str | Path = "runs/ablations", *,
    seeds: int | Sequence[int] | None = None, data: ImageData | None = None, n_jobs: int | None = None,
    progress: bool = True, retry_failed: bool = False,
) -> pd.DataFrame:  # fmt: skip
    """Train and evaluate every run of a grid; a grid that is not accepted raises ValueError before anything is trained.

    If the grid has a `tune`, its settings are chosen first, with other seeds and on validation images, among the values
    of which no run fails. Every run is kept in ``folder/KEY``, where KEY is a hash of its settings and data. A second
    call does only what is missing, an interrupted training continues from its last checkpoint, grids share the runs
    they have in common, and several processes can work on one folder. A run that fails is a row of the table; the
    others go on.

    Parameters
    ----------
    grid, folder : Grid, mapping or path, and path
        The grid, or what `read_grid` reads; and the folder of the runs.
    seeds : int or sequence of int, optional
        Seeds in place of those of the grid.
    data : ImageData, optional
        A data set of your own in place of the named one. A hash of its images and labels is part of the key; for a
        folder of images it is a hash of names, sizes and times of change.
    n_jobs : int, optional
        Number of processes, as in joblib. Under ``joblib.parallel_config("dask")`` or ``("ray")`` the runs go to that
        cluster; its workers need access to `folder` and one thread each, because training seeds the global generator.
    progress, retry_failed : bool
        Show a progress bar; try failed runs again.

    Returns
    -------
    DataFrame
        One row per run and evaluation: `grid, run` (the key), the factors of the grid, `dataset, loss, batch_size,
        epochs, seed, learning_rate, d`, where a rule has changed a `learning_rate` that is neither a factor nor tuned;
        `evaluation` ("linear" or "knn"), `accuracy, protocol`; `state` ("finished", or "failed: reason" with missing
        values); of C on held-out pairs the means `diagonal` and `off_diagonal`, and `energy`, the squared norm of the
        off-diagonal; `steps`; `seconds` of training; `rankme` of the test features;
        `hardware, threads, torch, hsic_lab, precision, split, n_train, n_test`. With a `tune`, also rows of its runs:
        `tuned` is the setting that was tried, and `evaluation` ends in " on validation"; ``attrs["chosen"]`` lists the
        factors and chosen settings of each combination, and "at_end", those whose best value is the first or last.
        With `layers`, also rows of the projector's layers: `layer` is "encoder", "projector 1", ..., `evaluation` of
        the latter "linear of projector 1", ...; `rankme` is of that layer, and `cka_labels` as in `probe_table`.
    """
    check_type("data (from_arrays makes it)", data, ImageData, type(None))
    grid = grid if isinstance(grid, Grid) else read_grid(grid)
    grid = grid if seeds is None else replace(grid, seeds=seeds)
    folder, levels = Path(folder).absolute(), grid.levels
    chosen: list[dict[str, Any]] = [{} for _ in levels]
    places = range(max(len(tune) for _, tune in levels))
    for place in places:  # the first values alone, so that a value that is not accepted is found before any training
        grid.plan_tuning(place, chosen)
    plan_runs(grid.plan(), grid, data)

    frames, options = [], (folder, data, retry_failed, n_jobs, progress)
    for place in places:
        tried = grid.plan_tuning(place, chosen)
        plan = plan_runs([run for *_, runs in tried for run in runs], grid, data)
        found = _run_all(plan, tuple(grid.evaluate[:1]), f"{grid.name}, tuning {place + 1} of {len(places)}", *options)
        frames += _table(plan, found, grid.name)
        firsts = iter([rows[0] for rows in found])
        results = [(level, name, value, [next(firsts) for _ in runs]) for level, name, value, runs in tried]
        for level, group in groupby(results, itemgetter(0)):
            _, (name, *_), values, runs = zip(*group, strict=True)
            chosen[level][name] = _best(levels[level][0], name, values, runs)
    plan = plan_runs(grid.plan(chosen), grid, data)
    frames += _table(plan, _run_all(plan, (*grid.evaluate, *[LAYERS] * grid.layers), grid.name, *options), grid.name)
    frame = pd.DataFrame(frames)
    if places:
        frame.attrs["chosen"] = []
        for (factors, tune), best in zip(levels, chosen, strict=True):
            at_end = [name for name, value in best.items() if value in (tune[name][0], tune[name][-1])]
            frame.attrs["chosen"].append({**factors, **best, "at_end": at_end})
    return frame


def _best(factors: dict[str, Any], name: str, values: Sequence, rows: Sequence[Rows]) -> Any:
    """The value with the highest mean over its rows, one a seed; a value of which a run failed is out."""
    means = [np.mean([row["accuracy"] for row in seeds]) for seeds in rows]
    if np.isnan(means).all():
        what = f"{name} for {factors}" if factors else name
        reason = next(row["state"] for seeds in rows for row in seeds if np.isnan(row["accuracy"]))
        raise ValueError(f"no value of {what} has a result of every tuning run: {reason}")
    return values[int(np.nanargmax(means))]


def _run_all(
    plan: list[Planned], evaluations: Names, title: str, folder: Path, data: ImageData | None, retry_failed: bool,
    n_jobs: int | None, progress: bool,
) -> list[Rows]:  # fmt: skip
    """Read or make the rows of each training of a plan, in its order."""
    options = evaluations, retry_failed
    results: dict[str, Rows | None] = {one.key: _stored_rows(one, folder / one.key, *options) for one in plan}
    missing = [one for one in {one.key: one for one in plan}.values() if results[one.key] is None]
    tasks = [delayed(_run_one)(one, folder / one.key, data, *options, os.getpid()) for one in missing]
    made = zip(missing, Parallel(n_jobs=n_jobs, return_as="generator")(tasks), strict=True)
    shown = progress_options(len(plan))
    bar = tqdm(made, title, len(plan), initial=len(plan) - len(missing), unit="run", disable=not progress, **shown)
    for one, rows in bar:
        results[one.key] = rows
    for one in missing:  # last, because other processes are working on these
        if results[one.key] is None:
            results[one.key] = _run_one(one, folder / one.key, data, *options, os.getpid(), wait=True)
    return [results[one.key] or [] for one in plan]


def _table(plan: list[Planned], found: list[Rows], grid: str) -> Rows:
    """The rows of the table: settings and results; evaluations on validation images are named so."""
    table = [_settings(one, grid) | row for one, rows in zip(plan, found, strict=True) for row in rows]
    return [row | ({"evaluation": f"{row['evaluation']} on validation"} if "tuned" in row else {}) for row in table]


def plan_runs(plan: list[Planned], grid: Grid, data: ImageData | None) -> list[Planned]:
    """The plan with the full name of each data set and, unless it is published, a digest of its content."""
    if data is None and "dataset" not in {*grid.base, *grid.factors}:
        raise ValueError('a grid must name its data set, for instance base.dataset = "digit_scenes"')
    if data is not None and "dataset" in grid.factors:
        raise ValueError(f"dataset cannot vary in a grid for images of your own, {data.name!r}")
    known: dict[str, tuple[str, dict[str, str]]] = {}
    for name in {one.config.dataset for one in plan}:
        if data is not None:
            known[name] = data.name, {"sha256": content_digest(data)}
        else:
            check_name(name)
            known[name] = full_name(name), {} if name in LOADERS else {"folder": content_digest(full_name(name))}
    named = [(one, *known[one.config.dataset]) for one in plan]
    return [replace(one, config=replace(one.config, dataset=name), data=one.data | new) for one, name, new in named]


def _run_one(
    planned: Planned, folder: Path, data: ImageData | None, evaluations: Names, retry_failed: bool, caller: int,
    wait: bool = False,
) -> Rows | None:  # fmt: skip
    """Read or make the rows of one training; None if another process works on it, unless `wait` is set."""
    if os.getppid() == caller:  # this is a worker of joblib that `run_ablation` started
        _end_with_parent(caller)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with _RUNNING if os.getppid() == caller else nullcontext(), sole_process(folder / LOCK, wait):
            remove_leftovers(folder, RESULT)
            rows = _stored_rows(planned, folder, evaluations, retry_failed)
            if rows is None:
                rows, lasting = _train_and_evaluate(planned, folder / "run", data, evaluations)
                content = _identity(planned, evaluations) | {"config": asdict(planned.config), "rows": rows}
                if lasting:
                    replace_file(folder / RESULT, lambda path: path.write_text(json.dumps(content, indent=1)))
            return rows
    except BlockingIOError:
        return None


@cache  # once in each worker
def _end_with_parent(parent: int) -> None:
    """Stop this process, as SIGTERM does, when the one that started it was killed."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os.kill(os.getpid(), signal.SIGTERM)  # a training takes note of it, and is saved
        with _RUNNING:
            os._exit(128 + signal.SIGTERM)  # joblib would wait for the next task

    threading.Thread(target=watch, daemon=True).start()


def _identity(planned: Planned, evaluations: Names) -> dict[str, Any]:
    """What a stored result must contain, beside an equal config, to answer the request."""
    return {"version": _VERSION, "data": planned.data, "evaluations": list(evaluations)}


def _stored_rows(planned: Planned, folder: Path, evaluations: Names, retry_failed: bool) -> Rows | None:
    """The rows of a stored result, None if there is none that answers the request."""
    if not (path := folder / RESULT).exists():
        return None
    try:
        content = json.loads(path.read_text())
        rows, config = content.pop("rows"), TrainConfig.from_json(content.pop("config"))
        failed = any(row["state"] != "finished" for row in rows)
        found = [row["evaluation"] for row in rows if isinstance(row["accuracy"], float)]
        if [name for name in found if " of " not in name] != [n for n in content["evaluations"] if n != LAYERS]:
            raise ValueError(f"expected an accuracy of {content['evaluations']}, got {rows}")
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({error}): remove it, and the run is evaluated again") from error
    if config != planned.config:  # a default has changed: neither use the result nor overwrite it
        raise ValueError(f"{path} was made under other defaults: move {path.parent} away or choose another folder")
    return None if content != _identity(planned, evaluations) or (retry_failed and failed) else rows


def _train_and_evaluate(one: Planned, folder: Path, data: ImageData | None, evaluations: Names) -> tuple[Rows, bool]:
    """The rows of one training, and whether they are kept; a failure is a result, unless the machine failed."""
    versions = {"torch": torch.__version__, "hsic_lab": __version__}
    made_with = {"hardware": hardware(torch.device("cpu")), "threads": torch.get_num_threads()} | versions
    started = time.perf_counter()
    pick_device(one.config.device)  # that this machine has none is no result
    try:
        if data is None:
            data = _load(one.config.dataset, tuple(sorted(one.data.items())), data_folder())
        else:
            data = cut(data, one.data)
        if not data.class_names:
            raise ValueError(f"{data.name} has no labels, with which a grid evaluates features")
        if not (folder / SETTINGS).exists():
            remove_run(folder)  # a run that lost its settings; all in this folder was made by this function
        try:
            run = train_or_load(one.config, folder, data, progress=False)
        except DamagedRun as error:
            warnings.warn(f"{error}; it is trained again", stacklevel=2)
            remove_run(folder)
            run = train_or_load(one.config, folder, data, progress=False)
        # The conditions of the training, which may be older than the evaluation.
        made_with |= {name: run.metadata[name] for name in ("hardware", "precision", "threads")}
        split = "validation" if "n_validation" in one.data else "test"
        return [row | made_with for row in _evaluate(run, data, evaluations, split)], True
    except Exception as error:  # the failure is the result of this run, and the other runs go on
        result = {"accuracy": float("nan"), "state": f"failed: {type(error).__name__}: {error}"}
        result |= {"seconds": time.perf_counter() - started} | made_with
        lasting = not (isinstance(error, OSError) or of_the_machine(error))
        return [{"evaluation": name} | result for name in evaluations if name != LAYERS], lasting


@lru_cache(maxsize=2)  # a process that makes many runs reads its images once
def _load(dataset: str, sizes: tuple[tuple[str, Any], ...], folder: Path) -> ImageData:
    """The images of a run; `sizes` are the items of `Planned.data`."""
    if dataset == "digit_scenes":
        return load(dataset, **dict(sizes))
    size = {name: value for name, value in sizes if name == "size"}
    return cut(load(dataset, folder, **size), {name: value for name, value in sizes if name not in size})


def cut(data: ImageData, sizes: Mapping[str, Any]) -> ImageData:
    """Reduce each split to the images that `Grid` describes; with `n_validation`, those take the place of the test."""
    train, test = data.train, data.test
    if "size" in sizes:
        raise ValueError(f"size resizes the images of a folder, not those of {data.name}, got {sizes['size']}")
    held = sizes.get("n_validation", 0)
    if (n := sizes.get("n_train", len(train) - held)) + held > len(train) or n < 1:
        words = "n_train plus n_validation" if held else "n_train"
        found = f"{n} + {held}" if held else n
        raise ValueError(f"{words} must be at most the {len(train)} images of {data.name}, got {found}")
    if held:
        train, rest = train.split(n)
        return replace(data, train=train, test=rest.sample(held))
    if (n_test := sizes.get("n_test", len(test))) > len(test):
        raise ValueError(f"n_test must be at most the {len(test)} images of {data.name}, got {n_test}")
    return replace(data, train=train.sample(n), test=test.sample(n_test))


def _evaluate(run: Run, data: ImageData, evaluations: Names, split: str) -> Rows:
    """One row per evaluation of a finished run on the test images, which are those of the split "test" or another."""
    projector = run.projector if LAYERS in evaluations else torch.nn.Sequential()
    train, test = (extract_layers(run.encoder, projector, part.images) for part in (data.train, data.test))
    train_x, test_x, train_y, test_y = train["encoder"], test["encoder"], data.train.labels, data.test.labels
    c = run.snapshots[max(run.snapshots)].double().numpy()
    off = off_diagonal(c)
    shared = {
        "state": run.status, "diagonal": float(np.diagonal(c).mean()),
        "off_diagonal": float(off.sum() / max(1, off.size)), "energy": float(np.square(off).sum()),
        "steps": int(run.history["step"].iloc[-1]), "seconds": run.history["seconds"].iloc[-1],
        "rankme": rankme(test_x), "split": f"{data.name} {split}", "n_train": len(train_x), "n_test": len(test_x),
    }  # fmt: skip
    rows = []
    for name in evaluations:
        if name == "knn":
            k = min(NEIGHBORS, len(train_x))  # not the default: tables stay comparable
            row = {"evaluation": name, "accuracy": float("nan"), "protocol": knn_protocol(k)} | shared
            try:
                row["accuracy"] = knn_accuracy(train_x, train_y, test_x, test_y, k=k)
            except ValueError as error:  # features of zeros have no neighbors, and the linear probe may still answer
                row["state"] = f"failed: {type(error).__name__}: {error}"
            rows.append(row)
        for layer in train if name == "linear" else ():
            accuracy = linear_probe(train[layer], train_y, test[layer], test_y).accuracy
            row = {"evaluation": name, "accuracy": accuracy, "protocol": LINEAR_PROTOCOL} | shared
            if LAYERS in evaluations:
                similar = cka_or_nan(test[layer].double(), torch.nn.functional.one_hot(test_y).double())
                row |= {"layer": layer, "cka_labels": similar, "rankme": rankme(test[layer])}
            rows.append(row | ({} if layer == "encoder" else {"evaluation": f"linear of {layer}"}))
    return rows


def _settings(one: Planned, grid: str) -> dict[str, Any]:
    """The columns of a run's settings."""
    settings = {"grid": grid, "run": one.key} | one.factors
    for name in ("dataset", "loss", "batch_size", "epochs", "seed", "learning_rate"):
        settings.setdefault(name, getattr(one.config, name))
    settings["d"] = one.config.projector[-1]
    for name, value in settings.items():
        if isinstance(value, list | tuple):
            settings[name] = "-".join(map(str, value)) or "none"
        elif isinstance(value, dict):
            settings[name] = json.dumps(value)
    return settings


def write_table(frame: pd.DataFrame, grid: Grid, path: str | os.PathLike, command: str) -> None:
    """Write a table of `run_ablation` as CSV, below lines with "#" that hold the grid and the command that made it."""
    path, grid = Path(check_type("path", path, str, os.PathLike)), check_type("grid", grid, Grid)
    parts: dict[str, Any] = {name: getattr(grid, name) for name in ("base", "cross", "include", "data")}
    if "chosen" in frame.attrs:
        parts |= {"tune": grid.tune, "tune_seeds": list(grid.tune_seed_list), "chosen": frame.attrs["chosen"]}
    lines = [f"# {name}: {json.dumps(value)}" for name, value in parts.items()]
    text = "\n".join([f"# question: {grid.question}", *lines, f"# command: {command}", frame.to_csv(index=False)])
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def read_table(path: str | os.PathLike) -> pd.DataFrame:
    """Read a table that `write_table` wrote; ``attrs`` holds the lines above it: question, base, data, command."""
    path = check_type("path", path, str, os.PathLike)
    try:
        with open(path, encoding="utf-8") as file:
            lines = takewhile(lambda line: line.startswith("# "), file)
            head = dict(line[2:].rstrip("\n").partition(": ")[::2] for line in lines)
        if "listed" in head:  # the name of "include" in version 0.1
            head["include"] = head.pop("listed")
        frame = pd.read_csv(path, skiprows=len(head))
        needed = {"question", "cross", "include", "command"}, {"evaluation", "accuracy", "seed", "state"}
        if lost := [*sorted(needed[0] - head.keys()), *sorted(needed[1] - {*frame.columns})]:
            raise ValueError(f"it has no {', '.join(lost)}")
        for name in ("cross", "include"):
            json.loads(head[name])
    except ValueError as error:
        raise ValueError(f"{path} is no table of an ablation, or a damaged one: {error}") from error
    frame.attrs.update(head)
    return frame

"""A grid of trainings becomes one tidy table: resumable, by several processes at once, local or on a cluster."""

import json
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
from joblib import Parallel, delayed
from tqdm.auto import tqdm

from hsic_lab.ablation_data import with_data
from hsic_lab.ablation_runs import RESULT, run_one, stored_rows
from hsic_lab.ablation_tables import read_table, write_table
from hsic_lab.datasets import ImageData
from hsic_lab.grids import Grid, Planned, read_grid

__all__ = ["read_table", "run_ablation", "write_table"]


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
             pictures and labels enter the hash, as names, lengths and times of change of files do in a `dataset` folder
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

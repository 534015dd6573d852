"""Ablations: rows of the table, resuming, failures, shared folders, clusters, and results of version 0.1."""

import errno
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from filelock import FileLock

from hsic_lab.ablation import Grid, read_grid, read_table, run_ablation, write_table
from hsic_lab.ablation import _run as ablation_runs
from hsic_lab.ablation._run import LOCK, RESULT, cut, plan_runs
from hsic_lab.cli import app
from hsic_lab.datasets import ImageData, Images, from_arrays, load
from hsic_lab.evaluation import extract_features, extract_layers, linear_probe
from hsic_lab.plots import plot_ablation, plot_ablation_map
from hsic_lab.training import TrainConfig, train
from hsic_lab.training._run import FILES, SETTINGS, WEIGHTS

RESULTS = Path(__file__).parents[2] / "data" / "results"
VERSION_0_1 = Path(__file__).parents[1] / "data" / "version_0_1"

BASE = {
    "dataset": "digits",
    "width": 1,
    "projector": [8, 4],
    "epochs": 1,
    "batch_size": 64,
    "snapshots": 2,
    "precision": "float32",
}


def grid(**changes):
    return Grid(
        **{
            "name": "tiny",
            "base": BASE,
            "cross": {"loss": ["barlow_twins", "hsic_ssl"]},
            "data": {"n_train": 256},
            "evaluate": ["knn"],
        }
        | changes
    )


def test_rows_equal_training_and_evaluation_by_hand(tmp_path):
    one = grid(evaluate=["linear", "knn"], cross={}, seeds=[4])
    frame = run_ablation(one, tmp_path / "a", progress=False)
    data = load("digits")
    data = type(data)(data.name, data.train.subset(slice(256)), data.test, data.class_names)
    run = train(one.plan()[0].config, tmp_path / "b", data, progress=False)
    train_x, test_x = (extract_features(run.encoder, split.images) for split in (data.train, data.test))
    linear = frame[frame["evaluation"] == "linear"].iloc[0]
    assert linear["accuracy"] == linear_probe(train_x, data.train.labels, test_x, data.test.labels).accuracy
    c = run.snapshots[max(run.snapshots)].double().numpy()
    off = c[~np.eye(4, dtype=bool)]
    np.testing.assert_allclose(
        [linear["diagonal"], linear["off_diagonal"], linear["energy"]], [np.diag(c).mean(), off.mean(), (off**2).sum()]
    )
    assert frame["evaluation"].tolist() == ["linear", "knn"] and set(frame["state"]) == {"finished"}
    assert (linear["seed"], linear["d"], linear["n_train"], linear["n_test"], linear["steps"]) == (4, 4, 256, 445, 4)
    assert linear["split"] == "digits test" and linear["protocol"].startswith("logistic regression")
    assert (linear["hardware"], linear["precision"]) == (run.metadata["hardware"], "float32")
    assert {"threads", "torch", "hsic_lab", "seconds", "rankme"} <= set(frame)


def numpy_layers(run, images):
    """The layers of a run's projector in NumPy: linear maps, batch normalization by running statistics, and ReLU."""
    x = extract_features(run.encoder, images).double().numpy()
    yield "encoder", x
    weights = {name: value.double().numpy() for name, value in run.projector.state_dict().items()}
    x = x @ weights["0.weight"].T
    scale = weights["1.weight"] / np.sqrt(weights["1.running_var"] + 1e-5)
    x = np.maximum(0, (x - weights["1.running_mean"]) * scale + weights["1.bias"])
    yield "projector 1", x
    yield "projector 2", x @ weights["3.weight"].T


def unbiased_cka(x, y):
    """CKA of Song et al. (2012) with U-centered Gram matrices."""

    def centered(x):
        k = x @ x.T
        np.fill_diagonal(k, 0)
        n, rows = len(k), k.sum(axis=0)
        k = k - rows[:, None] / (n - 2) - rows[None] / (n - 2) + rows.sum() / ((n - 1) * (n - 2))
        np.fill_diagonal(k, 0)
        return k

    k, m = centered(x), centered(y)
    return (k * m).sum() / np.sqrt((k * k).sum() * (m * m).sum())


def test_layers_of_the_projector_are_probed(tmp_path):
    one = grid(evaluate=["linear", "knn"], layers=True, seeds=2)
    frame = run_ablation(one, tmp_path / "runs", progress=False)
    rows = frame[(frame["loss"] == "hsic_ssl") & (frame["seed"] == 1)]
    named = ["linear", "linear of projector 1", "linear of projector 2", "knn"]
    assert rows["evaluation"].tolist() == named and rows["layer"].isna().tolist() == [False, False, False, True]
    data = cut(load("digits"), {"n_train": 256})
    run = train(next(p.config for p in one.plan() if p.config.loss == "hsic_ssl" and p.config.seed == 1),
                tmp_path / "run", data, progress=False)  # fmt: skip
    parts = zip(numpy_layers(run, data.train.images), numpy_layers(run, data.test.images), strict=True)
    for ((layer, x), (_, test_x)), (_, row) in zip(parts, rows.iloc[:3].iterrows(), strict=True):
        probe = linear_probe(x, data.train.labels, test_x, data.test.labels)
        assert row["layer"] == layer and row["accuracy"] == pytest.approx(probe.accuracy, abs=1.01 / 445)
        singular = np.linalg.svd(test_x - test_x.mean(axis=0), compute_uv=False)
        shares = singular / singular.sum()
        assert row["rankme"] == pytest.approx(np.exp(-(shares * np.log(shares + 1e-300)).sum()), rel=1e-3)
        assert row["cka_labels"] == pytest.approx(unbiased_cka(test_x, np.eye(10)[data.test.labels]), rel=1e-4)

    plain = run_ablation(replace(one, layers=False), tmp_path / "runs", progress=False)
    kept = frame[~frame["evaluation"].str.contains(" of ")].reset_index(drop=True)
    assert list(plain) == [name for name in frame if name not in ("layer", "cka_labels")]
    pd.testing.assert_frame_equal(
        plain, kept[list(plain)], atol=0.01, rtol=1e-3
    )  # features of a loaded run are rounded
    ax = plot_ablation(frame, "layer", "loss")
    means = (
        frame[frame["layer"].notna() & (frame["loss"] == "hsic_ssl")].groupby("layer", sort=False)["accuracy"].mean()
    )
    np.testing.assert_allclose(ax.get_lines()[1].get_ydata(), means)
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["encoder", "projector 1", "projector 2"]
    write_table(frame, one, str(tmp_path / "tiny.csv"), "hsic-lab ablate")
    app(["plot", str(tmp_path / "tiny.csv"), "--output", str(tmp_path / "figures")], standalone_mode=False)
    names = ["tiny_knn.png", "tiny_layers.png", "tiny_linear.png"]
    assert sorted(path.name for path in (tmp_path / "figures").iterdir()) == names


def by_class(n, classes=4):
    """Images sorted by class, as in a folder of classes."""
    pixels = np.random.default_rng(0).integers(256, size=(n, 8, 8, 3), dtype=np.uint8)
    return pixels, np.repeat(np.arange(classes), n // classes)


def test_sizes_apply_to_own_data_and_keep_every_class(tmp_path):
    data = from_arrays(*by_class(80), *by_class(40), name="mine")
    one = grid(cross={}, data={"n_train": 20, "n_test": 8}, base=BASE | {"batch_size": 16})
    frame = run_ablation(one, tmp_path, data=data, progress=False)
    assert frame[["n_train", "n_test", "state", "dataset"]].values.tolist() == [[20, 8, "finished", "mine"]]
    smaller = cut(data, {"n_train": 20, "n_test": 8})
    for part, n in ((smaller.train, 20), (smaller.test, 8)):
        assert part.labels.bincount().tolist() == [n // 4] * 4
    shuffled_classes = replace(data, train=data.train.subset([*range(40, 60), *range(20), *range(60, 80)]))
    assert cut(shuffled_classes, {"n_train": 9}).train.labels.bincount().tolist() == [3, 0, 3, 3]
    mixed = replace(data, train=data.train.subset([5, 79, 6, 20, 40]))
    assert cut(mixed, {"n_train": 2}).train.labels.tolist() == [0, 3], (
        "the first ones, because the split is not sorted by class"
    )


def test_folder_is_identified_by_its_content(tmp_path, monkeypatch):
    def add(start, stop):
        for label in "ab":
            (tmp_path / "pics" / label).mkdir(parents=True, exist_ok=True)
            for i in range(start, stop):
                plt.imsave(tmp_path / "pics" / label / f"{i}.png", np.random.default_rng(i).random((8, 8, 3)))

    monkeypatch.chdir(tmp_path)
    one = grid(cross={}, data={}, base=BASE | {"batch_size": 16, "dataset": "pics"})
    add(0, 20)
    absolute = replace(one, base=one.base | {"dataset": str(tmp_path / "pics")})
    tables = [run_ablation(plan, "runs", progress=False) for plan in (one, absolute)]
    add(20, 30)
    tables.append(run_ablation(one, "runs", progress=False))
    assert [table["n_train"][0] for table in tables] == [32, 32, 48]
    assert tables[0]["run"][0] == tables[1]["run"][0] != tables[2]["run"][0]
    assert tables[0]["dataset"][0] == str(tmp_path / "pics")


def test_killed_training_of_a_relative_folder_continues(tmp_path, monkeypatch):
    for label in "ab":
        (tmp_path / "pics" / label).mkdir(parents=True)
        for i in range(20):
            plt.imsave(tmp_path / "pics" / label / f"{i}.png", np.random.default_rng(i).random((8, 8, 3)))
    monkeypatch.chdir(tmp_path)
    one = grid(cross={}, data={}, base=BASE | {"batch_size": 16, "dataset": "pics", "epochs": 2})

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ablation_runs, "_evaluate", killed)
        with pytest.raises(KeyboardInterrupt):
            run_ablation(one, "runs", progress=False)
    assert run_ablation(one, "runs", progress=False)["state"].tolist() == ["finished"]


def test_only_missing_runs_are_trained(tmp_path, monkeypatch):
    first = run_ablation(grid(), tmp_path, progress=False)
    calls = []
    original = ablation_runs.train_or_load
    monkeypatch.setattr(ablation_runs, "train_or_load", lambda *a, **k: calls.append(a) or original(*a, **k))
    with monkeypatch.context() as patch:
        patch.setattr(ablation_runs, "_run_one", None)  # must not be called
        again = run_ablation(grid(), tmp_path, progress=False)
    pd.testing.assert_frame_equal(first, again)
    assert calls == []
    more = run_ablation(grid(), tmp_path, seeds=2, progress=False)
    assert len(calls) == 2 and len(more) == 4
    pd.testing.assert_frame_equal(more.head(2), first)
    (tmp_path / first["run"][0] / RESULT).unlink()  # as if it was killed between training and evaluation
    assert run_ablation(grid(), tmp_path, progress=False)["accuracy"].tolist() == first["accuracy"].tolist()
    # Another evaluation of the same runs trains nothing either.
    knn_and_linear = run_ablation(grid(evaluate=["linear", "knn"]), tmp_path, progress=False)
    seconds = knn_and_linear[knn_and_linear["evaluation"] == "knn"]["seconds"].tolist()
    assert seconds == first["seconds"].tolist()


def test_failed_run_is_a_row_and_is_retried_on_request(tmp_path, monkeypatch):
    def fails_once(config, *rest, **more):
        if config.loss == "hsic_ssl" and not list(tmp_path.glob("*/" + RESULT)) == []:
            raise FloatingPointError("step 3: the loss is nan")
        return original(config, *rest, **more)

    original = ablation_runs.train_or_load
    monkeypatch.setattr(ablation_runs, "train_or_load", fails_once)
    frame = run_ablation(grid(), tmp_path, progress=False)
    assert frame["state"].tolist() == ["finished", "failed: FloatingPointError: step 3: the loss is nan"]
    assert np.isnan(frame["accuracy"][1]) and frame["loss"][1] == "hsic_ssl"
    monkeypatch.setattr(ablation_runs, "train_or_load", original)
    assert run_ablation(grid(), tmp_path, progress=False)["state"][1].startswith("failed")
    assert run_ablation(grid(), tmp_path, progress=False, retry_failed=True)["state"].tolist() == ["finished"] * 2


def test_features_without_neighbors_still_have_a_linear_probe(tmp_path, monkeypatch):
    def one_row_of_zeros(*arguments):
        return {
            name: features.index_fill(0, torch.tensor([5]), 0) for name, features in extract_layers(*arguments).items()
        }

    monkeypatch.setattr(ablation_runs, "extract_layers", one_row_of_zeros)
    linear, knn = run_ablation(grid(cross={}, evaluate=["linear", "knn"]), tmp_path, progress=False).itertuples()
    assert linear.state == "finished" and 0 < linear.accuracy < 1
    assert np.isnan(knn.accuracy) and knn.state.startswith("failed: ValueError: train_x has 1 zero rows")


LACKS = [OSError(errno.ENOSPC, "No space left on device"), MemoryError(), torch.OutOfMemoryError("CUDA out of memory")]
LACKS += [OSError(errno.ESTALE, "Stale file handle"), RuntimeError("CUDA error: all devices are busy or unavailable")]
LACKS += [RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8000000 bytes")]


@pytest.mark.parametrize("error", LACKS)
def test_failure_of_the_machine_is_no_result(tmp_path, monkeypatch, error):
    def fails(*arguments, **more):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(ablation_runs, "train_or_load", fails)
        frame = run_ablation(grid(cross={}), tmp_path, progress=False)
    assert frame["state"].tolist() == [f"failed: {type(error).__name__}: {error}"] and not list(
        tmp_path.glob("*/*.json")
    )
    assert run_ablation(grid(cross={}), tmp_path, progress=False)["state"].tolist() == ["finished"]


@pytest.mark.parametrize(
    "error", [*LACKS[1:], OSError(errno.EMFILE, "Too many open files"), FileNotFoundError("No file")]
)
def test_a_finished_run_that_cannot_be_read_for_now_is_kept(tmp_path, monkeypatch, error):
    first = run_ablation(grid(cross={}), tmp_path, progress=False)
    weights = tmp_path / first["run"][0] / "run" / WEIGHTS
    (weights.parents[1] / RESULT).unlink()
    before = weights.stat()

    def fails(path):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr("hsic_lab.training._run.load_file", fails)
        frame = run_ablation(grid(cross={}), tmp_path, progress=False)
    assert frame["state"].tolist() == [f"failed: {type(error).__name__}: {error}"]
    assert run_ablation(grid(cross={}), tmp_path, progress=False)["accuracy"].tolist() == first["accuracy"].tolist()
    assert (weights.stat().st_ino, weights.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


@pytest.mark.parametrize("retry_failed", [False, True])
@pytest.mark.parametrize("name", [*FILES, f"{SETTINGS} gone", f"{WEIGHTS} gone"])
def test_damaged_run_is_trained_again(tmp_path, name, retry_failed):
    first = run_ablation(grid(cross={}), tmp_path, progress=False)
    run = tmp_path / first["run"][0] / "run"
    (run.parent / RESULT).unlink()
    if name.endswith(" gone"):
        (run / name.removesuffix(" gone")).unlink()
    else:
        (run / name).write_bytes((run / name).read_bytes()[:-9])
    (run / "notes.txt").write_text("mine")
    said = nullcontext() if name == f"{SETTINGS} gone" else pytest.warns(UserWarning, match="it is trained again")
    with said:
        frame = run_ablation(grid(cross={}), tmp_path, progress=False, retry_failed=retry_failed)
    assert frame["state"].tolist() == ["finished"] and frame["accuracy"].tolist() == first["accuracy"].tolist()
    assert {path.name for path in run.iterdir()} == {*FILES, "notes.txt"}


def test_leftovers_of_killed_writes_are_removed(tmp_path):
    (one,) = grid(cross={}).plan()
    (left := tmp_path / one.key / f".{RESULT}.{'0' * 32}").mkdir(parents=True)
    run_ablation(grid(cross={}), tmp_path, progress=False)
    assert not left.exists()


def test_workers_end_with_their_parent(tmp_path):
    program = """
import sys
from test_ablation import BASE, grid, run_ablation
endless = BASE | {"epochs": 10**6, "checkpoint_every": 10**6}
run_ablation(grid(cross={}, base=endless, seeds=2), sys.argv[1], n_jobs=2, progress=False)
"""
    here = Path(__file__).parent
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(here), os.environ.get("PYTHONPATH", "")])}
    with subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], env=environment) as process:
        deadline = time.monotonic() + 120
        while len(list(tmp_path.glob("*/run/checkpoints/*.json"))) < 2 and time.monotonic() < deadline:
            time.sleep(0.1)
        workers = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        process.kill()
    started = time.monotonic()
    for key in (path.parent.name for path in tmp_path.glob("*/run")):
        FileLock(tmp_path / key / LOCK).acquire(timeout=60).lock.release()
        assert json.loads((tmp_path / key / "run" / SETTINGS).read_text())["state"] == "interrupted"

    def lives(pid):
        status = Path(f"/proc/{pid}/status")
        return status.exists() and "zombie" not in status.read_text()

    while any(map(lives, workers)):  # an idle worker would keep its memory for minutes
        time.sleep(0.1)
        assert time.monotonic() - started < 60


def test_threads_of_one_process_do_not_wait_for_each_other(tmp_path, monkeypatch):
    held = threading.Lock()
    held.acquire()
    monkeypatch.setattr("hsic_lab.ablation._run._RUNNING", held)  # as a worker holds it
    done = threading.Thread(
        target=run_ablation, args=(grid(cross={}), tmp_path), kwargs={"progress": False}, daemon=True
    )
    done.start()
    done.join(60)
    assert not done.is_alive()


def test_result_under_other_defaults_is_neither_used_nor_overwritten(tmp_path):
    key = run_ablation(grid(cross={}), tmp_path, progress=False)["run"][0]
    path = tmp_path / key / RESULT
    content = json.loads(path.read_text())
    content["config"]["weight_decay"] = 0.5
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="other defaults"):
        run_ablation(grid(cross={}), tmp_path, progress=False)
    assert json.loads(path.read_text()) == content


def test_table_of_failed_runs_only(tmp_path):
    frame = run_ablation(grid(base=BASE | {"batch_size": 1000}), tmp_path, progress=False)
    assert frame["accuracy"].isna().all() and frame["state"].str.contains("batch_size 1000").all()


@pytest.mark.parametrize(
    "text",
    [
        '{"version": 1', "[]", "3", '{"rows": [{}], "config": {}}', '{"rows": 3, "config": {}}', "[" * 100_000,
        '{"rows": [], "config": CONFIG, "evaluations": ["knn"]}',
        '{"rows": [{"state": "finished", "evaluation": "knn"}], "config": CONFIG, "evaluations": ["knn"]}',
        '{"rows": [{"state": "x", "evaluation": "knn", "accuracy": "1"}], "config": CONFIG, "evaluations": ["knn"]}',
    ],
)  # fmt: skip
def test_damaged_result_error_names_file_and_remedy(tmp_path, text):
    (one,) = grid(cross={}).plan()
    text = text.replace("CONFIG", json.dumps(asdict(one.config)))
    key = one.key
    (tmp_path / key).mkdir()
    (tmp_path / key / RESULT).write_text(text)
    with pytest.raises(ValueError, match=rf"{key}/{RESULT} is damaged .* remove it"):
        run_ablation(grid(cross={}), tmp_path, progress=False)


@contextmanager
def held_elsewhere(path, seconds):
    """Another process that holds the lock at `path` for some seconds, or until it is killed."""
    program = "import sys, time, filelock\nwith filelock.FileLock(sys.argv[1]): print(flush=True); time.sleep({})"
    path.parent.mkdir()
    command = [sys.executable, "-c", program.format(seconds), str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        yield process


def test_run_of_another_process_is_waited_for_last(tmp_path):
    held, free = grid().plan()
    with held_elsewhere(tmp_path / held.key / LOCK, 1.5):
        frame = run_ablation(grid(), tmp_path, progress=False)
    assert frame["run"].tolist() == [held.key, free.key] and set(frame["state"]) == {"finished"}
    made = [(tmp_path / key / RESULT).stat().st_mtime_ns for key in (held.key, free.key)]
    assert made[0] > made[1]


def test_lock_of_a_dead_process_is_released(tmp_path):
    (one,) = grid(cross={}).plan()
    with held_elsewhere(tmp_path / one.key / LOCK, 600) as process:
        process.kill()
    assert run_ablation(grid(cross={}), tmp_path, progress=False)["state"].tolist() == ["finished"]


def test_own_data_is_identified_by_its_content(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (120, 16, 16), dtype=np.uint8)
    data = from_arrays(images, np.arange(120) % 3, name="mine")
    frame = run_ablation(
        grid(
            cross={},
            base={name: value for name, value in BASE.items() if name != "dataset"} | {"batch_size": 32},
            data={},
        ),
        tmp_path,
        data=data,
        progress=False,
    )
    assert frame["split"].tolist() == ["mine test"] and frame["dataset"].tolist() == ["mine"]
    other = from_arrays(255 - images, np.arange(120) % 3, name="mine")  # other images under the same name
    plan = grid(cross={}, base=BASE | {"batch_size": 32}, data={})
    (first,), (second,) = (plan_runs(plan.plan(), plan, one) for one in (data, other))
    assert first.key == frame["run"][0] != second.key


def test_dask_cluster_gives_the_same_table(tmp_path):
    from dask.distributed import Client, LocalCluster
    from joblib import parallel_config

    local = run_ablation(grid(), tmp_path / "local", progress=False)
    cluster = LocalCluster(
        n_workers=1, threads_per_worker=1, processes=True, dashboard_address=None, local_directory=tmp_path / "dask"
    )
    with cluster, Client(cluster), parallel_config("dask"):
        frame = run_ablation(grid(), tmp_path / "cluster", progress=False)
    assert frame["accuracy"].tolist() == local["accuracy"].tolist()
    assert frame["run"].tolist() == local["run"].tolist()


def test_bad_data_is_refused_before_training(tmp_path):
    with pytest.raises(ValueError, match="a grid must name its data set"):
        run_ablation(grid(base={}), tmp_path, progress=False)
    with pytest.raises(ValueError, match="unknown data set 'digitz'"):
        run_ablation(grid(base={"dataset": "digitz"}), tmp_path, progress=False)
    frame = run_ablation(grid(cross={}, data={"n_train": 10**6}), tmp_path, progress=False)
    assert "n_train must be at most the 1352 images of digits, got 1000000" in frame["state"][0]
    with pytest.raises(TypeError, match=r"data \(from_arrays makes it\) must be of type ImageData .* got str 'digits'"):
        run_ablation(grid(cross={}), tmp_path, data="digits", progress=False)
    split = Images(torch.zeros(20, 1, 8, 8, dtype=torch.uint8), torch.full((20,), -1))
    frame = run_ablation(grid(cross={}, data={}), tmp_path, data=ImageData("plain", split, split, ()), progress=False)
    assert "plain has no labels" in frame["state"][0] and not list(tmp_path.glob("*/run"))


def test_command_exits_with_1_and_the_reasons_of_failures(tmp_path, capsys):
    settings = grid(cross={}, data={"n_train": 10**6})
    text = [f"[data]\nn_train = {settings.data['n_train']}", "[base]"]
    text += [f"{name} = {json.dumps(value)}" for name, value in BASE.items()]
    (tmp_path / "bad.toml").write_text("\n".join(text))
    with pytest.raises(SystemExit) as end:
        app(["ablate", str(tmp_path / "bad.toml"), "--folder", str(tmp_path / "runs")])
    assert end.value.code == 1
    assert "1 of 1 runs failed:\n  failed: ValueError: n_train must be at most" in capsys.readouterr().err


def test_command_writes_the_table_that_plots_draw(tmp_path, monkeypatch, capsys):
    lines = [
        'question = "why?"',
        "seeds = 2",
        'evaluate = ["knn"]',
        "[data]",
        "n_train = 256",
        "[base]",
        *(f"{name} = {json.dumps(value)}" for name, value in BASE.items() if name != "batch_size"),
        "[cross]",
        "batch_size = [32, 64]",
        "[[include]]",
        'loss = "barlow_twins"',
        "[[include]]",
        'loss = "hsic_ssl"',
        "loss_options = { off_diagonal_target = -0.5 }",
    ]
    (tmp_path / "size.toml").write_text("\n".join(lines))
    app(["ablate", str(tmp_path / "size.toml"), "--folder", str(tmp_path / "runs")], standalone_mode=False)
    assert "barlow_twins" in capsys.readouterr().out
    path = tmp_path / "runs" / "size.csv"
    text = path.read_text()
    assert text.startswith("# question: why?\n# base: {") and '# data: {"n_train": 256}' in text
    frame = read_table(path)
    assert len(frame) == 8 and frame["grid"].unique().tolist() == ["size"]

    ax = plot_ablation(frame, "batch_size", "loss", evaluation="knn")
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["barlow_twins", "hsic_ssl"]
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["32", "64"] and ax.get_xscale() == "log"
    means = frame[frame["loss"] == "hsic_ssl"].groupby("batch_size")["accuracy"].mean()
    np.testing.assert_allclose(ax.get_lines()[1].get_ydata(), means)
    far = frame.assign(accuracy=np.where(frame["seed"] == 0, 0.05, 0.95))  # a t interval from below 0 to above 1
    low, high = plot_ablation(far, "batch_size", "loss", evaluation="knn").get_ylim()
    assert low == 0 and high == 1
    ax = plot_ablation_map(frame, "loss", "batch_size", evaluation="knn")
    assert ax.get_xlabel() == "batch size" and len(ax.texts) == 4
    with pytest.raises(ValueError, match="lacks the columns"):
        plot_ablation(frame, "width")
    ax = plot_ablation(frame.assign(kernel=np.where(frame["loss"] == "hsic_ssl", None, "gaussian")), "batch_size",
                       "kernel", evaluation="knn")  # fmt: skip
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["gaussian", "none"]
    np.testing.assert_allclose(ax.get_lines()[1].get_ydata(), means)


def test_written_table_reads_back_with_any_failure_text(tmp_path):
    frame = pd.DataFrame({"evaluation": ["knn", "knn"], "state": ["finished", 'failed: "x", # y']})
    frame = frame.assign(seed=[0, 1], accuracy=[0.5, None])
    settings = read_grid({"name": "g", "question": "why: why?", "base": {"width": 2}})
    write_table(frame, settings, tmp_path / "t.csv", "hsic-lab ablate g.toml")
    again = read_table(tmp_path / "t.csv")
    pd.testing.assert_frame_equal(again, frame)
    assert again.attrs["question"] == "why: why?" and again.attrs["command"] == "hsic-lab ablate g.toml"
    frame.to_csv(tmp_path / "other.csv", index=False)
    with pytest.raises(ValueError, match=r"other\.csv is no table of an ablation"):
        read_table(tmp_path / "other.csv")


def test_results_of_version_0_1_are_found_and_not_trained_again(tmp_path, monkeypatch):
    shutil.copytree(VERSION_0_1 / "ablation", tmp_path / "runs")
    base = {"dataset": "digits", "width": 1, "projector": (8, 4), "batch_size": 256, "epochs": 3, "snapshots": 3}
    base |= {"log_every": 1, "device": "cpu", "precision": "float32", "views": "tsai2021", "loss": "hsic_ssl"} | {
        "learning_rate": 0.002
    }
    small = Grid("small", base=base, cross={"batch_size": [128, 256]})  # "views" was called "report" there
    monkeypatch.setattr(ablation_runs, "_run_one", None)  # must not be called
    found, kept = run_ablation(small, tmp_path / "runs", progress=False), read_table(VERSION_0_1 / "ablation.csv")
    pd.testing.assert_frame_equal(found[kept.columns], kept, check_exact=True)


def test_run_of_version_0_1_is_evaluated_and_not_trained_again(tmp_path):
    key = "a60a3ab7d409"
    shutil.copytree(VERSION_0_1 / "ablation" / key, tmp_path / key)
    (tmp_path / key / RESULT).unlink()
    config = TrainConfig.from_json(json.loads((tmp_path / key / "run" / "run.json").read_text())["config"])
    weights = (tmp_path / key / "run" / "weights.safetensors").read_bytes()
    names = (
        "dataset",
        "width",
        "projector",
        "epochs",
        "snapshots",
        "log_every",
        "device",
        "precision",
        "views",
        "loss",
        "learning_rate",
    )
    found = run_ablation(Grid("small", base={name: getattr(config, name) for name in names}), tmp_path, progress=False)
    assert found["run"].unique().tolist() == [key]
    assert (tmp_path / key / "run" / "weights.safetensors").read_bytes() == weights
    kept = read_table(VERSION_0_1 / "ablation.csv").query("run == @key")
    assert found["accuracy"].tolist() == pytest.approx(kept["accuracy"].tolist(), abs=1.01 / 445)
    assert found["rankme"].tolist() == pytest.approx(kept["rankme"].tolist(), rel=1e-3)


@pytest.mark.parametrize("path", sorted(RESULTS.glob("ablation_*.csv")), ids=lambda path: path.stem)
def test_tables_of_the_project_can_be_drawn(path, tmp_path):
    app(["plot", str(path), "--output", str(tmp_path)], standalone_mode=False)
    names = {one.name.removeprefix(f"{path.stem}_") for one in tmp_path.iterdir()}
    assert {f"{name}.png" for name in read_table(path)["evaluation"].unique() if " on " not in name} <= names

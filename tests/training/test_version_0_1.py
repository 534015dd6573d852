"""Run folders and ablation tables that version 0.1.0 wrote are read, probed and resumed.

`tests/data/version_0_1` was written by version 0.1.0: `finished` by `train(TrainConfig(dataset="digits", width=1,
projector=(8, 4), epochs=3, snapshots=3, log_every=1, device="cpu", precision="float32", views="report", monitor="knn",
monitor_every=1))`, `interrupted` by the same call with a callback that raised KeyboardInterrupt at step 8.
"""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from hsic_lab.ablation import Grid, read_table, run_ablation
from hsic_lab.cka import cka
from hsic_lab.datasets import load
from hsic_lab.evaluation import extract_features, linear_probe
from hsic_lab.plots import history_figure
from hsic_lab.training import Run, train

FOLDER = Path(__file__).parents[1] / "data" / "version_0_1"


def test_finished_run_loads():
    run = Run.load(FOLDER / "finished")
    assert run.status == "finished" and run.config.projector == (8, 4)
    assert run.config.views == "tsai2021", "version 0.1 called this augmentation 'report'"
    assert run.metadata["train_images"] == 1352 and len(run.monitor) == 3
    assert sorted(run.snapshots) == [0, 8, 15] and run.snapshots[15].shape == (4, 4)
    assert run.history["step"].tolist() == list(range(1, 16))


def test_history_is_drawn():
    figure = history_figure({"finished": Run.load(FOLDER / "finished").history}, 4)
    assert figure.axes[2].get_title() == "mean off-diagonal of C", "version 0.1 kept no rms"


def test_finished_run_is_probed():
    run, data = Run.load(FOLDER / "finished"), load("digits")
    train_x, test_x = (extract_features(run.encoder, split.images) for split in (data.train, data.test))
    result = linear_probe(train_x, data.train.labels, test_x, data.test.labels)
    assert result.accuracy > 0.3, "chance is 0.1"


def test_interrupted_run_resumes_to_the_finished_one(tmp_path):
    shutil.copytree(FOLDER / "interrupted", tmp_path / "run")
    before = Run.load(tmp_path / "run")
    assert before.status == "interrupted"
    run = train(before.config, tmp_path / "run", progress=False, resume=True)
    finished = Run.load(FOLDER / "finished")
    assert run.history["loss"].tolist() == pytest.approx(finished.history["loss"].tolist(), rel=1e-4)
    assert run.history["rms_off_diagonal"].notna().tolist() == [step > 5 for step in run.history["step"]]
    assert history_figure({"resumed": run.history}, 4).axes[2].get_title() == "mean off-diagonal of C"
    images = load("digits").test.images
    features = [extract_features(one.encoder, images) for one in (run, finished)]
    assert float(cka(*features)) > 1 - 1e-4
    torch.testing.assert_close(run.snapshots[15], finished.snapshots[15], atol=1e-3, rtol=0)


def test_other_settings_are_refused_on_resume(tmp_path):
    shutil.copytree(FOLDER / "interrupted", tmp_path / "run")
    config = replace(Run.load(tmp_path / "run").config, seed=1)
    with pytest.raises(ValueError, match="seed 0, not 1"):
        train(config, tmp_path / "run", progress=False, resume=True)


def test_ablation_table_is_read():
    frame = read_table(FOLDER / "ablation.csv")
    assert frame["batch_size"].unique().tolist() == [128, 256]
    assert {"accuracy", "state", "energy", "rankme"} <= set(frame)


def test_stored_ablation_results_are_found(tmp_path):
    shutil.copytree(FOLDER / "ablation", tmp_path / "ablation")
    base = {
        "dataset": "digits", "width": 1, "projector": [8, 4], "epochs": 3, "snapshots": 3, "log_every": 1,
        "device": "cpu", "precision": "float32", "views": "tsai2021", "loss": "hsic_ssl",
        "learning_rate": 0.002,  # the default of version 0.1
    }  # fmt: skip
    stored = read_table(FOLDER / "ablation.csv")
    frame = run_ablation(
        Grid("small", base=base, cross={"batch_size": [128, 256]}), tmp_path / "ablation", progress=False
    )
    assert frame["run"].tolist() == stored["run"].tolist()
    assert frame["accuracy"].tolist() == stored["accuracy"].tolist(), "nothing was trained or evaluated again"
    assert set(frame["hsic_lab"]) == {"0.1.0"}

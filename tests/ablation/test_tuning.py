"""Tuning in a grid: what is chosen, on which images and seeds, what is kept, and what is refused."""

import json

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch

from hsic_lab.ablation import Grid, read_grid, read_table, run_ablation, write_table
from hsic_lab.ablation import _run as ablation_runs
from hsic_lab.ablation._run import cut
from hsic_lab.datasets import DigitScenes, from_arrays, load
from hsic_lab.datasets.digit_scenes import digit_index
from hsic_lab.evaluation import extract_features, knn_accuracy
from hsic_lab.plots import plot_ablation
from hsic_lab.training import train

BASE = {"dataset": "digits", "width": 1, "projector": [8, 4], "epochs": 1, "batch_size": 64, "snapshots": 2,
        "precision": "float32"}  # fmt: skip
SETTINGS = {
    "name": "tuned", "base": BASE, "cross": {"batch_size": [32, 64]}, "tune": {"learning_rate": [0.001, 0.01, 0.1]},
    "include": [
        {"loss": "barlow_twins", "tune": {"lambda_times_d": [0.5, 2.0]}},
        {"loss": "nt_xent", "tune": {"temperature": [0.1, 0.5, 1.0]}},
        {"loss": "spectral"},
    ],
    "data": {"n_train": 256, "n_test": 200, "n_validation": 300}, "seeds": 2, "tune_seeds": 2, "evaluate": ["knn"],
}  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tuned")
    return run_ablation(SETTINGS, folder, progress=False), folder


def best(frame, setting):
    """The value of a setting with the highest mean accuracy of its tuning runs."""
    tried = frame[(frame["tuned"] == setting) & (frame["evaluation"] == "knn on validation")]
    # A value at which a run failed is out.
    return tried.groupby(setting, sort=False)["accuracy"].agg(lambda found: found.mean(skipna=False)).idxmax()


def test_every_level_gets_the_settings_that_are_best_on_validation_images(made):
    frame, _ = made
    assert len(frame.attrs["chosen"]) == 6
    weights = {"barlow_twins": ["lambda_times_d"], "nt_xent": ["temperature"], "spectral": []}
    for chosen in frame.attrs["chosen"]:
        level = frame[(frame["loss"] == chosen["loss"]) & (frame["batch_size"] == chosen["batch_size"])]
        for name in ["learning_rate", *weights[chosen["loss"]]]:
            assert chosen[name] == best(level, name)
        reported = level[level["tuned"].isna()]
        assert reported["seed"].tolist() == [0, 1] and set(reported["evaluation"]) == {"knn"}
        assert all(set(reported[name]) == {chosen[name]} for name in ["learning_rate", *weights[chosen["loss"]]])
        later = level[level["tuned"] == "".join(weights[chosen["loss"]])]  # the weight is tuned at the chosen rate
        assert set(later["learning_rate"]) <= {chosen["learning_rate"]}
    assert set(frame.loc[frame["tuned"].notna(), "seed"]) == {1000, 1001}


def test_values_at_the_end_of_their_list_are_named(made):
    frame, _ = made
    values = {"learning_rate": [0.001, 0.01, 0.1], "lambda_times_d": [0.5, 2.0], "temperature": [0.1, 0.5, 1.0]}
    for chosen in frame.attrs["chosen"]:
        named = [name for name in values if name in chosen and chosen[name] != sorted(values[name])[1:-1]]
        assert chosen["at_end"] == [name for name in named if chosen[name] in (values[name][0], values[name][-1])]


def test_no_reported_number_depends_on_the_tuning_images(made, tmp_path):
    frame, _ = made
    chosen = next(one for one in frame.attrs["chosen"] if one["loss"] == "spectral" and one["batch_size"] == 64)
    plain = {"base": BASE | {"loss": "spectral", "learning_rate": chosen["learning_rate"]}, "cross": {}, "include": []}
    untuned = run_ablation(
        {"name": "plain", **plain, "data": {"n_train": 256, "n_test": 200}, "seeds": 2, "evaluate": ["knn"]},
        tmp_path, progress=False,
    )  # fmt: skip
    reported = frame[frame["tuned"].isna() & (frame["loss"] == "spectral") & (frame["batch_size"] == 64)]
    assert reported["run"].tolist() == untuned["run"].tolist()  # the same runs, not only equal ones
    assert reported["accuracy"].tolist() == untuned["accuracy"].tolist()
    assert set(reported["split"]) == {"digits test"} and set(reported["n_test"]) == {200}


def test_tuning_run_equals_training_and_evaluation_by_hand(made, tmp_path):
    frame, _ = made
    row = frame[(frame["tuned"] == "learning_rate") & (frame["loss"] == "spectral")].iloc[0]
    data = load("digits")
    assert (row["split"], row["n_train"], row["n_test"]) == ("digits validation", 256, 300)
    parts = {"train": data.train.subset(slice(256)), "test": data.train.subset(slice(256, 556))}
    data = type(data)(data.name, **parts, class_names=data.class_names)
    settings = BASE | {"loss": "spectral", "batch_size": 32, "learning_rate": 0.001, "seed": 1000}
    run = train(ablation_runs.TrainConfig(**settings), tmp_path / "run", data, progress=False)
    x, y = (extract_features(run.encoder, part.images) for part in (data.train, data.test))
    k = min(ablation_runs.NEIGHBORS, 256)
    assert row["accuracy"] == knn_accuracy(x, data.train.labels, y, data.test.labels, k=k)


def test_second_call_trains_what_a_new_value_adds_and_no_more(made, monkeypatch):
    frame, folder = made
    count, original = [], ablation_runs._train_and_evaluate
    monkeypatch.setattr(ablation_runs, "_train_and_evaluate", lambda *args: count.append(args) or original(*args))
    again = run_ablation(SETTINGS, folder, progress=False)
    pd.testing.assert_frame_equal(frame, again)
    assert not count and frame.attrs == again.attrs
    wider = SETTINGS | {"cross": {"batch_size": [64]}, "include": [{"loss": "spectral"}]}
    run_ablation(wider | {"tune": {"learning_rate": [1e-9, 0.001, 0.01, 0.1]}}, folder, progress=False)
    assert [one[0].config.learning_rate for one in count[:2]] == [1e-9, 1e-9] and len(count) <= 4


def test_table_keeps_the_tuning_and_its_head_what_was_chosen(made, tmp_path):
    frame, _ = made
    write_table(frame, read_grid(SETTINGS), tmp_path / "table.csv", "a command")
    table = read_table(tmp_path / "table.csv")
    assert json.loads(table.attrs["chosen"]) == frame.attrs["chosen"]
    assert json.loads(table.attrs["tune"]) == SETTINGS["tune"] and json.loads(table.attrs["tune_seeds"]) == [1000, 1001]
    assert (table["tuned"].isna() == frame["tuned"].isna()).all() and len(table) == len(frame)


def test_tuning_curve_shows_the_runs_that_tried_a_setting(made):
    frame, _ = made
    level = frame[frame["batch_size"] == 64]
    ax = plot_ablation(level, "learning_rate", "loss", evaluation="knn on validation")
    drawn = {line.get_label(): line.get_ydata() for line in ax.lines}
    for loss, part in level[level["tuned"] == "learning_rate"].groupby("loss"):
        np.testing.assert_allclose(drawn[loss], part.groupby("learning_rate")["accuracy"].mean())
    plt.close(ax.figure)
    with pytest.raises(ValueError, match="tuned"):
        plot_ablation(level.drop(columns="tuned"), "learning_rate", evaluation="knn on validation")


def test_diverged_values_are_not_chosen_and_a_level_without_any_is_an_error(tmp_path, monkeypatch):
    settings = SETTINGS | {"cross": {}, "include": [], "tune_seeds": 1, "seeds": 1}
    original = ablation_runs._train_and_evaluate

    def fail_at(rates):
        def run(one, *rest):
            rows, lasting = original(one, *rest)
            return [r | ({"accuracy": np.nan} if one.config.learning_rate in rates else {}) for r in rows], lasting

        monkeypatch.setattr(ablation_runs, "_train_and_evaluate", run)

    fail_at([0.001, 0.1])
    frame = run_ablation(settings, tmp_path / "a", progress=False)
    assert frame.attrs["chosen"] == [{"learning_rate": 0.01, "at_end": []}]
    fail_at([0.001, 0.01, 0.1])
    with pytest.raises(ValueError, match="no value of learning_rate has a result of every tuning run: finished"):
        run_ablation(settings, tmp_path / "b", progress=False)


def test_validation_images_are_training_images_that_no_run_trains_on():
    pixels = np.arange(40, dtype=np.uint8).reshape(40, 1, 1).repeat(8, 1).repeat(8, 2)[..., None]
    for labels in (np.arange(40) % 4, np.repeat(np.arange(4), 10)):  # mixed, and sorted by class
        data = from_arrays(pixels, labels, pixels[:8], labels[::5])
        plain, held = cut(data, {"n_train": 20}), cut(data, {"n_train": 20, "n_validation": 12})
        assert torch.equal(plain.train.images, held.train.images) and len(held.test) == 12
        assert not {*held.train.images[:, 0, 0, 0].tolist()} & {*held.test.images[:, 0, 0, 0].tolist()}
        rest = cut(data, {"n_validation": 12})
        assert len(rest.train) == 28 and len(rest.test) == 12
    with pytest.raises(
        ValueError, match=r"n_train plus n_validation must be at most the 40 images of .*, got 30 \+ 12"
    ):
        cut(data, {"n_train": 30, "n_validation": 12})
    with pytest.raises(ValueError, match=r"size resizes the images of a folder, not those of .*, got 8"):
        cut(data, {"size": 8})
    with pytest.raises(ValueError, match=r"got 0 \+ 40"):
        cut(data, {"n_validation": 40})


def test_validation_scenes_show_digits_that_no_training_scene_shows():
    fit, validation, train_digits, test = (set(digit_index(s).tolist()) for s in ("fit", "validation", "train", "test"))
    assert fit | validation == train_digits and not fit & validation and not train_digits & test
    data = load("digit_scenes", n_train=300, n_validation=200)
    assert {*data.train.factors["digit"]} <= fit and {*data.test.factors["digit"]} <= validation
    assert data.scenes.split == "fit" and {*DigitScenes("fit").sample(500).factors["digit"]} <= fit
    assert (len(data.train), len(data.test)) == (300, 200)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"data": {"n_train": 256}}, "must name data.n_validation, a number of images, got {'n_train': 256}"),
        ({"tune_seeds": [1, 7]}, r"seeds and tune_seeds must differ, both have \[1\]"),
        ({"tune_seeds": 0}, "tune_seeds must be a number from 1 on"),
        ({"tune": {"batch_size": [32]}}, "a factor or tuned, not both: batch_size"),
        ({"tune": {"learning_rat": [0.1]}}, "'learning_rat'"),
        ({"tune": {"seed": [1]}}, "seed is not a setting"),
        ({"tune": {"learning_rate": 0.1}}, "must be a list of at least one value, got 0.1"),
        ({"tune": {"learning_rate": [0.1, 0.1]}}, r"must hold each value once, got \[0.1, 0.1\]"),
        ({"tune": {"learning_rate": []}}, "tune.learning_rate must be a list of at least one value"),
        ({"tune": [0.1]}, "tune must be a table"),
        ({"include": [{"loss": "spectral", "tune": [0.1]}]}, "the tune of an include must be a table"),
        ({"include": [{"loss": "spectral", "tune": {"gamma": 1}}]}, "tune.gamma must be a list"),
        ({"tune": {"learning_rate": [0.1, -1]}}, "learning_rate must be a finite number above 0, got -1"),
        ({"tune": {"temperature": [0.1]}, "include": []}, "only some losses take temperature"),
        ({"tune": {"learning_rate": [0.1] * 2 + list(range(1, 60_000))}}, "must hold each value once"),
        ({"tune": {"learning_rate": list(range(1, 60_000))}}, "at most 100000 trainings"),
    ],
)  # fmt: skip
def test_bad_tuning_is_refused_before_anything_trains(tmp_path, changes, words):
    with pytest.raises(ValueError, match=words):
        run_ablation(SETTINGS | changes, tmp_path / "runs", progress=False)
    assert not (tmp_path / "runs").exists()


def test_tuning_is_planned_level_by_level():
    grid = Grid(**SETTINGS)
    plan = grid.plan_tuning(1, [{"learning_rate": rate} for rate in (1, 2, 3, 4, 5, 6)])
    assert [level for level, *_ in plan] == [0, 0, 1, 1, 2, 2, 2, 3, 3, 3]
    assert [(name, value) for _, name, value, _ in plan[4:7]] == [("temperature", v) for v in (0.1, 0.5, 1.0)]
    runs = plan[6][3]
    assert [one.config.learning_rate for one in runs] == [3, 3]
    assert runs[0].config.loss_options == {"temperature": 1.0} and runs[0].data == {
        "n_train": 256, "n_validation": 300,
    }  # fmt: skip
    assert "n_validation" not in grid.plan()[0].data


def test_levels_that_choose_the_same_settings_share_the_runs(tmp_path):
    """Under a rule two batch sizes and two rates can be one training; both levels get its rows."""
    settings = {
        "cross": {"learning_rate_rule": ["fixed", "linear"]}, "include": [], "seeds": 1, "tune_seeds": 1,
        "base": BASE | {"batch_size": 64}, "tune": {"learning_rate": [0.001, 0.004]},
    }  # fmt: skip
    grid = Grid(**SETTINGS | settings)
    plan = grid.plan([{"learning_rate": 0.001}, {"learning_rate": 0.004}])
    assert len({one.key for one in plan}) == 1
    assert [one.factors["learning_rate_rule"] for one in plan] == ["fixed", "linear"]
    found = ablation_runs._run_all(plan, ("knn",), "", tmp_path, None, False, None, False)
    table = pd.DataFrame(ablation_runs._table(plan, found, "g"))
    assert table["learning_rate"].tolist() == [0.001, 0.004], "as they were chosen"
    assert table["accuracy"].nunique() == 1 and len(table) == 2


def test_data_sets_cannot_vary_for_images_of_ones_own(tmp_path):
    settings = SETTINGS | {"cross": {"dataset": ["digits", "digit_scenes"]}, "tune": {}, "include": []}
    data = load("digits")
    with pytest.raises(ValueError, match="dataset cannot vary in a grid for images of your own, 'digits'"):
        run_ablation({**settings, "data": {}}, tmp_path, data=data, progress=False)


def test_the_reason_of_a_tuning_without_results_is_named(tmp_path):
    settings = SETTINGS | {
        "cross": {},
        "include": [],
        "seeds": 1,
        "tune_seeds": 1,
        "tune": {"learning_rate": [0.01]},
        "data": {"n_train": 64, "n_validation": 10**6},
    }
    with pytest.raises(ValueError, match="every tuning run: failed: ValueError: n_"):
        run_ablation(settings, tmp_path, progress=False)

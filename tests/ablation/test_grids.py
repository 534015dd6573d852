"""Grids: planned trainings, shorthands against their formulas, keys of settings, and refused input."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hsic_lab.ablation import Grid, make_config, read_grid, run_ablation
from hsic_lab.ablation._grids import Planned
from hsic_lab.training import TrainConfig

ROOT = Path(__file__).parents[2]


def test_plan_crosses_includes_and_repeats():
    grid = Grid(
        "g",
        base={"dataset": "digits", "width": 2},
        cross={"batch_size": [32, 64], "projector": [[8], [16, 4]]},
        include=[{"loss": "vicreg"}, {"loss": "hsic_ssl", "lambda_param": 0.1}],
        seeds=[3, 5],
    )
    plan = grid.plan()
    assert len(plan) == 2 * 2 * 2 * 2 and grid.factors == ("batch_size", "projector", "loss", "lambda_param")
    assert [one.config.seed for one in plan] == [3] * 8 + [5] * 8  # whole replications first
    assert plan[0].config == TrainConfig(
        dataset="digits", width=2, batch_size=32, projector=(8,), loss="vicreg", seed=3
    )
    assert plan[7].factors == {"batch_size": 64, "projector": [16, 4], "loss": "hsic_ssl", "lambda_param": 0.1}
    assert len({one.key for one in plan}) == len(plan)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"batch_size": 64, "learning_rate_rule": "sqrt"}, {"batch_size": 64, "learning_rate": 2e-3}),
        ({"batch_size": 64, "learning_rate_rule": "linear"}, {"batch_size": 64, "learning_rate": 1e-3}),
        ({"batch_size": 64, "learning_rate_rule": "fixed"}, {"batch_size": 64}),
        (
            {"batch_size": 1024, "learning_rate": 0.1, "learning_rate_rule": "sqrt"},
            {"batch_size": 1024, "learning_rate": 0.2},
        ),
        ({"lambda_times_d": 10}, {"lambda_param": 10 / 128}),
        ({"lambda_times_d": 2, "projector": [16, 8]}, {"lambda_param": 0.25, "projector": (16, 8)}),
        (
            {"loss": "ssl_hsic", "kernel": "gaussian", "loss_options": {"gamma": 1.0}},
            {"loss": "ssl_hsic", "loss_options": {"gamma": 1.0, "kernel": "gaussian"}},
        ),
        (
            {"loss": "hsic_ssl", "off_diagonal_target": -0.5},
            {"loss": "hsic_ssl", "loss_options": {"off_diagonal_target": -0.5}},
        ),
        (
            {"loss": "reference_code", "unit_rows": False, "bessel": True},
            {"loss": "reference_code", "loss_options": {"unit_rows": False, "bessel": True}},
        ),
    ],
)
def test_shorthands_follow_their_formulas(settings, expected):
    assert make_config(settings) == TrainConfig(**expected)


def test_stored_results_of_version_0_1_have_the_same_key():
    config = TrainConfig(
        dataset="digits",
        views="tsai2021",
        loss="hsic_ssl",
        loss_options={"off_diagonal_target": -0.5},
        learning_rate=0.002,
    )
    assert Planned(config, {}, {"n_train": 10}).key == "8304988e8211"


def test_key_depends_on_settings_and_data_only():
    one = Planned(TrainConfig(dataset="digits"), {}, {"n_train": 10})
    same = Planned(TrainConfig(dataset="digits", width=16), {"width": 16}, {"n_train": 10})  # its default
    assert one.key == same.key and len(one.key) == 12
    whole, real = (replace(one, config=replace(one.config, lambda_param=value)) for value in (1, 1.0))
    assert whole.key == real.key != one.key
    others = [replace(one, config=replace(one.config, seed=1)), replace(one, data={}), replace(one, data={"n_test": 9})]
    assert len({one.key, *(other.key for other in others)}) == 4


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("base = {wdith = 3}", "'wdith'"),
        ("sede = 3", "'sede'"),
        ("listed = [{width = 4}]", "'listed'"),
        ("cross = {batch_size = []}", r"cross.batch_size must be a list of at least one value, got \[\]"),
        ("cross = {loss = 'vicreg'}", "cross.loss must be a list"),
        ("seeds = 0", "seeds must be"),
        ("seeds = [1, 1]", r"got \[1, 1\]"),
        ("base = {seed = 3}", "`seeds` says how many"),
        ("data = {n_train = 0}", "n_train must be a whole number of at least 1, got 0"),
        ("data = {n_valid = 10}", "'n_valid'"),
        ("evaluate = ['lineal']", "'lineal'"),
        ("evaluate = []", "at least one"),
        ("name = 'a/b'", "'a/b'"),
        ("batch_size = [", "Invalid value"),
        ("question = 3", "question must be one line, got 3"),
        ('question = "a\\nb"', "question must be one line"),
        ("name = 3", "name must be a word that can name a file, got 3"),
        ("name = '..'", r"got '\.\.'"),
        ("name = ''", "name must be a word"),
        ("seeds = true", "seeds must be a number from 1 on, or distinct numbers from 0 on, got True"),
        ("seeds = -1", "got -1"),
        ("seeds = 2.0", "got 2.0"),
        ("seeds = '2'", "got '2'"),
        ("seeds = []", r"got \[\]"),
        ("seeds = [true]", r"got \[True\]"),
        ("seeds = [0, 1.5]", r"got \[0, 1.5\]"),
        ("seeds = [[0]]", r"got \[\[0\]\]"),
        ("seeds = [-1]", r"got \[-1\]"),
        ("seeds = {a = 1}", "got {'a': 1}"),
        ("seeds = 1_000_000_000", "at most 100000 trainings, got 1000000000"),
        ("seeds = 1" + "0" * 400, "at most 100000 trainings"),
        (
            "seeds = 400\ncross = {width = [1, 2, 3], snapshots = [" + ",".join(map(str, range(2, 102))) + "]}",
            "got 120000",
        ),
        ("base = 3", "base must be a table of names and values, got 3"),
        ("base = [1]", "base must be a table"),
        ("cross = []", "cross must be a table"),
        ("cross = {width = 3}", "cross.width must be a list of at least one value, got 3"),
        ("cross = {width = {a = 1}}", "cross.width must be a list"),
        ("data = 3", "data must be a table"),
        ("data = {n_train = true}", "n_train must be a whole number of at least 1, got True"),
        ("data = {n_train = 2.5}", "got 2.5"),
        ("include = 3", "include must be a list of tables of names and values, got 3"),
        ("include = {width = 3}", "include must be a list of tables"),
        ("include = ['width']", r"include must be a list of tables of names and values, got \['width'\]"),
        ("include = [[{width = 3}]]", "include must be a list of tables"),
        ("evaluate = 'linear'", "evaluate must be a list of at least one of .*, got 'linear'"),
        ("evaluate = 3", "evaluate must be a list .*, got 3"),
        ("layers = 1", "layers must be true or false, .* got 1"),
        ("layers = true\nevaluate = ['knn']", 'true only with "linear" in evaluate, got True'),
        ("evaluate = [3]", r"got \[3\]"),
        ("evaluate = ['knn', 'knn']", "evaluate must be a list .* each at most once, got"),
        ("cross = {learning_rate = [nan]}", "cross must hold finite numbers, text, lists and tables"),
        ("base = {momentum = inf}", "base must hold finite numbers"),
        ("base = {dataset = 2020-01-01}", "base must hold finite numbers, text, lists and tables: got datetime.date"),
        ("base = " + "{a = " * 5000, "g.toml"),
        ("base = {" + "}", "a grid must name its data set"),
        ("base = {projector = []}", "projector must hold at least one width"),
        ("base = {projector = 3}", "projector must be a list of positive widths, got 3"),
        ("base = {projector = [], lambda_times_d = 1}", "projector must hold at least one width"),
        ("base = {projector = 'wide', lambda_times_d = 1}", "projector must be a list of positive widths, got 'wide'"),
        ("base = {lambda_times_d = 'x'}", "lambda_times_d must be a number that is finite, got 'x'"),
        ("base = {lambda_times_d = [1]}", r"lambda_times_d must be a number that is finite, got \[1\]"),
        ("base = {batch_size = -4, learning_rate_rule = 'sqrt'}", "batch_size must be a whole number .*, got -4"),
        ("base = {batch_size = 'x', learning_rate_rule = 'sqrt'}", "batch_size must be a whole number .*, got 'x'"),
        (
            "base = {learning_rate = 'x', learning_rate_rule = 'sqrt'}",
            "learning_rate must be a finite number .*, got 'x'",
        ),
        ("base = {learning_rate_rule = ['sqrt']}", r"learning_rate_rule must be one of .*, got \['sqrt'\]"),
        ("base = {loss_options = 3}", "loss_options must be a dictionary that JSON can hold, got 3"),
        ("base = {loss_options = 3, kernel = 'linear'}", "loss_options must be a dictionary that JSON can hold, got 3"),
        ("base = {loss_options = {widht = 1}}", "does not take {'widht': 1}"),
        ("base = {width = {a = 1}}", "width must be a whole number of at least 1, got {'a': 1}"),
    ],
)
def test_bad_files_are_refused_before_anything_trains(tmp_path, text, words):
    (tmp_path / "g.toml").write_text(text)
    with pytest.raises(ValueError, match=words):
        run_ablation(tmp_path / "g.toml", tmp_path / "runs", progress=False)
    assert not (tmp_path / "runs").exists()


def test_unreadable_grids_are_named(tmp_path):
    for content in (b"\xff\xfe", b"seeds = true", b"base = 3"):
        (tmp_path / "g.toml").write_bytes(content)
        with pytest.raises(ValueError, match=r"g\.toml: "):
            read_grid(tmp_path / "g.toml")


def test_values_of_numpy_become_plain():
    base = {"width": np.int64(3), "learning_rate": np.float64(0.5), "dataset": Path("digits")}
    cross = {"batch_size": np.array([32, 64]), "epochs": range(1, 3)}
    grid = Grid("g", base=base, cross=cross, seeds=np.int64(2), data={"n_train": np.int32(9)})
    plain = Grid("g", base={"width": 3, "learning_rate": 0.5, "dataset": "digits"}, seeds=2, data={"n_train": 9},
                 cross={"batch_size": [32, 64], "epochs": [1, 2]})  # fmt: skip
    assert grid == plain and json.dumps([one.factors for one in grid.plan()])
    assert Grid("g", seeds=np.arange(3)).seed_list == [0, 1, 2] == list(Grid("g", seeds=range(3)).seed_list)
    assert [one.key for one in grid.plan()] == [one.key for one in plain.plan()]
    for seeds in (np.bool_(True), np.float64(2), np.array([0.5]), None):
        with pytest.raises(ValueError, match="seeds must"):
            Grid("g", seeds=seeds)


def test_unknown_settings_of_a_config_are_refused():
    with pytest.raises(ValueError, match="'wdith'"):
        make_config({"wdith": 3})


def test_bad_combinations_are_refused_when_planned():
    with pytest.raises(ValueError, match="same training"):
        Grid("g", include=[{"width": 4}, {"width": 4}]).plan()
    with pytest.raises(ValueError, match="batch_size must be a whole number of at least 2, got 1"):
        Grid("g", cross={"batch_size": [1]}).plan()
    with pytest.raises(ValueError, match="the same thing"):
        make_config({"lambda_param": 1.0, "lambda_times_d": 1.0})
    with pytest.raises(ValueError, match="only some losses take off_diagonal_target"):
        make_config({"off_diagonal_target": -1.0})
    with pytest.raises(FileNotFoundError):
        read_grid("nowhere.toml")


@pytest.mark.parametrize("path", sorted((ROOT / "data" / "grids").glob("*.toml")), ids=lambda path: path.stem)
def test_grids_of_the_project_can_be_planned(path):
    grid = read_grid(path)
    assert grid.question and all(one.config.dataset != "default" for one in grid.plan())


@pytest.mark.parametrize(
    ("name", "first", "last"),
    [("lambda", "12b8c3d03be5", "ff0face6b45e"), ("gpu_cifar10_width", "dec085518a29", "d16af6005c95")],
)
def test_keys_are_those_of_version_0_1(name, first, last):
    plan = read_grid(ROOT / "data" / "grids" / f"{name}.toml").plan()
    assert (plan[0].key, plan[-1].key) == (first, last)

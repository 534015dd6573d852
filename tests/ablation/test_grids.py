"""Grids: planned trainings, shorthands against their formulas, keys of settings, and refused input."""

from dataclasses import replace
from pathlib import Path

import pytest

from hsic_lab.ablation import Grid, make_config, read_grid
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
        ({"batch_size": 64, "learning_rate_rule": "sqrt"}, {"batch_size": 64, "learning_rate": 1e-3}),
        ({"batch_size": 64, "learning_rate_rule": "linear"}, {"batch_size": 64, "learning_rate": 5e-4}),
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
        dataset="digits", views="tsai2021", loss="hsic_ssl", loss_options={"off_diagonal_target": -0.5}
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
        ("data = {n_train = 0}", "n_train must be a number of images of at least 1, got 0"),
        ("data = {n_valid = 10}", "'n_valid'"),
        ("evaluate = ['lineal']", "'lineal'"),
        ("evaluate = []", "at least one"),
        ("name = 'a/b'", "'a/b'"),
        ("batch_size = [", "Invalid value"),
    ],
)
def test_bad_files_are_refused_with_their_name(tmp_path, text, words):
    (tmp_path / "g.toml").write_text(text)
    with pytest.raises(ValueError, match=words) as error:
        read_grid(tmp_path / "g.toml")
    assert "g.toml" in str(error.value)


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

"""Grids of trainings: what varies, over which seeds, on which data."""

import hashlib
import itertools
import json
import math
import os
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from hsic_lab._checks import check_choice, check_number, check_type, is_whole
from hsic_lab.training import TrainConfig

FIELDS = tuple(f.name for f in fields(TrainConfig))
RULES = {"fixed": 0.0, "sqrt": 0.5, "linear": 1.0}  # the power of batch_size / 256 that multiplies learning_rate
EVALUATIONS = ("linear", "knn")
MOST = 100_000  # trainings of a grid
_LOSS_OPTIONS = ("kernel", "off_diagonal_target", "unit_rows", "bessel", "gamma", "temperature", "nu_param", "slices")
SHORTHANDS = ("learning_rate_rule", "lambda_times_d", *_LOSS_OPTIONS)
Level = tuple[dict[str, Any], dict[str, Sequence[Any]]]  # factors, and the settings that are tuned with their values


@dataclass(frozen=True)
class Planned:
    """One training of a grid: its config, the factors that distinguish it from the others, and its data."""

    config: TrainConfig
    factors: dict[str, Any]
    data: dict[str, Any]

    @property
    def key(self) -> str:
        """Twelve hexadecimal digits that identify the settings and the data, in every grid."""
        # Other settings at their defaults are left out, so that fields added later do not change the keys; the learning
        # rate at its default of version 0.1.
        defaults = asdict(TrainConfig()) | {"dataset": None, "learning_rate": 0.002}
        config = {name: value for name, value in asdict(self.config).items() if value != defaults[name]}
        # Names of version 0.1, whose results keep their keys.
        if config.get("views") == "tsai2021":
            config["views"] = "report"
        if "off_diagonal_target" in (options := dict(config.get("loss_options", {}))):
            config["loss_options"] = options | {"target": options.pop("off_diagonal_target")}
        settings = json.dumps({"config": config, "data": self.data}, sort_keys=True)
        return hashlib.sha256(settings.encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Grid:
    """A set of trainings to compare.

    A setting is a field of `TrainConfig` or a shorthand: ``learning_rate_rule`` ("fixed", "sqrt" or "linear": the
    learning rate is that of batch size 256 times ``(batch_size / 256)^p`` with p = 0, 1/2 or 1), ``lambda_times_d``
    (lambda_param times d), and ``kernel``, ``off_diagonal_target``, ``unit_rows``, ``bessel``, ``gamma``,
    ``temperature``, ``nu_param``, ``slices`` (options of the loss).

    Parameters
    ----------
    name, question : str
        Name of the table, and the question that it answers, in one line.
    base, cross, include : mapping, mapping of str to sequence, sequence of mapping
        Settings of all runs; values of each factor, of which all combinations are run; and further combinations of
        settings, each crossed with `cross`.
    seeds : int or sequence of int
        How many seeds (0, 1, ...) or which ones.
    data : mapping
        ``n_train``, ``n_test`` and, for `tune`, ``n_validation``. Of digit scenes so many are rendered. Of another set
        the first images of each split are used, at equal distances if the split is sorted by class. All images without
        labels are used. The validation images are training images that no other run of the tuning sees: those after
        the first ``n_train``; of digit scenes, scenes of the last quarter of each class of the training digits.
        ``size`` is that of `from_folder`.
    evaluate : sequence of str
        Of "linear" (`linear_probe`) and "knn" (`knn_accuracy`), each on the test split.
    layers : bool
        Whether "linear" probes the layers of the projector too, for the column `layer` of the table.
    tune : mapping of str to sequence
        Values of settings that are chosen for every combination of factors by itself, one setting after the other: the
        value with the highest mean accuracy of the first of `evaluate` on the validation images. An entry of `include`
        can have a ``tune`` of its own, which follows this one.
    tune_seeds : int or sequence of int
        Seeds of the tuning: how many (1000, 1001, ...), or which ones. They must differ from `seeds`.

    Examples
    --------
    >>> from hsic_lab.ablation import Grid
    >>> grid = Grid("size", base={"dataset": "digits"}, cross={"batch_size": [64, 128]}, seeds=3)
    >>> len(grid.plan())
    6
    """

    name: str
    question: str = ""
    base: Mapping[str, Any] = field(default_factory=dict)
    cross: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    include: Sequence[Mapping[str, Any]] = ()
    seeds: int | Sequence[int] = 1
    data: Mapping[str, int] = field(default_factory=dict)
    evaluate: Sequence[str] = EVALUATIONS
    layers: bool = False
    tune: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    tune_seeds: int | Sequence[int] = 1

    def __post_init__(self) -> None:
        for one in fields(self):  # numbers of NumPy, ranges and paths become what a table can keep
            try:
                vars(self)[one.name] = json.loads(json.dumps(getattr(self, one.name), default=_plain, allow_nan=False))
            except (TypeError, ValueError, RecursionError) as error:
                raise ValueError(f"{one.name} must hold finite numbers, text, lists and tables: {error}") from error
        is_name = isinstance(self.name, str) and self.name.isprintable() and len(self.name.encode()) <= 200
        if not is_name or self.name in ("", "..") or Path(self.name).name != self.name:
            raise ValueError(f"name must be a word that can name a file, got {self.name!r}")
        if not isinstance(self.question, str) or len(self.question.splitlines()) > 1:
            raise ValueError(f"question must be one line, got {self.question!r}")
        tables = {name: [getattr(self, name)] for name in ("base", "cross", "data", "tune")} | {"include": self.include}
        for name, found in tables.items():
            what = "a list of tables" if name == "include" else "a table"
            if not isinstance(found, list) or not all(isinstance(table, dict) for table in found):
                raise ValueError(f"{name} must be {what} of names and values, got {getattr(self, name)!r}")
        own = [table["tune"] for table in self.include if "tune" in table]
        if not all(isinstance(table, dict) for table in own):
            raise ValueError(f"the tune of an include must be a table of names and values, got {own!r}")
        tuned = [self.tune, *own]
        for name in itertools.chain(self.base, self.factors, *tuned):
            if name == "seed":
                raise ValueError("seed is not a setting of the grid: `seeds` says how many, or which")
            check_choice(name, (*FIELDS, *SHORTHANDS), "a setting of the grid")
        for where, table in (("cross", self.cross), *(("tune", table) for table in tuned)):
            for name, values in table.items():
                if not isinstance(values, list) or not values:
                    raise ValueError(f"{where}.{name} must be a list of at least one value, got {values!r}")
                if len(set(map(json.dumps, values))) < len(values):
                    raise ValueError(f"{where}.{name} must hold each value once, got {values!r}")
        for name, value in self.data.items():
            check_choice(name, ("n_train", "n_test", "n_validation", "size"), "an entry of data")
            if not is_whole(value) or value < 1:
                raise ValueError(f"data.{name} must be a whole number of at least 1, got {value!r}")
        names = self.evaluate if isinstance(self.evaluate, list) else []
        if not names or any(name not in EVALUATIONS or names.count(name) > 1 for name in names):
            words = f"a list of at least one of {EVALUATIONS}, each at most once"
            raise ValueError(f"evaluate must be {words}, got {self.evaluate!r}")
        if not isinstance(self.layers, bool) or (self.layers and "linear" not in names):
            raise ValueError(f'layers must be true or false, true only with "linear" in evaluate, got {self.layers!r}')
        for name in ("seeds", "tune_seeds"):
            seeds: Any = getattr(self, name)
            several = isinstance(seeds, list) and all(is_whole(seed) and seed >= 0 for seed in seeds)
            if not (len({*seeds}) == len(seeds) > 0 if several else is_whole(seeds) and seeds > 0):
                raise ValueError(f"{name} must be a number from 1 on, or distinct numbers from 0 on, got {seeds!r}")
        combinations = math.prod(map(len, self.cross.values())) * max(1, len(self.include))
        tried = sum(len(values) for table in tuned for values in table.values())
        n, n_tune = (one if isinstance(one, int) else len(one) for one in (self.seeds, self.tune_seeds))
        if (total := combinations * (n + tried * n_tune)) > MOST:
            raise ValueError(f"a grid must have at most {MOST} trainings, got {total}, with {n} seeds")
        if not (self.tune or own):
            return
        if "n_validation" not in self.data:
            raise ValueError(f"a grid with tune must name data.n_validation, a number of images, got {self.data}")
        if shared := {*self.seed_list} & {*self.tune_seed_list}:
            raise ValueError(f"seeds and tune_seeds must differ, both have {sorted(shared)}")
        if both := {*self.factors} & {*itertools.chain(*tuned)}:
            raise ValueError(f"a setting is a factor or tuned, not both: {', '.join(sorted(both))}")

    @property
    def seed_list(self) -> Sequence[int]:
        return range(self.seeds) if isinstance(self.seeds, int) else self.seeds

    @property
    def tune_seed_list(self) -> Sequence[int]:
        n = self.tune_seeds
        return range(1000, 1000 + n) if isinstance(n, int) else n

    @property
    def factors(self) -> tuple[str, ...]:
        """The settings that vary, in the order in which the grid names them."""
        names = dict.fromkeys([*self.cross, *itertools.chain.from_iterable(self.include)])
        return tuple(name for name in names if name != "tune")

    @property
    def levels(self) -> list[Level]:
        """All combinations of the factors, each with the settings that are tuned for it and their values."""
        combinations = itertools.product(self.include or [{}], itertools.product(*self.cross.values()))
        return [
            (dict(zip(self.cross, values, strict=True)) | {name: v for name, v in added.items() if name != "tune"},
             {**self.tune, **added.get("tune", {})})
            for added, values in combinations
        ]  # fmt: skip

    def plan(self, chosen: Sequence[Mapping[str, Any]] = ()) -> list[Planned]:
        """The trainings that are reported, with the settings `chosen` for each of `levels`.

        They are ordered by seed, so that an unfinished ablation has complete replications first.
        """
        data, levels = {name: n for name, n in self.data.items() if name != "n_validation"}, self.levels
        both = zip(levels, chosen or [{} for _ in levels], strict=True)
        settings = [{**factors, **more} for (factors, _), more in both]
        planned = [self._one(factors, seed, data) for seed in self.seed_list for factors in settings]
        first = {one.key: one for one in reversed(planned)}
        if len(first) < len(planned) and not chosen:  # tuned levels may choose the same settings
            twice = next(one.factors for one in planned if first[one.key] is not one)
            raise ValueError(f"two combinations of the grid {self.name!r} are the same training: {twice}")
        return planned

    def plan_tuning(self, place: int, chosen: Sequence[Mapping[str, Any]]) -> list[tuple[int, str, Any, list[Planned]]]:
        """Level, name and value of the setting at `place` in every level's tune, and the trainings, one a seed.

        `chosen` holds the settings known so far of each level.
        """
        data = {name: n for name, n in self.data.items() if name != "n_test"}
        return [
            (level, name, value, [self._one({**factors, **known, name: value}, seed, data, {"tuned": name})
                                  for seed in self.tune_seed_list])
            for level, ((factors, tune), known) in enumerate(zip(self.levels, chosen, strict=True))
            for name, values in [*tune.items()][place : place + 1]
            for value in values
        ]  # fmt: skip

    def _one(self, factors: dict[str, Any], seed: int, data: dict[str, Any], more: Mapping[str, str] = {}) -> Planned:
        return Planned(make_config({**self.base, **factors, "seed": seed}), factors | dict(more), data)


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic | os.PathLike):
        return value.item() if isinstance(value, np.generic) else os.fspath(value)
    if isinstance(value, np.ndarray | Mapping | Sequence):
        return dict(value) if isinstance(value, Mapping) else list(value)
    raise TypeError(f"got {value!r}")


def read_grid(source: str | os.PathLike | Mapping[str, Any]) -> Grid:
    """Read a `Grid` from a mapping or a TOML file of its fields; a file without a name is named by its stem."""
    if isinstance(source, Mapping):
        for name in source:
            check_choice(name, tuple(f.name for f in fields(Grid)), "a key of the grid")
        if "name" not in source:
            raise ValueError("a grid must have a name")
        return Grid(**source)
    path = Path(check_type("grid", source, str, os.PathLike))
    try:
        return read_grid({"name": path.stem} | tomllib.loads(path.read_text(encoding="utf-8")))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: {error}") from error


def make_config(settings: Mapping[str, Any]) -> TrainConfig:
    """Make the config that settings, as in `Grid`, describe; raise ValueError if they contradict each other."""
    for name in check_type("settings", settings, Mapping):
        check_choice(name, (*FIELDS, *SHORTHANDS), "a setting of the grid")
    values: dict[str, Any] = {name: value for name, value in settings.items() if name in FIELDS}
    options = {name: settings[name] for name in settings if name in _LOSS_OPTIONS}
    try:
        plain = TrainConfig(**values)
        changes: dict[str, Any] = {"loss_options": plain.loss_options | options} if options else {}
        if "lambda_times_d" in settings:
            if "lambda_param" in settings:
                raise ValueError("lambda_param and lambda_times_d say the same thing: give one of them")
            changes["lambda_param"] = check_number("lambda_times_d", settings["lambda_times_d"]) / plain.projector[-1]
        if "learning_rate_rule" in settings:
            rule = check_choice(settings["learning_rate_rule"], tuple(RULES), "learning_rate_rule")
            changes["learning_rate"] = plain.learning_rate * math.pow(plain.batch_size / 256, RULES[rule])
        return TrainConfig(**values | changes)
    except ValueError as error:
        if not options:
            raise
        raise ValueError(f"{error} (only some losses take {', '.join(options)}: set `loss` to one of them)") from error

"""A grid of trainings: what varies, over which seeds, on which data, as a TOML file or a mapping; out come configs."""

import hashlib
import itertools
import json
import math
import os
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from hsic_lab._checks import check_choice
from hsic_lab.training import TrainConfig

FIELDS = tuple(f.name for f in fields(TrainConfig))
RULES = {"fixed": 0.0, "sqrt": 0.5, "linear": 1.0}  # the power of batch_size / 256 that multiplies learning_rate
EVALUATIONS = ("linear", "knn")
_KEYS = ("name", "question", "base", "cross", "listed", "seeds", "data", "evaluate")
_LOSS_OPTIONS = {"kernel": "kernel", "off_diagonal_target": "target", "unit_rows": "unit_rows", "bessel": "bessel"}
SHORTHANDS = ("learning_rate_rule", "lambda_times_d", *_LOSS_OPTIONS)


@dataclass(frozen=True)
class Planned:
    """One training of a grid: its `config`, the factors that tell it from the others, and the data it runs on."""

    config: TrainConfig
    factors: dict[str, Any]
    data: dict[str, int]

    @property
    def key(self) -> str:
        """The settings' hash: runs of equal settings on equal data have one key, whatever grid asks for them.

        Settings at their defaults do not enter, so that a setting that is added later leaves the keys alone.
        """
        usual = asdict(TrainConfig()) | {"dataset": None}  # the data set is always part of the key
        own = {name: value for name, value in asdict(self.config).items() if value != usual[name]}
        return digest({"config": own, "data": self.data})


@dataclass(frozen=True)
class Grid:
    """Trainings to compare. Raises ValueError, quoting it, for a key, field or value that is not accepted.

    name, question: what the table is called, and what it answers
    base:     settings that all runs share
    cross:    factor -> values, every combination of which is run
    listed:   combinations of settings to run one by one, each crossed with `cross`; none is one empty combination
    seeds:    how many (0, 1, ...) or which
    data:     `n_train`, `n_test`: of digit_scenes how many; of another set the first images of each split, of a split
              that is sorted by class evenly spaced ones. Images without labels all stay
    evaluate: of "linear" (`linear_probe`) and "knn" (`knn_accuracy`), both once on the test split

    A setting is a field of `TrainConfig`, or a shorthand for one:

    learning_rate_rule   "fixed", "sqrt" or "linear": `learning_rate` is that of batch 256, times (batch_size / 256)^p
                         with p = 0, 1/2 or 1
    lambda_times_d       lambda_param = this / d
    kernel, off_diagonal_target, unit_rows, bessel   the loss options of these names (the second is `target`)
    """

    name: str
    question: str = ""
    base: Mapping[str, Any] = field(default_factory=dict)
    cross: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    listed: Sequence[Mapping[str, Any]] = ()
    seeds: int | Sequence[int] = 1
    data: Mapping[str, int] = field(default_factory=dict)
    evaluate: Sequence[str] = EVALUATIONS

    def __post_init__(self) -> None:
        if not self.name or Path(self.name).name != self.name:
            raise ValueError(f"name must be a word that can name a file, got {self.name!r}")
        if len(self.question.splitlines()) > 1:
            raise ValueError(f"question must be one line, got {self.question!r}")
        for name in ("base", "cross", "data"):
            if not isinstance(getattr(self, name), Mapping):
                raise ValueError(f"{name} must be a table of names and values, got {getattr(self, name)!r}")
        for settings in (self.base, self.cross, *self.listed):
            for name in settings:
                check_choice(name, (*FIELDS, *SHORTHANDS), "a setting of the grid")
                if name == "seed":
                    raise ValueError("seed is not a setting of the grid: `seeds` says how many, or which")
        for name, values in self.cross.items():
            if isinstance(values, str) or not isinstance(values, Sequence) or not len(values):
                raise ValueError(f"cross.{name} must be a list of at least one value, got {values!r}")
        for name, value in self.data.items():
            check_choice(name, ("n_train", "n_test"), "an entry of data")
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"data.{name} must be a number of images of at least 1, got {value!r}")
        if not self.evaluate:
            raise ValueError(f"evaluate must hold at least one of {EVALUATIONS}, got none")
        for name in self.evaluate:
            check_choice(name, EVALUATIONS, "an entry of evaluate")
        if not self.seed_list or min(self.seed_list) < 0 or len(set(self.seed_list)) < len(self.seed_list):
            accepted = "a number of at least 1, or distinct numbers of at least 0"
            raise ValueError(f"seeds must be {accepted}, got {self.seeds!r}")

    @property
    def seed_list(self) -> Sequence[int]:
        return range(self.seeds) if isinstance(self.seeds, int) else self.seeds

    @property
    def factors(self) -> tuple[str, ...]:
        """The settings that vary by intention, in the order in which the grid names them."""
        return tuple(dict.fromkeys([*self.cross, *itertools.chain.from_iterable(self.listed)]))

    def plan(self) -> list[Planned]:
        """Every training, seed by seed, so that an unfinished ablation has whole replications first."""
        planned = []
        for seed in self.seed_list:
            for combination in self._combinations():
                config = make_config({**self.base, **combination, "seed": seed})
                planned.append(Planned(config, combination, dict(self.data)))
        keys = [one.key for one in planned]
        if len(set(keys)) < len(keys):
            twice = next(one for one in planned if keys.count(one.key) > 1)
            raise ValueError(f"two combinations of the grid {self.name!r} are the same training: {twice.factors}")
        return planned

    def _combinations(self) -> Iterator[dict[str, Any]]:
        for listed in self.listed or ({},):
            for values in itertools.product(*self.cross.values()):
                yield {**dict(zip(self.cross, values, strict=True)), **listed}


def read_grid(source: str | os.PathLike | Mapping[str, Any]) -> Grid:
    """A grid from a TOML file, named by its stem unless it says otherwise, or from a mapping of the same form.

    Raises FileNotFoundError, or ValueError naming the file, for what cannot be read.
    """
    if isinstance(source, Mapping):
        return _grid(dict(source))
    path = Path(source)
    try:
        return _grid({"name": path.stem} | tomllib.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: {error}") from error


def make_config(settings: Mapping[str, Any]) -> TrainConfig:
    """The config that fields and shorthands describe; see `Grid`."""
    values = {name: tuple(v) if isinstance(v, list) else v for name, v in settings.items() if name in FIELDS}
    options = {_LOSS_OPTIONS[name]: settings[name] for name in settings if name in _LOSS_OPTIONS}
    if options:
        values["loss_options"] = values.get("loss_options", {}) | options
    if "lambda_times_d" in settings:
        if "lambda_param" in settings:
            raise ValueError("lambda_param and lambda_times_d say the same thing: give one of them")
        width = values.get("projector", TrainConfig.projector)[-1]
        values["lambda_param"] = settings["lambda_times_d"] / width
    if "learning_rate_rule" in settings:
        rule = check_choice(settings["learning_rate_rule"], tuple(RULES), "learning_rate_rule")
        batch = values.get("batch_size", TrainConfig.batch_size)
        rate = values.get("learning_rate", TrainConfig.learning_rate)
        values["learning_rate"] = rate * math.pow(batch / 256, RULES[rule])
    try:
        return TrainConfig(**values)
    except ValueError as error:
        if not options:
            raise
        asked = ", ".join(f"{name} is the option {_LOSS_OPTIONS[name]!r}" for name in settings if name in _LOSS_OPTIONS)
        raise ValueError(f"{error} ({asked} of some losses: set `loss` to one of them)") from error


def digest(settings: Any) -> str:
    """Twelve hexadecimal digits that tell settings apart, whatever the order of their names."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]


def _grid(settings: dict[str, Any]) -> Grid:
    for name in settings:
        check_choice(name, _KEYS, "a key of the grid")
    if "name" not in settings:
        raise ValueError("a grid must have a name")
    return Grid(**settings)

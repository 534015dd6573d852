"""Grids of trainings: what varies, over which seeds, on which data."""

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

from hsic_lab._checks import check_choice, is_whole
from hsic_lab.training import TrainConfig

FIELDS = tuple(f.name for f in fields(TrainConfig))
RULES = {"fixed": 0.0, "sqrt": 0.5, "linear": 1.0}  # the power of batch_size / 256 that multiplies learning_rate
EVALUATIONS = ("linear", "knn")
_LOSS_OPTIONS = {"kernel": "kernel", "off_diagonal_target": "target", "unit_rows": "unit_rows", "bessel": "bessel"}
SHORTHANDS = ("learning_rate_rule", "lambda_times_d", *_LOSS_OPTIONS)


@dataclass(frozen=True)
class Planned:
    """One training of a grid: its config, the factors that distinguish it from the others, and its data."""

    config: TrainConfig
    factors: dict[str, Any]
    data: dict[str, Any]

    @property
    def key(self) -> str:
        """Twelve hexadecimal digits that identify the settings and the data, in every grid."""
        # Other settings at their defaults are left out, so that fields added later do not change the keys.
        defaults = asdict(TrainConfig()) | {"dataset": None}
        config = {name: value for name, value in asdict(self.config).items() if value != defaults[name]}
        if config.get("views") == "tsai2021":
            config["views"] = "report"  # its name in version 0.1, whose results keep their keys
        settings = json.dumps({"config": config, "data": self.data}, sort_keys=True)
        return hashlib.sha256(settings.encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Grid:
    """A set of trainings to compare.

    A setting is a field of `TrainConfig` or a shorthand: ``learning_rate_rule`` ("fixed", "sqrt" or "linear": the
    learning rate is that of batch size 256 times ``(batch_size / 256)^p`` with p = 0, 1/2 or 1), ``lambda_times_d``
    (lambda_param times d), and ``kernel``, ``off_diagonal_target``, ``unit_rows``, ``bessel`` (options of the loss).

    Parameters
    ----------
    name : str
        Name of the table.
    question : str
        The question that the table answers, in one line.
    base : mapping
        Settings of all runs.
    cross : mapping of str to sequence
        Values of each factor; all their combinations are run.
    include : sequence of mapping
        Further combinations of settings, each crossed with `cross`.
    seeds : int or sequence of int
        How many seeds (0, 1, ...) or which ones.
    data : mapping
        ``n_train`` and ``n_test``. Of digit scenes so many are rendered. Of another set the first images of each split
        are used, at equal distances if the split is sorted by class. All images without labels are used.
    evaluate : sequence of str
        Of "linear" (`linear_probe`) and "knn" (`knn_accuracy`), each on the test split.

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

    def __post_init__(self) -> None:
        if not self.name or Path(self.name).name != self.name:
            raise ValueError(f"name must be a word that can name a file, got {self.name!r}")
        if len(self.question.splitlines()) > 1:
            raise ValueError(f"question must be one line, got {self.question!r}")
        for name in ("base", "cross", "data"):
            if not isinstance(getattr(self, name), Mapping):
                raise ValueError(f"{name} must be a table of names and values, got {getattr(self, name)!r}")
        for name in itertools.chain(self.base, self.cross, *self.include):
            if name == "seed":
                raise ValueError("seed is not a setting of the grid: `seeds` says how many, or which")
            check_choice(name, (*FIELDS, *SHORTHANDS), "a setting of the grid")
        for name, values in self.cross.items():
            if isinstance(values, str) or not isinstance(values, Sequence) or not len(values):
                raise ValueError(f"cross.{name} must be a list of at least one value, got {values!r}")
        for name, value in self.data.items():
            check_choice(name, ("n_train", "n_test"), "an entry of data")
            if not is_whole(value) or value < 1:
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
        """The seeds."""
        return range(self.seeds) if isinstance(self.seeds, int) else self.seeds

    @property
    def factors(self) -> tuple[str, ...]:
        """The settings that vary, in the order in which the grid names them."""
        return tuple(dict.fromkeys([*self.cross, *itertools.chain.from_iterable(self.include)]))

    def plan(self) -> list[Planned]:
        """All trainings, seed by seed, so that an unfinished ablation has complete replications first."""
        planned = []
        for seed, combination in itertools.product(self.seed_list, self._combinations()):
            config = make_config({**self.base, **combination, "seed": seed})
            planned.append(Planned(config, combination, dict(self.data)))
        keys = [one.key for one in planned]
        if len(set(keys)) < len(keys):
            twice = next(one for one in planned if keys.count(one.key) > 1)
            raise ValueError(f"two combinations of the grid {self.name!r} are the same training: {twice.factors}")
        return planned

    def _combinations(self) -> Iterator[dict[str, Any]]:
        for included in self.include or ({},):
            for values in itertools.product(*self.cross.values()):
                yield {**dict(zip(self.cross, values, strict=True)), **included}


def read_grid(source: str | os.PathLike | Mapping[str, Any]) -> Grid:
    """Read a grid from a TOML file or a mapping; raise ValueError for what a grid does not accept.

    Parameters
    ----------
    source : path or mapping
        The fields of `Grid`. A file without a name is named by its stem.
    """
    if isinstance(source, Mapping):
        return _grid(source)
    path = Path(source)
    try:
        return _grid({"name": path.stem} | tomllib.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: {error}") from error


def _grid(settings: Mapping[str, Any]) -> Grid:
    for name in settings:
        check_choice(name, tuple(f.name for f in fields(Grid)), "a key of the grid")
    if "name" not in settings:
        raise ValueError("a grid must have a name")
    return Grid(**settings)


def make_config(settings: Mapping[str, Any]) -> TrainConfig:
    """Make the config that fields and shorthands describe; raise ValueError for settings that contradict each other.

    Parameters
    ----------
    settings : mapping
        Settings, as in `Grid`.
    """
    values: dict[str, Any] = {
        name: tuple(v) if isinstance(v, list) else v for name, v in settings.items() if name in FIELDS
    }
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

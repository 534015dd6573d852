"""What a table of repeated runs says: means with confidence intervals, and differences paired by seed."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import t
from scipy.stats import t as student_t

LEVEL = 0.95


@dataclass(frozen=True)
class PairedDifference:
    """The mean of `differences` (one a seed, `second` minus `first`), with a t interval; str() is the verdict.

    `lost` counts the seeds of which a run failed. With one seed the interval is NaN: nothing can be said.
    """

    first: str
    second: str
    mean: float
    low: float
    high: float
    differences: pd.Series
    lost: int = 0
    value: str = "accuracy"

    def __str__(self) -> str:
        n = len(self.differences)
        points = self.value == "accuracy"
        mean, low, high = (f"{100 * v:+.1f}" if points else f"{v:+.3g}" for v in (self.mean, self.low, self.high))
        text = f"{self.second} minus {self.first}: {mean} {'points' if points else self.value}, "
        if n > 1:
            text += f"95 % interval {low} to {high}, "
        text += f"{n} seed{'s' * (n != 1)}"
        return text + (f" ({self.lost} more lost to failed runs)" if self.lost else "") + f": {self.verdict}"

    @property
    def verdict(self) -> str:
        """Which one is ahead, if the interval leaves 0 out."""
        if np.isnan(self.low):
            return "one seed shows no difference"
        if self.low <= 0 <= self.high:
            return "no difference shown"
        return f"{self.second if self.low > 0 else self.first} {'is ahead' if self.value == 'accuracy' else 'has more'}"


def paired_difference(
    frame: pd.DataFrame,
    factor: str,
    first: Any,
    second: Any,
    *,
    value: str = "accuracy",
    evaluation: str = "linear",
    names: tuple[str, str] | None = None,
) -> PairedDifference:
    """How much `second` is above `first`, seed by seed: `mean +- t_{0.975, m-1} s / sqrt(m)` of m differences.

    Runs of one seed share what their settings have in common, initial weights and images above all: pairing takes it
    out. Intervals are not corrected for how many of them are looked at.
    `frame` is a table of `run_ablation`, cut down by the caller to one run a level of `factor` and seed; the level None
    is an empty cell.
    Raises ValueError for a level that is not there, a run that stands twice, and where no seed has both.
    """
    for column in (factor, value):
        if column not in frame:
            raise ValueError(f"the frame lacks the column {column!r}, it has {list(frame.columns)}")
    frame = _chosen(frame, evaluation)
    sides = []
    for level in (first, second):
        side = frame[frame[factor].isna() if level is None else frame[factor] == level]
        if side.empty:
            raise ValueError(f"no run has {factor} = {level!r}; there are {sorted(frame[factor].unique(), key=str)}")
        if len(twice := side.loc[side["seed"].duplicated(), "seed"]):
            settings = side.columns[: side.columns.get_loc("seed")].drop(["run"], errors="ignore")
            varies = ", ".join(name for name in settings if side[name].nunique(dropna=False) > 1)
            remedy = f"cut the frame down to one level of {varies or 'everything else'}"
            raise ValueError(f"seed {twice.iloc[0]} of {factor} = {level!r} stands twice: {remedy}")
        sides.append(side.set_index("seed")[value])
    both = pd.concat(sides, axis=1, keys=["first", "second"]).dropna()
    if both.empty:
        raise ValueError(f"no seed has a finished run of both {first!r} and {second!r}")
    lost = len(set(sides[0].index) | set(sides[1].index)) - len(both)
    differences = both["second"] - both["first"]
    mean, low, high = mean_interval(differences)
    names = (str(first), str(second)) if names is None else names
    return PairedDifference(*names, mean, low, high, differences, lost, value)


def summarize(
    frame: pd.DataFrame, by: Sequence[str], *, value: str = "accuracy", evaluation: str = "linear"
) -> pd.DataFrame:
    """`mean, low, high` (95 % t interval) of `value` over the `seeds` of each group, groups in the table's order.

    `lost` counts the runs that failed or have no such value: they are in no mean.

    Raises ValueError where a seed stands twice in a group: some other factor varies, and its levels are no repetitions.
    """
    chosen = _chosen(frame, evaluation)
    if len(twice := chosen[chosen.duplicated([*by, "seed"])]):
        group, seed = twice.iloc[0][list(by)].to_dict(), twice["seed"].iloc[0]
        raise ValueError(f"seed {seed} stands twice in {group}: name every factor, or cut the frame down")
    groups = chosen.groupby(list(by), sort=False, dropna=False)[value]
    rows = [
        dict(zip(by, key, strict=True))
        | dict(zip(("mean", "low", "high"), mean_interval(part), strict=True))
        | {"seeds": int(part.notna().sum()), "lost": int(part.isna().sum())}
        for key, part in groups
    ]
    return pd.DataFrame(rows)


def mean_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean and the ends of its 95 % t interval, NaN ends for fewer than two values; missing values do not count."""
    values = np.asarray(values, dtype=np.float64)
    values = values[~np.isnan(values)]
    if not len(values):
        return np.nan, np.nan, np.nan
    if len(values) == 1:
        return float(values[0]), np.nan, np.nan
    half = t.ppf(0.5 + LEVEL / 2, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return float(values.mean()), float(values.mean() - half), float(values.mean() + half)


def _chosen(frame: pd.DataFrame, evaluation: str) -> pd.DataFrame:
    chosen = frame[frame["evaluation"] == evaluation]
    if chosen.empty:
        found = sorted(frame["evaluation"].unique())
        raise ValueError(f"the frame has no evaluation {evaluation!r}, it has {found}")
    return chosen


def probe_summary(table: pd.DataFrame) -> pd.DataFrame:
    """Mean and standard deviation (m - 1; NaN for one split) of a `probe_table` over its splits."""
    grouped = table.groupby("representation", sort=False)["accuracy"]
    return grouped.agg(mean="mean", std="std", splits="size")


def few_label_summary(table: pd.DataFrame) -> pd.DataFrame:
    """Mean accuracy of a `few_label_curve` and its 95 % interval, one row per (representation, per_class).

    `low, high` are `mean -+ t s / sqrt(m)` over the m seeds, with Student's t of m - 1 degrees of freedom: NaN for one.
    """
    grouped = table.groupby(["representation", "per_class"], sort=False)["accuracy"]
    frame = grouped.agg(mean="mean", std="std", seeds="size").reset_index()
    half = student_t.ppf(0.975, frame["seeds"] - 1) * frame["std"] / np.sqrt(frame["seeds"])
    return frame.drop(columns="std").assign(low=frame["mean"] - half, high=frame["mean"] + half)

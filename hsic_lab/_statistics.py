"""Summaries of repeated runs: means with t intervals, and differences paired by seed."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.stats import t

from hsic_lab._checks import check_type


@dataclass(frozen=True)
class PairedDifference:
    """Result of `paired_difference`; ``str()`` is a sentence. The interval `low`, `high` is NaN for one seed."""

    first: str
    second: str
    mean: float
    low: float
    high: float
    differences: pd.Series  # second minus first, by seed
    n_failed: int = 0  # seeds that are left out because a run failed
    value: str = "accuracy"

    def __str__(self) -> str:
        n, points = len(self.differences), self.value == "accuracy"
        mean, low, high = (f"{100 * v:+.1f}" if points else f"{v:+.3g}" for v in (self.mean, self.low, self.high))
        text = f"{self.second} minus {self.first}: {mean} {'points' if points else self.value}, "
        text += (f"95 % interval {low} to {high}, " if n > 1 else "") + f"{n} seed{'s' * (n != 1)}"
        return text + (f" ({self.n_failed} more lost to failed runs)" if self.n_failed else "") + f": {self.verdict}"

    @property
    def verdict(self) -> str:
        """The level that is ahead, if the interval excludes 0."""
        if np.isnan(self.low) or self.low <= 0 <= self.high:
            return "one seed shows no difference" if np.isnan(self.low) else "no difference shown"
        return f"{self.second if self.low > 0 else self.first} {'is ahead' if self.value == 'accuracy' else 'has more'}"


def paired_difference(
    frame: pd.DataFrame, factor: str, first, second, *, value: str = "accuracy", evaluation: str = "linear", names=None
) -> PairedDifference:
    """Mean difference between two levels of a factor, paired by seed, with a 95 % t interval.

    With the m differences of the seeds, their mean and standard deviation s (divisor m - 1), the interval is
    ``mean +- t_{0.975, m-1} s / sqrt(m)`` (Student, 1908). Pairing removes what runs of one seed share, such as initial
    weights and images. Intervals are not corrected for multiple comparisons.

    Parameters
    ----------
    frame : DataFrame
        Table of `run_ablation`, reduced to one run per level and seed; at least one seed has a run of both levels.
    factor, first, second : str, object, object
        Column of the levels, and the two levels; None is an empty cell.
    value, evaluation, names : str, str, tuple of str or None
        Column to compare, evaluation whose rows are used, and names of the levels in the verdict.

    Examples
    --------
    >>> import pandas as pd
    >>> from hsic_lab.ablation import paired_difference
    >>> frame = pd.DataFrame({"loss": [*"aabb"], "seed": [0, 1, 0, 1], "accuracy": [0.5, 0.6, 0.52, 0.63]})
    >>> print(paired_difference(frame.assign(evaluation="linear"), "loss", "a", "b"))
    b minus a: +2.5 points, 95 % interval -3.9 to +8.9, 2 seeds: no difference shown
    """
    check_type("frame", frame, pd.DataFrame)
    if unknown := [column for column in (factor, value) if not isinstance(column, str) or column not in frame]:
        raise ValueError(f"the frame lacks the column {unknown[0]!r}, it has {list(frame.columns)}")
    frame = _chosen(frame, evaluation)
    sides = []
    for level in (first, second):
        side = frame[frame[factor].isna() if level is None else frame[factor] == level]
        if side.empty:
            raise ValueError(f"no run has {factor} = {level!r}; there are {sorted(frame[factor].unique(), key=str)}")
        if len(twice := side.loc[side["seed"].duplicated(), "seed"]):
            settings = side.columns[: side.columns.get_loc("seed")].drop(["run"], errors="ignore")
            several = ", ".join(name for name in settings if side[name].nunique(dropna=False) > 1) or "everything else"
            raise ValueError(f"seed {twice.iloc[0]} of {factor} = {level!r} occurs twice: keep one level of {several}")
        sides.append(side.set_index("seed")[value])
    both = pd.concat(sides, axis=1, keys=["first", "second"])
    differences = (both["second"] - both["first"]).dropna()
    if differences.empty:
        raise ValueError(f"no seed has a finished run of both {first!r} and {second!r}")
    first, second = names or (str(first), str(second))
    failed = len(both) - len(differences)
    return PairedDifference(first, second, *mean_interval(differences), differences, failed, value)


def summarize(
    frame: pd.DataFrame, by: Sequence[str], *, value: str = "accuracy", evaluation: str = "linear"
) -> pd.DataFrame:
    """Mean of a column over the seeds of each group, with the 95 % t interval ``mean +- t_{0.975, m-1} s / sqrt(m)``.

    The columns are `by`, `mean, low, high, seeds` and `n_failed`; the failed runs enter no mean.

    Parameters
    ----------
    frame, value, evaluation
        As in `paired_difference`.
    by : sequence of str
        Columns that form the groups: all factors that vary. A seed that occurs twice in a group is an error.
    """
    chosen = _chosen(frame, evaluation)
    if len(twice := chosen[chosen.duplicated([*by, "seed"])]):
        group, seed = twice.iloc[0][list(by)].to_dict(), twice["seed"].iloc[0]
        raise ValueError(f"seed {seed} occurs twice in {group}: add every factor that varies to `by`")
    groups = chosen.groupby(list(by), sort=False, dropna=False)[value]
    rows = [(*key, *mean_interval(part), part.notna().sum(), part.isna().sum()) for key, part in groups]
    return pd.DataFrame(rows, columns=[*by, "mean", "low", "high", "seeds", "n_failed"])


def mean_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean and 95 % t interval of the values that are not missing; the interval of one value is NaN."""
    x = pd.Series(values, dtype=np.float64).dropna().to_numpy()
    if len(x) < 2:
        return (float(x[0]) if len(x) else np.nan), np.nan, np.nan
    half = t.ppf(0.975, len(x) - 1) * x.std(ddof=1) / np.sqrt(len(x))
    return float(x.mean()), float(x.mean() - half), float(x.mean() + half)


def _chosen(frame: pd.DataFrame, evaluation: str) -> pd.DataFrame:
    """The rows of one evaluation."""
    if (chosen := frame[frame["evaluation"] == evaluation]).empty:
        raise ValueError(f"the frame has no evaluation {evaluation!r}, it has {sorted(frame['evaluation'].unique())}")
    return chosen


def probe_summary(table: pd.DataFrame) -> pd.DataFrame:
    """Mean and standard deviation (divisor m - 1, NaN for one split) of a `probe_table` over its splits."""
    return table.groupby("representation", sort=False)["accuracy"].agg(mean="mean", std="std", splits="size")


def few_label_summary(table: pd.DataFrame) -> pd.DataFrame:
    """Mean accuracy of a `few_label_curve` and its 95 % t interval over the seeds (NaN for one seed)."""
    runs = table.assign(evaluation="linear", seed=range(len(table)))  # every row enters the mean
    return summarize(runs, ["representation", "per_class"]).drop(columns="n_failed")

"""Summaries of repeated runs: means with t intervals, and differences paired by seed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import t

from hsic_lab._checks import require_columns

MARGIN = 0.01  # accuracies whose difference is below one point count as the same


@dataclass(frozen=True)
class PairedDifference:
    """Result of `paired_difference`; ``str()`` is a sentence. The interval `low`, `high` is NaN for one seed."""

    first: str
    second: str
    mean: float
    low: float
    high: float
    differences: pd.Series  # second minus first, by seed
    n_failed: int = 0  # seeds that are left out: a run failed or is not there
    value: str = "accuracy"
    p: float = np.nan  # of the two-sided t test that the mean is 0
    p_same: float = np.nan  # of the two one-sided t tests that the mean is beyond -MARGIN or MARGIN; accuracies only

    def __str__(self) -> str:
        n, points = len(self.differences), self.value == "accuracy"
        mean, low, high = (f"{100 * v:+.1f}" if points else f"{v:+.3g}" for v in (self.mean, self.low, self.high))
        text = f"{self.second} minus {self.first}: {mean} {'points' if points else self.value}, "
        text += (f"95 % interval {low} to {high}, " if n > 1 else "") + f"{n} seed{'s' * (n != 1)}"
        return text + (f" ({self.n_failed} without a run of both)" if self.n_failed else "") + f": {self.verdict}"

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
    weights and images. Interval and p-values are not corrected for multiple comparisons, see `paired_differences`.

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
    frame = _chosen(frame, evaluation, factor, value)
    differences = _differences(frame, factor, first, second, value)
    if differences.isna().all():
        raise ValueError(f"no seed has a finished run of both {first!r} and {second!r}")
    return _tested(differences, names or (str(first), str(second)), value)


def _differences(frame: pd.DataFrame, factor: str, first: Any, second: Any, value: str) -> pd.Series:
    """Second minus first by seed, missing where a run failed or its value is not finite."""
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
    return (both["second"] - both["first"]).replace([np.inf, -np.inf], np.nan)


def _tested(differences: pd.Series, names: tuple[str, str], value: str) -> PairedDifference:
    x = differences.dropna()
    mean, low, high = mean_interval(x)
    p = p_same = np.nan
    if len(x) > 1:
        error, freedom = x.sem(), len(x) - 1
        with np.errstate(divide="ignore", invalid="ignore"):  # equal differences have no error
            p = np.nan_to_num(2 * t.sf(abs(mean) / error, freedom), nan=1.0)
            if value == "accuracy":
                p_same = np.nan_to_num(t.sf((MARGIN - abs(mean)) / error, freedom), nan=0.5)
    return PairedDifference(*names, mean, low, high, x, len(differences) - len(x), value, float(p), float(p_same))


def paired_differences(
    frame: pd.DataFrame, factor: str, first, *, by: Sequence[str] = (), value: str = "accuracy",
    evaluation: str = "linear", names: Mapping[Any, str] | None = None,
) -> pd.DataFrame:  # fmt: skip
    """Paired differences between one level of a factor and each other, for every level of other factors.

    The columns are those of `by`; `first, second, mean, low, high, value, seeds, n_failed`; `p` of the paired t test;
    `p_same` of two one-sided tests (Schuirmann 1987) that the difference is beyond 1 point, for accuracies; `p_holm`
    and `p_same_holm`, both corrected for the number of rows (Holm 1979); and `verdict`: which level is ahead if
    `p_holm` is below 0.05, "same within 1 point" if `p_same_holm` is, else "not decided"; "no result" of no seed.

    Parameters
    ----------
    frame, factor, first, value, evaluation
        As in `paired_difference`.
    by : sequence of str
        Columns of the other factors that vary; each combination of their levels is compared by itself.
    names : mapping or None
        Names of the levels in the table.

    Examples
    --------
    >>> import pandas as pd
    >>> from hsic_lab.ablation import paired_differences
    >>> accuracy = [0.5, 0.6, 0.7, 0.55, 0.66, 0.74, 0.51, 0.59, 0.70]
    >>> frame = pd.DataFrame({"loss": [*"aaabbbccc"], "seed": [0, 1, 2] * 3, "accuracy": accuracy})
    >>> table = paired_differences(frame.assign(evaluation="linear"), "loss", "a")
    >>> table[["second", "mean", "p_holm", "verdict"]].round(3).to_dict("list")
    {'second': ['b', 'c'], 'mean': [0.05, 0.0], 'p_holm': [0.026, 1.0], 'verdict': ['b ahead', 'not decided']}
    """
    frame, names, rows = _chosen(frame, evaluation, factor, value, *by), names or {}, []
    for key, part in frame.groupby(list(by), sort=False, dropna=False) if by else [((), frame)]:
        for level in (None if pd.isna(level) else level for level in part[factor].drop_duplicates()):
            if level != first:
                words = names.get(first, str(first)), names.get(level, str(level))
                one = _tested(_differences(part, factor, first, level, value), words, value)
                rows.append(dict(zip(by, key, strict=True)) | vars(one) | {"seeds": len(one.differences)})
    if not rows:
        raise ValueError(f"{factor} has no level other than {first!r}")
    table = pd.DataFrame(rows).drop(columns="differences")
    for name in ("p", "p_same"):
        table[f"{name}_holm"] = _holm(table[name].to_numpy())
    ahead = np.where(table["mean"] > 0, table["second"], table["first"])
    ahead += " ahead" if value == "accuracy" else " has more"
    rest = np.where(table["seeds"] > 0, "not decided", "no result")
    rest = np.where(table["p_same_holm"] < 0.05, f"same within {100 * MARGIN:g} point", rest)
    table["verdict"] = np.where(table["p_holm"] < 0.05, ahead, rest)
    return table


def _holm(p: np.ndarray) -> np.ndarray:
    """p-values corrected by Holm's step-down method; missing ones are not counted."""
    order = np.argsort(p)  # missing values last
    factors = np.maximum(1, np.isfinite(p).sum() - np.arange(len(p)))
    corrected = np.empty(len(p))
    corrected[order] = np.minimum(1, np.maximum.accumulate(factors * p[order]))
    return corrected


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
    chosen = _chosen(frame, evaluation, value, *by)
    if len(twice := chosen[chosen.duplicated([*by, "seed"])]):
        group, seed = twice.iloc[0][list(by)].to_dict(), twice["seed"].iloc[0]
        raise ValueError(f"seed {seed} occurs twice in {group}: add every factor that varies to `by`")
    groups = chosen.groupby(list(by), sort=False, dropna=False)[value]
    rows = [(*key, *mean_interval(part), part.notna().sum(), part.isna().sum()) for key, part in groups]
    return pd.DataFrame(rows, columns=[*by, "mean", "low", "high", "seeds", "n_failed"])


def mean_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean and 95 % t interval of the values that are not missing; the interval of one value is NaN."""
    x = pd.Series(values, dtype=np.float64).dropna()
    mean, half = float(x.mean()), float(t.ppf(0.975, len(x) - 1) * x.sem())
    return mean, mean - half, mean + half


def _chosen(frame: pd.DataFrame, evaluation: str, *columns: str) -> pd.DataFrame:
    """The rows of one evaluation, of a frame with these columns."""
    require_columns(frame, ["evaluation", "seed", *columns])
    if (chosen := frame[frame["evaluation"] == evaluation]).empty:
        raise ValueError(f"the frame has no evaluation {evaluation!r}, it has {sorted(frame['evaluation'].unique())}")
    return chosen


def probe_summary(table: pd.DataFrame) -> pd.DataFrame:
    """Mean and standard deviation (divisor m - 1, NaN for one split) of a `probe_table` over its splits."""
    require_columns(table, ["representation", "accuracy"])
    if "per_class" in table:
        raise ValueError("the table has several numbers of labels, the column per_class: use few_label_summary")
    return table.groupby("representation", sort=False)["accuracy"].agg(mean="mean", std="std", splits="size")


def few_label_summary(table: pd.DataFrame) -> pd.DataFrame:
    """Mean accuracy of a `few_label_curve` and its 95 % t interval over the seeds (NaN for one seed)."""
    require_columns(table, ["representation", "per_class", "accuracy"])
    runs = table.assign(evaluation="linear", seed=range(len(table)))  # every row enters the mean
    return summarize(runs, ["representation", "per_class"]).drop(columns="n_failed")

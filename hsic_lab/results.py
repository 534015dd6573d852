"""What a statistical test found, and its picture."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class TestResult:
    """What a test found: names as in SciPy. A large statistic speaks against independence.

    `null` holds the statistics under the null hypothesis where the test draws them, and then
    `pvalue = (1 + #{null >= statistic}) / (1 + len(null))`; `distribution` is the frozen SciPy distribution where
    the test has one instead. `components` has a row for each pair of kernels of an aggregated test.
    """

    __test__ = False  # not a test case, whatever pytest makes of the name

    statistic: float
    pvalue: float
    method: str
    null: Tensor | None = field(default=None, repr=False)
    distribution: object | None = field(default=None, repr=False)
    components: pd.DataFrame | None = field(default=None, repr=False)

    def plot(self, ax: "Axes | None" = None) -> "Axes":
        """The null (histogram, or density) with the statistic as a vertical line, on `ax` or new axes."""
        import matplotlib.pyplot as plt

        ax = plt.subplots(figsize=(5.2, 3.2), layout="constrained")[1] if ax is None else ax
        if self.null is not None:
            ax.hist(self.null.numpy(), bins=40, density=True, color="0.75", label="null")
        elif self.distribution is not None:
            at = np.linspace(*self.distribution.ppf([0.005, 0.999]), 200)
            ax.fill_between(at, self.distribution.pdf(at), color="0.75", label="null")
        ax.axvline(self.statistic, color="C3", label=f"observed, p = {self.pvalue:.3g}")
        ax.set(xlabel="statistic", ylabel="density", title=self.method)
        ax.legend(frameon=False)
        return ax


def sampled_result(statistic: float, null: Tensor, method: str) -> TestResult:
    """The result of a test that draws its `null`: the observed statistic counts as one of the draws."""
    return TestResult(statistic, (1 + int((null >= statistic).sum())) / (1 + len(null)), method, null)

"""Plots of arrays and data frames. Each ``plot_*`` function draws on ``ax`` or a new figure and returns the axes."""

from hsic_lab.plots._canvas import DIVERGING, PALETTE, SEQUENTIAL, set_theme

from hsic_lab.plots._curves import (  # isort: skip
    history_figure, plot_ablation, plot_ablation_map, plot_diagnostics, plot_differences, plot_few_labels, plot_probe,
)  # fmt: skip
from hsic_lab.plots._heatmaps import compare_cross_correlations, plot_cka, plot_cross_correlation
from hsic_lab.plots._samples import plot_embedding, plot_pairs, plot_spectrum

__all__ = [
    "DIVERGING", "PALETTE", "SEQUENTIAL", "compare_cross_correlations", "history_figure", "plot_ablation",
    "plot_ablation_map", "plot_cka", "plot_cross_correlation", "plot_diagnostics", "plot_differences", "plot_embedding",
    "plot_few_labels", "plot_pairs", "plot_probe", "plot_spectrum", "set_theme",
]  # fmt: skip

"""plots."""

from hsic_lab.plots._canvas import set_theme
from hsic_lab.plots._curves import (
    history_figure,
    plot_ablation,
    plot_ablation_map,
    plot_confusion,
    plot_diagnostics,
    plot_few_labels,
    plot_history,
    plot_probe,
)
from hsic_lab.plots._heatmaps import (
    compare_cross_correlations,
    in_words,
    matrix_figure,
    plot_cka,
    plot_cross_correlation,
)
from hsic_lab.plots._samples import plot_embedding, plot_pairs, plot_spectrum, plot_views

__all__ = [
    "compare_cross_correlations",
    "history_figure",
    "in_words",
    "matrix_figure",
    "plot_ablation",
    "plot_ablation_map",
    "plot_cka",
    "plot_confusion",
    "plot_cross_correlation",
    "plot_diagnostics",
    "plot_embedding",
    "plot_few_labels",
    "plot_history",
    "plot_pairs",
    "plot_probe",
    "plot_spectrum",
    "plot_views",
    "set_theme",
]

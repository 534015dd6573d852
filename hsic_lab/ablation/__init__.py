"""Ablations: grids of trainings, tables of their results, and paired comparisons."""

from hsic_lab._statistics import PairedDifference, paired_difference, paired_differences, summarize
from hsic_lab.ablation._grids import Grid, make_config, read_grid
from hsic_lab.ablation._run import read_table, run_ablation, write_table

__all__ = [
    "Grid", "PairedDifference", "make_config", "paired_difference", "paired_differences", "read_grid", "read_table",
    "run_ablation", "summarize", "write_table",
]  # fmt: skip

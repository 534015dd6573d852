"""Evaluation of frozen features: linear probes, nearest neighbors, few-label curves."""

from hsic_lab._statistics import few_label_summary, probe_summary
from hsic_lab.evaluation._features import extract_features, knn_accuracy

from hsic_lab.evaluation._probes import (  # isort: skip
    ProbeResult, extract_layers, few_label_curve, linear_probe, probe_table,
)  # fmt: skip

__all__ = [
    "ProbeResult", "extract_features", "extract_layers", "few_label_curve", "few_label_summary",
    "knn_accuracy", "linear_probe", "probe_summary", "probe_table",
]  # fmt: skip

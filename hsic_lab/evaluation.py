"""What frozen features know: a linear probe (scikit-learn), weighted nearest neighbours, tables of several."""

from hsic_lab.frozen import extract_features
from hsic_lab.logistic import ProbeResult, linear_probe
from hsic_lab.neighbours import knn_accuracy
from hsic_lab.penalty import STRENGTHS
from hsic_lab.probe_tables import probe_summary, probe_table

__all__ = [
    "STRENGTHS", "ProbeResult", "extract_features", "knn_accuracy", "linear_probe", "probe_summary", "probe_table",
]

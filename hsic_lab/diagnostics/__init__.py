"""Diagnostics of a representation: collapse, redundancy, agreement of views, known factors."""

from hsic_lab.diagnostics._diagnose import diagnose, feature_sum_covariance, redundancy

from hsic_lab.diagnostics._measures import (  # isort: skip
    alignment, alpha_req, covariance_spectrum, effective_rank, factor_dependence, lidar, rankme, uniformity,
)  # fmt: skip

__all__ = [
    "alignment", "alpha_req", "covariance_spectrum", "diagnose", "effective_rank", "factor_dependence",
    "feature_sum_covariance", "lidar", "rankme", "redundancy", "uniformity",
]  # fmt: skip

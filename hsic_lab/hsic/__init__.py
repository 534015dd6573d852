"""Estimators of the Hilbert-Schmidt Independence Criterion (HSIC)."""

import sys

from hsic_lab._checks import CallableModule
from hsic_lab.hsic._estimators import StreamingLinearHSIC, hsic
from hsic_lab.hsic._joint import dhsic, hsic_matrix

__all__ = ["StreamingLinearHSIC", "dhsic", "hsic", "hsic_matrix"]

sys.modules[__name__].__class__ = CallableModule

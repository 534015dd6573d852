"""The Hilbert-Schmidt Independence Criterion (HSIC). The module can be called like `hsic_lab.hsic.hsic`."""

import sys

from hsic_lab._checks import CallableModule
from hsic_lab.hsic._estimators import StreamingLinearHSIC, center, hsic
from hsic_lab.hsic._joint import dhsic, hsic_matrix

__all__ = ["StreamingLinearHSIC", "center", "dhsic", "hsic", "hsic_matrix"]

sys.modules[__name__].__class__ = CallableModule

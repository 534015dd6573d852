"""The Hilbert-Schmidt Independence Criterion (HSIC) of two samples, of several samples, and of a stream.

This module can be called: ``from hsic_lab import hsic; hsic(x, y)`` is ``hsic_lab.hsic.hsic(x, y)``.
"""

import sys

from hsic_lab._checks import CallableModule
from hsic_lab.hsic._estimators import StreamingLinearHSIC, center, hsic
from hsic_lab.hsic._joint import dhsic, hsic_matrix

__all__ = ["StreamingLinearHSIC", "center", "dhsic", "hsic", "hsic_matrix"]

sys.modules[__name__].__class__ = CallableModule

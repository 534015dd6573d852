"""Tests of independence with HSIC: exact permutation tests, a test for series, and faster approximate tests."""

from hsic_lab.independence._approximate import block_test, gamma_test, spectral_test
from hsic_lab.independence._permutation import TestResult, aggregated_test, dhsic_test, permutation_test, shift_test

__all__ = [
    "TestResult", "aggregated_test", "block_test", "dhsic_test", "gamma_test", "permutation_test", "shift_test",
    "spectral_test",
]  # fmt: skip

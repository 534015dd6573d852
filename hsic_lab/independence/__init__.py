"""Tests of independence with HSIC: exact permutation tests, tests for series and given a variable, fast tests."""

from hsic_lab.independence._approximate import block_test, conditional_test, gamma_test, spectral_test
from hsic_lab.independence._permutation import TestResult, aggregated_test, dhsic_test, permutation_test, shift_test

__all__ = [
    "TestResult", "aggregated_test", "block_test", "conditional_test", "dhsic_test", "gamma_test", "permutation_test",
    "shift_test", "spectral_test",
]  # fmt: skip

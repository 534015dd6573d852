"""Standardization and cross-correlation against NumPy, and properties that published implementations violate."""

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from hsic_lab.correlation import cross_correlation, standardize


def data(n, d, seed=0, dtype=torch.float64):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def oracle(z_a, z_b):
    """C by its definition in float64: mean, biased standard deviation, average product."""
    x, y = (np.asarray(z, dtype=np.float64) for z in (z_a, z_b))
    x, y = ((v - v.mean(axis=0)) / v.std(axis=0) for v in (x, y))
    return np.einsum("ni,nj->ij", x, y) / len(x)


@pytest.mark.parametrize("n, d", [(2, 1), (3, 2), (5, 3), (64, 7), (8, 33)])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-12), (torch.float32, 2e-6)])
def test_cross_correlation_matches_numpy(n, d, dtype, tolerance):
    z_a, z_b = data(n, d, 1, dtype), data(n, d, 2, dtype)
    assert cross_correlation(z_a, z_b).dtype == dtype
    np.testing.assert_allclose(cross_correlation(z_a, z_b), oracle(z_a, z_b), atol=tolerance)


@pytest.mark.parametrize("n", [2, 3, 4, 8, 33])
def test_identical_views_have_a_unit_diagonal(n):
    # A standard deviation with n - 1 and an average over n would give (n - 1) / n.
    diagonal = cross_correlation(data(n, 6), data(n, 6)).diagonal()
    torch.testing.assert_close(diagonal, torch.ones_like(diagonal), rtol=0, atol=1e-12)


@pytest.mark.parametrize("scale", [1e-6, 1e-3, 1.0, 1e3, 1e6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rescaling_and_shifting_a_column_changes_nothing(scale, dtype):
    z = data(32, 5, dtype=dtype)
    scales = torch.full((5,), scale, dtype=dtype)
    shifts = scale * torch.tensor([0, 1, -2, 3, 10], dtype=dtype)
    torch.testing.assert_close(standardize(z * scales + shifts), standardize(z), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(standardize(-z * scales), -standardize(z), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("offset", [1e4, -1e6])
def test_cross_correlation_is_accurate_under_a_large_offset(offset):
    # The formula E[x^2] - E[x]^2 gives a negative variance here.
    z_a, z_b = (data(64, 5, seed, torch.float32) + offset for seed in (1, 2))
    np.testing.assert_allclose(cross_correlation(z_a, z_b), oracle(z_a, z_b), atol=1e-5)


@pytest.mark.parametrize("value", [0.0, 1.0, 0.1, -1e4, 1e-30])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_constant_column_is_zero_with_zero_gradient(value, dtype):
    z = data(16, 4, dtype=dtype)
    z[:, 2] = value
    z.requires_grad_()
    x = standardize(z)
    assert (x[:, 2] == 0).all()
    (gradient,) = torch.autograd.grad((x * data(16, 4, 3, dtype)).sum(), z)
    assert torch.isfinite(gradient).all() and (gradient[:, 2] == 0).all()
    alive = [0, 1, 3]
    torch.testing.assert_close(x[:, alive], standardize(z[:, alive]))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("row", [0, 3])
def test_nan_and_infinity_give_nan_in_their_column_only(bad, row):
    z = data(8, 3)
    z[row, 1] = bad
    c = cross_correlation(z, z)
    assert c[1].isnan().all() and c[:, 1].isnan().all()
    assert c[[0, 0, 2, 2], [0, 2, 0, 2]].isfinite().all()


def test_gradient_matches_finite_differences():
    assert torch.autograd.gradcheck(cross_correlation, (data(6, 3, 1).requires_grad_(), data(6, 3, 2).requires_grad_()))


@pytest.mark.parametrize("autocast", [torch.bfloat16, torch.float16])
def test_autocast_does_not_change_the_result(autocast):
    z_a, z_b = data(64, 5, 1, torch.float32), data(64, 5, 2, torch.float32)
    with torch.autocast("cpu", autocast):
        c = cross_correlation(z_a, z_b)
    assert torch.equal(c, cross_correlation(z_a, z_b))


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_half_precision_is_raised_to_float32(half):
    z = data(64, 5).to(half)
    assert standardize(z).dtype == torch.float32
    assert torch.equal(standardize(z), standardize(z.float()))


def test_narrower_dtype_is_raised_to_the_wider():
    z_a, z_b = data(16, 3, 1), data(16, 3, 2, torch.float32)
    assert torch.equal(cross_correlation(z_a, z_b), cross_correlation(z_a, z_b.double()))


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda: standardize(torch.zeros(1, 3)), ValueError, r"at least 2 rows, got shape \(1, 3\)"),
        (lambda: standardize(torch.zeros(3)), ValueError, r"must have shape \(n, d\), got \(3,\)"),
        (lambda: standardize(torch.zeros(3, 0)), ValueError, r"must have shape \(n, d\), got \(3, 0\)"),
        (lambda: standardize(torch.zeros(3, 2, dtype=torch.int64)), TypeError, "floating point, got torch.int64"),
        (lambda: standardize(np.zeros((3, 2))), TypeError, "torch.Tensor, got ndarray"),
        (lambda: cross_correlation(torch.zeros(3, 2), torch.zeros(3, 4)), ValueError, r"\(3, 2\) and \(3, 4\)"),
    ],
)
def test_errors_quote_the_offending_value(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("z, message", [
    (np.ones((3, 2)), "z must be a torch.Tensor, got ndarray; torch.as_tensor makes one"),
    (torch.ones(3, 2, dtype=torch.int64), "z must be floating point, got torch.int64"),
    (torch.ones(3), r"z must have shape \(n, d\), got \(3,\)"),
])  # fmt: skip
def test_standardize_names_its_own_argument(z, message):
    with pytest.raises((TypeError, ValueError), match=f"^{message}"):
        standardize(z)


@pytest.mark.parametrize(
    "dtype, units", [(torch.float32, (1e-36, 1e-25, 1e20, 1e36)), (torch.float64, (1e-250, 1e250))]
)
def test_standardized_values_and_gradients_do_not_depend_on_the_unit(dtype, units):
    z, weight = torch.randn(2, 100, 3, generator=torch.Generator().manual_seed(0), dtype=dtype)

    def standardized(unit):
        x = (z * unit).requires_grad_()
        (result := standardize(x)).backward(weight)
        return result.detach(), x.grad * unit

    for unit in (*units, torch.tensor([units[0], 1.0, units[-1]], dtype=dtype)):
        torch.testing.assert_close(standardized(unit), standardized(1.0), rtol=1e-4, atol=1e-5)


def test_values_that_cannot_be_read_are_standardized():
    z = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert standardize(torch.ones(20, 3)).shape == (20, 3)
    traced = torch.jit.trace(standardize, z), make_fx(standardize)(z)
    for graph in traced:  # the graph of one unit holds for others
        for unit in (1.0, 1e-25, 1e25):
            torch.testing.assert_close(graph(z * unit), standardize(z), rtol=1e-5, atol=1e-6)

"""Kernels against their formulas, the median rule against SciPy."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist, pdist

from hsic_lab.kernels import (
    MEDIAN_ROWS,
    Delta,
    Gaussian,
    InverseMultiquadric,
    Laplace,
    Linear,
    Polynomial,
    median_distance,
    named,
    squared_distances,
)

S = 1.3
FORMULAS = {
    Linear(): lambda a, b: a @ b,
    Gaussian(S): lambda a, b: np.exp(-((a - b) ** 2).sum() / (2 * S**2)),
    Laplace(S): lambda a, b: np.exp(-np.abs(a - b).sum() / S),
    InverseMultiquadric(S): lambda a, b: S / (S**2 + ((a - b) ** 2).sum()) ** 0.5,
    Polynomial(3, 0.5): lambda a, b: (a @ b + 0.5) ** 3,
    Delta(): lambda a, b: float((a == b).all()),
    Linear() + Gaussian(S): lambda a, b: a @ b + np.exp(-((a - b) ** 2).sum() / (2 * S**2)),
    Laplace(S) * Polynomial(1): lambda a, b: np.exp(-np.abs(a - b).sum() / S) * (a @ b + 1),
}
SCALED = [Gaussian, Laplace, InverseMultiquadric]


def sample(n, p, seed=0):
    return torch.randn(n, p, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def each(kernels):
    return pytest.mark.parametrize("kernel", kernels, ids=repr)


@each(FORMULAS)
def test_gram_holds_the_kernel_of_every_pair(kernel):
    x, y = sample(6, 3), sample(4, 3, seed=1)
    formula = FORMULAS[kernel]
    for other, gram in ((y, kernel(x, y)), (x, kernel(x))):
        expected = [[formula(a, b) for b in other.numpy()] for a in x.numpy()]
        np.testing.assert_allclose(gram, expected, rtol=1e-12, atol=1e-14)


@each(FORMULAS)
def test_gram_is_symmetric_and_positive_semidefinite(kernel):
    gram = kernel(sample(12, 3))
    assert torch.equal(gram, gram.T)
    assert torch.linalg.eigvalsh(gram).min() > -1e-12


@each([kernel for kernel in FORMULAS if kernel != Delta()])
def test_gradient_matches_finite_differences(kernel):
    x, y = sample(5, 2).requires_grad_(), sample(3, 2, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(kernel, (x,)) and torch.autograd.gradcheck(kernel, (x, y))


@pytest.mark.parametrize("kind", SCALED)
def test_gradient_of_a_learnable_bandwidth_matches_finite_differences(kind):
    s = torch.tensor(S, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda s: kind(s)(sample(5, 2)), (s,))


@pytest.mark.parametrize(("norm", "metric"), [(1, "cityblock"), (2, "euclidean")])
@pytest.mark.parametrize("n", [2, 3, 10, 11])
def test_median_is_over_pairs_of_different_rows(n, norm, metric):
    x = sample(n, 3)
    expected = np.sort(pdist(x, metric))[(n * (n - 1) // 2 - 1) // 2]
    assert median_distance(x, norm) == pytest.approx(expected)


@pytest.mark.parametrize(("kind", "norm"), list(zip(SCALED, (2, 1, 2), strict=True)))
def test_median_rule_uses_the_distance_of_the_kernel(kind, norm):
    x, y = sample(9, 2), sample(4, 2, 1)
    assert torch.equal(kind()(x), kind(median_distance(x, norm))(x))
    assert torch.equal(kind()(x, y), kind(median_distance(torch.cat([x, y]), norm))(x, y))


def test_median_of_many_rows_uses_a_seeded_draw():
    x = sample(3 * MEDIAN_ROWS, 2).sort(dim=0).values  # the first rows are smaller than the others
    state = torch.random.get_rng_state()
    median = median_distance(x)
    assert median == median_distance(x) and torch.equal(torch.random.get_rng_state(), state)
    assert median == pytest.approx(np.median(pdist(x)), rel=0.05)


@pytest.mark.parametrize("kind", SCALED)
@given(scale=st.floats(1e-6, 1e6), offset=st.floats(-100, 100))
@settings(deadline=None)
def test_median_rule_scales_with_the_unit_and_ignores_the_origin(kind, scale, offset):
    x = sample(20, 2)
    gram = kind()(x)
    torch.testing.assert_close(kind()(scale * (x + offset)), gram, rtol=1e-9, atol=1e-9)


def test_median_of_mostly_equal_rows_uses_the_positive_distances():
    x = torch.tensor([0.0] * 8 + [3.0, 4.0])
    assert median_distance(x) == 3.0
    assert median_distance(torch.full((5, 2), 7.0)) == 1.0


def test_median_rule_has_no_gradient():
    x = sample(7, 2).requires_grad_()
    fixed = Gaussian(median_distance(x))
    expected = torch.autograd.grad(fixed(x)[0].sum(), x)[0]
    torch.testing.assert_close(torch.autograd.grad(Gaussian()(x)[0].sum(), x)[0], expected)


def test_distances_are_accurate_under_a_large_offset():
    x, y = sample(30, 4), sample(20, 4, seed=1)
    far_x, far_y = (x + 1e4).float(), (y + 1e4).float()
    for got, exact in (
        (squared_distances(far_x), cdist(far_x.double(), far_x.double(), "sqeuclidean")),
        (squared_distances(far_x, far_y), cdist(far_x.double(), far_y.double(), "sqeuclidean")),
    ):
        np.testing.assert_allclose(got, exact, rtol=1e-4, atol=1e-4)
    assert (squared_distances(far_x).diagonal() == 0).all()


@pytest.mark.parametrize("kind", SCALED)
@pytest.mark.parametrize("bandwidth", [0, -1.0, float("nan"), "mean", torch.tensor(-2.0)])
def test_bandwidth_must_be_positive(kind, bandwidth):
    with pytest.raises(ValueError, match="bandwidth"):
        kind(bandwidth)


@pytest.mark.parametrize("arguments", [(0,), (1.5,), (2, -1.0)])
def test_polynomial_parameters_must_give_a_positive_definite_kernel(arguments):
    with pytest.raises(ValueError, match="got"):
        Polynomial(*arguments)


def test_named_returns_the_kernel_of_a_name():
    names = {"linear": Linear(), "gaussian": Gaussian(), "laplace": Laplace(), "imq": InverseMultiquadric()}
    assert {name: named(name) for name in names} == names
    with pytest.raises(ValueError, match="kernel must be one of 'linear', 'gaussian', 'laplace', 'imq', got 'rbf'"):
        named("rbf")


def test_delta_accepts_labels():
    labels = torch.tensor([[0, 1], [0, 2], [0, 1]])
    assert Delta()(labels).tolist() == [[1, 0, 1], [0, 1, 0], [1, 0, 1]]
    assert Delta()(labels[:, 1] == 1, torch.tensor([True])).tolist() == [[1], [0], [1]]
    assert torch.equal((Delta() + Delta() * Delta())(labels), 2 * Delta()(labels))
    with pytest.raises(ValueError, match="shape"):
        Delta()(labels[None])


@each([kernel for kernel in FORMULAS if kernel != Delta()])
def test_bad_samples_are_rejected(kernel):
    x = sample(5, 3)
    with pytest.raises(ValueError, match="3 and 2"):
        kernel(x, sample(5, 2))
    with pytest.raises(TypeError, match=r"torch\.int64"):
        kernel(torch.arange(5))
    with pytest.raises(ValueError, match="NaN"):
        kernel(torch.full((5, 1), torch.nan))
    with pytest.raises(ValueError, match="at least 2"):
        median_distance(x[:1])


@each(FORMULAS)
def test_a_vector_is_one_column_and_autocast_changes_nothing(kernel):
    x = sample(9, 1).float()
    assert torch.equal(kernel(x[:, 0]), kernel(x))
    with torch.autocast("cpu", torch.bfloat16):
        under = kernel(x)
    assert under.dtype == torch.float32 and torch.equal(under, kernel(x))
    assert kernel(x.half()).dtype == torch.float32


@pytest.mark.parametrize("kernel", [Linear(), Gaussian(), Laplace(), Polynomial(), InverseMultiquadric()], ids=repr)
def test_narrower_dtype_is_raised_to_the_wider(kernel):
    x, y = torch.randn(5, 3), torch.randn(4, 3, dtype=torch.float64)
    torch.testing.assert_close(kernel(x, y), kernel(x.double(), y))
    torch.testing.assert_close(kernel(y, x), kernel(y, x.double()))

"""Low-rank factors of Gram matrices."""

import pytest
import torch

from hsic_lab.hsic import hsic
from hsic_lab.kernels import Delta, DistanceInduced, Gaussian, InverseMultiquadric, Laplace, Linear, Polynomial, factor

SPECTRAL = [Gaussian(1.3), Gaussian(), Laplace(3.0), InverseMultiquadric(1.1), Gaussian(2.0) * Laplace(4.0)]


def sample(n, p, seed=0):
    return torch.randn(n, p, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("tolerance", [1e-2, 1e-5])
@pytest.mark.parametrize(
    "kernel", [*SPECTRAL, Linear(), Polynomial(2), DistanceInduced(), Gaussian() + Linear()], ids=repr
)
def test_cholesky_residual_is_within_the_tolerance(kernel, tolerance):
    x = sample(150, 2)
    gram, phi = kernel(x), factor(kernel, x, 150, tolerance=tolerance)
    residual = gram - phi @ phi.T
    assert residual.trace() <= tolerance * gram.trace() * (1 + 1e-6)
    assert torch.linalg.eigvalsh(residual).min() > -1e-9 * gram.trace()
    if kernel == Linear():
        assert phi.shape == (150, 2)


def test_factor_of_labels_has_one_column_per_class():
    labels = torch.arange(40) % 5
    phi = factor(Delta(), labels)
    assert phi.shape == (40, 5)
    torch.testing.assert_close(phi @ phi.T, Delta()(labels))


@pytest.mark.parametrize("kernel", SPECTRAL, ids=repr)
def test_error_of_fourier_features_is_proportional_to_one_over_the_square_root_of_the_rank(kernel):
    x = sample(40, 3)
    exact = kernel(x)

    def error(rank):
        maps = (factor(kernel, x, rank, "fourier", seed=seed) for seed in range(20))
        return sum((phi @ phi.T - exact).square().mean() for phi in maps) ** 0.5

    assert (error(64) / error(1024)).item() == pytest.approx(4, rel=0.25)
    mean = sum(phi @ phi.T for phi in (factor(kernel, x, 1024, "fourier", seed=s) for s in range(20))) / 20
    assert (mean - exact).abs().max() < 5 / (1024 * 20 / 2) ** 0.5


@pytest.mark.parametrize("estimator", ["biased", "unbiased"])
@pytest.mark.parametrize(("method", "rel"), [("cholesky", 1e-4), ("nystrom", 1e-2), ("fourier", 0.05)])
def test_hsic_of_the_factors_approaches_hsic(method, rel, estimator):
    x = sample(300, 2)
    y = x**2 + 0.3 * sample(300, 2, 1)
    exact = hsic(x, y, Gaussian(), Gaussian(), estimator)

    def value(draw):
        # Frequencies that x and y share would add a bias.
        factors = [factor(Gaussian(), z, 200, method, 1e-7, seed) for z, seed in ((x, 2 * draw), (y, 2 * draw + 1))]
        return hsic(*factors, estimator=estimator)

    mean = sum(value(draw) for draw in range(30)) / 30 if method == "fourier" else value(0)
    assert mean.item() == pytest.approx(exact.item(), rel=rel)


@pytest.mark.parametrize("method", ["cholesky", "nystrom", "fourier"])
def test_gradient_matches_finite_differences_and_seed_fixes_the_draw(method):
    x = sample(12, 2).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: factor(Gaussian(1.0), x, 6, method), (x,))
    state = torch.random.get_rng_state()
    first, again, other = (factor(Gaussian(), x, 6, method, seed=s) for s in (0, 0, 1))
    assert torch.equal(first, again) and torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(first, other) == (method == "cholesky")
    assert factor(Gaussian(), x.float(), 6, method).dtype == torch.float32


def test_float32_factor_stops_at_rounding_with_equal_rows():
    x = sample(200, 1).float().repeat(2, 1)
    phi = factor(Gaussian(2.0), x, 400, tolerance=1e-12)
    assert phi.shape[1] < 40
    torch.testing.assert_close(phi @ phi.T, Gaussian(2.0)(x), atol=1e-4, rtol=0)


@pytest.mark.parametrize("method", ["cholesky", "nystrom"])
@pytest.mark.parametrize("kernel", [Gaussian(), Gaussian(1.0), InverseMultiquadric(1.0)], ids=repr)
@pytest.mark.parametrize("outlier", [1e3, 1e4, 1e6])
def test_float32_factor_is_accurate_for_rows_far_from_each_other(kernel, outlier, method):
    x = sample(300, 2).float()
    x[0] = outlier
    phi, exact = factor(kernel, x, 300, method), kernel.fit(x)(x.double())
    assert phi.dtype == torch.float32
    torch.testing.assert_close(phi.double() @ phi.double().T, exact, atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    ("error", "quoted", "arguments"),
    [
        (ValueError, "got 0", {"rank": 0}),
        (ValueError, "even, got 7", {"rank": 7, "method": "fourier"}),
        (ValueError, "'rff'", {"method": "rff"}),
        (ValueError, "tolerance", {"tolerance": 0}),
        (TypeError, "Linear", {"kernel": Linear(), "method": "fourier"}),
    ],
)
def test_bad_arguments_are_rejected(error, quoted, arguments):
    with pytest.raises(error, match=quoted):
        factor(**{"kernel": Gaussian(), "x": sample(10, 2), **arguments})

"""Ranks of representations against closed forms and NumPy."""

import math

import numpy as np
import pytest
import torch
from scipy.linalg import eigh

from hsic_lab.diagnostics import alpha_req, covariance_spectrum, effective_rank, lidar, rankme


def normal(n, d, seed=0, dtype=torch.float64):
    return torch.randn(n, d, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def equal_singular_values(n, d, rank, seed=0):
    """Centered rows with `rank` equal singular values."""
    left = normal(n, rank, seed)
    left = torch.linalg.qr(left - left.mean(dim=0))[0]
    return left @ torch.linalg.qr(normal(d, rank, seed + 1))[0].T


def entropy_rank(weights):
    p = weights[weights > 0] / weights.sum()
    return math.exp(-(p * np.log(p)).sum())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rank", [1, 2, 64, 256])
def test_equal_singular_values_give_their_number(rank, dtype):
    # peers.md C11: an epsilon in every p_k made this 1.266 for rank 1.
    z = equal_singular_values(320, 2048, rank).to(dtype)
    assert rankme(z) == pytest.approx(rank, abs=1e-4)
    assert effective_rank(z) == pytest.approx(rank, abs=1e-4)


@pytest.mark.parametrize("shape", [(300, 64), (40, 90), (90, 90)])
@pytest.mark.parametrize("center", [True, False])
def test_spectrum_equals_the_svd_of_numpy(shape, center):
    z = normal(*shape).numpy() * np.logspace(0, -4, shape[1]) + 0.3
    singular = np.linalg.svd(z - z.mean(axis=0) * center, compute_uv=False)
    spectrum = covariance_spectrum(z, center).numpy()
    np.testing.assert_allclose(spectrum, singular**2 / len(z), rtol=1e-6, atol=1e-13 * singular[0] ** 2)
    assert rankme(z, center) == pytest.approx(entropy_rank(singular), rel=1e-5)
    if center:
        assert effective_rank(z) == pytest.approx(entropy_rank(singular**2), rel=1e-9)


@pytest.mark.parametrize("elements", [1, 700, 4096])
def test_size_of_blocks_changes_nothing(monkeypatch, elements):
    tables = normal(50, 20, dtype=torch.float32), normal(20, 50, dtype=torch.float32)
    whole = [(covariance_spectrum(z), lidar((z, z + 0.1 * z.flip(0)))) for z in tables]
    monkeypatch.setattr("hsic_lab.correlation._BLOCK_ELEMENTS", elements)
    for z, (spectrum, rank) in zip(tables, whole, strict=True):
        torch.testing.assert_close(covariance_spectrum(z), spectrum, rtol=1e-9, atol=1e-12)
        assert lidar((z, z + 0.1 * z.flip(0))) == pytest.approx(rank, rel=1e-9)


def test_isotropic_features_far_from_the_origin():
    # peers.md C11: without centering the same features read 2.6.
    z = normal(4000, 64, dtype=torch.float32) + 50
    assert rankme(z) == pytest.approx(63.9, abs=0.1)
    assert rankme(z, center=False) < 3.5
    assert effective_rank(z) < rankme(z) <= 64


@pytest.mark.parametrize("measure", [rankme, effective_rank])
def test_ranks_are_invariant_to_scale_rotation_copies_and_constants(measure):
    z = normal(200, 6)
    rank = measure(z)
    rotation = torch.linalg.qr(normal(6, 6, 3))[0]
    constant = torch.full((200, 2), 3.3, dtype=torch.float64)
    for same in (7.5 * z, z @ rotation, torch.cat([z, z], dim=1), torch.cat([z, constant], dim=1), z + 1e3):
        assert measure(same) == pytest.approx(rank, rel=1e-6)
    assert measure(torch.full((9, 5), 0.1)) == measure(torch.zeros(9, 5)) == 0.0


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.3])
def test_alpha_is_the_exponent_of_a_power_law(alpha):
    z = equal_singular_values(400, 120, 120)
    basis = torch.linalg.svd(z, full_matrices=False)
    z = basis.U * torch.arange(1, 121, dtype=torch.float64) ** (-alpha / 2)
    assert alpha_req(z) == pytest.approx(alpha, abs=1e-6)


def test_alpha_equals_the_weighted_fit_of_numpy():
    z = (normal(500, 130) * torch.linspace(2, 0.1, 130)).numpy()
    eigenvalues = np.linalg.eigvalsh(np.cov(z.T, bias=True))[::-1]
    for first, last in ((11, 100), (1, 130), (40, 41)):
        ranks = np.arange(first, last + 1)
        y = np.log(eigenvalues[first - 1 : last])
        slope = np.polyfit(np.log(ranks), y, 1, w=np.sqrt(1 / ranks))[0]  # polyfit squares its weights
        assert alpha_req(z, first, last) == pytest.approx(-slope, rel=1e-8)


def lidar_oracle(views, delta):
    n, q, d = views.shape
    means = views.mean(axis=1)
    between, within = np.zeros((d, d)), delta * np.eye(d)
    for i in range(n):
        between += np.outer(means[i] - means.mean(axis=0), means[i] - means.mean(axis=0)) / (n - 1)
        for k in range(q):
            within += np.outer(views[i, k] - means[i], views[i, k] - means[i]) / (n * (q - 1))
    values = eigh(between, within, eigvals_only=True)
    return entropy_rank(values[values > 1e-12 * values.max()])


@pytest.mark.parametrize("shape", [(60, 2, 7), (50, 5, 12), (9, 3, 20), (12, 2, 12)])
@pytest.mark.parametrize("delta", [1e-4, 0.5])
def test_lidar_equals_the_loop(shape, delta):
    rng = np.random.default_rng(0)
    n, q, d = shape
    views = rng.normal(size=(n, 1, d)) * np.linspace(2, 0.1, d) + 0.3 * rng.normal(size=shape) + 5
    expected = lidar_oracle(views, delta)
    assert lidar(views, delta) == pytest.approx(expected, rel=1e-6)
    assert lidar([views[:, k] for k in range(q)], delta) == pytest.approx(expected, rel=1e-6)
    assert expected <= min(d, n - 1) + 1e-6


def test_lidar_counts_the_directions_that_tell_images_apart():
    # Rank 3 between images, noise of one size in all 30 directions within them: RankMe sees the noise.
    images = equal_singular_values(4000, 30, 3) * 4000**0.5 * 10
    views = tuple(images + 0.1 * normal(4000, 30, seed) for seed in (5, 6))
    assert lidar(views) == pytest.approx(3, abs=0.05)
    assert rankme(views[0]) > 3.5
    equal = torch.full((10, 4), 0.1), torch.full((10, 4), 0.1)
    assert lidar(equal) == 0.0


Z = normal(10, 3)


@pytest.mark.parametrize(
    ("call", "error", "quoted"),
    [
        (lambda: rankme(Z[:1]), ValueError, r"2 rows, got shape \(1, 3\)"),
        (lambda: rankme(torch.full((4, 2), np.nan)), ValueError, "8 values that are NaN"),
        (lambda: rankme(Z.long()), TypeError, "int64"),
        (lambda: rankme(Z[None]), ValueError, r"\(1, 10, 3\)"),
        (lambda: effective_rank(1e300 * Z), ValueError, "rescale"),
        (lambda: alpha_req(Z), ValueError, "at most 3, .* got 100"),
        (lambda: alpha_req(Z, 3, 3), ValueError, "first 3 and last 3"),
        (lambda: lidar(Z), ValueError, r"\(10, 3\)"),
        (lambda: lidar((Z, Z[:5])), ValueError, r"\(10, 3\), \(5, 3\)"),
        (lambda: lidar((Z,)), ValueError, "got 10 and 1"),
        (lambda: lidar((Z[:1], Z[:1])), ValueError, "got 1 and 2"),
        (lambda: lidar((Z, Z), delta=0), ValueError, "got 0"),
        (lambda: lidar(()), ValueError, "got 0 and 0"),
    ],
)
def test_bad_spectra_input_is_refused(call, error, quoted):
    with pytest.raises(error, match=quoted):
        call()

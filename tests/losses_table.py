"""Table of the losses with an independent NumPy implementation and the properties of each; data for their tests."""

import numpy as np
import torch
from scipy.special import hyp1f1

from hsic_lab.kernels import Gaussian, InverseMultiquadric, Linear
from hsic_lab.losses import (
    BarlowTwinsLoss,
    HSICSSLLoss,
    NegativeCosineSimilarity,
    NTXentLoss,
    ReferenceCodeLoss,
    SIGRegLoss,
    SpectralContrastiveLoss,
    SSLHSICLoss,
    SupConLoss,
    VICRegLoss,
)


def data(n, d, seed=0, dtype=torch.float64):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def views(n=16, d=5, seed=0, dtype=torch.float64, noise=0.5):
    """Two correlated views, like the projections of two augmentations of one batch."""
    z = data(n, d, seed, dtype)
    return z + noise * data(n, d, seed + 100, dtype), z + noise * data(n, d, seed + 200, dtype)


def minimize(loss, *parameters, steps=300):
    """The smallest value that L-BFGS finds."""
    optimizer = torch.optim.LBFGS(parameters, max_iter=steps, line_search_fn="strong_wolfe", tolerance_grad=1e-10)

    def closure():
        optimizer.zero_grad()
        value = loss()
        value.backward()
        return value

    optimizer.step(closure)
    return float(loss().detach())


def standardized(z):
    return (z - z.mean(0)) / z.std(0)


def off(matrix):
    return matrix[~np.eye(len(matrix), dtype=bool)]


def cross_correlation_oracle(weight, target):
    def loss(z_a, z_b):
        c = standardized(z_a).T @ standardized(z_b) / len(z_a)
        return ((1 - np.diag(c)) ** 2).sum() + (weight or 1 / len(c)) * ((off(c) - target) ** 2).sum()

    return loss


def reference_code_oracle(target, unit_rows, bessel):
    def loss(z_a, z_b):
        x, y = (unit(z) if unit_rows else z for z in (z_a, z_b))
        x, y = ((z - z.mean(0)) / z.std(0, ddof=int(bessel)) for z in (x, y))
        c = x.T @ y / len(x)
        return ((1 - np.diag(c)) ** 2).sum() + ((off(c) - target) ** 2).sum() / len(c)

    return loss


def barlow_samples_oracle(z_a, z_b):
    x, y = standardized(z_a), standardized(z_b)
    diagonal = np.diag(x.T @ y / len(x))
    return ((1 - diagonal) ** 2).sum() + 0.5 * (off(x @ x.T) * off(y @ y.T)).sum() / len(x) ** 2


def vicreg_oracle(samples=False):
    def of_one(z):
        z, (n, d) = z - z.mean(0), z.shape
        covariance = z @ z.T / (n - 1) if samples else z.T @ z / (n - 1)
        return np.maximum(0, 1 - np.sqrt(z.var(0, ddof=1) + 1e-4)).mean(), (off(covariance) ** 2).sum() / d

    def loss(z_a, z_b):
        (v_a, c_a), (v_b, c_b) = of_one(z_a), of_one(z_b)
        return 25 * ((z_a - z_b) ** 2).mean() + 25 * (v_a + v_b) / 2 + c_a + c_b

    return loss


def unit(z):
    return z / np.linalg.norm(z, axis=1, keepdims=True)


def nt_xent_oracle(temperature):
    def loss(z_a, z_b):
        n, z = len(z_a), unit(np.concatenate([z_a, z_b]))
        losses = []
        for i in range(2 * n):
            pair = (i + n) % (2 * n)
            positive = np.exp(z[i] @ z[pair] / temperature)
            negatives = sum(np.exp(z[i] @ z[j] / temperature) for j in range(2 * n) if j not in (i, pair))
            losses.append(-np.log(positive / (positive + negatives)))
        return np.mean(losses)

    return loss


def spectral_oracle(mu):
    def loss(z_a, z_b):
        x, y = (unit(z) * np.minimum(np.linalg.norm(z, axis=1, keepdims=True), mu**0.5) for z in (z_a, z_b))
        products = x @ y.T
        return (-2 * np.diag(products).mean() + (off(products) ** 2).mean()) / mu

    return loss


def ssl_hsic_oracle(kernel):
    def loss(z_a, z_b):
        n, z = len(z_a), np.concatenate([z_a, z_b])
        gram = np.array([[kernel(p, q) for q in z] for p in z])
        h = np.eye(2 * n) - 1 / (2 * n)
        pairs = np.mean([gram[i, i + n] for i in range(n)])
        return -(pairs - gram.mean()) + 3 * np.sqrt(np.trace(gram @ h @ gram @ h)) / (2 * n)

    return loss


def sigreg_oracle(weight):
    def distance(z):
        d = z.shape[1]
        pairs = np.mean([[hyp1f1(0.5, d / 2, -((p - q) ** 2).sum() / 2) for q in z] for p in z])
        cross = np.mean([hyp1f1(0.5, d / 2, -(p @ p) / 4) for p in z])
        return np.sqrt(2 * np.pi) * (pairs - np.sqrt(2) * cross + 1 / np.sqrt(3))

    def loss(z_a, z_b):
        middle = (z_a + z_b) / 2
        invariance = (((z_a - middle) ** 2).mean() + ((z_b - middle) ** 2).mean()) / 2
        return (1 - weight) * invariance + weight * len(z_a) * (distance(z_a) + distance(z_b)) / 2

    return loss


def cosine_oracle(z_a, z_b):
    return -(unit(z_a) * unit(z_b)).sum(1).mean()


STANDARDIZED = {"affine", "offset", "features", "duplicate"}

# loss, NumPy implementation, properties beyond those of all losses
LOSSES = {
    "barlow": (BarlowTwinsLoss(), cross_correlation_oracle(5e-3, 0), STANDARDIZED),
    "barlow 1/d": (BarlowTwinsLoss(None), cross_correlation_oracle(None, 0), STANDARDIZED),
    "barlow samples": (BarlowTwinsLoss(0.5, contrast="samples"), barlow_samples_oracle, {"affine", "features"}),
    "hsic_ssl": (HSICSSLLoss(), cross_correlation_oracle(None, -1), STANDARDIZED),
    "hsic_ssl 0.3": (HSICSSLLoss(0.1, 0.3), cross_correlation_oracle(0.1, 0.3), STANDARDIZED),
    "reference code": (
        ReferenceCodeLoss(unit_rows=False),
        reference_code_oracle(0, False, True),
        {"affine", "offset", "features"},
    ),
    "reference code, target -1": (
        ReferenceCodeLoss(off_diagonal_target=-1.0, bessel=False),
        reference_code_oracle(-1, True, False),
        {"features"},
    ),
    "vicreg": (VICRegLoss(), vicreg_oracle(), {"offset", "features"}),
    "vicreg samples": (VICRegLoss(contrast="samples"), vicreg_oracle(samples=True), {"offset", "features"}),
    "ssl_hsic linear": (SSLHSICLoss(Linear()), ssl_hsic_oracle(np.dot), {"offset", "features", "duplicate"}),
    "ssl_hsic linear standardized": (
        SSLHSICLoss("linear", standardized=True),
        lambda a, b: ssl_hsic_oracle(np.dot)(standardized(a), standardized(b)),
        STANDARDIZED,
    ),
    "ssl_hsic gaussian": (
        SSLHSICLoss(Gaussian(2.0)),
        ssl_hsic_oracle(lambda p, q: np.exp(-((p - q) ** 2).sum() / 8)),
        {"offset", "features", "duplicate"},
    ),
    "ssl_hsic multiquadric": (
        SSLHSICLoss(InverseMultiquadric(2.0)),
        ssl_hsic_oracle(lambda p, q: 2 / np.sqrt(4 + ((p - q) ** 2).sum())),
        {"offset", "features", "duplicate"},
    ),
    "nt_xent": (NTXentLoss(), nt_xent_oracle(0.5), {"features", "lengths"}),
    "nt_xent 0.07": (NTXentLoss(0.07), nt_xent_oracle(0.07), {"features", "lengths"}),
    "supcon": (SupConLoss(), lambda a, b: 0.5 * nt_xent_oracle(0.5)(a, b), {"features", "lengths"}),
    "spectral": (SpectralContrastiveLoss(), spectral_oracle(1.0), {"features"}),
    "spectral 10": (SpectralContrastiveLoss(mu=10.0), spectral_oracle(10.0), {"features"}),
    "sigreg": (SIGRegLoss(), sigreg_oracle(0.05), {"features"}),
    "sigreg 1": (SIGRegLoss(1.0), sigreg_oracle(1.0), {"features"}),
    "cosine": (NegativeCosineSimilarity(), cosine_oracle, {"features", "lengths", "duplicate"}),
}

"""Losses of two views, one family a file."""

from hsic_lab.losses.contrastive import NTXentLoss, SpectralContrastiveLoss, SupConLoss
from hsic_lab.losses.covariance import VICRegLoss
from hsic_lab.losses.cross_correlation import BarlowTwinsLoss, HSICSSLLoss
from hsic_lab.losses.distillation import NegativeCosineSimilarity
from hsic_lab.losses.kernel import SSLHSICLoss
from hsic_lab.losses.reference_code import ReferenceCodeLoss

__all__ = [
    "BarlowTwinsLoss",
    "HSICSSLLoss",
    "NTXentLoss",
    "NegativeCosineSimilarity",
    "ReferenceCodeLoss",
    "SSLHSICLoss",
    "SpectralContrastiveLoss",
    "SupConLoss",
    "VICRegLoss",
]

"""Losses of two or more views: Barlow Twins, HSIC_SSL, VICReg, SSL-HSIC and contrastive losses, as torch modules."""

from hsic_lab.losses._base import TwoViewLoss
from hsic_lab.losses.barlow_twins import BarlowTwinsLoss, HSICSSLLoss, ReferenceCodeLoss
from hsic_lab.losses.contrastive import NegativeCosineSimilarity, NTXentLoss, SpectralContrastiveLoss, SupConLoss
from hsic_lab.losses.sigreg import SIGRegLoss
from hsic_lab.losses.ssl_hsic import SSLHSICLoss
from hsic_lab.losses.vicreg import VICRegLoss

__all__ = [
    "BarlowTwinsLoss", "HSICSSLLoss", "NTXentLoss", "NegativeCosineSimilarity", "ReferenceCodeLoss", "SIGRegLoss",
    "SSLHSICLoss", "SpectralContrastiveLoss", "SupConLoss", "TwoViewLoss", "VICRegLoss",
]  # fmt: skip

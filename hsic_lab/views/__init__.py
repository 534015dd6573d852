"""Augmentations: two random views of each image of a batch."""

from hsic_lab.views._two_views import AUGMENTATIONS, TwoViews, augmentation, normalize

__all__ = ["AUGMENTATIONS", "TwoViews", "augmentation", "normalize"]

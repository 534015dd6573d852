"""Data sets as tensors: published sets, rendered scenes, folders of images and arrays."""

from hsic_lab.datasets._folders import from_arrays, from_folder
from hsic_lab.datasets._images import ImageData, Images
from hsic_lab.datasets._published import LOADERS, data_folder, download, load, status
from hsic_lab.datasets.digit_scenes import DigitScenes

__all__ = [
    "LOADERS", "DigitScenes", "ImageData", "Images", "data_folder", "download", "from_arrays", "from_folder",
    "load", "status",
]  # fmt: skip

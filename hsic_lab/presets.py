"""The published recipes for two views, as settings of `views.TwoViews` by name."""

from typing import Any

from hsic_lab.checks import one_of

SMALL = 32  # pixels up to which a paper's CIFAR recipe counts as the one for the size

PRESETS: dict[str, dict[str, Any]] = {
    "default": {},
    # Tsai et al. 2021, github.com/yaohungt/Barlow-Twins-HSIC, utils.py: 64-pixel crops of Tiny ImageNet and STL-10
    # (`train` makes views as large as the pictures: 96 pixels of STL-10).
    "report": {"grayscale": 0.1},
    # Zbontar et al. 2021, appendix A; github.com/facebookresearch/barlowtwins, main.py.
    "barlow_twins": {"scale": (0.08, 1.0), "saturation": 0.2, "blur": (1.0, 0.1), "solarize": (0.0, 0.2)},
    # da Costa et al. 2022, github.com/vturrisi/solo-learn, scripts/pretrain/cifar/augmentations/asymmetric.yaml.
    "solo": {"scale": (0.08, 1.0), "saturation": 0.2, "solarize": (0.0, 0.2)},
    # Chen et al. 2020, appendix A; github.com/google-research/simclr, data_util.py, colour strength 1.
    "simclr": {"scale": (0.08, 1.0), "brightness": 0.8, "contrast": 0.8, "saturation": 0.8, "hue": 0.2, "blur": 0.5},
}
SMALL_CHANGES: dict[str, dict[str, Any]] = {
    "report": {"scale": (0.08, 1.0), "grayscale": 0.2},
    "simclr": {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1, "blur": 0.0},  # appendix B.9
}


def recipe(name: str, size: int) -> dict[str, Any]:
    """The settings of `PRESETS[name]` for views of `size` pixels. Raises ValueError for another name.

    Up to 32 pixels "report" and "simclr" are their papers' CIFAR-10 recipes (`SMALL_CHANGES`); SimCLR's has half the
    colour strength and no blur, which recipes for pictures that small leave out: `preset("simclr", 32, blur=0.5)`
    brings it back. "barlow_twins" was published for 224 pixels and is the same at every size, blur included; only
    the blur's kernel goes with the side. "solo" is solo-learn's version of it for CIFAR, without blur. "default" is
    `TwoViews` as it comes.
    """
    changes = SMALL_CHANGES.get(name, {}) if size <= SMALL else {}
    return PRESETS[one_of(name, tuple(PRESETS), "preset")] | changes

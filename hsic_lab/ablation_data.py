"""The pictures of a grid's runs: what identifies them, and the part of a set that a grid asks for."""

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from hsic_lab.datasets import LOADERS, ImageData, check_name, data_folder, full_name, load
from hsic_lab.folders import digest, find_pictures
from hsic_lab.grids import Planned

SCENES = "digit_scenes"


def load_data(dataset: str, sizes: dict[str, Any]) -> ImageData:
    return _loaded(dataset, tuple(sorted(sizes.items())), data_folder())


@lru_cache(maxsize=2)  # a process that makes many runs reads its pictures once
def _loaded(dataset: str, sizes: tuple[tuple[str, Any], ...], folder: Path) -> ImageData:
    return load(dataset, **dict(sizes)) if dataset == SCENES else cut(load(dataset, folder), dict(sizes))


def cut(data: ImageData, sizes: Mapping[str, Any]) -> ImageData:
    """The `n_train` and `n_test` pictures of each split that `Grid.data` means."""
    for split, images in (("train", data.train), ("test", data.test)):
        n = sizes.get(f"n_{split}", len(images))
        if n > len(images):
            raise ValueError(f"n_{split} must be at most the {len(images)} images of {data.name}, got {n}")
        if n < len(images):
            data = replace(data, **{split: images.sample(n)})
    return data


def with_data(plan: list[Planned], data: ImageData | None) -> list[Planned]:
    """The plan with what the trained-on set is called and, of a set of the user's own, what it holds now."""
    if data is not None:
        own = {"sha256": _fingerprint(data)}
        return [replace(one, config=replace(one.config, dataset=data.name), data=one.data | own) for one in plan]
    contents: dict[str, dict[str, str]] = {}
    for name in {one.config.dataset for one in plan}:
        if name == "default":
            raise ValueError('a grid must name its data set, base.dataset = "digit_scenes" for instance; got "default"')
        check_name(name)
        folder = Path(full_name(name))
        contents[name] = {} if name in LOADERS else {"folder": digest(find_pictures(folder), folder)}
    return [
        replace(one, config=replace(one.config, dataset=full_name(one.config.dataset)),
                data=one.data | contents[one.config.dataset])
        for one in plan
    ]


def _fingerprint(data: ImageData) -> str:
    content = hashlib.sha256()
    for split in (data.train, data.test, *filter(None, [data.unlabelled])):
        for tensor in (split.images, split.labels):
            content.update(str(tuple(tensor.shape)).encode() + tensor.cpu().contiguous().numpy().tobytes())
    return content.hexdigest()[:16]

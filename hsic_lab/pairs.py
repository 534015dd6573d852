"""Pairs of views to train on and to look at: what epoch e holds is a function of (seed, e) alone."""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from hsic_lab.batches import ImageSource
from hsic_lab.config import TrainConfig
from hsic_lab.datasets import ImageData
from hsic_lab.scenes import DigitScenes
from hsic_lab.views import normalize, preset

Views = Callable[[Tensor, torch.Generator], tuple[Tensor, Tensor]]
SNAPSHOT_PAIRS = 2048


class TrainingPairs:
    """Batches of training pairs, epoch by epoch, on the device: of all pictures that are `trained_on`, or of scenes.

    Of every batch only its `rows` are returned, those of this process, from the draws of the whole batch: k processes
    hold what one holds. `len` is the number of batches in an epoch; the last ragged batch is dropped. `resident` is
    that of `ImageSource`: pictures on the device, or read from memory or disk as they are needed.
    Raises ValueError if there are fewer training images than a batch, and as `make_views`.
    """

    def __init__(
        self, data: ImageData, config: TrainConfig, device: torch.device, rows: slice, views: Views | None = None,
        resident: bool | None = None,
    ) -> None:
        self.n, self.size = sum(map(len, data.trained_on)), config.batch_size
        if self.n < self.size:
            raise ValueError(f"batch_size {self.size} is larger than the {self.n} training images")
        self.seed, self.shared, self.device, self.rows = config.seed, config.shared, device, rows
        self.scenes = data.scenes
        self.views = make_views(data, config, views)
        self.source = None if data.scenes else ImageSource(data.trained_on, device, resident)

    def __len__(self) -> int:
        return self.n // self.size

    def epoch(self, number: int, skip: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of an epoch after the first `skip`, whose random numbers are drawn all the same."""
        generator = seeded_generator(self.device, self.seed, number)
        for batch, views in enumerate(self._scene_pairs(generator) if self.scenes else self._views(generator)):
            if batch >= skip:
                yield tuple(prepared(view, self.device) for view in views)

    def _scene_pairs(self, generator: torch.Generator) -> Iterator[Iterator[Tensor]]:
        for _ in range(len(self)):
            causes = self.scenes.draw_pairs(self.size, generator, self.shared)
            yield (self.scenes.render({k: v[self.rows] for k, v in view.items()}) for view in causes)

    def _views(self, generator: torch.Generator) -> Iterator[list[Tensor]]:
        order = torch.randperm(self.n, generator=generator, device=self.device)
        for images in self.source.batches(order, self.size):
            views = list(self.views(images, generator))
            if wrong := [len(view) for view in views if len(view) != self.size]:
                raise ValueError(f"views must keep their {self.size} pictures, got {wrong}")
            yield [view[self.rows] for view in views]


def make_views(data: ImageData, config: TrainConfig, views: Views | None = None) -> Views | None:
    """What makes two views of a picture: `views`, else those that the settings name; None for scenes, which are pairs.

    Raises ValueError for scenes with views, and for views given beside others in the settings.
    """
    if data.scenes and (views is not None or config.views != "default"):
        raise ValueError(
            f"{data.name} takes views='default' and none of your own, got {views or config.views!r}: its pairs are two "
            "scenes, not views of a picture"
        )
    if views is not None and config.views != "default":
        raise ValueError(f"views of your own were given beside views={config.views!r} in the settings: leave one out")
    return None if data.scenes else views or preset(config.views, min(data.train.images.shape[-2:]))


def held_out_pairs(
    data: ImageData, config: TrainConfig, device: torch.device, views: Views | None = None
) -> tuple[Tensor, Tensor]:
    """The same pairs for every run on a data set with these views, from what is not trained on; no label is read."""
    generator = seeded_generator(device, 0, 1 << 30)
    if data.scenes:
        pair = DigitScenes("test", data.scenes.size).pairs(SNAPSHOT_PAIRS, generator, config.shared)
    else:
        images = data.test.sample(min(SNAPSHOT_PAIRS, len(data.test))).images.to(device)
        pair = make_views(data, config, views)(images, generator)
    return tuple(prepared(view, device) for view in pair)


def seeded_generator(device: torch.device, *key: int) -> torch.Generator:
    """A generator on the device whose stream belongs to the key alone."""
    return torch.Generator(device).manual_seed(seed_of(*key))


def seed_of(*key: int) -> int:
    """One 63-bit seed for several integers; different keys have unrelated seeds."""
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> np.uint64(1))


def prepared(view: Tensor, device: torch.device) -> Tensor:
    """A view as the networks read it: floating point on the device, channels last."""
    view = normalize(view) if view.dtype == torch.uint8 else view
    return view.to(device).contiguous(memory_format=torch.channels_last)

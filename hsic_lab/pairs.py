"""Pairs of views to train on and to look at: what epoch e holds is a function of (seed, e) alone."""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from hsic_lab.config import TrainConfig
from hsic_lab.datasets import ImageData
from hsic_lab.scenes import DigitScenes
from hsic_lab.views import TwoViews, normalize

Views = Callable[[Tensor, torch.Generator], tuple[Tensor, Tensor]]
SNAPSHOT_PAIRS = 2048


class TrainingPairs:
    """Batches of training pairs, epoch by epoch, on the device.

    Of every batch only its `rows` are returned, those of this process, from the draws of the whole batch: k processes
    hold what one holds. `len` is the number of batches in an epoch; the last ragged batch is dropped.
    Raises ValueError if there are fewer training images than a batch.
    """

    def __init__(
        self, data: ImageData, config: TrainConfig, device: torch.device, rows: slice, views: Views | None = None
    ) -> None:
        self.n, self.size = len(data.train), config.batch_size
        if self.n < self.size:
            raise ValueError(f"batch_size {self.size} is larger than the {self.n} training images")
        self.seed, self.shared, self.device, self.rows = config.seed, config.shared, device, rows
        self.scenes = data.scenes
        self.views = views or TwoViews(data.train.images.shape[-1])
        self.images = None if data.scenes else data.train.images.to(device)

    def __len__(self) -> int:
        return self.n // self.size

    def epoch(self, number: int, skip: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of an epoch after the first `skip`, whose random numbers are drawn all the same."""
        generator = seeded_generator(self.device, self.seed, number)
        order = None if self.scenes else torch.randperm(self.n, generator=generator, device=self.device)
        for batch in range(len(self)):
            if self.scenes:
                causes = self.scenes.draw_pairs(self.size, generator, self.shared)
                if batch < skip:
                    continue
                views = (self.scenes.render({k: v[self.rows] for k, v in view.items()}) for view in causes)
            else:
                images = self.images[order[batch * self.size : (batch + 1) * self.size]]
                pair = self.views(images, generator)
                if batch < skip:
                    continue
                views = (view[self.rows] for view in pair)
            yield tuple(prepared(view, self.device) for view in views)


def held_out_pairs(
    data: ImageData, config: TrainConfig, device: torch.device, views: Views | None = None
) -> tuple[Tensor, Tensor]:
    """The same pairs for every run on a data set, from what is not trained on; no label is read."""
    generator = seeded_generator(device, 0, 1 << 30)
    if data.scenes:
        pair = DigitScenes("test", data.scenes.size).pairs(SNAPSHOT_PAIRS, generator, config.shared)
    else:
        images = data.test.images[:SNAPSHOT_PAIRS].to(device)
        pair = (views or TwoViews(images.shape[-1]))(images, generator)
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

"""Batches of images on the training device, from tensors that live there or stay on disk."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from hsic_lab.datasets import DigitScenes, ImageData
from hsic_lab.training._config import TrainConfig
from hsic_lab.training._networks import Views, make_views
from hsic_lab.views import normalize

AHEAD = 2  # batches gathered before they are asked for
FREE_SHARE = 0.5  # of a GPU's free memory that a set may take; the rest is for training
MAPPED_ABOVE = 1 << 30  # bytes above which a set on the CPU counts as one to be read from disk


class ImageSource:
    """Images laid end to end, of which any are served as uint8 batches on a device.

    parts:    uint8 (n_1, c, h, w), (n_2, c, h, w), ..., on the CPU, in memory or mapped from a file
    resident: whether the images are moved to the device at once. Left out: on CUDA if they take at most half of
              its free memory, on the CPU up to 1 GiB. Otherwise a thread gathers the next batches while the present
              one is computed with (from page-locked memory where the device is CUDA), and rows that are not in
              memory are read by the system as they are touched.

    Raises ValueError for parts of different image shapes or none, TypeError for another dtype than uint8.
    """

    def __init__(self, parts: Sequence[Tensor], device: torch.device | str, resident: bool | None = None) -> None:
        shapes = {tuple(part.shape[1:]) for part in parts}
        if len(shapes) != 1 or len(next(iter(shapes))) != 3:
            found = [tuple(part.shape) for part in parts]
            raise ValueError(f"parts must be (n, c, h, w) of one (c, h, w), got {found}")
        if wrong := [part.dtype for part in parts if part.dtype != torch.uint8]:
            raise TypeError(f"parts must be torch.uint8, got {wrong[0]}")
        self.device = torch.device(device)
        self.shape = next(iter(shapes))
        self.resident = self._fits(sum(part.nbytes for part in parts)) if resident is None else resident
        self.parts = [part.to(self.device) if self.resident else part for part in parts]
        self.starts = [sum(len(part) for part in parts[:i]) for i in range(len(parts) + 1)]

    def __len__(self) -> int:
        return self.starts[-1]

    def batches(self, order: Tensor, size: int) -> Iterator[Tensor]:
        """Batches (size, c, h, w) of the images that `order` (int64, any device) lists; a ragged last one is dropped.

        Raises ValueError for a size below 1, IndexError for a position outside 0..len - 1.
        """
        if size < 1:
            raise ValueError(f"size must be at least 1, got {size}")
        if len(order) and not 0 <= int(order.min()) <= int(order.max()) < len(self):
            raise IndexError(f"order must be in 0..{len(self) - 1}, got {int(order.min())}..{int(order.max())}")
        order = order.to(self.parts[0].device)
        rows = order[: len(order) // size * size].split(size) if len(order) >= size else ()
        if self.resident:
            return map(self._gather, rows)
        return self._prefetched(rows)

    def _prefetched(self, rows: Sequence[Tensor]) -> Iterator[Tensor]:
        pinned = self.device.type == "cuda"

        def prepare(index: Tensor) -> Tensor:
            batch = self._gather(index)
            return batch.pin_memory() if pinned else batch

        with ThreadPoolExecutor(1) as pool:
            waiting = [pool.submit(prepare, index) for index in rows[:AHEAD]]
            try:
                for index in [*rows[AHEAD:], *[None] * min(AHEAD, len(rows))]:
                    batch = waiting.pop(0).result()
                    if index is not None:
                        waiting.append(pool.submit(prepare, index))
                    yield batch.to(self.device, non_blocking=pinned)
            finally:
                pool.shutdown(cancel_futures=True)  # the caller may leave in the middle of an epoch

    def _gather(self, index: Tensor) -> Tensor:
        """The images at positions `index`, in its order, whichever parts they lie in."""
        if len(self.parts) == 1:
            return self.parts[0][index]
        batch = self.parts[0].new_empty(len(index), *self.shape)
        for part, start, end in zip(self.parts, self.starts, self.starts[1:], strict=False):
            rows = ((index >= start) & (index < end)).nonzero().squeeze(1)
            batch[rows] = part[index[rows] - start]
        return batch

    def _fits(self, nbytes: int) -> bool:
        if self.device.type == "cuda":
            return nbytes <= FREE_SHARE * torch.cuda.mem_get_info(self.device)[0]
        return nbytes <= MAPPED_ABOVE


SNAPSHOT_PAIRS = 2048


class TrainingPairs:
    """Batches of training pairs, epoch by epoch, on the device: of all images that are `trained_on`, or of scenes.

    Of every batch only its `rows` are returned, those of this process, from the draws of the whole batch: k processes
    hold what one holds. `len` is the number of batches in an epoch; the last ragged batch is dropped. `resident` is
    that of `ImageSource`: images on the device, or read from memory or disk as they are needed.
    Raises ValueError if there are fewer training images than a batch, and as `make_views`.
    """

    def __init__(
        self,
        data: ImageData,
        config: TrainConfig,
        device: torch.device,
        rows: slice,
        views: Views | None = None,
        resident: bool | None = None,
    ) -> None:
        self.n, self.size = sum(map(len, data.trained_on)), config.batch_size
        if self.n < self.size:
            raise ValueError(f"batch_size {self.size} is larger than the {self.n} training images")
        self.seed, self.shared, self.device, self.rows = config.seed, config.shared, device, rows
        self.scenes = data.scenes
        self.views = make_views(config, data, views)
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
                raise ValueError(f"views must keep their {self.size} images, got {wrong}")
            yield [view[self.rows] for view in views]


def held_out_pairs(
    data: ImageData, config: TrainConfig, device: torch.device, views: Views | None = None
) -> tuple[Tensor, Tensor]:
    """The same pairs for every run on a data set with these views, from what is not trained on; no label is read."""
    generator = seeded_generator(device, 0, 1 << 30)
    if data.scenes:
        pair = DigitScenes("test", data.scenes.size).pairs(SNAPSHOT_PAIRS, generator, config.shared)
    else:
        images = data.test.sample(min(SNAPSHOT_PAIRS, len(data.test))).images.to(device)
        pair = make_views(config, data, views)(images, generator)
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

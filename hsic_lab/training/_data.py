"""Batches of training pairs on the training device."""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hsic_lab.datasets import LOADERS, DigitScenes, ImageData, load
from hsic_lab.training._config import TrainConfig
from hsic_lab.training._networks import Views, make_views
from hsic_lab.views import normalize

AHEAD = 2  # batches that are read before they are asked for
SNAPSHOT_PAIRS = 2048  # pairs of which a run keeps C
KEPT_SAMPLES = 256  # of these pairs, whose projections a run keeps too


class ImageSource:
    """Batches of the images in `parts`, tensors `(n_i, ...)` of one shape and dtype, in memory or mapped from a file.

    `resident` images are moved to the device at once. None means yes, up to half of a GPU's free memory or 1 GiB on the
    CPU. Otherwise a thread reads the next batches during the computation, into page-locked memory for a GPU.
    """

    def __init__(self, parts: Sequence[Tensor], device: torch.device | str, resident: bool | None = None) -> None:
        self.device = torch.device(device)
        most = torch.cuda.mem_get_info(self.device)[0] // 2 if self.device.type == "cuda" else 1 << 30
        self.resident = sum(part.nbytes for part in parts) <= most if resident is None else resident
        self.parts = [part.to(self.device) if self.resident else part for part in parts]
        self.starts = [0, *accumulate(map(len, parts))]

    def __len__(self) -> int:
        return self.starts[-1]

    def batches(self, order: Tensor, size: int) -> Iterator[Tensor]:
        """Yield batches of `size` images at the positions `order` (int64, any device), without a ragged last one."""
        order = order.to(self.parts[0].device)
        rows = order[: len(order) // size * size].split(size) if len(order) >= size else ()
        return map(self._gather, rows) if self.resident else self._prefetched(rows)

    def _prefetched(self, rows: Sequence[Tensor]) -> Iterator[Tensor]:
        pinned = self.device.type == "cuda"
        read = (lambda index: self._gather(index).pin_memory()) if pinned else self._gather
        with ThreadPoolExecutor(1) as pool:
            waiting = [pool.submit(read, index) for index in rows[:AHEAD]]
            try:
                for number in range(len(rows)):
                    batch = waiting.pop(0).result()
                    waiting += [pool.submit(read, index) for index in rows[number + AHEAD :][:1]]
                    yield batch.to(self.device, non_blocking=pinned)
            finally:
                pool.shutdown(cancel_futures=True)  # the caller may leave in the middle of an epoch

    def _gather(self, index: Tensor) -> Tensor:
        if len(self.parts) == 1:
            return self.parts[0][index]
        batch = self.parts[0].new_empty(len(index), *self.parts[0].shape[1:])
        for part, start, end in zip(self.parts, self.starts, self.starts[1:], strict=False):
            rows = ((index >= start) & (index < end)).nonzero().squeeze(1)
            batch[rows] = part[index[rows] - start]
        return batch


class TrainingPairs:
    """Batches of pairs of views of images or of fresh scenes. Each process draws the whole batch, yields its `rows`."""

    def __init__(
        self, data: ImageData, config: TrainConfig, device: torch.device, rows: slice | Tensor,
        views: Views | None = None, resident: bool | None = None,
    ) -> None:  # fmt: skip
        self.n, self.size = sum(map(len, data.trained_on)), config.batch_size
        if self.n < self.size:
            raise ValueError(f"batch_size {self.size} is larger than the {self.n} training images")
        self.seed, self.shared, self.device, self.rows = config.seed, config.shared, device, rows
        self.scenes, self.views = data.scenes, make_views(config, data, views)
        self.source = None if data.scenes else ImageSource(data.trained_on, device, resident)

    def __len__(self) -> int:
        return self.n // self.size

    def epoch(self, number: int, skip: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the batches of an epoch after the first `skip`, whose random numbers are drawn too."""
        generator = seeded_generator(self.device, self.seed, number)
        pairs = self._scene_pairs(self.scenes, generator) if self.scenes else self._view_pairs(generator)
        for view_a, view_b in islice(pairs, skip, None):
            yield prepared(view_a, self.device), prepared(view_b, self.device)

    def _scene_pairs(self, scenes: DigitScenes, generator: torch.Generator) -> Iterator[Iterator[Tensor]]:
        for _ in range(len(self)):
            pair = scenes.draw_pairs(self.size, generator, self.shared)  # skipped batches are drawn but not rendered
            yield (scenes.render({k: v[self.rows] for k, v in factors.items()}) for factors in pair)

    def _view_pairs(self, generator: torch.Generator) -> Iterator[Iterator[Tensor]]:
        assert self.source and self.views  # these are images, not scenes
        order = torch.randperm(self.n, generator=generator, device=self.device)
        for images in self.source.batches(order, self.size):
            views = list(self.views(images, generator))
            if wrong := [len(view) for view in views if len(view) != self.size]:
                raise ValueError(f"views must keep their {self.size} images, got {wrong}")
            yield (view[self.rows] for view in views)


def data_of(name: str, metadata: Mapping[str, Any]) -> ImageData:
    """Return the images of a run with these `metadata`, loaded as the run loaded them."""
    if name not in LOADERS and not Path(name).is_dir():
        remedy = "if the run was trained on arrays, evaluate it in Python with its data"
        raise ValueError(f"the data of the run, {name!r}, are neither a known data set nor a folder: {remedy}")
    data = load(name, **metadata.get("source") or {})  # older runs lack it
    if (old := metadata.get("pictures", data.fingerprint)) != data.fingerprint:
        raise ValueError(f"the run was trained on other images, {old}; those of {name!r} are {data.fingerprint}")
    if (old := metadata.get("judged", data.judged)) != data.judged:  # older runs lack it
        raise ValueError(f"the run had other test images or labels, {old}; those of {name!r} are {data.judged}")
    return data


def held_out_pairs(data: ImageData, config: TrainConfig, device: torch.device, views: Any = None) -> list[Tensor]:
    """Return pairs of views of test images or scenes, which are the same for all runs on a set with these views."""
    if len(data.test) < 2 and not data.scenes:
        remedy = "hold out more: test_fraction=0.3 (--test-fraction 0.3), for instance"
        raise ValueError(f"C needs at least 2 held-out images, {data.name!r} has {len(data.test)}: {remedy}")
    make: Any = make_views(config, data, views)
    generator = seeded_generator(device, 0, 1 << 30)
    if data.scenes:
        pair = DigitScenes("test", data.scenes.size).pairs(SNAPSHOT_PAIRS, generator, config.shared)
    else:
        pair = make(data.test.sample(SNAPSHOT_PAIRS).images.to(device), generator)
    return [prepared(view, device) for view in pair]


def seeded_generator(device: torch.device, *key: int) -> torch.Generator:
    """Return a generator on the device whose seed is that of the key."""
    return torch.Generator(device).manual_seed(seed_of(*key))


def seed_of(*key: int) -> int:
    """Return a 63-bit seed for several integers; different keys have unrelated seeds."""
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> np.uint64(1))


def prepared(view: Tensor, device: torch.device) -> Tensor:
    """Return a view as networks read it: floating point on the device, and images in channels-last memory."""
    view = (normalize(view) if view.dtype == torch.uint8 else view).to(device)
    return view.contiguous(memory_format=torch.channels_last) if view.ndim == 4 else view.contiguous()

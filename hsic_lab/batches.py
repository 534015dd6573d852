"""Batches of pictures on the training device, from tensors that live there or stay on disk."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

AHEAD = 2  # batches gathered before they are asked for
FREE_SHARE = 0.5  # of a GPU's free memory that a set may take; the rest is for training
MAPPED_ABOVE = 1 << 30  # bytes above which a set on the CPU counts as one to be read from disk


class ImageSource:
    """Pictures laid end to end, of which any are served as uint8 batches on a device.

    parts:    uint8 (n_1, c, h, w), (n_2, c, h, w), ..., on the CPU, in memory or mapped from a file
    resident: whether the pictures are moved to the device at once. Left out: on CUDA if they take at most half of
              its free memory, on the CPU up to 1 GiB. Otherwise a thread gathers the next batches while the present
              one is computed with (from page-locked memory where the device is CUDA), and rows that are not in
              memory are read by the system as they are touched.

    Raises ValueError for parts of different picture shapes or none, TypeError for another dtype than uint8.
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
        """Batches (size, c, h, w) of the pictures that `order` (int64, any device) lists; a ragged last one is dropped.

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
        """The pictures at positions `index`, in its order, whichever parts they lie in."""
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

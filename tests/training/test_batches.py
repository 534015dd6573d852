"""`ImageSource`: batches are the images at given positions, on the device."""

import numpy as np
import pytest
import torch

from hsic_lab.datasets import ImageData, Images
from hsic_lab.training import TrainConfig
from hsic_lab.training._setup import ImageSource, TrainingPairs

A = torch.randint(0, 256, (7, 3, 4, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
B = torch.randint(0, 256, (9, 3, 5, 4), dtype=torch.uint8).transpose(2, 3)  # a strided view, as STL-10's
BOTH = torch.cat([A, B])
TABLE = torch.randn(16, 3, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("parts, whole", [((A,), A), ((A, B), BOTH), ((TABLE[:7], TABLE[7:]), TABLE)])
@pytest.mark.parametrize("size", [1, 3, 5, 16])
def test_batches_are_numpy_indexing(parts, whole, size):
    source = ImageSource(parts, "cpu")
    order = torch.randperm(len(whole), generator=torch.Generator().manual_seed(1))
    found = list(source.batches(order, size))
    assert len(found) == len(whole) // size
    for number, batch in enumerate(found):
        rows = order[number * size : (number + 1) * size].numpy()
        assert batch.dtype == whole.dtype and np.array_equal(batch, whole.numpy()[rows])


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("free", [1, 1 << 30])
def test_batches_arrive_on_the_gpu(free, monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, free))
    source = ImageSource([A, B], "cuda")
    assert source.parts[0].is_cuda == (free > 1)
    order = torch.randperm(16, device="cuda")
    for number, batch in enumerate(source.batches(order, 4)):
        assert batch.is_cuda and torch.equal(batch.cpu(), BOTH[order[4 * number : 4 * number + 4].cpu()])


def test_default_views_refuse_float32_rows():
    table = Images(TABLE, torch.zeros(16, dtype=torch.int64))
    data = ImageData("table", table, table, ("a",))
    with pytest.raises(ValueError, match=r"'table' holds float32 rows: give views of your own"):
        TrainingPairs(data, TrainConfig(batch_size=4), torch.device("cpu"), slice(None))
    pairs = TrainingPairs(data, TrainConfig(batch_size=4), torch.device("cpu"), slice(None), lambda x, g: (x, -x))
    batches = list(pairs.epoch(0))
    assert len(batches) == 4 and all(torch.equal(a, -b) and a.shape == (4, 3) for a, b in batches)
    assert sorted(torch.cat([a for a, _ in batches]).tolist()) == sorted(TABLE.tolist())

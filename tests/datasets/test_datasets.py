"""Loading by name, CIFAR-10, the built-in sets, and the classes `Images` and `ImageData`."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits

from hsic_lab.datasets import ImageData, Images, data_folder, from_arrays, load, status
from hsic_lab.datasets._folders import content_digest
from hsic_lab.datasets.digit_scenes import digit_index

FILES = [*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin"]
NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


@pytest.fixture(autouse=True)
def no_data_variable(monkeypatch):
    monkeypatch.delenv("HSIC_LAB_DATA", raising=False)


def write_cifar10(folder, n=3, seed=0):
    """A small CIFAR-10 in the official format, written with NumPy; returns (6, n) labels and the pixels."""
    path = folder / "cifar-10-batches-bin"
    path.mkdir(parents=True)
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 10, (6, n), dtype=np.uint8)
    pixels = generator.integers(0, 256, (6, n, 3, 32, 32), dtype=np.uint8)
    for name, y, x in zip(FILES, labels, pixels, strict=True):
        (path / name).write_bytes(b"".join(bytes([a]) + b.tobytes() for a, b in zip(y, x, strict=True)))
    (path / "batches.meta.txt").write_text("\n".join(NAMES) + "\n\n")
    return path, labels, pixels


def test_cifar10_round_trip(tmp_path):
    _, labels, pixels = write_cifar10(tmp_path, n=4)
    data = load("cifar10", tmp_path)
    assert data.name == "cifar10" and data.class_names == tuple(NAMES)
    assert data.unlabelled is None and data.scenes is None
    assert np.array_equal(data.train.images, pixels[:5].reshape(-1, 3, 32, 32))
    assert np.array_equal(data.train.labels, labels[:5].reshape(-1))
    assert np.array_equal(data.test.images, pixels[5])
    assert np.array_equal(data.test.labels, labels[5])


@pytest.mark.parametrize("missing", [*FILES, "batches.meta.txt"])
def test_error_names_the_missing_cifar10_file(tmp_path, missing):
    path, _, _ = write_cifar10(tmp_path)
    (path / missing).unlink()
    with pytest.raises(FileNotFoundError) as error:
        load("cifar10", tmp_path)
    assert f"no {missing} in {path}" in str(error.value)
    assert not any(name in str(error.value) for name in set(FILES) - {missing})


def test_error_for_absent_cifar10_names_folder_and_remedy(tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        load("cifar10", tmp_path)
    archive = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
    for part in (tmp_path, archive, "HSIC_LAB_DATA", *FILES):
        assert str(part) in str(error.value)


@pytest.mark.parametrize(
    "name, content, found",
    [
        ("data_batch_3.bin", b"", "has 0 bytes"),
        ("data_batch_1.bin", bytes(3073 * 2 - 1), "has 6145 bytes"),
        ("test_batch.bin", bytes(3073 + 1), "has 3074 bytes"),
        ("data_batch_5.bin", bytes(3073) + b"\x0a" + bytes(3072), "record 1 has the label 10"),
        ("test_batch.bin", b"\xff" + bytes(3072), "record 0 has the label 255"),
        ("batches.meta.txt", b"airplane\nautomobile\n", "holds 2 class names"),
    ],
)
def test_cifar10_damaged_file(tmp_path, name, content, found):
    path, _, _ = write_cifar10(tmp_path)
    (path / name).write_bytes(content)
    with pytest.raises(ValueError) as error:
        load("cifar10", tmp_path)
    expected = "multiple of 3073" if "bytes" in found else "0..9" if "label" in found else "expected 10"
    for part in (str(path / name), found, expected, f"delete {path}; then `hsic-lab data get cifar10`"):
        assert part in str(error.value)


@pytest.mark.parametrize(
    "argument, variable, expected", [("a", "b", "a"), (None, "b", "b"), (None, "", "data"), (None, None, "data")]
)
def test_data_folder(monkeypatch, argument, variable, expected):
    if variable is not None:
        monkeypatch.setenv("HSIC_LAB_DATA", variable)
    assert str(data_folder(argument)) == expected


def test_status(tmp_path, monkeypatch):
    assert status("digits") == status("digit_scenes") == "ready"
    assert "absent; `hsic-lab data get cifar10`" in status("cifar10", tmp_path)
    path, _, _ = write_cifar10(tmp_path)
    monkeypatch.setenv("HSIC_LAB_DATA", str(tmp_path))
    assert status("cifar10") == "ready"
    (path / "data_batch_4.bin").unlink()
    assert "CIFAR-10 is incomplete" in status("cifar10")


def test_default_sizes_of_digit_scenes():
    data = load("digit_scenes")
    assert (len(data.train), len(data.test)) == (8000, 2000)


def test_cifar10_file_cut_between_two_records(tmp_path):
    path, _, _ = write_cifar10(tmp_path)
    cut = path / "data_batch_4.bin"
    cut.write_bytes(cut.read_bytes()[:-3073])
    with pytest.raises(ValueError, match=r"equally many records.*'data_batch_4.bin': 2.*data get cifar10"):
        load("cifar10", tmp_path)


def test_digits_equal_scikit_learn_digits():
    data, truth = load("digits"), load_digits()
    together = []
    for split, images in (("train", data.train), ("test", data.test)):
        index = digit_index(split)
        assert images.images.shape[1:] == (1, 8, 8)
        values = torch.round(images.images[:, 0].double() * 16 / 255).numpy()
        assert np.array_equal(values, truth.images[index])
        assert np.array_equal(images.labels, truth.target[index])
        together.append(index)
    assert torch.equal(torch.cat(together).sort().values, torch.arange(1797))  # disjoint, complete
    share = data.test.labels.bincount() / (data.test.labels.bincount() + data.train.labels.bincount())
    assert ((share > 0.24) & (share <= 0.25)).all()
    assert data.class_names == tuple("0123456789")


def test_digit_scenes_splits_and_options():
    data = load("digit_scenes", n_train=200, n_test=200, seed=3)
    assert isinstance(data, ImageData) and data.scenes.split == "train"
    assert (len(data.train), len(data.test)) == (200, 200)
    assert set(data.train.factors["digit"]) <= set(digit_index("train").tolist())
    assert set(data.test.factors["digit"]) <= set(digit_index("test").tolist())
    again, longer, other = (
        load("digit_scenes", n_train=n, n_test=200, seed=seed) for n, seed in ((200, 3), (300, 3), (200, 4))
    )
    assert torch.equal(again.train.images, data.train.images)
    assert torch.equal(longer.test.images, data.test.images)  # the test split does not depend on n_train
    assert not torch.equal(other.train.images, data.train.images)
    assert load("digit_scenes", n_train=8, n_test=8, n_validation=None).source["n_validation"] is None
    assert not np.allclose(data.train.factors["x"], data.test.factors["x"])  # the splits' draws differ


def small_images(n=5):
    return Images(torch.arange(n * 4, dtype=torch.uint8).view(n, 1, 2, 2), torch.arange(n),
                  pd.DataFrame({"x": np.arange(n) / 10}))  # fmt: skip


@given(st.lists(st.integers(-5, 4), max_size=8), st.sampled_from(["list", "tensor", "mask", "slice"]))
@settings(deadline=None, max_examples=60)
def test_subset_is_numpy_indexing(positions, form):
    if form == "mask":
        index = torch.zeros(5, dtype=torch.bool).scatter(0, torch.tensor(positions).long() % 5, True)
    elif form == "slice" and positions:
        index = slice(*(abs(p) for p in positions[:2]))
    elif form == "tensor":
        index = torch.tensor(positions, dtype=torch.int64)
    else:
        index = positions
    full = small_images()
    part = full.subset(index)
    numpy_index = np.array(index, dtype=int) if isinstance(index, list) else index
    expected = np.arange(5)[numpy_index.numpy() if isinstance(index, torch.Tensor) else numpy_index]
    assert np.array_equal(part.labels, expected)
    assert np.array_equal(part.images, full.images.numpy()[expected])
    assert np.array_equal(part.factors["x"], expected / 10)
    assert list(part.factors.index) == list(range(len(part)))


def test_float32_rows_of_any_shape():
    table = Images(torch.randn(6, 4), torch.tensor([0, 0, 0, 1, 1, 1]))
    assert len(table) == 6 and torch.equal(table.subset([2, 0]).images, table.images[[2, 0]])
    data = ImageData("table", table, table.sample(2), ("a", "b"))
    assert data.trained_on[0] is table.images and data.fingerprint.startswith("6 x 4 (")


def test_sample_keeps_all_classes_of_a_sorted_split():
    labels = torch.arange(60) // 20
    ordered = Images(torch.zeros(60, 1, 2, 2, dtype=torch.uint8), labels)
    assert ordered.sample(6).labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert ordered.subset(torch.arange(60) * 7 % 60).sample(6).labels.tolist() == labels[torch.arange(6) * 7].tolist()
    assert ordered.sample(100) is ordered, "at most all, and no copy"


def test_sample_reads_only_its_own_images():
    """A split may be larger than the memory: a memory map of a folder of images."""
    read = []

    class Mapped(torch.Tensor):
        @classmethod
        def __torch_function__(cls, function, types, args=(), kwargs=None):
            found = super().__torch_function__(function, types, args, kwargs or {})
            if function is torch.Tensor.__getitem__:
                read.append(len(found))
            return found

    images = torch.zeros(60, 1, 2, 2, dtype=torch.uint8).as_subclass(Mapped)
    assert len(Images(images, torch.arange(60) // 20).sample(6)) == 6
    assert sum(read) == 6


@pytest.mark.parametrize("folder", ["finished", "interrupted"])
def test_fingerprint_equals_that_of_kept_runs(folder):
    run = json.loads((Path(__file__).parents[1] / "data" / "version_0_1" / folder / "run.json").read_text())
    assert load("digits").fingerprint == run["facts"]["pictures"]


def test_content_digest_changes_with_every_image_and_label():
    images, labels = np.zeros((20, 6, 5), np.uint8), np.arange(20) % 2
    data = from_arrays(images, labels)
    found = {content_digest(data)}
    for part in ("train", "test"):
        for change in ("images", "labels"):
            values = getattr(getattr(data, part), change)
            other = values.clone()
            other[1] += 1
            found.add(content_digest(replace(data, **{part: replace(getattr(data, part), **{change: other})})))
    assert len(found) == 5 and content_digest(from_arrays(images, labels)) in found
    assert content_digest(data) == "1c7f77a2e1d9d93c", "as version 0.1 kept it"


PIXELS, LABELS = torch.zeros(3, 1, 2, 2, dtype=torch.uint8), torch.zeros(3, dtype=torch.int64)


def parts(train, test):
    return ImageData("set", Images(train, LABELS), Images(test, LABELS), ("a",))


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda: load("imagenet"), ValueError, r"'imagenet'.*cifar10, cifar100, .*mean 'tiny_imagenet'\?"),
        (lambda: load("digits", n_train=5), TypeError, "n_train"),
        (lambda: load("cifar10", path="elsewhere"), TypeError, "cifar10 has no option 'path'"),
        (lambda: load("digit_scenes", n_train=0), ValueError, "got 0"),
        (lambda: load("digit_scenes", n_train="many"), TypeError, "an integer of at least 1, got 'many'"),
        (lambda: digit_index("all"), ValueError, "'all'"),
        (lambda: Images(PIXELS.double(), LABELS), TypeError, "torch.float64"),
        (lambda: Images(PIXELS[:, 0, 0, 0].float(), LABELS), ValueError, r"\(3,\) and \(3,\)"),
        (lambda: Images(PIXELS, LABELS.int()), TypeError, "torch.int32"),
        (lambda: Images(PIXELS[0], LABELS), ValueError, r"\(1, 2, 2\)"),
        (lambda: Images(PIXELS, LABELS[:2]), ValueError, r"\(3, 1, 2, 2\) and \(2,\)"),
        (lambda: Images(PIXELS, LABELS, pd.DataFrame({"x": [1]})), ValueError, "1 rows, 3 images"),
        (lambda: Images(PIXELS, LABELS).subset(1), ValueError, "got 1"),
        (lambda: parts(PIXELS, PIXELS[..., :1]), ValueError, r"'train': \(1, 2, 2\), 'test': \(1, 2, 1\)"),
        (lambda: parts(PIXELS, PIXELS.float()), ValueError, r"one dtype.*'test': torch.float32"),
        (lambda: status("imagenet"), ValueError, "'imagenet'"),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()

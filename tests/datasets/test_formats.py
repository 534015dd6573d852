"""The published file formats: small files written with NumPy are read back, and damaged ones are refused."""

import gzip
import os
import struct
from pathlib import Path

import numpy as np
import pytest

from hsic_lab.datasets import load
from hsic_lab.datasets._published import SOURCES

RNG = np.random.default_rng(0)
FINE = [f"fine_{i}" for i in range(100)]
STL_NAMES = ["airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck"]


def images(n, *shape):
    return RNG.integers(0, 256, (n, *shape), dtype=np.uint8)


def write_cifar100(path):
    truth = {}
    for split, n in (("train", 5), ("test", 3)):
        coarse, fine = RNG.integers(0, 20, n, dtype=np.uint8), RNG.integers(0, 100, n, dtype=np.uint8)
        truth[split] = images(n, 3, 32, 32), fine
        rows = zip(coarse, fine, truth[split][0], strict=True)
        (path / f"{split}.bin").write_bytes(b"".join(bytes([c, f]) + x.tobytes() for c, f, x in rows))
    (path / "fine_label_names.txt").write_text("\n".join(FINE) + "\n\n")
    return truth


def idx(array):
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


def write_fashion_mnist(path):
    truth = {}
    for split, prefix, n in (("train", "train", 6), ("test", "t10k", 4)):
        truth[split] = images(n, 1, 28, 28), RNG.integers(0, 10, n, dtype=np.uint8)
        (path / f"{prefix}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(truth[split][0][:, 0])))
        (path / f"{prefix}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(truth[split][1])))
    return truth


def write_stl10(path):
    truth = {}
    for split, n in (("train", 4), ("test", 3), ("unlabeled", 5)):
        truth[split] = images(n, 3, 96, 96), RNG.integers(0, 10, n, dtype=np.uint8)
        columns = np.ascontiguousarray(truth[split][0].transpose(0, 1, 3, 2))  # column after column
        (path / f"{split}_X.bin").write_bytes(columns.tobytes())
        if split != "unlabeled":
            (path / f"{split}_y.bin").write_bytes((truth[split][1] + 1).tobytes())
    (path / "class_names.txt").write_text("\n".join(STL_NAMES) + "\n")
    return truth


WRITERS = {"cifar100": write_cifar100, "fashion_mnist": write_fashion_mnist, "stl10": write_stl10}


@pytest.fixture
def written(tmp_path, request):
    path = tmp_path / SOURCES[request.param].folder
    path.mkdir()
    return request.param, path, WRITERS[request.param](path)


@pytest.mark.parametrize("written", WRITERS, indirect=True)
def test_round_trip(written):
    name, path, truth = written
    data = load(name, path.parent)
    assert data.name == name
    for split in ("train", "test"):
        images, labels = truth[split]
        assert np.array_equal(getattr(data, split).images, images)
        assert np.array_equal(getattr(data, split).labels, labels)
    if name == "stl10":
        assert np.array_equal(data.unlabelled.images, truth["unlabeled"][0])
        assert data.unlabelled.labels.tolist() == [-1] * 5
        assert [len(part) for part in data.trained_on] == [4, 5]
        assert data.class_names == tuple(STL_NAMES)
    else:
        assert data.unlabelled is None and data.trained_on == (data.train.images,)
        assert data.class_names[:2] == (("fine_0", "fine_1") if name == "cifar100" else ("T-shirt/top", "Trouser"))


@pytest.mark.parametrize("written", ["stl10"], indirect=True)
def test_mapped_set_is_read_from_a_read_only_file_and_does_not_change_it(written):
    _, path, _ = written
    before = (path / "train_X.bin").read_bytes()
    (path / "train_X.bin").chmod(0o444)
    images = load("stl10", path.parent).train.images
    images[0] = 0
    assert (path / "train_X.bin").read_bytes() == before


@pytest.mark.parametrize("written", WRITERS, indirect=True)
def test_error_names_each_missing_file_and_the_remedy(written):
    name, path, _ = written
    for file in SOURCES[name].files:
        content = (path / file).read_bytes()
        (path / file).unlink()
        with pytest.raises(FileNotFoundError) as error:
            load(name, path.parent)
        (path / file).write_bytes(content)
        for part in (f"no {file} in {path}", f"hsic-lab data get {name}", "HSIC_LAB_DATA", *SOURCES[name].downloads):
            assert part in str(error.value)


def halved(content):
    return content[: len(content) // 2 + 1]


def recompressed(change):
    return lambda content: gzip.compress(change(gzip.decompress(content)))


FASHION_X, FASHION_Y = "train-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"
DAMAGES = [
    ("cifar100", "train.bin", halved, "multiple of 3074"),
    ("cifar100", "test.bin", lambda b: b"", "has 0 bytes"),
    ("cifar100", "test.bin", lambda b: b[:1] + b"\x64" + b[2:], "record 0 has the label 100, expected 0..99"),
    ("cifar100", "fine_label_names.txt", halved, "class names, expected 100"),
    ("fashion_mnist", FASHION_X, halved, "not a whole gzip file"),
    ("fashion_mnist", FASHION_X, lambda b: b"<html>", "not a whole gzip file"),
    ("fashion_mnist", FASHION_X, lambda b: b[:20] + b"\xff" * 10 + b[30:], "not a whole gzip file"),
    ("fashion_mnist", FASHION_X, recompressed(lambda b: b"\x00\x00\x0d" + b[3:]), "begins with 00 00 0d 03"),
    ("fashion_mnist", FASHION_X, recompressed(lambda b: b[:9]), "after 9 of 16 bytes"),
    ("fashion_mnist", FASHION_X, recompressed(lambda b: b[:-1]), "its header says 6 x 28 x 28"),
    ("fashion_mnist", FASHION_Y, recompressed(lambda b: b[:-1] + b"\x0a"), "record 3 has the label 10"),
    ("fashion_mnist", FASHION_Y, lambda b: gzip.compress(idx(np.zeros(3, np.uint8))), "4 images"),
    ("stl10", "unlabeled_X.bin", halved, "multiple of 27648"),
    ("stl10", "train_y.bin", halved, "holds 3 labels"),
    ("stl10", "test_y.bin", lambda b: b"\x00" + b[1:], "record 0 has the label 0, expected 1..10"),
]


@pytest.mark.parametrize("written, file, damage, found", DAMAGES, indirect=["written"])
def test_error_names_the_damage_and_the_remedy(written, file, damage, found):
    name, path, _ = written
    (path / file).write_bytes(damage((path / file).read_bytes()))
    with pytest.raises(ValueError) as error:
        load(name, path.parent)
    for part in (str(path / file), found, f"delete {path.absolute()}; then", f"hsic-lab data get {name}"):
        assert part in str(error.value)


OFFICIAL = {  # counts, mean pixel of the training images where the papers' code publishes it
    "cifar10": (50_000, 10_000, 10, (0.4914, 0.4822, 0.4465)),
    "cifar100": (50_000, 10_000, 100, (0.5071, 0.4865, 0.4409)),
    "fashion_mnist": (60_000, 10_000, 10, (0.2860,)),
    "stl10": (5_000, 8_000, 10, None),
    "tiny_imagenet": (None, None, None, None),  # all 200 classes or a few of them
}


@pytest.mark.parametrize("name", OFFICIAL)
def test_official_files(name):
    folder = os.environ.get("HSIC_LAB_DATA")
    if not folder or SOURCES[name].missing(Path(folder)):
        pytest.skip(f"no {name} under HSIC_LAB_DATA")
    data = load(name)
    n_train, n_test, n_classes, mean = OFFICIAL[name]
    n_classes = n_classes or len(data.class_names)
    n_train, n_test = n_train or 500 * n_classes, n_test or 50 * n_classes
    assert data.train.labels.bincount().tolist() == [n_train // n_classes] * n_classes
    assert data.test.labels.bincount().tolist() == [n_test // n_classes] * n_classes
    if mean:
        found = [data.train.images[:, c].double().mean().item() / 255 for c in range(len(mean))]
        assert np.allclose(found, mean, atol=1e-3)

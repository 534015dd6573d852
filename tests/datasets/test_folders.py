"""`from_folder` and `from_arrays`: layouts, decoding, the kept array, splits and refused input."""

import errno
import json
import os
import struct
import time
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from hsic_lab._io import replace_file
from hsic_lab.datasets import _folders as module
from hsic_lab.datasets import from_arrays, from_folder, load
from hsic_lab.datasets._folders import decode, decode_all
from hsic_lab.training._setup import data_of

RNG = np.random.default_rng(1)


def save(path, width=8, height=8, mode="RGB", seed=None, **options):
    """A random image; returns its pixels as the library must see them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (height, width) if mode == "L" else (height, width, len(mode))
    image = Image.fromarray(RNG.integers(0, 256, shape, dtype=np.uint8), mode)
    image.save(path, **options)
    return np.asarray(image.convert("RGB")).transpose(2, 0, 1)


def tree(root, splits=("train", "test"), n=3):
    return {
        (split, name): [save(root / split / name / f"{i}.png") for i in range(n)]
        for split in splits for name in ("ant", "bee")
    }  # fmt: skip


def test_splits_labels_and_order(tmp_path):
    truth = tree(tmp_path)
    save(tmp_path / "unlabelled" / "x.png")
    data = from_folder(tmp_path)
    assert data.name == str(tmp_path) and data.class_names == ("ant", "bee")
    for split in ("train", "test"):
        assert np.array_equal(getattr(data, split).images, np.stack(truth[split, "ant"] + truth[split, "bee"]))
        assert getattr(data, split).labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert data.unlabelled.labels.tolist() == [-1] and [len(part) for part in data.trained_on] == [6, 1]
    assert torch.equal(load(str(tmp_path)).train.images, data.train.images), "load takes a folder's path"
    (tmp_path / "unlabelled").rename(tmp_path / "train" / "unlabelled")
    within = from_folder(tmp_path)
    assert within.class_names == ("ant", "bee") and torch.equal(within.unlabelled.images, data.unlabelled.images)


def test_held_out_split_is_stratified_and_seeded(tmp_path):
    for name, n in (("ant", 10), ("bee", 5)):
        for i in range(n):
            save(tmp_path / name / f"{i}.png")
    save(tmp_path / "unlabelled" / "x.png")
    data, again, other = (from_folder(tmp_path, test_fraction=0.4, seed=seed) for seed in (0, 0, 1))
    assert data.class_names == ("ant", "bee") and len(data.unlabelled) == 1
    assert data.train.labels.bincount().tolist() == [6, 3] and data.test.labels.bincount().tolist() == [4, 2]
    together = torch.cat([data.train.images, data.test.images]).flatten(1)
    assert len(together.unique(dim=0)) == 15
    assert torch.equal(again.test.images, data.test.images) and not torch.equal(other.test.images, data.test.images)


@pytest.mark.parametrize("official", [True, False])
def test_tiny_imagenet_in_both_layouts(tmp_path, official):
    root = tmp_path / "tiny-imagenet-200"
    ids = ["n02", "n01"]
    truth = {}
    for number, wnid in enumerate(ids):
        inner = "images/" if official else ""
        mode = "RGB" if number else "L"
        truth["train", wnid] = [save(root / "train" / wnid / f"{inner}{wnid}_{i}.png", 64, 64, mode) for i in range(3)]
        place = root / "val" / ("images" if official else wnid)
        truth["val", wnid] = [save(place / f"val_{2 * i + number}.png", 64, 64, mode) for i in range(2)]
        (root / "train" / wnid / f"{wnid}_boxes.txt").write_text("not an image")
    (root / "words.txt").write_text("n00\tnothing\nn01\tgoldfish, Carassius auratus\nn02\tbullfrog\n")
    if official:
        lines = [f"val_{2 * i + number}.png\t{wnid}\t0\t0\t62\t62" for i in range(2) for number, wnid in enumerate(ids)]
        (root / "val" / "val_annotations.txt").write_text("\n".join(lines) + "\n")
    data = load("tiny_imagenet", tmp_path)
    assert data.class_names == ("goldfish", "bullfrog") and data.train.images.shape == (6, 3, 64, 64)
    assert data.train.labels.tolist() == [0, 0, 0, 1, 1, 1] and data.test.labels.tolist() == [0, 0, 1, 1]
    for split, images in (("train", data.train.images), ("val", data.test.images)):
        assert np.array_equal(images, np.stack(truth[split, "n01"] + truth[split, "n02"]))
    if official:
        (root / "val" / "images" / "val_0.png").unlink()
        with pytest.raises(FileNotFoundError, match=r"val_0\.png.*hsic-lab data get tiny_imagenet"):
            load("tiny_imagenet", tmp_path)
        (root / "val" / "val_annotations.txt").write_text("val_0.png n01\n")
        with pytest.raises(ValueError, match=r"val_annotations\.txt has the line 'val_0.png n01'"):
            load("tiny_imagenet", tmp_path)


@pytest.mark.parametrize("mode, extension", [("L", "png"), ("RGBA", "png"), ("RGB", "bmp"), ("CMYK", "jpg")])
def test_every_mode_becomes_rgb(tmp_path, mode, extension):
    save(tmp_path / f"x.{extension}", 5, 7, mode)
    with Image.open(tmp_path / f"x.{extension}") as image:
        expected = np.asarray(image.convert("RGB")).transpose(2, 0, 1)
    assert np.array_equal(decode(tmp_path / f"x.{extension}", None, []), expected) and expected.shape == (3, 7, 5)


@pytest.mark.parametrize("width, height", [(40, 20), (20, 40), (21, 33), (8, 8), (5, 9)])
def test_resize_the_shorter_side_and_crop_the_center(tmp_path, width, height):
    """A ramp across the longer side stays centered: left and right (top and bottom) lose the same."""
    ramp = np.linspace(0, 255, max(width, height)).astype(np.uint8)
    pixels = np.broadcast_to(ramp if width >= height else ramp[:, None], (height, width))
    Image.fromarray(pixels.copy()).save(tmp_path / "x.png")
    found = decode(tmp_path / "x.png", 10, []).astype(float)
    assert found.shape == (3, 10, 10)
    along = found[0].mean(0 if width >= height else 1)
    assert abs(along.mean() - ramp.mean()) < 255 / 20
    step = 255 * min(width, height) / max(width, height) / 10
    assert np.allclose(np.diff(along)[2:-2], step, atol=0.25 * step + 2)


def test_exif_orientation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter clockwise
    pixels = save(tmp_path / "x.png", 4, 6, exif=exif)
    assert np.array_equal(decode(tmp_path / "x.png", None, []), np.rot90(pixels, -1, (1, 2)))


@pytest.fixture
def cache(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("cache") / "of images"
    monkeypatch.setenv("HSIC_LAB_CACHE", str(folder))
    return folder


def kept(cache):
    return sorted(path.name for path in cache.iterdir() if path.suffix == ".npy")


def test_images_are_decoded_once_and_again_after_a_change(tmp_path, monkeypatch, cache):
    tree(tmp_path)
    first = from_folder(tmp_path)
    (name,) = kept(cache)
    with monkeypatch.context() as patch:
        decoded = []
        patch.setattr(module, "decode", lambda path, *how: decoded.append(path) or decode(path, *how))
        assert torch.equal(from_folder(tmp_path).train.images, first.train.images)
        assert len(decoded) == 1, "the first one, for the shape"
    image = save(tmp_path / "train" / "ant" / "0.png")
    os.utime(tmp_path / "train" / "ant" / "0.png", ns=(1, 1))
    assert np.array_equal(from_folder(tmp_path).train.images[0], image)
    assert len(kept(cache)) == 1 and kept(cache) != [name], "the former array is removed"
    from_folder(tmp_path, size=4)
    assert len(kept(cache)) == 2, "another size has its own array"
    assert sorted(os.listdir(tmp_path)) == ["test", "train"], "nothing is written to the folder of images"


def test_sets_of_equal_names_sizes_and_times_are_told_apart(tmp_path, cache):
    for root in ("one", "two"):
        for i in range(5):
            save(tmp_path / root / "a" / f"{i}.bmp")
            os.utime(tmp_path / root / "a" / f"{i}.bmp", (1, 1))
    one, two = (from_folder(tmp_path / root) for root in ("one", "two"))
    assert not torch.equal(one.train.images, two.train.images)


def test_cache_is_bounded_and_cleaned(tmp_path, cache, monkeypatch):
    tree(tmp_path)
    cache.mkdir()
    own, mine = f"{'0a' * 8}-64px-{'1b' * 8}.npy", ["a-b-c.npy", ".a-b-c.npy.swp", "mine.npy.3"]
    young, old = (f".{own}.{number * 32}" for number in "12")
    for name in (young, old, own, *mine):
        (cache / name).write_bytes(bytes(2000))
        if name != young:
            os.utime(cache / name, (1, 1))
    from_folder(tmp_path)
    left = {path.name for path in cache.iterdir()} - {*kept(cache)}
    assert left == {young, *mine} - {*kept(cache)}, "the first may belong to a living process"
    monkeypatch.setattr("hsic_lab.datasets._folders.CACHE_BYTES", int(12 * 3 * 8 * 8 * 2.5))
    for i in range(4):
        time.sleep(0.01)
        tree(tmp_path / f"more{i}")
        from_folder(tmp_path / f"more{i}")
    assert 1 <= len({*kept(cache)} - {*mine}) <= 2 and own not in kept(cache), "the oldest arrays are removed"
    assert all((cache / name).exists() for name in mine)
    with pytest.raises(ValueError, match=r"12 decoded images of 30000 x 30000 pixels take 30.2 GiB, more than"):
        from_folder(tmp_path, size=30000)


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(path.read_bytes()[:-1]),
        lambda path: path.write_bytes(path.read_bytes()[:-32]),
        lambda path: path.write_bytes((content := path.read_bytes())[:-33] + bytes([content[-33] ^ 1]) + content[-32:]),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"\x93NUMPY" + bytes(99)),
        lambda path: np.save(path, np.zeros((12, 3, 5, 5), np.uint8)),
        lambda path: np.save(path, np.zeros((12, 3, 8, 8), np.float32)),
    ],
)
def test_damaged_array_is_made_again(tmp_path, cache, damage):
    tree(tmp_path)
    truth = from_folder(tmp_path).train.images.clone()
    damage(cache / kept(cache)[0])
    assert torch.equal(from_folder(tmp_path).train.images, truth)
    assert np.load(cache / kept(cache)[0]).shape == (12, 3, 8, 8)


def test_failed_decoding_leaves_no_file(tmp_path, cache):
    tree(tmp_path)
    (tmp_path / "train" / "bee" / "2.png").write_bytes(b"not an image")
    with pytest.raises(ValueError, match=r"bee/2\.png is not an image that can be read.*Replace or remove it"):
        from_folder(tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["test", "train"] and not list(cache.iterdir())


def test_all_broken_images_are_named_at_once(tmp_path, cache):
    tree(tmp_path)
    for name in ("ant/0.png", "bee/0.png", "bee/2.png"):
        (tmp_path / "train" / name).write_bytes(b"not an image")
    with pytest.raises(ValueError, match=r"ant/0\.png is not an image") as caught:
        from_folder(tmp_path)
    places = [str(tmp_path / "train" / "bee" / name) for name in ("0.png", "2.png")]
    assert str(caught.value).endswith(f". Nor can {', '.join(places)} be read: 3 of 12 files")
    for number in range(12):
        (tmp_path / "train" / "bee" / f"{number}.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"bee/6\.png, 3 more be read: 13 of 21 files$"):
        from_folder(tmp_path)
    assert not list(cache.iterdir())


def no_space(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("kind", ["a file in its place", "a full disk"])
def test_folder_that_cannot_keep_the_decoded_images_is_named(tmp_path, cache, monkeypatch, kind):
    save(tmp_path / "x.png")
    if kind == "a full disk":
        monkeypatch.setattr(os, "posix_fallocate", no_space)
    else:
        cache.write_text("")
    with pytest.raises(OSError, match=r"(No space|File exists).*192 bytes must fit there, or HSIC_LAB_CACHE"):
        decode_all([tmp_path / "x.png"], None, tmp_path)
    assert cache.is_file() or not list(cache.iterdir())


def broken(path, content=b""):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def truncated(path):
    save(path, 64, 64)
    broken(path, path.read_bytes()[:500])


@pytest.mark.parametrize(
    "make, error, words",
    [
        (lambda p: p.rmdir(), FileNotFoundError, "no folder"),
        (lambda p: save(p / "x.txt", format="png"), ValueError, "no sub-folder"),
        (lambda p: save(p / "x.png"), ValueError, "less than one image"),
        (lambda p: save(p / "set" / "a" / "x.png"), ValueError, "one folder, which holds folders itself: give .*set"),
        (lambda p: save(p / "a" / "train" / "x.png"), ValueError, "folder .*a. one folder|one folder"),
        (lambda p: [save(p / c / s / "x.png") for c in "ab" for s in ("train", "test")], ValueError, "expected test/a"),
        (lambda p: save(p / "test" / "a" / "x.png"), ValueError, "the folders test, which are no clear pair"),
        (lambda p: tree(p, ("train", "Training", "test")), ValueError, "folders Training, train, test, which are no"),
        (lambda p: tree(p, ("train", "test", "Test")), ValueError, "no clear pair of splits: train_folder"),
        (lambda p: broken(p / "a" / "x.txt"), ValueError, r"a holds no image; accepted.*\.jpeg"),
        (lambda p: truncated(p / "a" / "x.jpg"), ValueError, r"x\.jpg is not an image.*(?i:truncated)"),
        (lambda p: Image.fromarray(np.zeros((4, 4), np.uint16)).save(_made(p / "a") / "x.png"), ValueError, "'I;16'"),
        (lambda p: (save(p / "a" / "0.png"), save(p / "a" / "1.png", 9)), ValueError, r"1\.png has 9 x 8.*0\.png 8 x"),
        (lambda p: save(p / "train" / "a" / "x.png"), ValueError, "neither test nor val"),
        (lambda p: (save(p / "train" / "a" / "x.png"), save(p / "test" / "b" / "x.png")), ValueError, "class 'b'"),
        (lambda p: save(p / "a" / "x.png"), ValueError, "less than one image"),
    ],
)
def test_bad_folders(tmp_path, make, error, words):
    folder = tmp_path / "set"
    folder.mkdir()
    make(folder)
    with pytest.raises(error, match=words):
        from_folder(folder)


def _made(path):
    path.mkdir(parents=True)
    return path


GRAY = RNG.integers(0, 256, (10, 6, 5), dtype=np.uint8)
COLOR = RNG.integers(0, 256, (10, 6, 5, 3), dtype=np.uint8)
LABELS = np.array(["b", "a"] * 5)


@pytest.mark.parametrize(
    "images, expected",
    [
        (GRAY, GRAY[:, None]),
        (GRAY[..., None], GRAY[:, None]),
        (COLOR, COLOR.transpose(0, 3, 1, 2)),
        (torch.from_numpy(COLOR).permute(0, 3, 1, 2), COLOR.transpose(0, 3, 1, 2)),
        (COLOR / 255, COLOR.transpose(0, 3, 1, 2)),
    ],
)
def test_arrays(images, expected):
    data = from_arrays(images, LABELS, images, LABELS)
    for part in (data.train, data.test):
        assert np.array_equal(part.images, expected)
    assert data.train.labels.tolist() == [1, 0] * 5 and data.class_names == ("a", "b") and data.unlabelled is None
    for strings in (pd.Series(["b", "a"] * 5), np.array(["b", "a"] * 5, dtype=object)):
        assert from_arrays(images, strings, images, strings).test.labels.tolist() == [1, 0] * 5
    alone = from_arrays(images, [7, 3] * 5)
    assert alone.class_names == ("3", "7") and (len(alone.train), len(alone.test)) == (8, 2)


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: from_arrays(GRAY, LABELS, GRAY), "test_images and test_labels"),
        (lambda: from_arrays(GRAY, LABELS, GRAY, ["c"] * 10), "test_labels holds 'c'"),
        (lambda: from_arrays(GRAY, LABELS[:9]), r"\(9,\)"),
        (lambda: from_arrays(GRAY, np.zeros(10)), "float64"),
        (lambda: from_arrays(GRAY[0], LABELS), r"got \(6, 5\)"),
        (lambda: from_arrays(COLOR[:, :3], LABELS), r"\(10, 3, 5, 3\): on both"),
        (lambda: from_arrays(COLOR[..., :2], LABELS), r"\(10, 6, 5, 2\): on neither"),
        (lambda: from_arrays(COLOR / 1.0, LABELS), "values from 0 to 255"),
        (lambda: from_arrays(GRAY, LABELS, test_fraction=1.0), "got 1.0"),
    ],
)
def test_bad_arrays(call, words):
    with pytest.raises(ValueError, match=words), warnings.catch_warnings():
        call()


@pytest.mark.parametrize(("option", "words"), [({"test_fraction": 7}, "got 7"), ({"seed": -3}, "got -3")])
def test_options_of_the_split_are_checked_where_the_folders_make_it(tmp_path, option, words):
    for split in ("train", "test"):
        save(tmp_path / split / "a" / "0.png")
    with pytest.raises(ValueError, match=words):
        from_folder(tmp_path, **option)


def test_arrays_with_negative_strides_or_foreign_byte_order():
    bgr = RNG.integers(0, 256, (10, 6, 5, 3), dtype=np.uint8)
    rgb = bgr[..., ::-1]
    assert np.array_equal(from_arrays(rgb, LABELS).train.images, from_arrays(rgb.copy(), LABELS).train.images)
    floats = (bgr / 255).astype(">f4")
    assert np.array_equal(from_arrays(floats, LABELS).test.images, from_arrays(bgr, LABELS).test.images)


def test_held_out_part_is_not_affected_by_rounding_of_decimals():
    images, labels = np.zeros((200, 6, 5), np.uint8), np.repeat([0, 1], 100)
    assert from_arrays(images, labels, test_fraction=0.29).test.labels.bincount().tolist() == [29, 29]


@pytest.mark.parametrize(
    "more, words",
    [
        ({"test_images": GRAY[:, :3], "test_labels": LABELS}, r"'train': \(1, 6, 5\), 'test': \(1, 3, 5\)"),
        ({"test_images": COLOR, "test_labels": LABELS}, r"'train': \(1, 6, 5\), 'test': \(3, 6, 5\)"),
    ],
)
def test_all_parts_of_a_set_must_have_one_shape(more, words):
    with pytest.raises(ValueError, match=words):
        from_arrays(GRAY, LABELS, **more)


def test_color_image_with_sixteen_bits_a_channel_is_refused(tmp_path):
    def chunk(kind, content):
        body = kind + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0)
    row = b"\0" + struct.pack(">6H", 256, 65535, 0, 1, 2, 3)
    path = tmp_path / "deep.png"
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(row)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunks)
    with pytest.raises(ValueError, match=r"deep\.png .*'RGB' \(RGB;16B\), not 8 bits a channel"):
        decode(path, None, [])


@pytest.mark.parametrize("size", [0, -3, 16.0, "16", True])
def test_size_must_be_a_number_of_pixels(tmp_path, size):
    tree(tmp_path)
    with pytest.raises((TypeError, ValueError), match=f"size must be an integer of at least 1, got {size!r}"):
        from_folder(tmp_path, size=size)


def test_threads_may_decode_the_same_folder(tmp_path):
    tree(tmp_path, n=20)
    with ThreadPoolExecutor(4) as pool:
        read = list(pool.map(lambda _: from_folder(tmp_path).train.images.clone(), range(4)))
    assert all(torch.equal(images, read[0]) for images in read)


def test_threads_may_write_the_same_file(tmp_path):
    def write(number):
        replace_file(tmp_path / "file", lambda path: path.write_text(str(number) * 1000))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(200)))
    assert len(set((tmp_path / "file").read_text())) <= 3 and [path.name for path in tmp_path.iterdir()] == ["file"]


def test_image_with_five_bits_a_channel_is_read(tmp_path):
    pixels = struct.pack("<2H", 0b11111_000000_00000, 0b00000_111111_00000)  # red and green
    header = struct.pack("<IiiHHIIiiII", 40, 2, 1, 1, 16, 3, len(pixels), 0, 0, 0, 0)
    header += struct.pack("<3I", 0xF800, 0x07E0, 0x001F)
    path = tmp_path / "565.bmp"
    start = 14 + len(header)
    path.write_bytes(b"BM" + struct.pack("<IHHI", start + len(pixels), 0, 0, start) + header + pixels)
    assert decode(path, None, [])[:, 0].T.tolist() == [[255, 0, 0], [0, 255, 0]]


def test_memory_map_is_not_copied(tmp_path):
    images = RNG.integers(0, 256, (10, 3, 6, 5), dtype=np.uint8)
    np.save(tmp_path / "x.npy", images)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = from_arrays(mapped, LABELS, mapped, LABELS)
    assert data.train.images.data_ptr() == mapped.ctypes.data
    assert np.array_equal(from_arrays(mapped[..., ::-1], LABELS, mapped, LABELS).train.images, images[..., ::-1])


@pytest.mark.parametrize("train", ["train", "Train", "TRAIN", "training", "train_images", "seg_train", "train2017"])
@pytest.mark.parametrize("test", ["test", "Test", "TESTING", "valid", "val", "Validation", "dev", "eval", "val2017"])
def test_splits_in_any_usual_spelling(tmp_path, train, test):
    if (train.lower() in module.SPLITS) != (test.lower() in module.SPLITS) and "20" not in train + test:
        pytest.skip("names of one style go together")
    truth = tree(tmp_path, (train, test), 1)
    data = from_folder(tmp_path)
    assert data.class_names == ("ant", "bee") and data.source["train_folder"] is None
    for split, part in ((train, data.train), (test, data.test)):
        assert np.array_equal(part.images, np.stack([*truth[split, "ant"], *truth[split, "bee"]]))


def test_folders_that_only_contain_the_words_of_splits_are_classes(tmp_path):
    for name in ("bullet_train", "car", "test tube"):
        for i in range(5):
            save(tmp_path / name / f"{i}.png")
    assert from_folder(tmp_path).class_names == ("bullet_train", "car", "test tube")


def test_train_folder_says_what_the_names_do_not(tmp_path):
    tree(tmp_path, ("train", "dev", "mine"), 5)
    with pytest.warns(UserWarning, match="not read: the folder mine"):
        assert len(from_folder(tmp_path).train) == 10
    with pytest.warns(UserWarning, match="not read: the folder train"):
        data = from_folder(tmp_path, train_folder="mine")
    assert data.class_names == ("ant", "bee") and len(data.test) == 10 and data.source["train_folder"] == "mine"
    data = from_folder(tmp_path, train_folder=".")
    assert data.class_names == ("dev", "mine", "train") and (len(data.train), len(data.test)) == (24, 6)
    with pytest.raises(ValueError, match=r"train_folder must be a folder in .* got '\.\./"):
        from_folder(tmp_path / "train", train_folder="../mine")
    with pytest.raises(ValueError, match=r"train_folder must be a folder in .* got 'nothing'"):
        from_folder(tmp_path, train_folder="nothing")


@pytest.mark.parametrize("splits", [[""], ["train", "valid"]])
def test_images_in_no_folder_have_no_labels(tmp_path, splits):
    truth = [[save(tmp_path / split / f"{i}.png") for i in range(10)] for split in splits]
    save(tmp_path / "unlabelled" / "x.png")
    data = from_folder(tmp_path)
    assert data.class_names == () and set(data.train.labels.tolist()) == set(data.test.labels.tolist()) == {-1}
    assert (len(data.train), len(data.test), len(data.unlabelled)) == ((8, 2, 1) if len(splits) == 1 else (10, 10, 1))
    together = torch.cat([data.train.images, data.test.images]).flatten(1)
    assert len(together.unique(dim=0)) == sum(map(len, truth))


def test_linked_folders_are_followed_and_loops_are_not(tmp_path):
    tree(tmp_path / "set", ("",), 5)
    save(tmp_path / "elsewhere" / "deep" / "x.png")
    (tmp_path / "set" / "ant" / "more").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (tmp_path / "elsewhere" / "again").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    for name, goal in (("up", tmp_path / "set"), ("self", tmp_path / "set" / "bee"), ("root", "/")):
        (tmp_path / "set" / "bee" / name).symlink_to(goal, target_is_directory=True)
    data = from_folder(tmp_path / "set")
    assert torch.cat([data.train.labels, data.test.labels]).bincount().tolist() == [6, 5]


@pytest.mark.parametrize("names", [("tr", "te"), ("fold0", "fold1"), ("real", "fake")])
def test_folders_that_hold_the_same_folders_may_be_splits(tmp_path, names):
    tree(tmp_path, names, 3)
    with pytest.raises(ValueError, match="holds the folders ant, bee, as splits do: train_folder"):
        from_folder(tmp_path)
    assert from_folder(tmp_path, train_folder=".", test_fraction=0.4).class_names == tuple(sorted(names))
    assert from_folder(tmp_path, train_folder=names[0], test_fraction=0.4).class_names == ("ant", "bee")


def test_folder_that_cannot_be_read_is_an_error(tmp_path, monkeypatch):
    tree(tmp_path, ("",), 5)
    save(tmp_path / "ant" / "locked" / "x.png")
    scan = os.scandir

    def refuse(path="."):  # the tests may run as root, which no mode of a folder stops
        if Path(path).name == "locked":
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(PermissionError, match="locked"):
        from_folder(tmp_path)


def test_link_to_nothing_is_counted_as_not_read(tmp_path):
    tree(tmp_path, ("",), 5)
    (tmp_path / "cat").symlink_to(tmp_path / "nowhere")
    with pytest.warns(UserWarning, match="not read: 1 files ending in ''"):
        from_folder(tmp_path)


def test_what_is_not_read_is_counted_in_a_warning(tmp_path):
    tree(tmp_path, ("train", "test", "val"))
    for name in ("train/ant/a.heic", "test/bee/b.HEIC", "train/ant/c.avif", "train/.hidden.heic", "train/list.txt"):
        (tmp_path / name).write_bytes(b"")
    save(tmp_path / "train" / "loose.png")
    with pytest.warns(UserWarning) as said:
        from_folder(tmp_path)
    (words,) = (str(one.message).partition("not read: ")[2] for one in said)
    assert words == (
        "1 images outside the class folders, the folder val, 1 files ending in '.avif', 2 files ending in '.heic', "
        "1 files ending in '.txt'"
    )


def test_names_that_are_not_utf8(tmp_path):
    for i in range(5):
        save(tmp_path / "a" / f"{i}.png").tofile(tmp_path / "raw")
        os.rename(tmp_path / "a" / f"{i}.png", os.fsencode(tmp_path / "a") + b"/caf\xe9%d.png" % i)
    (tmp_path / "raw").unlink()
    os.rename(tmp_path / "a", os.fsencode(tmp_path) + b"/\xe4")
    data = from_folder(tmp_path)
    assert data.class_names == ("\\xe4",) and len(data.train) == 4
    assert torch.equal(from_folder(tmp_path).train.images, data.train.images)
    for size, words in ((0, "not an image"), (9, "pixels")):
        save(tmp_path / "x.png", size, size) if size else (tmp_path / "x.png").touch()
        os.rename(tmp_path / "x.png", os.fsencode(tmp_path) + b"/\xe4/caf\xe90.png")
        with pytest.raises(ValueError, match=words) as error:
            from_folder(tmp_path)
        assert r"caf\xe90.png" in str(error.value)


def test_source_makes_the_same_set_again(tmp_path):
    tree(tmp_path, ("",), 10)
    data = load(str(tmp_path), size=np.int64(5), test_fraction=0.5, seed=3)
    again = load(data.name, **json.loads(json.dumps(data.source)))
    assert again.fingerprint == data.fingerprint != load(str(tmp_path)).fingerprint
    assert load("digit_scenes", n_train=4, n_test=2).source == {"n_train": 4, "n_test": 2}
    assert load("digits").source == {} and from_arrays(GRAY, LABELS).source is None


def test_no_name_is_not_the_present_folder():
    for call in (load, from_folder):
        with pytest.raises(ValueError, match="''"):
            call("")


@pytest.mark.parametrize(
    ("names", "clear"),
    [
        (("bullet_train", "test_tube"), False), (("bullet_train", "test_tube", "freight_train"), False),
        (("TrainStation", "eval_board"), False), (("seg_train", "seg_test"), True),
        (("training_set", "test_set"), True),
        (("train2017", "val2017"), True), (("TrainImages", "TestImages"), True), (("X_train", "X_test"), True),
        (("train", "test1"), True), (("train", "test_images"), True),
    ],
)  # fmt: skip
def test_compound_names_are_splits_only_if_they_agree_in_the_rest(tmp_path, names, clear):
    for name in names:
        for i in range(6):
            save(tmp_path / name / f"{i}.png")
    if clear:
        assert [len(part) for part in (from_folder(tmp_path).train, from_folder(tmp_path).test)] == [6, 6]
        return
    with pytest.raises(ValueError, match=r"no clear pair of splits: train_folder \(--train-folder\)"):
        from_folder(tmp_path)
    assert from_folder(tmp_path, train_folder=".").class_names == tuple(sorted(names))


def test_transparent_pixels_are_said_with_their_count(tmp_path, cache):
    for i in range(6):
        save(tmp_path / "a" / f"{i}.png")
    opaque = np.full((8, 8, 4), 255, np.uint8)
    Image.fromarray(opaque).save(tmp_path / "a" / "opaque.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        from_folder(tmp_path)
    opaque[0, 0, 3] = 0
    for mode in ("RGBA", "LA"):
        Image.fromarray(opaque).convert(mode).save(tmp_path / "a" / f"{mode}.png")
    Image.new("P", (8, 8)).save(tmp_path / "a" / "P.png", transparency=0)
    with pytest.warns(UserWarning, match=r"3 of 10 images have transparent pixels, for example .*LA\.png"):
        from_folder(tmp_path)


def test_file_put_in_place_of_another_is_read_whatever_its_size_and_time(tmp_path, cache):
    files = [tmp_path / "a" / f"{i}.bmp" for i in range(6)]
    for path in files:
        save(path)
    from_folder(tmp_path)
    for path in files:
        times = path.stat().st_atime_ns, path.stat().st_mtime_ns
        save(path.with_suffix(".new.bmp"))
        path.with_suffix(".new.bmp").replace(path)
        os.utime(path, ns=times)
    data = from_folder(tmp_path)
    found = sorted(bytes(image.numpy().tobytes()) for part in (data.train, data.test) for image in part.images)
    assert found == sorted(decode(path, None, []).tobytes() for path in files)


@pytest.mark.parametrize("dtype", ["int64", "int32", "uint16", "bool", "int8"])
@pytest.mark.parametrize("wrap", [np.asarray, torch.as_tensor])
def test_images_of_other_integers_raise_with_a_remedy(dtype, wrap):
    images = wrap(np.ones((10, 8, 8), dtype))
    with pytest.raises(
        TypeError, match=rf"^images must be uint8 or floats .*, got (torch\.)?{dtype}: convert to uint8"
    ):
        from_arrays(images, np.arange(10) % 2)
    with pytest.raises(TypeError, match=r"^test_images must be uint8"):
        from_arrays(np.ones((10, 8, 8), np.uint8), np.arange(10) % 2, images, np.arange(10) % 2)


@pytest.mark.parametrize("changed", ["test images", "test labels", "training labels", "nothing"])
def test_data_of_a_run_are_compared_with_what_it_had(tmp_path, cache, changed):
    tree(tmp_path)
    data = from_folder(tmp_path)
    kept = {"pictures": data.fingerprint, "judged": data.judged, "source": data.source}
    if changed == "test images":
        save(tmp_path / "test" / "bee" / "1.png")
    elif changed != "nothing":
        split = "test" if changed == "test labels" else "train"
        (tmp_path / split / "ant" / "2.png").rename(tmp_path / split / "bee" / "0.0.png")
        assert from_folder(tmp_path).fingerprint == data.fingerprint
    if changed == "nothing":
        assert data_of(str(tmp_path), kept).judged == data.judged
        return
    with pytest.raises(ValueError, match=r"the run had other test images or labels, 6 x 3 x 8 x 8 \(\w+\); those of"):
        data_of(str(tmp_path), kept)
    del kept["judged"]
    assert data_of(str(tmp_path), kept).fingerprint == data.fingerprint, "an older run"

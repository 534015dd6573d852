"""Two views: geometry and color against torch, torchvision and Pillow; randomness; input checks."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from hsic_lab.views import TwoViews, color_maps, normalize, random_crops, resize_rows, resize_taps

STILL = dict(scale=(1, 1), ratio=(1, 1), flip=0, jitter=0, grayscale=0)  # every random operation off
GRAY = np.array([0.299, 0.587, 0.114])


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def photos(n=6, c=3, h=16, w=16, seed=1):
    return torch.randint(0, 256, (n, c, h, w), dtype=torch.uint8, generator=seeded(seed))


def test_normalize_is_exact_on_every_byte():
    every = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    expected = (np.arange(256, dtype=np.float64) / 127.5 - 1).reshape(1, 1, 16, 16)
    out = normalize(every)
    assert out.dtype == torch.float32 and out.min() == -1 and out.max() == 1
    np.testing.assert_allclose(out.numpy(), expected, atol=1e-7)
    for dtype in (torch.float32, torch.float64):
        torch.testing.assert_close(normalize(every.to(dtype) / 255), out, atol=1e-6, rtol=0)


# Geometry


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_views_with_everything_off_are_the_images(channels):
    images = photos(c=channels)
    for view in TwoViews(16, **STILL)(images, seeded()):
        assert torch.equal(view, normalize(images))


def test_flip_mirrors_exactly():
    images = photos(h=20, w=17)
    options = dict(jitter=0, grayscale=0)
    plain = TwoViews(8, flip=0, **options)(images, seeded())
    mirrored = TwoViews(8, flip=1, **options)(images, seeded())
    for a, b in zip(plain, mirrored, strict=True):
        assert torch.equal(a.flip(3), b)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 24), st.integers(1, 24), st.integers(1, 24), st.integers(0, 2**31))
def test_any_crop_equals_interpolate(height, width, size, seed):
    """Enlarging and antialiased shrinking, against torch's resize of each crop."""
    generator = seeded(seed)
    image = torch.rand(1, 2, height, width, generator=generator)
    crop = random_crops(torch.rand(1, 22, generator=generator), height, width, (0.05, 1.0), (0.5, 2.0))
    top, left, h, w = (int(x) for x in crop)
    assert 0 <= top <= top + h <= height and 0 <= left <= left + w <= width and h > 0 and w > 0
    down, across = resize_taps(crop[0], crop[2], height, size), resize_taps(crop[1], crop[3], width, size)
    ours = resize_rows(resize_rows(image, *down).transpose(2, 3), *across).transpose(2, 3)
    cut = image[:, :, top : top + h, left : left + w]
    oracle = F.interpolate(cut, (size, size), mode="bilinear", align_corners=False, antialias=True)
    torch.testing.assert_close(ours, oracle, atol=2e-5, rtol=0)


@pytest.mark.parametrize("shape", [(32, 32), (20, 45), (45, 20)])
def test_each_view_is_its_own_crop(shape):
    """There are more images than one chunk holds."""
    n = 5 + (1 << 20) // (12 * shape[0] * shape[1])
    images = photos(n, 3, *shape)
    views = torch.cat(TwoViews(12, flip=0, jitter=0, grayscale=0)(images, seeded(3)))
    draws = torch.rand(2 * n, 29, generator=seeded(3))[:, :22]
    crops = random_crops(draws, *shape, (0.2, 1.0), (3 / 4, 4 / 3))
    for row in (0, 1, n - 1, n, n + 1, 2 * n - 1):
        top, left, h, w = (int(x[row]) for x in crops)
        cut = images[row % n, :, top : top + h, left : left + w].float()[None]
        oracle = F.interpolate(cut, (12, 12), mode="bilinear", align_corners=False, antialias=True)[0]
        torch.testing.assert_close(views[row], oracle / 127.5 - 1, atol=1e-5, rtol=0)


def torchvision_crop(rng, height, width, scale, ratio):
    """torchvision's loop for one image."""
    for _ in range(10):
        area = height * width * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(*np.log(ratio)))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return rng.integers(0, height - h + 1), rng.integers(0, width - w + 1), h, w
    if width / height < ratio[0]:
        w, h = width, round(width / ratio[0])
    elif width / height > ratio[1]:
        w, h = round(height * ratio[1]), height
    else:
        w, h = width, height
    return (height - h) // 2, (width - w) // 2, h, w


@pytest.mark.parametrize(
    "height, width, scale", [(32, 32, (0.2, 1)), (32, 32, (0.9, 1)), (24, 60, (0.4, 1)), (60, 20, (0.6, 1))]
)
def test_crops_have_torchvisions_distribution(height, width, scale):
    ratio, m = (3 / 4, 4 / 3), 20_000
    rng = np.random.default_rng(0)
    oracle = np.array([torchvision_crop(rng, height, width, scale, ratio) for _ in range(m)], dtype=float)
    ours = torch.stack(random_crops(torch.rand(m, 22, generator=seeded()), height, width, scale, ratio), 1)
    ours = ours.double().numpy()

    def statistics(crop):
        top, left, h, w = crop.T
        area = h * w / (height * width)
        return np.stack([area, np.log(w / h), h, w, top, left, h**2, top * h, left * w], 1)

    ours, oracle = statistics(ours), statistics(oracle)
    error = np.sqrt((ours.var(0) + oracle.var(0)) / m)
    assert (abs(ours.mean(0) - oracle.mean(0)) <= 4 * error + 1e-12).all()


@pytest.mark.parametrize(
    "height, width, expected", [(10, 40, (0, 13, 10, 13)), (40, 10, (13, 0, 13, 10)), (1, 1, (0, 0, 1, 1))]
)
def test_fallback_is_the_central_crop(height, width, expected):
    crop = random_crops(torch.full((1, 22), 0.5), height, width, (1, 1), (3 / 4, 4 / 3))
    assert tuple(int(x) for x in crop) == expected


def test_several_views_have_their_own_sides_and_draws():
    images = photos(5, h=20, w=17)
    views = TwoViews([12, 8, 8, 16])(images, seeded())
    assert [tuple(view.shape) for view in views] == [(5, 3, side, side) for side in (12, 8, 8, 16)]
    assert not torch.equal(views[1], views[2])
    for view, alone in zip(views[1:3], TwoViews([16, 8, 8, 12])(images, seeded())[1:3], strict=True):
        assert torch.equal(view, alone)  # the sides of the other views do not matter


def test_probabilities_of_two_views_alternate_over_more():
    images = photos(c=3)
    views = TwoViews((16,) * 5, **STILL | {"flip": (0, 1)})(images, seeded())
    for number, view in enumerate(views):
        assert torch.equal(view, normalize(images).flip(3) if number % 2 else normalize(images))
    inverted = TwoViews((16,) * 3, **STILL, solarize=(0, 1))(images, seeded())
    assert torch.equal(inverted[0], inverted[2]) and (inverted[1] <= 0).all()


@pytest.mark.parametrize("size", [(16,), []])
def test_one_view_is_no_view(size):
    with pytest.raises(ValueError, match="those of at least two views, got"):
        TwoViews(size)


# Color


def color(images, brightness=1.0, contrast=1.0, saturation=1.0, hue=0.0):
    """Apply `color_maps` to float64 images `(n, 3, h, w)` by its formula."""
    n = len(images)
    factors = (torch.full((n,), v, dtype=torch.float64) for v in (brightness, contrast, saturation, hue))
    matrix, offset = (x.numpy() for x in color_maps(*factors))
    gray = np.einsum("c,nchw->n", GRAY, images) / images[0, 0].size
    return np.einsum("nkc,nchw->nkhw", matrix, images) + (offset * gray)[:, None, None, None]


def blend(image, other, factor):
    return factor * image + (1 - factor) * other


def pixel_gray(image):
    return np.tensordot(GRAY, image, 1)[None]


ORACLES = {  # of one image (3, h, w), as in Pillow's ImageEnhance
    "brightness": lambda image, v: v * image,
    "contrast": lambda image, v: blend(image, pixel_gray(image).mean(), v),
    "saturation": lambda image, v: blend(image, pixel_gray(image), v),
}


@pytest.mark.parametrize("name", ORACLES)
@pytest.mark.parametrize("factor", [0.0, 0.6, 1.0, 1.4])
def test_color_factor_follows_its_formula(name, factor):
    images = np.random.default_rng(0).uniform(size=(4, 3, 5, 7))
    expected = np.stack([ORACLES[name](image, factor) for image in images])
    np.testing.assert_allclose(color(images, **{name: factor}), expected, atol=1e-12)


def test_hue_is_a_turn_that_keeps_luma():
    images = np.random.default_rng(0).uniform(size=(2, 3, 5, 7))
    np.testing.assert_allclose(color(images, hue=1.0), images, atol=1e-12)
    np.testing.assert_allclose(color(color(images, hue=0.3), hue=-0.3), images, atol=1e-12)
    turned = color(images, hue=0.2)
    assert abs(turned - images).max() > 0.1
    for before, after in zip(images, turned, strict=True):
        np.testing.assert_allclose(pixel_gray(after), pixel_gray(before), atol=1e-12)
    red = np.zeros((1, 3, 1, 1))
    red[0, 0] = 1
    assert color(red, hue=1 / 3)[0, :, 0, 0].argmax() == 1  # red -> green -> blue, as in HSV
    assert color(red, hue=2 / 3)[0, :, 0, 0].argmax() == 2


@pytest.mark.parametrize("seed", range(3))
def test_color_order_does_not_matter(seed):
    rng = np.random.default_rng(seed)
    images = rng.uniform(size=(2, 3, 4, 4))
    steps = [("brightness", 0.7), ("contrast", 1.3), ("saturation", 0.5), ("hue", 0.08)]
    stepwise = images
    for position in rng.permutation(4):
        stepwise = color(stepwise, **dict([steps[position]]))
    np.testing.assert_allclose(stepwise, color(images, **dict(steps)), atol=1e-12)


def test_color_is_applied_then_clamped():
    """The jitter of views against the NumPy formula with the same uniform numbers."""
    images, n = photos(), 6
    views = torch.cat(TwoViews(16, **{**STILL, "jitter": 1})(images, seeded(5)))
    draws = torch.rand(2 * n, 29, generator=seeded(5)).double().numpy()[:, 23:27]
    clamped = 0
    for row in range(2 * n):
        b, k, s, hue = draws[row] * [0.8, 0.8, 0.8, 0.2] + [0.6, 0.6, 0.6, -0.1]
        exact = 2 * color(images[row % n].double().numpy()[None] / 255, b, k, s, hue)[0] - 1
        clamped += (abs(exact) > 1).sum()
        np.testing.assert_allclose(views[row].numpy(), exact.clip(-1, 1), atol=1e-5)
    assert clamped > 0


def test_grayscale_is_luma_in_every_channel():
    images = photos()
    for view in TwoViews(16, **{**STILL, "grayscale": 1})(images, seeded()):
        expected = np.einsum("c,nchw->nhw", GRAY, images.numpy() / 127.5) - 1
        for channel in range(3):
            np.testing.assert_allclose(view[:, channel].numpy(), expected, atol=1e-5)


def test_one_channel_gets_brightness_and_contrast():
    images, n = photos(c=1), 6
    views = torch.cat(TwoViews(16, **{**STILL, "jitter": 1, "grayscale": 0.5})(images, seeded(5)))
    draws = torch.rand(2 * n, 29, generator=seeded(5)).double().numpy()[:, 23:25] * 0.8 + 0.6
    for row, (b, k) in enumerate(draws):
        image = images[row % n].double().numpy() / 255
        expected = (2 * b * blend(image, image.mean(), k) - 1).clip(-1, 1)
        np.testing.assert_allclose(views[row].numpy(), expected, atol=1e-5)


# Randomness


def test_views_of_equal_images_differ():
    images = photos(1, h=32, w=32).repeat(8, 1, 1, 1)
    views = torch.cat(TwoViews(32)(images, seeded())).flatten(1)
    distances = torch.cdist(views, views) + torch.eye(16) * 1e9
    assert distances.min() > 1


def test_views_depend_on_the_generator_only():
    images, views = photos(), TwoViews(16)
    before, original = torch.get_rng_state(), images.clone()
    first, again, other = (views(images, seeded(s)) for s in (0, 0, 1))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, other, strict=True))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(images, original)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        assert torch.equal(views(images)[0], first[0])


def within_binomial(count, trials, p):
    return abs(count - trials * p) <= 4 * math.sqrt(trials * p * (1 - p))


@pytest.mark.parametrize("option, p", [("flip", 0.5), ("flip", 0.1), ("jitter", 0.8), ("grayscale", 0.2)])
def test_each_operation_has_its_probability_in_both_views(option, p):
    """Each view changes with its probability, and the two views change independently."""
    images = photos(1, h=8, w=8).repeat(4000, 1, 1, 1)
    pair = TwoViews(8, **{**STILL, option: p})(images, seeded(2))
    changed = [(view - normalize(images)).abs().amax((1, 2, 3)) > 1e-3 for view in pair]
    assert all(within_binomial(int(c.sum()), 4000, p) for c in changed)
    assert within_binomial(int((changed[0] & changed[1]).sum()), 4000, p * p)


# Types, shapes, errors


@pytest.mark.parametrize("shape", [(1, 3, 32, 32), (3, 3, 20, 40), (2, 1, 28, 28), (5, 3, 7, 3), (2, 3, 96, 64)])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float64])
def test_shape_dtype_and_range(shape, dtype):
    images = photos(*shape)
    images = images if dtype == torch.uint8 else images.to(dtype) / 255
    views = TwoViews(16)(images, seeded())
    reference = TwoViews(16)(photos(*shape), seeded())
    for view, expected in zip(views, reference, strict=True):
        assert view.shape == (shape[0], shape[1], 16, 16) and view.is_contiguous()
        assert view.dtype == torch.float32 and view.abs().max() <= 1
        torch.testing.assert_close(view, expected, atol=1e-5, rtol=0)


def test_strides_and_autocast_do_not_matter():
    images, views = photos(h=16, w=24), TwoViews(16)
    expected = views(images, seeded())[1]
    assert torch.equal(views(images.contiguous(memory_format=torch.channels_last), seeded())[1], expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(views(images, seeded())[1], expected)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_views_stay_on_the_gpu():
    generator = torch.Generator("cuda").manual_seed(0)
    images = photos().cuda()
    for view in TwoViews(16)(images, generator):
        assert view.is_cuda and view.abs().max() <= 1
    for view in TwoViews(16, **STILL)(images, generator):
        assert torch.equal(view.cpu(), normalize(photos()))


@pytest.mark.parametrize(
    "images, error, words",
    [
        (np.zeros((1, 3, 4, 4)), TypeError, "ndarray"),
        (torch.zeros(1, 3, 4, 4, dtype=torch.int64), TypeError, "torch.int64"),
        (torch.zeros(3, 4, 4), ValueError, r"\(3, 4, 4\)"),
        (torch.zeros(0, 3, 4, 4), ValueError, r"\(0, 3, 4, 4\)"),
        (torch.full((1, 3, 4, 4), 1.5), ValueError, "1.5"),
        (torch.full((1, 3, 4, 4), -0.5), ValueError, "-0.5"),
        (torch.full((1, 3, 4, 4), math.nan), ValueError, "nan"),
    ],
)
def test_images_that_are_not_accepted_are_quoted(images, error, words):
    for call in (normalize, TwoViews(4)):
        with pytest.raises(error, match=words):
            call(images)


def test_color_needs_one_or_three_channels():
    with pytest.raises(ValueError, match="got 4"):
        TwoViews(4)(photos(c=4))


@pytest.mark.parametrize(
    "options, error, words",
    [
        (dict(size=0), ValueError, "got 0"),
        (dict(size=8.0), TypeError, "got 8.0"),
        (dict(size=True), TypeError, "got True"),
        (dict(scale=(0, 1)), ValueError, r"scale.*got \(0, 1\)"),
        (dict(scale=(0.5, 1.5)), ValueError, r"scale.*got \(0.5, 1.5\)"),
        (dict(scale=(0.9, 0.5)), ValueError, r"scale.*got \(0.9, 0.5\)"),
        (dict(ratio=(2, 1)), ValueError, r"ratio.*got \(2, 1\)"),
        (dict(ratio=(1, math.inf)), ValueError, r"ratio.*got \(1, inf\)"),
        (dict(ratio=(1, 1, 1)), ValueError, r"ratio.*got \(1, 1, 1\)"),
        (dict(flip=1.1), ValueError, "flip.*got 1.1"),
        (dict(brightness=-0.1), ValueError, "brightness.*got -0.1"),
        (dict(contrast=math.inf), ValueError, "contrast.*got inf"),
        (dict(saturation=math.nan), ValueError, "saturation.*got nan"),
        (dict(hue=0.6), ValueError, "hue.*got 0.6"),
        (dict(jitter=-1), ValueError, "jitter.*got -1"),
        (dict(grayscale=2), ValueError, "grayscale.*got 2"),
    ],
)
def test_settings_that_are_not_accepted_are_quoted(options, error, words):
    with pytest.raises(error, match=words):
        TwoViews(**{"size": 8, **options})


@pytest.mark.parametrize(
    "options, words",
    [
        ({"scale": 0.2}, "scale must be a pair with 0 < low <= high <= 1, got 0.2"),
        ({"ratio": "12"}, "ratio must be a pair with 0 < low <= high, finite, got '12'"),
        ({"scale": ("a", 1)}, r"scale must be a pair with 0 < low <= high <= 1, got \('a', 1\)"),
        ({"flip": "yes"}, r"flip must be a number in \[0, 1\], got 'yes'"),
        ({"jitter": None}, r"jitter must be a number in \[0, 1\], got None"),
        ({"hue": True}, r"hue must be a number in \[0, 0.5\], got True"),
    ],
)
def test_settings_of_other_types_are_quoted_or_converted(options, words):
    with pytest.raises(ValueError, match=words):
        TwoViews(32, **options)
    assert TwoViews(np.int64(32), scale=np.array([0.2, 1.0]), flip=torch.tensor(0.5)).scale == (0.2, 1.0)

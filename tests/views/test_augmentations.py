"""Blur, solarization and the published augmentations, against Pillow and NumPy."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter, ImageOps

from hsic_lab.views import AUGMENTATIONS, TwoViews, augmentation, blur_radius, gaussian_blur, normalize

STILL = dict(scale=(1, 1), ratio=(1, 1), flip=0, jitter=0, grayscale=0)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def photos(n, c=3, side=32):
    return torch.randint(0, 256, (n, c, side, side), dtype=torch.uint8, generator=seeded(1))


def torchvision_blur(image, sigma, radius):
    """`torchvision.transforms.functional.gaussian_blur` of one (c, h, w) image, with a 2-D kernel."""
    x = np.linspace(-radius, radius, 2 * radius + 1)
    line = np.exp(-0.5 * (x / sigma) ** 2)
    kernel = np.outer(line, line) / line.sum() ** 2
    padded = np.pad(image, ((0, 0), (radius, radius), (radius, radius)), mode="reflect")
    out = np.zeros_like(image)
    for i in range(2 * radius + 1):
        for j in range(2 * radius + 1):
            out += kernel[i, j] * padded[:, i : i + image.shape[1], j : j + image.shape[2]]
    return out


@pytest.mark.parametrize("radius, height, width", [(1, 5, 7), (3, 16, 9), (4, 24, 24)])
def test_blur_matches_torchvision_with_one_sigma_for_each_image(radius, height, width):
    images = torch.rand(4, 2, height, width, dtype=torch.float64, generator=seeded())
    sigma = torch.tensor([0.1, 0.5, 1.3, 2.0], dtype=torch.float64)
    before = images.clone()
    found = gaussian_blur(images, sigma, radius)
    for row in range(4):
        expected = torchvision_blur(images[row].numpy(), sigma[row].item(), radius)
        np.testing.assert_allclose(found[row], expected, atol=1e-12)
    assert torch.equal(images, before)
    flat = torch.ones(1, 1, 9, 9)
    torch.testing.assert_close(gaussian_blur(flat, torch.ones(1), 2), flat)


@pytest.mark.parametrize("sigma", [1.0, 2.0])
def test_blur_is_close_to_pillow_away_from_the_border(sigma):
    """Pillow repeats the edge and approximates the kernel by boxes, so the gray levels differ a little."""
    image = photos(1, 1, 64)[0, 0]
    expected = np.asarray(Image.fromarray(image.numpy()).filter(ImageFilter.GaussianBlur(sigma)), float)
    found = gaussian_blur(image[None, None].double(), torch.tensor([sigma]).double(), 10)[0, 0].numpy()
    inside = (slice(12, -12),) * 2
    assert abs(found - expected)[inside].max() < 8 and abs(found - image.numpy())[inside].max() > 50
    assert np.corrcoef(found[inside].ravel(), expected[inside].ravel())[0, 1] > 0.99


def test_blur_kernel_is_a_tenth_of_the_side():
    assert [2 * blur_radius(size) + 1 for size in (16, 32, 64, 96, 224)] == [1, 3, 7, 9, 23]


def test_solarization_matches_pillow_on_every_byte():
    every = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    expected = np.asarray(ImageOps.solarize(Image.fromarray(every[0, 0].numpy())))
    found = (TwoViews(16, **STILL, solarize=1)(every, seeded())[0] + 1) * 127.5
    np.testing.assert_allclose(found[0, 0].numpy(), expected, atol=1e-4)


@pytest.mark.parametrize("option", ["flip", "jitter", "grayscale", "blur", "solarize"])
@pytest.mark.parametrize("pair", [(0.0, 0.3), (1.0, 0.1)])
def test_each_view_has_its_own_probability(option, pair):
    images = photos(1, side=20).repeat(2000, 1, 1, 1)
    options = {**STILL, "sigma": (1.0, 2.0), option: pair}
    for view, p in zip(TwoViews(20, **options)(images, seeded()), pair, strict=True):
        share = ((view - normalize(images)).abs().amax((1, 2, 3)) > 1e-3).double().mean().item()
        assert abs(share - p) <= 4 * (p * (1 - p) / 2000) ** 0.5


def test_blur_and_solarization_come_last_and_do_not_change_the_other_draws():
    """There are more images than a chunk holds."""
    images = photos(100)
    plain = TwoViews(32)(images, seeded(4))
    views = TwoViews(32, blur=(1.0, 0.0), solarize=(0.0, 1.0))(images, seeded(4))
    generator = seeded(4)
    torch.rand(200, 29, generator=generator)
    sigma = 0.1 + 1.9 * torch.rand(200, 3, generator=generator)[:100, 1]
    torch.testing.assert_close(views[0], gaussian_blur(plain[0], sigma, 1), atol=1e-6, rtol=0)
    assert torch.equal(views[1], -plain[1].abs())
    assert 0.1 <= sigma.min() < 0.2 and 1.9 < sigma.max() <= 2.0


def test_views_of_a_seed_do_not_change():
    """Runs are repeated from their seed. The first release of TwoViews made these numbers."""
    images = torch.arange(2 * 3 * 32 * 32, dtype=torch.float64).mul(0.7).sin().add(1).div(2).view(2, 3, 32, 32)
    view_a, view_b = TwoViews(32)(images, seeded(7))
    found = torch.stack([view_a[0, :, 5, 9], view_a[1, :, 30, 2], view_b[0, :, 0, 31], view_b[1, :, 17, 17]])
    torch.testing.assert_close(found, torch.tensor(SEED_7), atol=2e-5, rtol=0)


SEED_7 = [
    [0.366617, 0.404754, 0.402920],
    [0.030197, 0.023716, 0.085351],
    [-0.687058, -0.889006, -0.853811],
    [0.383973, 0.383973, 0.383973],
]


TABLE = {  # (augmentation, size): scale, (brightness, contrast, saturation, hue), grayscale, blur, solarize
    ("tsai2021", 32): ((0.08, 1.0), (0.4, 0.4, 0.4, 0.1), 0.2, (0, 0), (0, 0)),
    ("tsai2021", 64): ((0.2, 1.0), (0.4, 0.4, 0.4, 0.1), 0.1, (0, 0), (0, 0)),
    ("barlow_twins", 32): ((0.08, 1.0), (0.4, 0.4, 0.2, 0.1), 0.2, (1.0, 0.1), (0, 0.2)),
    ("barlow_twins", 224): ((0.08, 1.0), (0.4, 0.4, 0.2, 0.1), 0.2, (1.0, 0.1), (0, 0.2)),
    ("solo", 32): ((0.08, 1.0), (0.4, 0.4, 0.2, 0.1), 0.2, (0, 0), (0, 0.2)),
    ("simclr", 32): ((0.08, 1.0), (0.4, 0.4, 0.4, 0.1), 0.2, (0, 0), (0, 0)),
    ("simclr", 64): ((0.08, 1.0), (0.8, 0.8, 0.8, 0.2), 0.2, (0.5, 0.5), (0, 0)),
    ("simclr", 96): ((0.08, 1.0), (0.8, 0.8, 0.8, 0.2), 0.2, (0.5, 0.5), (0, 0)),
    ("default", 32): ((0.2, 1.0), (0.4, 0.4, 0.4, 0.1), 0.2, (0, 0), (0, 0)),
}


@pytest.mark.parametrize("key", TABLE)
def test_augmentations_have_the_published_settings(key):
    views = augmentation(*key)
    strengths = (views.brightness, views.contrast, views.saturation, views.hue)
    scale, color, gray, blur, solarized = TABLE[key]
    assert (views.scale, strengths, views.grayscale) == (scale, color, (gray, gray))
    assert (views.blur, views.solarize) == (blur, solarized)
    assert (views.flip, views.jitter, views.sigma) == ((0.5, 0.5), (0.8, 0.8), (0.1, 2.0))


@pytest.mark.parametrize("name", AUGMENTATIONS)
@pytest.mark.parametrize("channels, size", [(3, 32), (1, 28), (3, 64)])
def test_every_augmentation_makes_views(name, channels, size):
    pair = augmentation(name, size)(photos(6, channels, size), seeded())
    for view in pair:
        assert view.shape == (6, channels, size, size) and view.abs().max() <= 1 and view.std() > 0.1
    assert augmentation(name, 32, blur=0.3).blur == (0.3, 0.3), "a setting can be changed"


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: augmentation("byol", 32), "'byol'"),
        (lambda: augmentation("barlow_twins", 16), "below 20 pixels.*size=16"),
        (lambda: TwoViews(32, blur=(0.5, 0.5, 0.5)), r"blur.*got \(0.5, 0.5, 0.5\)"),
        (lambda: TwoViews(32, solarize=(0.5, 1.5)), "solarize.*got 1.5"),
        (lambda: TwoViews(32, sigma=(0.0, 1.0)), r"sigma.*got \(0.0, 1.0\)"),
    ],
)
def test_settings_of_an_augmentation_that_are_not_accepted_are_quoted(call, words):
    with pytest.raises(ValueError, match=words):
        call()

"""Pairs of views per second on one core: every preset, the report's recipe in Pillow, lightly's Barlow Twins views.

All start from uint8 and end in float32 (n, 3, size, size) tensors; best of several repetitions. Pillow's operations
image by image stand for the report's torchvision transforms, which call the same ones; lightly needs torchvision
and is measured where both can be imported (`pip install lightly`).

    python benchmarks/views.py
"""

import math
import random
import time
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image, ImageEnhance

from hsic_lab.presets import PRESETS
from hsic_lab.views import preset


def pillow_view(
    image: Image.Image, size: int, scale: tuple[float, float], grey: float, rng: random.Random
) -> np.ndarray:
    """One view of the report's recipe with Pillow's operations, in torchvision's order."""
    width, height = image.size
    left, top, crop_width, crop_height = 0, 0, width, height
    for _ in range(10):
        area = width * height * rng.uniform(*scale)
        ratio = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top, crop_width, crop_height = rng.randint(0, width - w), rng.randint(0, height - h), w, h
            break
    box = (left, top, left + crop_width, top + crop_height)
    image = image.resize((size, size), Image.Resampling.BILINEAR, box=box)
    if rng.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if rng.random() < 0.8:
        for operation in rng.sample(range(4), 4):
            if operation == 3:
                shift = np.uint8(round(rng.uniform(-0.1, 0.1) * 255) % 256)
                hue, saturation, value = image.convert("HSV").split()
                hue = Image.fromarray(np.asarray(hue) + shift)
                image = Image.merge("HSV", (hue, saturation, value)).convert("RGB")
            else:
                enhance = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)[operation]
                image = enhance(image).enhance(rng.uniform(0.6, 1.4))
    if rng.random() < grey:
        image = image.convert("L").convert("RGB")
    return np.asarray(image)


def pillow_pairs(
    images: np.ndarray, size: int, scale: tuple[float, float], grey: float, rng: random.Random
) -> tuple[torch.Tensor, torch.Tensor]:
    """Two views of uint8 images `(n, h, w, 3)`."""
    pairs = [[pillow_view(picture, size, scale, grey, rng) for _ in "ab"] for picture in map(Image.fromarray, images)]
    views = torch.from_numpy(np.array(pairs)).permute(1, 0, 4, 2, 3).to(torch.float32).div_(127.5).sub_(1)
    return views[0].contiguous(), views[1].contiguous()


def seconds(call: Callable[[], object], repetitions: int) -> float:
    call()
    times = []
    for _ in range(repetitions):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


def lightly_pairs(size: int) -> Callable[[np.ndarray], object] | None:
    """lightly's views with Barlow Twins' blur and solarisation, or None, saying why, where it cannot be imported."""
    try:
        from lightly.transforms import BYOLTransform
        from lightly.transforms.byol_transform import BYOLView1Transform, BYOLView2Transform
    except (ImportError, RuntimeError) as error:  # RuntimeError: a torchvision built for another torch
        print(f"lightly is left out: {str(error).splitlines()[0]}")
        return None
    transform = BYOLTransform(BYOLView1Transform(input_size=size), BYOLView2Transform(input_size=size))

    def pairs(images: np.ndarray) -> object:
        return [torch.stack(views) for views in zip(*map(transform, map(Image.fromarray, images)), strict=True)]

    return pairs


def main() -> None:
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    print(f"torch {torch.__version__}, one thread, batch 512, pairs of views per second")
    print(f"{'pixels':>6} {'who':>24} {'pairs/s':>9}  times as fast")
    for size in (32, 64, 96):
        images = torch.randint(0, 256, (512, 3, size, size), dtype=torch.uint8, generator=generator)
        pixels = images[:128].permute(0, 2, 3, 1).contiguous().numpy()
        ours = {}
        for name in PRESETS:
            views = preset(name, size)
            ours[name] = 512 / seconds(lambda call=views, x=images: call(x, generator), 10)
        settings = preset("report", size)
        recipe = (pixels, size, settings.scale, settings.grayscale[0])
        pillow = 128 / seconds(lambda given=recipe: pillow_pairs(*given, random.Random(0)), 3)
        for name, rate in ours.items():
            print(f"{size:>6} {name:>24} {rate:>9.0f}")
        print(f"{size:>6} {'Pillow, report':>24} {pillow:>9.0f}  report: {ours['report'] / pillow:.1f}", flush=True)
        lightly = lightly_pairs(size)
        if lightly:
            rate = 128 / seconds(lambda call=lightly, x=pixels: call(x), 3)
            ratio = ours["barlow_twins"] / rate
            print(f"{size:>6} {'lightly, Barlow Twins':>24} {rate:>9.0f}  barlow_twins: {ratio:.1f}", flush=True)


if __name__ == "__main__":
    main()

"""Pairs of views per second on one core: every preset, the report's recipe in torchvision or Pillow, lightly's views.

All start from uint8 and end in float32 (n, 3, size, size) tensors; processor time, best of several repetitions; all
run where freed memory is used again, as in a training.
"torchvision" is the report's recipe as its repository has it, transforms of PIL images in a DataLoader (no workers:
this is one core); "Pillow" calls the operations under it without torchvision's overhead. What cannot be imported is
left out with a message: `pip install lightly` brings both.

    python benchmarks/views.py --output data/results/views_cpu.csv
"""

import argparse
import importlib.metadata
import math
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image, ImageEnhance
from torch.utils.data import DataLoader

from hsic_lab._io import replace_file
from hsic_lab.training._config import hardware
from hsic_lab.training._train import freed_memory_kept
from hsic_lab.views import AUGMENTATIONS, TwoViews, augmentation

OURS, THEIRS = 512, 128  # images a call
Pairs = Callable[[np.ndarray], object]


def pillow_view(
    image: Image.Image, size: int, scale: tuple[float, float], gray: float, rng: random.Random
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
    if rng.random() < gray:
        image = image.convert("L").convert("RGB")
    return np.asarray(image)


def pillow_pairs(
    images: np.ndarray, size: int, scale: tuple[float, float], gray: float, rng: random.Random
) -> tuple[torch.Tensor, torch.Tensor]:
    """Two views of uint8 images `(n, h, w, 3)`."""
    pairs = [[pillow_view(image, size, scale, gray, rng) for _ in "ab"] for image in map(Image.fromarray, images)]
    views = torch.from_numpy(np.array(pairs)).permute(1, 0, 4, 2, 3).to(torch.float32).div_(127.5).sub_(1)
    return views[0].contiguous(), views[1].contiguous()


def torchvision_pairs(views: TwoViews) -> Pairs:
    """The report's utils.py: two draws of one transform of a PIL image, batched by a DataLoader."""
    from torchvision import transforms

    transform = transforms.Compose(
        [
            transforms.RandomResizedCrop(views.size, scale=views.scale),
            transforms.RandomHorizontalFlip(),
            transforms.RandomApply([transforms.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
            transforms.RandomGrayscale(views.grayscale[0]),
            transforms.ToTensor(),
            transforms.Normalize([0.5] * 3, [0.5] * 3),
        ]
    )

    class PairDataset(torch.utils.data.Dataset):
        def __init__(self, images: np.ndarray) -> None:
            self.images = images

        def __len__(self) -> int:
            return len(self.images)

        def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
            image = Image.fromarray(self.images[index])
            return transform(image), transform(image)

    return lambda images: list(DataLoader(PairDataset(images), batch_size=THEIRS, shuffle=True))


def lightly_pairs(views: TwoViews) -> Pairs:
    """lightly's views with Barlow Twins' blur and solarisation."""
    from lightly.transforms import BYOLTransform
    from lightly.transforms.byol_transform import BYOLView1Transform, BYOLView2Transform

    size = views.size
    transform = BYOLTransform(BYOLView1Transform(input_size=size), BYOLView2Transform(input_size=size))
    return lambda images: [
        torch.stack(both) for both in zip(*map(transform, map(Image.fromarray, images)), strict=True)
    ]


def pillow(views: TwoViews) -> Pairs:
    return lambda images: pillow_pairs(images, views.size, views.scale, views.grayscale[0], random.Random(0))


PEERS = {"tsai2021": {"Pillow": pillow, "torchvision": torchvision_pairs}, "barlow_twins": {"lightly": lightly_pairs}}
CPU = torch.device("cpu")


def seconds(call: Callable[[], object], repetitions: int) -> float:
    """Processor time of one call: on a machine that others use too, the wall clock measures them as well."""
    call()
    times = []
    for _ in range(repetitions):
        start = time.process_time()
        call()
        times.append(time.process_time() - start)
    return min(times)


def version(name: str) -> str:
    return f"{name} {importlib.metadata.version(name.lower())}"


def measure(size: int) -> list[dict[str, object]]:
    """One row a preset and one a peer's recipe, which also has how many times as fast the preset is."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (OURS, 3, size, size), dtype=torch.uint8, generator=generator)
    pixels = images[:THEIRS].permute(0, 2, 3, 1).contiguous().numpy()
    rows = []
    for name in AUGMENTATIONS:
        views = augmentation(name, size)
        rate = OURS / seconds(lambda call=views: call(images, generator), 10)
        rows.append({"pixels": size, "recipe": name, "who": "hsic_lab", "pairs/s": rate})
        for peer, build in PEERS.get(name, {}).items():
            try:
                pairs = build(views)
            except (ImportError, RuntimeError) as error:  # RuntimeError: a torchvision built for another torch
                print(f"{peer} is left out: {str(error).splitlines()[0]}")
                continue
            theirs = THEIRS / seconds(lambda call=pairs: call(pixels), 3)
            rows.append(
                {"pixels": size, "recipe": name, "who": version(peer), "pairs/s": theirs, "times": rate / theirs}
            )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="a CSV file for the table")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with freed_memory_kept():
        table = pd.DataFrame([row for size in (32, 64, 96) for row in measure(size)])
    table = table.assign(
        protocol=f"processor time of one thread, best of 10 calls ({OURS} images) or 3 ({THEIRS}), noise, seed 0",
        hardware=hardware(CPU),
        torch=torch.__version__,
        command=" ".join(["python", *sys.argv]),
    )
    print(f"torch {torch.__version__}, {hardware(CPU)}, one thread, pairs of views per second of processor time")
    print(table[["pixels", "recipe", "who", "pairs/s", "times"]].round(1).to_string(index=False))
    if arguments.output:
        replace_file(arguments.output, lambda path: table.to_csv(path, index=False, float_format="%.5g"))


if __name__ == "__main__":
    main()

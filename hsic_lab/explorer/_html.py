"""The explorer as a part of an HTML page: the script and the style of the widget, fed from data in the page."""

import base64
import io
import json
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from torch import Tensor

from hsic_lab.correlation import ORDERS, feature_order, standardize
from hsic_lab.plots._samples import unit_images

if TYPE_CHECKING:
    from hsic_lab.explorer import CorrelationExplorer

_PAIRS, _SIDE, _COLUMNS = 256, 64, 16  # pairs whose samples are embedded; pixels and columns of their images
_LEVELS = (4096, 1024, 256, 128, 64)  # entries of C are rounded to multiples of 1 / level, the finest that fits
_BYTES, _PNG_BYTES = 14_300_000, 200_000  # of a page but for what is small; of images, above which JPEG is used


def explorer_fragment(explorer: "CorrelationExplorer") -> str:
    """Return the explorer as an HTML element with its style, script and data, for the body of a page.

    It loads nothing, needs no id, and takes the font and the colors of the page. A page may hold several.

    Parameters
    ----------
    explorer : CorrelationExplorer
        An explorer with at least one panel.

    Examples
    --------
    >>> import torch
    >>> from hsic_lab.explorer import CorrelationExplorer, explorer_fragment
    >>> explorer_fragment(CorrelationExplorer(torch.eye(3), torch.eye(3))).startswith('<div class="hsic-explorer">')
    True
    """
    if not hasattr(explorer, "_panels"):
        raise TypeError(f"explorer must be a CorrelationExplorer, got {type(explorer).__name__}")
    return fragment_of(explorer_data(explorer), explorer._esm)


def explorer_data(explorer: "CorrelationExplorer", most: int = _BYTES, pairs: int = _PAIRS) -> str:
    """Return what the element shows, as JSON: about `most` bytes, with the samples of so many pairs."""
    panels = list(explorer._panels.values())
    if not panels:
        raise ValueError("the explorer holds no matrix yet: give it a run, projections or a first snapshot")
    samples = [_samples(panel, most / 5 / len(panels), pairs) for panel in panels]
    sprites = ["" if panel.pairs[0] is None else _sprite(panel.pairs[0], pairs) for panel in panels]
    unique = list(dict.fromkeys(sprites))
    used = sum(map(len, unique)) + sum(len(text) for by_step in samples for text in by_step.values())
    steps, level, matrices = _matrices(panels, most - used)
    answers: dict[str, Any] = {}
    for index, step in ((index, step) for index, kept in enumerate(steps) for step in kept):
        answers[f"matrix/{index}/{step}"] = {k: v for k, v in explorer._matrix(index, step).items() if k != "matrix"}
        answers[f"spectrum/{index}/{step}"] = explorer._spectrum(index, step)
    orders = {by: [feature_order(panel.snapshots[panel.newest], by).tolist() for panel in panels] for by in ORDERS}
    state = {name: getattr(explorer, name) for name in ("order", "step", "limit", "cell")} | {"latest": {}}
    state["panels"] = [panel | {"steps": kept} for panel, kept in zip(explorer.panels, steps, strict=True)]
    state["orders"] = {"by": explorer.order, "positions": orders[explorer.order]}
    data = {
        "state": state, "colors": base64.b64encode(explorer.colors).decode(), "orders": orders, "answers": answers,
        "level": level, "matrices": matrices, "samples": samples, "notes": [panel.pairs[1] for panel in panels],
        "sprites": unique, "sprite": [unique.index(sprite) for sprite in sprites], "columns": _COLUMNS, "pairs": pairs,
        "trained": max(len(panel.snapshots) for panel in panels),
    }  # fmt: skip
    return json.dumps(data, separators=(",", ":"))


def fragment_of(
    data: str, script: str, still: str = "<p>This heatmap of a cross-correlation matrix needs JavaScript.</p>"
) -> str:
    """Return the element from its data and the widget's script; `still` is seen until the script has run."""
    embedded = data.replace("<", "\\u003c")
    page, style = ((Path(__file__).parent / name).read_text("utf-8") for name in ("page.js", "explorer.css"))
    return (
        f'<div class="hsic-explorer">{still}<script type="application/json">{embedded}</script></div>\n'
        f'<style>\n{style}</style>\n<script type="module">\n{script}\n{page}</script>'
    )


def image_bytes(images: Tensor) -> list[np.ndarray]:
    """Return images (n, c, h, w) as uint8 arrays that Pillow reads."""
    colors = np.round(255 * unit_images(images)).astype(np.uint8)
    return [image[0] if len(image) == 1 else image.transpose(1, 2, 0) for image in colors]


def _matrices(panels: Sequence[Any], most: float) -> tuple[list[list[int]], int, list[dict[int, tuple]]]:
    """Return the steps of each panel, the level and the matrices: rounded more, then of fewer steps, until they fit."""
    steps = [sorted(panel.snapshots) for panel in panels]
    while True:
        for level in _LEVELS:
            last = level == _LEVELS[-1] and max(map(len, steps)) <= 2
            for rows in (16, 1):  # a sample of the rows tells soon that a level is too fine
                coded = [_coded(panel.snapshots, kept, level, rows) for panel, kept in zip(panels, steps, strict=True)]
                if rows * sum(len(text) for by_step in coded for text, _ in by_step.values()) > most and not last:
                    break
            else:
                return steps, level, coded
        steps = [sorted({kept[0], *kept[::-2]}) for kept in steps]


def _coded(snapshots: Mapping[int, Tensor], steps: Sequence[int], level: int, rows: int) -> dict[int, tuple]:
    """Return the rounded matrices by step: the text, and the later step whose matrix is to be added."""
    coded: dict[int, tuple] = {}
    last: tuple[int | None, Any] = None, 0
    for step in reversed(steps):
        k = np.rint(snapshots[step][::rows].double().cpu().numpy() * level).astype(np.int32)
        choices = ((None, k), (last[0], k - last[1]))  # late in a training the difference to the next step is small
        texts = ((_packed_integers(integers), later) for later, integers in choices)
        coded[step] = min(texts, key=lambda one: len(one[0]))
        last = step, k
    return coded


def _packed_integers(k: np.ndarray) -> str:
    """Return integers as unsigned ones, 0, -1, 1, -2, ..., in two planes of bytes; the high one is mostly 0."""
    z = np.where(k < 0, -2 * k - 1, 2 * k)
    return _deflated((z & 255).astype(np.uint8).tobytes() + (z >> 8).astype(np.uint8).tobytes())


def _deflated(data: bytes) -> str:
    """Return bytes compressed, as text."""
    # Runs and Huffman codes alone: as small as with a search for repetitions, which noise does not have, and faster.
    packer = zlib.compressobj(6, zlib.DEFLATED, 15, 9, zlib.Z_RLE)
    return base64.b64encode(packer.compress(data) + packer.flush()).decode()


def _samples(panel: Any, most: float, pairs: int) -> dict[int, str]:
    """Return standardized projections by step, or of the newest one: the scales of the features, then int8 values."""
    packed: dict[int, str] = {}
    for step in sorted(panel.snapshots, reverse=True):
        found = panel.samples(step)
        if found is None or found[0] in packed:
            continue
        z = np.stack([standardize(view[:pairs]).double().cpu().numpy().T for view in found[1:]])
        scales = np.maximum(np.abs(z).max(axis=2), 1e-30) / 127
        values = np.rint(z / scales[..., None]).astype(np.int8)
        packed[found[0]] = _deflated(scales.astype(np.float32).tobytes() + values.tobytes())
        if sum(map(len, packed.values())) > most and len(packed) > 1:
            return {step: packed[step] for step in list(packed)[:1]}
    return packed


def _sprite(images: Sequence[Tensor], pairs: int) -> str:
    """Return the images of both views as one image, row by row, view A first."""
    tiles = [Image.fromarray(image) for view in images for image in image_bytes(view[:pairs])]
    for tile in tiles:
        tile.thumbnail((_SIDE, _SIDE))
    w, h = tiles[0].size
    sheet = Image.new(tiles[0].mode, (_COLUMNS * w, -(-len(tiles) // _COLUMNS) * h))
    for number, tile in enumerate(tiles):
        sheet.paste(tile, (number % _COLUMNS * w, number // _COLUMNS * h))
    png = data_url(sheet, format="png")
    return png if len(png) * 3 <= _PNG_BYTES * 4 else data_url(sheet, format="jpeg", quality=88, subsampling=0)


def data_url(image: Image.Image, **look: Any) -> str:
    """Return the image as a URL that holds its file; `look` are the options of Pillow, with the format."""
    image.save(buffer := io.BytesIO(), **look)
    return f"data:image/{look['format']};base64,{base64.b64encode(buffer.getvalue()).decode()}"

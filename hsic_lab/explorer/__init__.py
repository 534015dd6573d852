"""One cell of C taken apart: the samples behind it, and the images at their extremes."""

import base64
import io
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import anywidget
import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import torch
import traitlets
from matplotlib.figure import Figure
from numpy.typing import ArrayLike
from PIL import Image
from torch import Tensor

from hsic_lab.correlation import (
    ORDERS,
    CorrelationSummary,
    cross_correlation,
    feature_order,
    off_diagonal,
    spectrum,
    square_matrix,
    standardize,
    to_array,
)
from hsic_lab.evaluation import extract_features
from hsic_lab.plots import DIVERGING, PALETTE
from hsic_lab.plots._heatmaps import matrix_figure
from hsic_lab.training import Event, Run
from hsic_lab.training._data import SNAPSHOT_PAIRS

MOST_POINTS = 2000  # a scatter of more is a blot; the first of them stand for all


@dataclass(frozen=True)
class FeaturePair:
    """Feature i of view A against feature j of view B over the same n images.

    x, y:        (n,) the standardized features, whose mean product is `correlation`, C_ij
    extremes_a:  indices of the images with the lowest, then the highest x
    extremes_b:  the same of y
    """

    x: np.ndarray
    y: np.ndarray
    correlation: float
    extremes_a: np.ndarray
    extremes_b: np.ndarray


def feature_pair(z_a: Tensor, z_b: Tensor, i: int, j: int, extremes: int = 4) -> FeaturePair:
    """The samples behind C_ij of two `(n, d)`, and where the `extremes` lowest and highest of each lie."""
    d = z_a.shape[1]
    if not (0 <= i < d and 0 <= j < d):
        raise ValueError(f"features are numbered 0 to {d - 1}, got ({i}, {j})")
    if extremes < 1:
        raise ValueError(f"extremes must be at least 1, got {extremes}")
    x, y = (to_array(standardize(z[:, [column]])[:, 0]).astype(np.float64) for z, column in ((z_a, i), (z_b, j)))
    ends = []
    for values in (x, y):
        order = np.argsort(values, kind="stable")
        count = min(extremes, len(values) // 2)
        ends.append(np.concatenate([order[:count], order[-count:]]))
    return FeaturePair(x, y, float(np.mean(x * y)), *ends)


def image_uris(images: ArrayLike, rows: np.ndarray) -> list[str]:
    """The images of those rows as PNG data addresses; `images` is what `as_images` accepts."""
    uris = []
    for image in as_images(images)[rows]:
        buffer = io.BytesIO()
        Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0)).save(buffer, format="png")
        uris.append("data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode())
    return uris


def as_images(images: ArrayLike) -> np.ndarray:
    """uint8 (n, c, h, w), c = 1 or 3, from uint8 or from floats in [-1, 1]. Raises ValueError for anything else."""
    images = to_array(images)
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise ValueError(f"images must have shape (n, c, h, w) with c = 1 or 3, got {images.shape}")
    if images.dtype == np.uint8:
        return images
    if images.dtype.kind == "f" and np.abs(images).max(initial=0) <= 1 + 1e-5:
        return np.clip((images.astype(np.float32) + 1) * 127.5, 0, 255).round().astype(np.uint8)
    raise ValueError(f"images must be uint8 or floats in [-1, 1], got {images.dtype}")


Projections = tuple[Tensor, Tensor]
Source = Run | str | os.PathLike | Projections


@dataclass(eq=False)
class Explored:
    """One run, or one pair of projections.

    snapshots:  step -> C; a run's own mapping, so that it grows while the run trains
    n:          pairs behind each C
    features:   gives the projections of both views by the newest network; None where there are no images for it
    run:        where the snapshots come from, if they come from one
    """

    snapshots: Mapping[int, Tensor]
    n: int
    features: Callable[[], Projections] | None = None
    run: Run | None = None


def explored(
    source: Source | Mapping[str, Source] | None, images: tuple[Tensor, Tensor] | None, samples: int | None
) -> dict[str, Explored]:
    """The panels by name; `samples` is the number of pairs behind the snapshots of a run, None for what it says."""
    if source is None:
        return {}
    if not isinstance(source, Mapping):
        source = Run.load(source) if isinstance(source, str | os.PathLike) else source
        source = {source.folder.name if isinstance(source, Run) else "C": source}
    return {name: _panel(name, one, images, samples) for name, one in source.items()}


def of_run(run: Run, images: tuple[Tensor, Tensor] | None, samples: int | None = None) -> Explored:
    """A run; `images` are pairs for its networks, which show what is behind a cell."""
    for step, c in run.snapshots.items():
        _checked(c, f"the snapshot of step {step}")

    def features() -> Projections:
        network = torch.nn.Sequential(run.encoder, run.projector)
        return tuple(extract_features(network, view) for view in images)

    n = run.metadata.get("held_out_pairs", SNAPSHOT_PAIRS) if samples is None else samples  # runs did not always say
    return Explored(run.snapshots, n, None if images is None else features, run)


def both_views(images: Tensor | Sequence[Tensor] | None) -> tuple[Tensor, Tensor] | None:
    """Images of both views from a pair, or from one tensor that serves for both; checked."""
    if images is None:
        return None
    pair = (images, images) if isinstance(images, Tensor) else tuple(images)
    if len(pair) != 2:
        raise ValueError(f"images must be one tensor or a pair, one a view, got {len(pair)}")
    pair = tuple(torch.as_tensor(view) for view in pair)
    for view in pair:
        as_images(view)
    if len(pair[0]) != len(pair[1]):
        raise ValueError(f"the views must hold one image a pair, got {len(pair[0])} and {len(pair[1])}")
    return pair


def _panel(name: str, source: Source, images: tuple[Tensor, Tensor] | None, samples: int | None) -> Explored:
    if isinstance(source, str | os.PathLike):
        source = Run.load(source)
    if isinstance(source, Run):
        if not source.snapshots:
            raise ValueError(f"{name!r} has no snapshot of C yet: pass the explorer's callback to train instead")
        return of_run(source, images, samples)
    if not (isinstance(source, tuple) and len(source) == 2):
        raise TypeError(
            f"{name!r} must be a Run, its folder or a pair of projections (z_a, z_b), got {type(source).__name__}"
        )
    z_a, z_b = (torch.as_tensor(z).detach() for z in source)
    c = cross_correlation(z_a, z_b)
    _checked(c, f"C of {name!r}")
    if images is not None and len(images[0]) != len(z_a):
        raise ValueError(f"there must be one image a row, got {len(images[0])} images and {len(z_a)} rows of {name!r}")
    return Explored({0: c}, len(z_a), lambda: (z_a, z_b))


def _checked(c: ArrayLike, what: str) -> None:
    try:
        square_matrix(c)
    except ValueError as error:
        raise ValueError(f"{what} cannot be shown: {error}") from error


_FOLDER = Path(__file__).parent
# One module for the browser; the last one exports.
_SCRIPTS = ("heatmap.js", "charts.js", "store.js", "panel.js", "explorer.js")
_BINS = 400  # over [-1, 1], of both histograms


class CorrelationExplorer(anywidget.AnyWidget):
    """Heatmaps of C with a slider over training, zoom, orders of the features, and the samples behind a cell.

        CorrelationExplorer(run)                                     a run: its snapshots of C
        CorrelationExplorer({"Barlow Twins": a, "HSIC_SSL": b})      side by side on one color scale
        CorrelationExplorer(z_a, z_b, images)                        projections (n, d) of both views
        CorrelationExplorer({"one": (z_a, z_b), "two": run}, images=...)
        live = CorrelationExplorer(); display(live); train(config, folder, callbacks=[live.callback])

    images:   (images_a, images_b), or one tensor for both: what row b of the views shows, uint8 (n, c, h, w) or floats
              in [-1, 1]. A run projects them with its present networks, so that a click shows the scatter of the newest
              step, whatever step the slider is at
    samples:  pairs behind the snapshots of a run, for the noise floor; left out: as many as the run says
    limit:    where the color scale ends

    The traits `step`, `order` ("index", "diagonal", "cluster"), `limit` and `cell` ([panel, i, j]) follow the controls
    and move them. An order comes from the newest C of each panel and holds for all steps: a feature stays where it is.
    Panels may differ in d; those of one d zoom together. The browser keeps the matrices (float32) and needs the kernel
    only for new ones, a new order, spectra, and the scatter. Where widgets do not run, `figure()` stands as a image.

    Raises ValueError for matrices that are not finite or square, d or n below 2, and images that do not match the rows.
    """

    _esm = "\n".join((_FOLDER / name).read_text(encoding="utf-8") for name in _SCRIPTS)
    _css = _FOLDER / "explorer.css"

    panels = traitlets.List().tag(sync=True)
    colors = traitlets.Bytes().tag(sync=True)
    orders = traitlets.Dict().tag(sync=True)
    latest = traitlets.Dict().tag(sync=True)  # the newest matrix: a browser that comes late finds it in the state
    behind = traitlets.Dict().tag(sync=True)  # what is behind `cell`
    step = traitlets.Int(0, min=0).tag(sync=True)
    order = traitlets.Enum(ORDERS, "index").tag(sync=True)
    limit = traitlets.Float(1.0).tag(sync=True)
    cell = traitlets.List(traitlets.Int()).tag(sync=True)

    def __init__(
        self,
        source: Run | Tensor | tuple[Tensor, Tensor] | Mapping[str, Run | tuple[Tensor, Tensor]] | None = None,
        z_b: Tensor | None = None,
        images: Tensor | tuple[Tensor, Tensor] | None = None,
        *,
        samples: int | None = None,
        limit: float = 1.0,
    ) -> None:
        if z_b is not None:
            source = (source, z_b)
        self._images, self._samples = both_views(images), samples
        self._explored = explored(source, self._images, samples)
        self._features: dict[int, tuple[int, tuple[Tensor, Tensor]]] = {}
        super().__init__(limit=limit)
        lut = matplotlib.colormaps[DIVERGING](np.arange(256), bytes=True)[:, :3]
        self.colors = lut.tobytes()
        self._tell_panels()
        self.step = max((max(panel.snapshots) for panel in self._explored.values()), default=0)
        if self._explored:
            self.latest = self._matrix(0, self.step)
        self.on_msg(lambda _, content, buffers: self._answer(content))
        self.observe(lambda _: self._arrange(), "order")
        self.observe(lambda _: self._look_behind(), "cell")

    def callback(self, event: Event) -> None:
        """For `train(..., callbacks=[explorer.callback])`: shows each snapshot as it comes, a run not seen yet in a
        panel of its own, named by its folder.
        """
        if event.kind != "snapshot":
            return
        known = [panel.run for panel in self._explored.values()]
        if not any(run is event.run for run in known):
            name = event.run.folder.name
            self._explored[name if name not in self._explored else str(event.run.folder)] = of_run(
                event.run, self._images, self._samples
            )
        index = [panel.run for panel in self._explored.values()].index(event.run)
        self.latest = self._matrix(index, event.step)
        self._tell_panels()
        self._arrange()
        self.step = event.step

    def figure(self, step: int | None = None) -> Figure:
        """The still image: heatmaps at `step` (None: where the slider is), histograms, spectra, sums in words."""
        step = self.step if step is None else step
        return matrix_figure(
            {name: panel.snapshots[self._at(name, step)] for name, panel in self._explored.items()},
            {name: panel.n for name, panel in self._explored.items()},
            self.limit,
            {
                name: feature_order(panel.snapshots[max(panel.snapshots)], self.order)
                for name, panel in self._explored.items()
            },
        )

    def _repr_mimebundle_(self, **kwargs: Any) -> tuple[dict, dict]:
        """The widget, and beside it the still image for pages where widgets do not run."""
        data, metadata = super()._repr_mimebundle_(**kwargs)
        if self._explored:
            buffer = io.BytesIO()
            figure = self.figure()
            figure.savefig(buffer, format="png", dpi=100)
            plt.close(figure)
            data["image/png"] = base64.b64encode(buffer.getvalue()).decode()
        return data, metadata

    @traitlets.validate("limit")
    def _positive(self, proposal: dict) -> float:
        if not 0 < proposal["value"] < float("inf"):
            raise ValueError(f"limit must be positive and finite, got {proposal['value']}")
        return proposal["value"]

    def _at(self, name: str, step: int) -> int:
        """The newest step of a panel that is not later than `step`, its first one if all are later."""
        steps = sorted(self._explored[name].snapshots)
        return max((s for s in steps if s <= step), default=steps[0])

    def _tell_panels(self) -> None:
        self.panels = [
            {
                "name": name,
                "steps": sorted(panel.snapshots),
                "d": len(next(iter(panel.snapshots.values()))),
                "n": panel.n,
                "colour": PALETTE[index % len(PALETTE)],
            }
            for index, (name, panel) in enumerate(self._explored.items())
        ]

    def _panel(self, index: int) -> tuple[str, Any]:
        return list(self._explored.items())[index]

    def _matrix(self, index: int, step: int) -> dict[str, Any]:
        """A matrix for the browser, with the numbers and histograms beside it."""
        name, panel = self._panel(index)
        step = self._at(name, step)
        c = panel.snapshots[step].float().cpu().numpy()
        summary = asdict(CorrelationSummary.from_matrix(c, panel.n))
        counts = {
            key: np.histogram(np.clip(values, -1, 1), _BINS, (-1, 1))[0].tolist()
            for key, values in (("diagonal_counts", np.diagonal(c)), ("off_counts", off_diagonal(c)))
        }
        ends = {"lowest": float(c.min()), "highest": float(c.max())}
        return {"panel": index, "step": step, "summary": summary, **ends, **counts, "matrix": c.tobytes()}

    def _answer(self, request: dict[str, Any]) -> None:
        kind, index, step = request["kind"], request["panel"], request["step"]
        if kind == "matrix":
            matrix = self._matrix(index, step)
            self.send({"kind": kind} | {k: v for k, v in matrix.items() if k != "matrix"}, [matrix["matrix"]])
        elif kind == "spectrum":
            values = spectrum(self._panel(index)[1].snapshots[step])
            self.send({"kind": kind, "panel": index, "step": step, "values": values.tolist()})
        else:
            raise ValueError(f"the browser asked for {kind!r}, known are 'matrix' and 'spectrum'")

    def _arrange(self) -> None:
        """Send the order of every panel's features, from its newest matrix."""
        newest = [panel.snapshots[max(panel.snapshots)] for panel in self._explored.values()]
        self.orders = {"by": self.order, "positions": [feature_order(c, self.order).tolist() for c in newest]}

    def _look_behind(self) -> None:
        """Send the samples behind `cell`."""
        if not self.cell:
            self.behind = {}
            return
        index, i, j = self.cell
        name, panel = self._panel(index)
        base = {"panel": index, "i": i, "j": j, "name": name}
        if panel.features is None:
            self.behind = base | {"missing": "Give the explorer images=(view_a, view_b) to see the samples of a cell."}
            return
        step = max(panel.snapshots)
        if self._features.get(index, (None,))[0] != step:
            self._features[index] = step, panel.features()
        pair = feature_pair(*self._features[index][1], i, j)
        images = {}
        if self._images is not None:
            ends = (pair.extremes_a, pair.extremes_b)
            images = {
                key: image_uris(view, rows)
                for key, view, rows in zip(("images_a", "images_b"), self._images, ends, strict=True)
            }
        points = {axis: np.round(values[:MOST_POINTS], 3).tolist() for axis, values in (("x", pair.x), ("y", pair.y))}
        extremes = {"extremes_a": pair.extremes_a.tolist(), "extremes_b": pair.extremes_b.tolist()}
        self.behind = (
            base | points | extremes | images | {"step": step, "n": len(pair.x), "correlation": pair.correlation}
        )

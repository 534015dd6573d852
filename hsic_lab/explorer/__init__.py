"""Interactive heatmaps of C: a notebook widget with the samples and images behind each entry."""

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
from PIL import Image
from torch import Tensor

from hsic_lab import correlation as correlations
from hsic_lab._checks import to_array
from hsic_lab.evaluation import extract_features
from hsic_lab.plots import DIVERGING, PALETTE
from hsic_lab.plots._heatmaps import matrix_figure
from hsic_lab.plots._samples import unit_images
from hsic_lab.training import Event, Run
from hsic_lab.training._data import SNAPSHOT_PAIRS

__all__ = ["CorrelationExplorer", "FeaturePair", "feature_pair"]

Projections = tuple[Tensor, Tensor]
Source = Run | str | os.PathLike | Projections
_FOLDER = Path(__file__).parent
_SCRIPTS = ("heatmap.js", "charts.js", "store.js", "panel.js", "explorer.js")  # one module; the last exports


@dataclass(frozen=True)
class FeaturePair:
    """Feature i of view A and feature j of view B over the same n images: the standardized `x` and `y` of shape (n,).

    `correlation` is ``C_ij``, the mean of ``x * y``. `extremes_a, extremes_b` are the indices of the images with the
    lowest values of `x` and of `y`, then of those with the highest.
    """

    x: np.ndarray
    y: np.ndarray
    correlation: float
    extremes_a: np.ndarray
    extremes_b: np.ndarray


def feature_pair(z_a: Tensor, z_b: Tensor, i: int, j: int, extremes: int = 4) -> FeaturePair:
    """The samples behind the entry ``C_ij`` of a cross-correlation matrix.

    Parameters
    ----------
    z_a, z_b : Tensor of shape (n, d)
        Projections of the two views.
    i, j, extremes : int, extremes 4 by default
        A feature of view A and one of view B, 0 to d - 1; the number of images at each end, at most n / 2.

    Examples
    --------
    >>> import torch
    >>> from hsic_lab.explorer import feature_pair
    >>> feature_pair(torch.eye(3), torch.eye(3), 0, 0).extremes_a.tolist()
    [1, 0]
    """
    d = z_a.shape[1]
    if not (0 <= i < d and 0 <= j < d):
        raise ValueError(f"features are numbered 0 to {d - 1}, got ({i}, {j})")
    if extremes < 1:
        raise ValueError(f"extremes must be at least 1, got {extremes}")
    x, y = (
        to_array(correlations.standardize(z[:, [column]])[:, 0]).astype(np.float64)
        for z, column in ((z_a, i), (z_b, j))
    )
    count = min(extremes, len(x) // 2)
    ends = (np.argsort(values, kind="stable")[[*range(count), *range(-count, 0)]] for values in (x, y))
    return FeaturePair(x, y, float(np.mean(x * y)), *ends)


@dataclass(eq=False)
class _Panel:
    """One heatmap: a run, or one pair of projections."""

    snapshots: Mapping[int, Tensor]  # C by step: the mapping of the run itself, which grows while the run trains
    n: int  # the number of pairs behind each C
    features: Callable[[], Projections] | None = None  # projects both views with the newest networks
    run: Run | None = None

    def __post_init__(self) -> None:
        for step, c in self.snapshots.items():
            try:
                correlations.square_matrix(c)
            except ValueError as error:
                raise ValueError(f"C of step {step} cannot be shown: {error}") from error

    @property
    def newest(self) -> int:
        return max(self.snapshots)

    def step_at(self, step: int) -> int:
        """Return the newest step that is not later than `step`, or the first one if all are later."""
        return max((s for s in self.snapshots if s <= step), default=min(self.snapshots))


def _panels(source: Any, images: Projections | None, samples: int | None) -> dict[str, _Panel]:
    """Return the panels of the first argument of `CorrelationExplorer` by name."""
    sources = {} if source is None else source if isinstance(source, Mapping) else {None: source}
    panels = {}
    for name, one in sources.items():
        one = Run.load(one) if isinstance(one, str | os.PathLike) else one
        name = name if name is not None else one.folder.name if isinstance(one, Run) else "C"
        panels[name] = _panel(name, one, images, samples)
    return panels


def _panel(name: str, source: Run | Projections, images: Projections | None, samples: int | None) -> _Panel:
    if isinstance(source, Run):
        if not source.snapshots:
            raise ValueError(f"{name!r} has no snapshot of C yet: pass the explorer's callback to train instead")
        n = source.metadata.get("held_out_pairs", SNAPSHOT_PAIRS) if samples is None else samples  # old runs lack it
        return _Panel(source.snapshots, n, None if images is None else lambda: _project(source, *images), source)
    if not (isinstance(source, tuple) and len(source) == 2):
        kind = type(source).__name__
        raise TypeError(f"{name!r} must be a Run, its folder or a pair of projections (z_a, z_b), got {kind}")
    z_a, z_b = (torch.as_tensor(z).detach() for z in source)
    if images is not None and len(images[0]) != len(z_a):
        raise ValueError(f"every row needs an image, got {len(images[0])} images and {len(z_a)} rows of {name!r}")
    return _Panel({0: correlations.cross_correlation(z_a, z_b)}, len(z_a), lambda: (z_a, z_b))


def _project(run: Run, images_a: Tensor, images_b: Tensor) -> Projections:
    network = torch.nn.Sequential(run.encoder, run.projector)
    return extract_features(network, images_a), extract_features(network, images_b)


def _image_views(images: Tensor | Sequence[Tensor] | None) -> Projections | None:
    """Return checked images of both views, from a pair or from one tensor for both."""
    if images is None:
        return None
    if not isinstance(images, Tensor) and len(images) != 2:
        raise ValueError(f"images must be one tensor or a pair of tensors, got {len(images)}")
    a, b = (images, images) if isinstance(images, Tensor) else map(torch.as_tensor, images)
    for view in (a, b):
        unit_images(view if view.is_floating_point() else view[:1])  # the range of bytes needs no check
    if len(a) != len(b):
        raise ValueError(f"both views must have the same number of images, got {len(a)} and {len(b)}")
    return a, b


def _image_urls(images: Tensor, rows: np.ndarray) -> list[str]:
    """Return the images of these rows as data URLs of PNG files."""
    urls = []
    for image in np.round(255 * unit_images(images[rows])).astype(np.uint8):
        buffer = io.BytesIO()
        Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0)).save(buffer, format="png")
        urls.append("data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode())
    return urls


class CorrelationExplorer(anywidget.AnyWidget):
    """Notebook widget with heatmaps of C: training steps, zoom, orders of the features, and the samples behind a cell.

    The traits `step`, `order` ("index", "diagonal" or "cluster"), `limit` and `cell` (``[panel, i, j]``) follow the
    controls and move them. The order is computed from the newest C of each panel and holds for all steps. Panels of the
    same d zoom together. Where widgets do not run, `figure` gives the image.

    Parameters
    ----------
    source : Run, path, tuple of two Tensors, Tensor, or mapping of str to these, optional
        A run or its folder, a pair of projections (n, d), or several of them by name. None waits for `callback`.
    z_b : Tensor of shape (n, d), optional
        The projections of view B, if `source` is those of view A.
    images : Tensor of shape (n, c, h, w) or pair of them, optional
        The images of both views, uint8 or floats in [-1, 1]. A run projects them with its newest networks.
    samples, limit : int or None, float, default 1.0
        The number of pairs behind the snapshots of a run, None for what the run says; end of the color scale.

    Examples
    --------
    In a notebook, for a finished run, for two runs side by side, and for a training that starts afterwards::

        CorrelationExplorer(run)
        CorrelationExplorer({"Barlow Twins": run_a, "HSIC_SSL": run_b}, images=(view_a, view_b))
        display(live := CorrelationExplorer())
        train(config, folder, callbacks=[live.callback])
    """

    _esm = "\n".join((_FOLDER / name).read_text(encoding="utf-8") for name in _SCRIPTS)
    _css = _FOLDER / "explorer.css"
    panels = traitlets.List(traitlets.Dict()).tag(sync=True)
    colors = traitlets.Bytes().tag(sync=True)
    orders = traitlets.Dict().tag(sync=True)
    latest = traitlets.Dict().tag(sync=True)  # the newest matrix, for a browser that connects later
    behind = traitlets.Dict().tag(sync=True)  # the samples of `cell`
    step = traitlets.Int(0, min=0).tag(sync=True)
    order = traitlets.Enum(correlations.ORDERS, "index").tag(sync=True)
    limit = traitlets.Float(1.0).tag(sync=True)
    cell = traitlets.List(traitlets.Int()).tag(sync=True)

    def __init__(
        self, source: Source | Tensor | Mapping[str, Source] | None = None, z_b: Tensor | None = None,
        images: Tensor | Projections | None = None, *, samples: int | None = None, limit: float = 1.0,
    ) -> None:  # fmt: skip
        self._images, self._samples = _image_views(images), samples
        self._panels = _panels(source if z_b is None else (source, z_b), self._images, samples)
        self._features: dict[int, tuple[int, Projections]] = {}  # of the newest step of a panel
        super().__init__(limit=limit)
        self.colors = matplotlib.colormaps[DIVERGING](np.arange(256), bytes=True)[:, :3].tobytes()
        self._send_panels()
        self.step = max((panel.newest for panel in self._panels.values()), default=0)
        if self._panels:
            self.latest = self._matrix(0, self.step)
        self.on_msg(lambda _, content, buffers: self._answer(content))
        self.observe(lambda _: self._send_orders(), "order")
        self.observe(lambda _: self._send_behind(), "cell")

    def callback(self, event: Event) -> None:
        """Show each new snapshot of a training; pass it as ``train(..., callbacks=[explorer.callback])``."""
        if event.kind != "snapshot":
            return
        if not any(panel.run is event.run for panel in self._panels.values()):
            name = event.run.folder.name if event.run.folder.name not in self._panels else str(event.run.folder)
            self._panels[name] = _panel(name, event.run, self._images, self._samples)
        index = [panel.run for panel in self._panels.values()].index(event.run)
        self.latest = self._matrix(index, event.step)
        self._send_panels()
        self._send_orders()
        self.step = event.step

    def figure(self, step: int | None = None) -> Figure:
        """Return heatmaps, histograms and spectra at `step` as one figure; None is the step of the slider."""
        step = self.step if step is None else step
        matrices, pairs, orders = {}, {}, {}
        for name, panel in self._panels.items():
            matrices[name], pairs[name] = panel.snapshots[panel.step_at(step)], panel.n
            orders[name] = correlations.feature_order(panel.snapshots[panel.newest], self.order)
        return matrix_figure(matrices, pairs, self.limit, orders)

    def _repr_mimebundle_(self, **kwargs: Any) -> tuple[dict, dict] | None:
        """Return the widget, and `figure` as an image for pages on which widgets do not run."""
        bundle = super()._repr_mimebundle_(**kwargs)
        if bundle is not None and self._panels:
            buffer, figure = io.BytesIO(), self.figure()
            figure.savefig(buffer, format="png", dpi=100)
            plt.close(figure)
            bundle[0]["image/png"] = base64.b64encode(buffer.getvalue()).decode()
        return bundle

    @traitlets.validate("limit")
    def _positive(self, proposal: dict) -> float:
        if not 0 < proposal["value"] < float("inf"):
            raise ValueError(f"limit must be positive and finite, got {proposal['value']}")
        return proposal["value"]

    def _send_panels(self) -> None:
        self.panels = [
            {"name": name, "steps": sorted(panel.snapshots), "d": len(panel.snapshots[panel.newest]), "n": panel.n}
            | {"color": PALETTE[index % len(PALETTE)]}
            for index, (name, panel) in enumerate(self._panels.items())
        ]

    def _matrix(self, index: int, step: int) -> dict[str, Any]:
        """Return a matrix with its summary and histograms, as the browser reads it."""
        panel = list(self._panels.values())[index]
        step = panel.step_at(step)
        c = panel.snapshots[step].float().cpu().numpy()
        matrix = {
            "panel": index,
            "step": step,
            "summary": asdict(correlations.CorrelationSummary.from_matrix(c, panel.n)),
        }
        for key, values in (("diagonal_counts", np.diagonal(c)), ("off_counts", correlations.off_diagonal(c))):
            matrix[key] = np.histogram(np.clip(values, -1, 1), 400, (-1, 1))[0].tolist()
        return matrix | {"lowest": float(c.min()), "highest": float(c.max()), "matrix": c.tobytes()}

    def _answer(self, request: dict[str, Any]) -> None:
        kind, index, step = request["kind"], request["panel"], request["step"]
        if kind == "matrix":
            matrix = self._matrix(index, step)
            self.send({"kind": kind} | {k: v for k, v in matrix.items() if k != "matrix"}, [matrix["matrix"]])
        elif kind == "spectrum":
            values = correlations.spectrum(list(self._panels.values())[index].snapshots[step])
            self.send({"kind": kind, "panel": index, "step": step, "values": values.tolist()})
        else:
            raise ValueError(f"the browser asked for {kind!r}, known are 'matrix' and 'spectrum'")

    def _send_orders(self) -> None:
        newest = [panel.snapshots[panel.newest] for panel in self._panels.values()]
        self.orders = {
            "by": self.order,
            "positions": [correlations.feature_order(c, self.order).tolist() for c in newest],
        }

    def _send_behind(self) -> None:
        """Send the samples behind `cell`, at most 2000 points of the scatter plot."""
        if not self.cell:
            self.behind = {}
            return
        index, i, j = self.cell
        name, panel = list(self._panels.items())[index]
        behind = {"panel": index, "i": i, "j": j, "name": name}
        if panel.features is None:
            self.behind = behind | {"missing": "To see the samples of a cell, pass images=(view_a, view_b)."}
            return
        if self._features.get(index, (None,))[0] != panel.newest:
            self._features[index] = panel.newest, panel.features()
        step, projections = self._features[index]
        pair = feature_pair(*projections, i, j)
        behind |= {"step": step, "n": len(pair.x), "correlation": pair.correlation}
        behind |= {axis: np.round(getattr(pair, axis)[:2000], 3).tolist() for axis in "xy"}
        for number, (view, rows) in enumerate((("a", pair.extremes_a), ("b", pair.extremes_b))):
            behind[f"extremes_{view}"] = rows.tolist()
            if self._images is not None:
                behind[f"images_{view}"] = _image_urls(self._images[number], rows)
        self.behind = behind

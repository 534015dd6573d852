"""Interactive heatmaps of C, in a notebook or in one HTML file, with the samples and images behind each entry."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import cycle
from pathlib import Path
from threading import Thread
from typing import Any

import anywidget
import jinja2
import matplotlib
import numpy as np
import torch
import traitlets
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from hsic_lab import correlation as correlations
from hsic_lab._checks import as_samples, check_number, check_type, to_array
from hsic_lab._io import replace_file
from hsic_lab.evaluation import extract_features
from hsic_lab.explorer._html import data_url, explorer_fragment, image_bytes
from hsic_lab.plots import DIVERGING, PALETTE, compare_cross_correlations
from hsic_lab.plots._canvas import png_text
from hsic_lab.plots._heatmaps import matrix_figure
from hsic_lab.plots._samples import unit_images
from hsic_lab.training import Event, Run
from hsic_lab.training._setup import KEPT_SAMPLES, SNAPSHOT_PAIRS, data_of, held_out_pairs

__all__ = ["CorrelationExplorer", "explorer_fragment"]

Projections = tuple[Tensor, Tensor]
Source = Run | str | os.PathLike | Projections
_FOLDER = Path(__file__).parent
_SCRIPTS = ("heatmap.js", "charts.js", "store.js", "panel.js", "explorer.js")  # one module; the last exports
_BINS = 400  # of the histograms, over [-1, 1]
_POINTS = 2000  # at most, in a scatter plot
_LARGE = 1024  # features; above, the still image of a notebook has the heatmaps alone, for a spectrum takes seconds


@dataclass(eq=False)
class _Panel:
    """One heatmap: a run, or one pair of projections."""

    snapshots: Mapping[int, Tensor]  # C by step: the mapping of the run itself, which grows while the run trains
    n: int  # the number of pairs behind each C
    run: Run | None = None
    projected: tuple[int, Tensor, Tensor] | None = None  # a step, and the projections at this step
    images: Projections | None = None  # images of the user in place of those of the run
    one: bool = False  # whether both views are the same array

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

    @cached_property
    def pairs(self) -> tuple[Projections | None, str]:
        """Return the images of both views, or None and the reason."""
        if self.images is not None or self.run is None:
            return self.images, ""
        config, metadata = self.run.config, self.run.metadata
        try:
            if "pictures" not in metadata or metadata.get("views") == "custom":
                raise ValueError("the run does not say how its views are made")
            views = held_out_pairs(data_of(config.dataset, metadata), config, torch.device(self.device))
            return (views[0][:KEPT_SAMPLES].cpu(), views[1][:KEPT_SAMPLES].cpu()), ""
        except (OSError, ValueError, TypeError) as error:
            return None, f"The run's own images cannot be shown ({error}). Give the explorer images=(view_a, view_b)."

    @property
    def device(self) -> str:
        """Return where to draw the held-out pairs: a CPU and a GPU draw different ones, the GPU may not be here."""
        there = "" if self.run is None else self.run.metadata.get("device", "cpu")
        return "cuda" if there.startswith("cuda") and torch.cuda.is_available() else "cpu"

    def samples(self, step: int) -> tuple[int, Tensor, Tensor] | None:
        """Return a step, and the projections of both views by its networks: of `step` itself if the run kept them."""
        if self.run is None:
            return self.projected
        images, kept = self.pairs[0], self.run.samples
        drawn_here = self.run.metadata.get("device", "cpu").startswith(self.device)
        if kept and self.images is None and (images is None or drawn_here):
            at = step if step in kept else max(kept)
            return at, kept[at][0].float(), kept[at][1].float()
        if images is not None and (self.projected is None or self.projected[0] != self.newest):
            network = torch.nn.Sequential(self.run.encoder, self.run.projector)
            z_a, z_b = (extract_features(network, view) for view in images)
            self.projected = self.newest, z_a, z_b
        return self.projected


def _panels(source: Any, images: Projections | None) -> dict[str, _Panel]:
    """Return the panels of the first argument of `CorrelationExplorer` by name."""
    sources = {} if source is None else source if isinstance(source, Mapping) else {None: source}
    panels = {}
    for name, one in sources.items():
        one = Run.load(one) if isinstance(one, str | os.PathLike) else one
        name = name if name is not None else one.folder.name if isinstance(one, Run) else "C"
        panels[name] = _panel(name, one, images)
    return panels


def _panel(name: str, source: Run | Projections, images: Projections | None) -> _Panel:
    """Return the panel of one source."""
    if isinstance(source, Run):
        if not source.snapshots:
            raise ValueError(f"{name!r} has no snapshot of C yet: pass the explorer's callback to train instead")
        n = source.metadata.get("held_out_pairs", SNAPSHOT_PAIRS)  # old runs lack it
        return _Panel(source.snapshots, n, source, images=images)
    if not (isinstance(source, tuple) and len(source) == 2):
        raise TypeError(f"{name!r} must be a Run, its folder or a pair (z_a, z_b), got {type(source).__name__}")
    z_a, z_b = (as_samples(z, f"{view} of {name!r}").detach() for view, z in zip(("z_a", "z_b"), source, strict=True))
    if images is not None and len(images[0]) != len(z_a):
        raise ValueError(f"every row needs an image, got {len(images[0])} images and {len(z_a)} rows of {name!r}")
    c = correlations.cross_correlation(z_a, z_b)
    return _Panel({0: c}, len(z_a), None, (0, z_a, z_b), images, one=source[0] is source[1])


def _image_views(images: Tensor | Sequence[Tensor] | None) -> Projections | None:
    """Return checked images of both views, from a pair or from one tensor for both."""
    if images is None:
        return None
    images = torch.as_tensor(images) if isinstance(images, np.ndarray) else images
    if not isinstance(images, Tensor) and len(check_type("images", images, list, tuple)) != 2:
        raise ValueError(f"images must be one tensor or a pair of tensors, got {len(images)}")
    a, b = (images, images) if isinstance(images, Tensor) else map(torch.as_tensor, images)
    for view in (a, b):
        unit_images(view if view.is_floating_point() else view[:1])  # the range of bytes needs no check
    if len(a) != len(b):
        raise ValueError(f"both views must have the same number of images, got {len(a)} and {len(b)}")
    return a, b


def _histogram(values: np.ndarray) -> np.ndarray:
    """Return counts over [-1, 1], ten times faster than those of NumPy; values outside are in the outermost bins."""
    bins = ((values + 1) * (_BINS / 2)).astype(np.int64).clip(0, _BINS - 1)
    return np.bincount(bins.ravel(), minlength=_BINS)


class CorrelationExplorer(anywidget.AnyWidget):
    """Notebook widget with heatmaps of C: training steps, zoom, orders of the features, and the samples behind a cell.

    The traits `step`, `order` ("index", "diagonal" or "cluster"), `limit` and `cell` (``[panel, i, j]``) follow the
    controls and move them. The order is computed from the newest C of each panel and holds for all steps. Panels of the
    same d zoom together. Where widgets do not run, `figure` gives the image, and `save_html` a page.

    Parameters
    ----------
    source, z_b : Run, path, tuple of two Tensors, Tensor, or mapping of str to these; Tensor; both optional
        A run or its folder, a pair of projections (n, d), or several of them by name; or the projections of view A in
        `source` and those of view B in `z_b`. None waits for `callback`.
    images : Tensor of shape (n, c, h, w) or pair of them, optional
        The images of both views, uint8 or floats in [-1, 1]. A run projects them with its newest networks. By default
        a run shows its own held-out images, with its projections of every step, if it can load its data set.
    limit : float, default 1.0
        End of the color scale.

    Examples
    --------
    In a notebook, for two runs side by side, and for a training that starts afterwards::

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
    step = traitlets.Int(0, min=0).tag(sync=True)
    order = traitlets.Enum(correlations.ORDERS, "index").tag(sync=True)
    limit = traitlets.Float(1.0).tag(sync=True)
    cell = traitlets.List(traitlets.Int()).tag(sync=True)

    def __init__(
        self, source: Source | Tensor | Mapping[str, Source] | None = None, z_b: Tensor | None = None,
        images: Tensor | Projections | None = None, *, limit: float = 1.0,
    ) -> None:  # fmt: skip
        self._images = _image_views(images)
        self._panels = _panels(source if z_b is None else (source, z_b), self._images)
        super().__init__(limit=limit)
        self.colors = matplotlib.colormaps[DIVERGING](np.arange(256), bytes=True)[:, :3].tobytes()
        self._send_panels()
        self.step = max((panel.newest for panel in self._panels.values()), default=0)
        if self._panels:
            self.latest = self._matrix(0, self.step)
        self.on_msg(lambda _, content, buffers: self._receive(content))
        self.observe(lambda _: self._send_orders(), "order")

    def callback(self, event: Event) -> None:
        """Show each new snapshot of a training; pass it as ``train(..., callbacks=[explorer.callback])``."""
        if event.kind != "snapshot":
            return
        if not any(panel.run is event.run for panel in self._panels.values()):
            name = event.run.folder.name if event.run.folder.name not in self._panels else str(event.run.folder)
            self._panels[name] = _panel(name, event.run, self._images)
        self.latest = self._matrix([panel.run for panel in self._panels.values()].index(event.run), event.step)
        self._send_panels()
        self._send_orders()
        self.step = event.step

    def figure(self, step: int | None = None) -> Figure:
        """Return heatmaps, histograms and spectra at `step` as one figure; None is the step of the slider."""
        step, panels = self.step if step is None else step, self._panels.items()
        matrices = {name: panel.snapshots[panel.step_at(step)] for name, panel in panels}
        orders = {name: correlations.feature_order(panel.snapshots[panel.newest], self.order) for name, panel in panels}
        return self._named(matrix_figure(matrices, {name: panel.n for name, panel in panels}, self.limit, orders))

    def save_html(self, path: str | os.PathLike) -> Path:
        """Write the explorer into one HTML file that needs neither a kernel nor a network, and return its path.

        It holds the matrices at all kept steps, rounded, and samples and images of the first 256 pairs. The page says
        what it holds. To stay below 15 MB, matrices of many features are rounded more, then steps are left out.
        """
        pages = jinja2.Environment(loader=jinja2.PackageLoader("hsic_lab", "explorer"), autoescape=True)
        title = "Cross-correlation matrix: " + ", ".join(map(str, self._panels))
        page = pages.get_template("page.html").render(title=title, fragment=explorer_fragment(self))
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        replace_file(Path(path), lambda temporary: temporary.write_text(page, encoding="utf-8"))
        return Path(path)

    def _repr_mimebundle_(self, **kwargs: Any) -> tuple[dict, dict] | None:
        """Return the widget, and `figure` as an image for pages on which widgets do not run."""
        bundle = super()._repr_mimebundle_(**kwargs)
        if bundle is not None and self._panels:
            matrices = {name: panel.snapshots[panel.step_at(self.step)] for name, panel in self._panels.items()}
            large = max(map(len, matrices.values())) > _LARGE
            still = self._named(compare_cross_correlations(matrices, self.limit)) if large else self.figure()
            bundle[0]["image/png"] = png_text(still, dpi=100)
        return bundle

    def _named(self, figure: Figure) -> Figure:
        """Name the axes of each heatmap of one array, which has no views."""
        for ax in [ax for ax, panel in zip(figure.axes, self._panels.values(), strict=False) if panel.one]:
            ax.set(xlabel=ax.get_xlabel().replace("feature of view B", "feature"), ylabel="feature")
        return figure

    @traitlets.validate("limit")
    def _positive(self, proposal: dict) -> float:
        return check_number("limit", proposal["value"], 0, above=True)

    @traitlets.validate("cell")
    def _known_cell(self, proposal: dict) -> list[int]:
        cell = proposal["value"]
        if cell and (len(cell) != 3 or not 0 <= cell[0] < len(self.panels)):
            raise ValueError(f"cell must be [panel, i, j] with a panel from 0 to {len(self.panels) - 1}, got {cell}")
        if cell and not all(0 <= feature < self.panels[cell[0]]["d"] for feature in cell[1:]):
            raise ValueError(f"features are numbered 0 to {self.panels[cell[0]]['d'] - 1}, got ({cell[1]}, {cell[2]})")
        return cell

    def _send_panels(self) -> None:
        self.panels = [
            {
                "name": name, "steps": sorted(panel.snapshots), "d": len(panel.snapshots[panel.newest]), "n": panel.n,
                "one": panel.one, "trained": panel.run is not None, "color": color,
            }
            for (name, panel), color in zip(self._panels.items(), cycle(PALETTE), strict=False)
        ]  # fmt: skip

    def _matrix(self, index: int, step: int) -> dict[str, Any]:
        """Return a matrix with its summary and histograms, as the browser reads it."""
        panel = list(self._panels.values())[index]
        step = panel.step_at(step)
        c = panel.snapshots[step].float().cpu().numpy()
        a, b = c.any(axis=1), c.any(axis=0)
        diagonal, entries = _histogram(np.diagonal(c)[a & b]), _histogram(c[a][:, b])  # without constant features
        return {
            "panel": index, "step": step, "lowest": float(c.min()), "highest": float(c.max()), "matrix": c.tobytes(),
            "constant": [int((~live).sum()) for live in (a, b)],  # features of view A, of view B
            "summary": asdict(correlations.CorrelationSummary.from_matrix(c, panel.n)),
            "diagonal_counts": diagonal.tolist(), "off_counts": (entries - diagonal).tolist(),
        }  # fmt: skip

    def _receive(self, request: dict[str, Any]) -> None:
        """Answer at once, but in a thread about a spectrum: that may take a second, and other requests do not wait."""
        answer = Thread(target=self._answer, args=(request,), daemon=True)
        (answer.start if request["kind"] == "spectrum" else answer.run)()

    def _answer(self, request: dict[str, Any]) -> None:
        answers: dict[str, Any] = {"matrix": self._matrix, "spectrum": self._spectrum, "cell": self._cell}
        if (kind := request["kind"]) not in answers:
            raise ValueError(f"the browser asked for {kind!r}, known are {sorted(answers)}")
        answer = answers[kind](request["panel"], *(request[key] for key in ("step", "i", "j") if key in request))
        buffers = [answer.pop(key) for key in ("matrix", "x", "y") if key in answer]
        self.send({"kind": kind} | answer, buffers)

    def _spectrum(self, index: int, step: int) -> dict[str, Any]:
        values = correlations.spectrum(list(self._panels.values())[index].snapshots[step])
        return {"panel": index, "step": step, "values": [float(f"{value:.6g}") for value in values]}

    def _cell(self, index: int, step: int, i: int, j: int) -> dict[str, Any]:
        """Return the samples behind an entry and the images at their ends."""
        panel = list(self._panels.values())[index]
        images, note = panel.pairs
        answer = {"panel": index, "step": step, "i": i, "j": j, "note": note}
        try:
            found = panel.samples(step)
        except (ValueError, TypeError, RuntimeError) as error:  # of the user's images in the run's networks
            return answer | {"note": f"The images cannot be projected: {error}"}
        if found is None:
            return answer
        x, y = (to_array(correlations.standardize(z[:, [k]])[:, 0]) for z, k in zip(found[1:], (i, j), strict=True))
        answer |= {"at": found[0], "n": len(x), "correlation": float(np.mean(x.astype(float) * y))}
        answer |= {"x": x[:_POINTS].astype(np.float32).tobytes(), "y": y[:_POINTS].astype(np.float32).tobytes()}
        if images is not None:  # those of the lowest and of the highest values
            ends = [*range(count := min(4, len(x) // 2)), *range(-count, 0)]
            for key, view, values in (("images_a", images[0], x), ("images_b", images[1], y)):
                shown = image_bytes(view[np.argsort(values, kind="stable")[ends]])
                answer[key] = [data_url(Image.fromarray(image), format="png") for image in shown]
        return answer

    def _send_orders(self) -> None:
        newest = [panel.snapshots[panel.newest] for panel in self._panels.values()]
        positions = [correlations.feature_order(c, self.order).tolist() for c in newest]
        self.orders = {"by": self.order, "positions": positions}

"""A cross-correlation matrix to walk through in JupyterLab: over training, by order, into a block, behind a cell."""

import base64
import io
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import anywidget
import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import traitlets
from matplotlib.figure import Figure
from torch import Tensor

from hsic_lab.canvas import DIVERGING
from hsic_lab.explored import both_views, explored, of_run
from hsic_lab.feature_pairs import MOST_POINTS, feature_pair, picture_uris
from hsic_lab.matrix_figure import matrix_figure
from hsic_lab.matrix_summary import ORDERS, feature_order, off_diagonal, spectrum, summarize
from hsic_lab.plots import PALETTE
from hsic_lab.runs import Run
from hsic_lab.trainer import Event

_FOLDER = Path(__file__).parent
# One module for the browser; the last one exports.
_SCRIPTS = ("heatmap.js", "charts.js", "store.js", "panel.js", "explorer.js")
_BINS = 400  # over [-1, 1], of both histograms


class CorrelationExplorer(anywidget.AnyWidget):
    """Heatmaps of C with a slider over training, zoom, orders of the features, and the samples behind a cell.

        CorrelationExplorer(run)                                     a run: its snapshots of C
        CorrelationExplorer({"Barlow Twins": a, "HSIC_SSL": b})      side by side on one colour scale
        CorrelationExplorer(z_a, z_b, images)                        projections (n, d) of both views
        CorrelationExplorer({"one": (z_a, z_b), "two": run}, images=...)
        live = CorrelationExplorer(); display(live); train(config, folder, callbacks=[live.callback])

    images:   (images_a, images_b), or one tensor for both: what row b of the views shows, uint8 (n, c, h, w) or floats
              in [-1, 1]. A run projects them with its present networks, so that a click shows the scatter of the newest
              step, whatever step the slider is at
    samples:  pairs behind the snapshots of a run, for the noise floor; left out: as many as the run says
    limit:    where the colour scale ends

    The traits `step`, `order` ("index", "diagonal", "cluster"), `limit` and `cell` ([panel, i, j]) follow the controls
    and move them. An order comes from the newest C of each panel and holds for all steps: a feature stays where it is.
    Panels may differ in d; those of one d zoom together. The browser keeps the matrices (float32) and needs the kernel
    only for new ones, a new order, spectra, and the scatter. Where widgets do not run, `figure()` stands as a picture.

    Raises ValueError for matrices that are not finite or square, d or n below 2, and images that do not match the rows.
    """

    _esm = "\n".join((_FOLDER / name).read_text(encoding="utf-8") for name in _SCRIPTS)
    _css = _FOLDER / "explorer.css"

    panels = traitlets.List().tag(sync=True)
    colours = traitlets.Bytes().tag(sync=True)
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
        self.colours = lut.tobytes()
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
        """The still picture: heatmaps at `step` (None: where the slider is), histograms, spectra, sums in words."""
        step = self.step if step is None else step
        return matrix_figure(
            {name: panel.snapshots[self._at(name, step)] for name, panel in self._explored.items()},
            {name: panel.n for name, panel in self._explored.items()}, self.limit,
            {name: feature_order(panel.snapshots[max(panel.snapshots)], self.order)
             for name, panel in self._explored.items()},
        )

    def _repr_mimebundle_(self, **kwargs: Any) -> tuple[dict, dict]:
        """The widget, and beside it the still picture for pages where widgets do not run."""
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
                "name": name, "steps": sorted(panel.snapshots), "d": len(next(iter(panel.snapshots.values()))),
                "n": panel.n, "colour": PALETTE[index % len(PALETTE)],
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
        summary = {key: float(value) for key, value in asdict(summarize(c, panel.n)).items()}
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
        pictures = {}
        if self._images is not None:
            ends = (pair.extremes_a, pair.extremes_b)
            pictures = {
                key: picture_uris(view, rows)
                for key, view, rows in zip(("pictures_a", "pictures_b"), self._images, ends, strict=True)
            }
        points = {axis: np.round(values[:MOST_POINTS], 3).tolist() for axis, values in (("x", pair.x), ("y", pair.y))}
        extremes = {"extremes_a": pair.extremes_a.tolist(), "extremes_b": pair.extremes_b.tolist()}
        self.behind = (
            base | points | extremes | pictures | {"step": step, "n": len(pair.x), "correlation": pair.correlation}
        )

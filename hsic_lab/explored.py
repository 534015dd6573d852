"""What an explorer shows: named matrices over training, and the features behind them where they can be had."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from hsic_lab.correlation import cross_correlation
from hsic_lab.feature_pairs import as_pictures
from hsic_lab.frozen import extract_features
from hsic_lab.matrix_summary import square_matrix
from hsic_lab.pairs import SNAPSHOT_PAIRS
from hsic_lab.runs import Run

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

    n = run.facts.get("held_out_pairs", SNAPSHOT_PAIRS) if samples is None else samples  # runs did not always say
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
        as_pictures(view)
    if len(pair[0]) != len(pair[1]):
        raise ValueError(f"the views must hold one image a pair, got {len(pair[0])} and {len(pair[1])}")
    return pair


def _panel(
    name: str, source: Source, images: tuple[Tensor, Tensor] | None, samples: int | None
) -> Explored:
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

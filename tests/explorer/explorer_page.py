"""The code of the notebook that the browser test runs: explorers of known matrices, of runs, and of a live training."""

import sys
import tempfile
from pathlib import Path

import torch

from hsic_lab.correlation import cross_correlation
from hsic_lab.explorer import CorrelationExplorer
from hsic_lab.training import Event, Run

STEPS = (0, 10, 25)


def views(d, n=60, seed=0):
    generator = torch.Generator().manual_seed(d + seed)
    shared = torch.randn(n, d, generator=generator)
    return shared, shared + torch.randn(n, d, generator=generator)


def matrices():
    return [cross_correlation(*views(d)) for d in (12, 1100)]


def snapshots(d=16):
    return {step: cross_correlation(*views(d, seed=step)) for step in STEPS}


def run(name):
    torch.manual_seed(0)
    encoder, projector = torch.nn.Flatten(), torch.nn.Linear(3 * 32 * 32, 16)
    return Run(Path(tempfile.gettempdir()) / name, {}, encoder, projector, snapshots=snapshots())


def images():
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (1024, 3, 32, 32), generator=generator, dtype=torch.uint8)


if __name__ == "__main__" and "ipykernel" in sys.modules:
    from IPython.display import display

    display(CorrelationExplorer(*views(12)))
    display(CorrelationExplorer(*views(1100)))
    display(CorrelationExplorer({"one": run("one"), "two": run("two")}, images=images()))
    live = CorrelationExplorer()
    display(live)
    for name in ("first", "second"):
        live.callback(Event("snapshot", 25, {}, run(name)))

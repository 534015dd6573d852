"""Barlow Twins and HSIC: losses, estimators, tests and tools to look at them.

`import hsic_lab` loads nothing else. Names and modules are loaded when they are first used.

Examples
--------
>>> from hsic_lab import BarlowTwinsLoss, hsic, cka, train
>>> import hsic_lab
>>> hsic_lab.losses.BarlowTwinsLoss is BarlowTwinsLoss
True
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # for type checkers and editors; at run time `__getattr__` loads a name on first use
    from hsic_lab.ablation import paired_difference as paired_difference
    from hsic_lab.ablation import run_ablation as run_ablation
    from hsic_lab.cka import MinibatchCKA as MinibatchCKA
    from hsic_lab.cka import cka as cka
    from hsic_lab.compare import compare_models as compare_models
    from hsic_lab.correlation import cross_correlation as cross_correlation
    from hsic_lab.correlation import standardize as standardize
    from hsic_lab.datasets import load as load
    from hsic_lab.diagnostics import diagnose as diagnose
    from hsic_lab.encoders import ConvEncoder as ConvEncoder
    from hsic_lab.encoders import MLPProjector as MLPProjector
    from hsic_lab.encoders import ResNetEncoder as ResNetEncoder
    from hsic_lab.estimator import SelfSupervisedEncoder as SelfSupervisedEncoder
    from hsic_lab.evaluation import extract_features as extract_features
    from hsic_lab.evaluation import knn_accuracy as knn_accuracy
    from hsic_lab.evaluation import linear_probe as linear_probe
    from hsic_lab.explorer import CorrelationExplorer as CorrelationExplorer
    from hsic_lab.hsic import dhsic as dhsic
    from hsic_lab.hsic import hsic as hsic
    from hsic_lab.hsic import hsic_matrix as hsic_matrix
    from hsic_lab.independence import aggregated_test as aggregated_test
    from hsic_lab.independence import permutation_test as permutation_test
    from hsic_lab.losses import BarlowTwinsLoss as BarlowTwinsLoss
    from hsic_lab.losses import HSICSSLLoss as HSICSSLLoss
    from hsic_lab.losses import NegativeCosineSimilarity as NegativeCosineSimilarity
    from hsic_lab.losses import NTXentLoss as NTXentLoss
    from hsic_lab.losses import SpectralContrastiveLoss as SpectralContrastiveLoss
    from hsic_lab.losses import SSLHSICLoss as SSLHSICLoss
    from hsic_lab.losses import SupConLoss as SupConLoss
    from hsic_lab.losses import VICRegLoss as VICRegLoss
    from hsic_lab.report import write_report as write_report
    from hsic_lab.training import Run as Run
    from hsic_lab.training import TrainConfig as TrainConfig
    from hsic_lab.training import train as train
    from hsic_lab.views import TwoViews as TwoViews

__version__ = version("hsic-lab")

_MODULES = (
    "ablation", "cka", "cli", "compare", "correlation", "datasets", "demo", "diagnostics", "encoders", "estimator",
    "evaluation", "explorer", "hsic", "independence", "kernels", "losses", "plots", "report", "training", "views",
)  # fmt: skip
_NAMES = {
    "ablation": ("paired_difference", "run_ablation"),
    "cka": ("MinibatchCKA",),
    "compare": ("compare_models",),
    "correlation": ("cross_correlation", "standardize"),
    "datasets": ("load",),
    "diagnostics": ("diagnose",),
    "encoders": ("ConvEncoder", "MLPProjector", "ResNetEncoder"),
    "estimator": ("SelfSupervisedEncoder",),
    "evaluation": ("extract_features", "knn_accuracy", "linear_probe"),
    "explorer": ("CorrelationExplorer",),
    "hsic": ("dhsic", "hsic_matrix"),
    "independence": ("aggregated_test", "permutation_test"),
    "losses": (
        "BarlowTwinsLoss", "HSICSSLLoss", "NTXentLoss", "NegativeCosineSimilarity", "SSLHSICLoss",
        "SpectralContrastiveLoss", "SupConLoss", "VICRegLoss",
    ),
    "report": ("write_report",),
    "training": ("Run", "TrainConfig", "train"),
    "views": ("TwoViews",),
}  # fmt: skip
_HOME = {name: module for module, names in _NAMES.items() for name in names}
# `hsic_lab.hsic` and `hsic_lab.cka` are modules that can be called: `from hsic_lab import hsic; hsic(x, y)`.
__all__ = sorted([*_MODULES, *_HOME])


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f"{__name__}.{name}")
    if name in _HOME:
        value = globals()[name] = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
        return value
    raise AttributeError(f"module 'hsic_lab' has no attribute {name!r}; it has {', '.join(__all__)}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]

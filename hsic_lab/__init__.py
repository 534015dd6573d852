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
    from hsic_lab.ablation import paired_difference, run_ablation
    from hsic_lab.cka import MinibatchCKA, cka
    from hsic_lab.compare import compare_models
    from hsic_lab.correlation import CorrelationSummary, cross_correlation, standardize
    from hsic_lab.datasets import load
    from hsic_lab.diagnostics import diagnose
    from hsic_lab.encoders import ConvEncoder, MLPProjector, ResNetEncoder
    from hsic_lab.estimator import SelfSupervisedEncoder
    from hsic_lab.evaluation import extract_features, knn_accuracy, linear_probe
    from hsic_lab.explorer import CorrelationExplorer
    from hsic_lab.hsic import dhsic, hsic, hsic_matrix
    from hsic_lab.independence import aggregated_test, permutation_test, shift_test
    from hsic_lab.losses import (
        BarlowTwinsLoss,
        HSICSSLLoss,
        NegativeCosineSimilarity,
        NTXentLoss,
        SIGRegLoss,
        SpectralContrastiveLoss,
        SSLHSICLoss,
        SupConLoss,
        VICRegLoss,
    )
    from hsic_lab.report import write_report
    from hsic_lab.training import Run, TrainConfig, train
    from hsic_lab.views import TwoViews

__version__ = version("hsic-lab")
__all__ = [
    "BarlowTwinsLoss", "ConvEncoder", "CorrelationExplorer", "CorrelationSummary", "HSICSSLLoss", "MLPProjector",
    "MinibatchCKA", "NTXentLoss", "NegativeCosineSimilarity", "ResNetEncoder", "Run", "SIGRegLoss", "SSLHSICLoss",
    "SelfSupervisedEncoder", "SpectralContrastiveLoss", "SupConLoss", "TrainConfig", "TwoViews", "VICRegLoss",
    "aggregated_test", "cka", "compare_models", "cross_correlation", "dhsic", "diagnose", "extract_features",
    "hsic", "hsic_matrix", "knn_accuracy", "linear_probe", "load", "paired_difference", "permutation_test",
    "run_ablation", "shift_test", "standardize", "train", "write_report",
]  # fmt: skip
_MODULES = {  # and the names in `__all__` that are theirs; those of no module are losses
    "ablation": "paired_difference run_ablation", "cka": "MinibatchCKA", "cli": "", "compare": "compare_models",
    "correlation": "CorrelationSummary cross_correlation standardize", "datasets": "load", "demo": "",
    "diagnostics": "diagnose", "encoders": "ConvEncoder MLPProjector ResNetEncoder",
    "estimator": "SelfSupervisedEncoder", "evaluation": "extract_features knn_accuracy linear_probe",
    "explorer": "CorrelationExplorer", "hsic": "dhsic hsic_matrix",
    "independence": "aggregated_test permutation_test shift_test", "kernels": "", "losses": "", "plots": "",
    "report": "write_report", "training": "Run TrainConfig train", "views": "TwoViews",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in _MODULES:  # `hsic` and `cka` among them can be called like the functions of their names
        return _load(name)
    if name in __all__:
        home = next((module for module, names in _MODULES.items() if name in names.split()), "losses")
        return getattr(_load(home), name)
    raise AttributeError(f"module 'hsic_lab' has no attribute {name!r}; it has {', '.join(__dir__())}")


def _load(module: str) -> Any:
    try:
        return import_module(f"{__name__}.{module}")
    except ModuleNotFoundError as error:
        hint = f"hsic_lab.{module} needs {error.name}, which the extra `lab` installs: pip install 'hsic-lab[lab]'"
        raise ModuleNotFoundError(hint, name=error.name) from error


def __dir__() -> list[str]:
    return sorted({*__all__, *_MODULES, "__version__"})

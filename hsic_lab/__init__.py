"""Barlow Twins and HSIC: losses, estimators and tools to look at them.

`import hsic_lab` loads nothing else; its modules are loaded when they are first used: `hsic_lab.hsic.hsic(x, y)`.
"""

from importlib import import_module
from importlib.metadata import version
from pkgutil import iter_modules
from types import ModuleType

__version__ = version("hsic-lab")


def __getattr__(name: str) -> ModuleType:
    if name in __dir__():
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"hsic_lab has no module {name!r}; it has {', '.join(__dir__())}")


def __dir__() -> list[str]:
    return sorted(module.name for module in iter_modules(__path__) if not module.name.startswith("_"))

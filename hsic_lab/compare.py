"""Comparison of two networks, layer by layer, with CKA."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from difflib import get_close_matches
from functools import partial
from typing import Any

import pandas as pd
import torch
from torch import Tensor
from torch.nn import Module

from hsic_lab._checks import as_tensor, check_choice, check_integer, check_type, is_constant, with_float64
from hsic_lab.cka import u_center
from hsic_lab.evaluation._features import check_images, evaluating, model_input
from hsic_lab.hsic._estimators import at_origin, center
from hsic_lab.kernels import Kernel, Linear, kernel_or

__all__ = ["compare_models"]


def compare_models(
    model_a: Module,
    model_b: Module,
    images: Tensor | Iterable[Tensor | Sequence[Tensor]],
    layers: Sequence[str] | None = None,
    layers_b: Sequence[str] | None = None,
    batch_size: int = 256,
    kernel: Kernel | None = None,
    estimator: str = "unbiased",
) -> pd.DataFrame:
    """CKA of every layer of one network with every layer of another, on the same images.

    Activations are flattened to (n, p). Batches are combined as in `MinibatchCKA`. Both models run in eval mode without
    gradients; their training flags are restored and the hooks removed, also after an error.

    Parameters
    ----------
    model_a, model_b : Module
        The networks, each on its device.
    images : Tensor of shape (n, c, h, w) or iterable of batches
        At least 4 images, uint8 or normalized. Batches may hold labels after the images, as those of a DataLoader.
    layers, layers_b : sequence of str, optional
        Names from ``model.named_modules()``. None means all called modules without submodules, in the order of the
        calls, and for `layers_b` `layers`. The second call of a module in one pass is a layer of its own, ``name#2``.
    batch_size : int, default 256
        Rows of a batch if `images` is a tensor.
    kernel, estimator
        As in `cka`; a median rule is fitted for each layer to the first batch. "biased" depends on the batch size.

    Returns
    -------
    DataFrame
        CKA with the layers of `model_a` as index and those of `model_b` as columns.

    Examples
    --------
    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(6, 4), torch.nn.ReLU())
    >>> table = compare_models(model, model, torch.randn(20, 6), layers=["0", "1"])
    >>> round(float(table.loc["0", "0"]), 6)
    1.0
    """
    unbiased = check_choice(estimator, ("biased", "unbiased"), "estimator") == "unbiased"
    kernel = kernel_or(Linear(), kernel, "kernel")
    grams_a = _LayerGrams("model_a", model_a, layers, kernel, unbiased)
    grams_b = _LayerGrams("model_b", model_b, layers if layers_b is None else layers_b, kernel, unbiased)
    ab = aa = bb = torch.zeros((), dtype=torch.float64)
    with evaluating(model_a, model_b), torch.inference_mode():
        for batch in _batches(images, batch_size):
            a = grams_a(batch)
            b = grams_b(batch).to(a.device)
            # Inner products of centered Grams are HSIC times n (n - 3) or n^2; the weight of a batch is another n.
            weight = 1 / (len(batch) - 3) if unbiased else 1 / len(batch)
            ab = ab + weight * (a @ b.T)
            aa = aa + weight * a.square().sum(dim=1)
            bb = bb + weight * b.square().sum(dim=1)
    for grams, own in ((grams_a, aa), (grams_b, bb)):
        if bad := [name for name, value in zip(grams.names, own.tolist(), strict=True) if not 0 < value < float("inf")]:
            raise ValueError(f"CKA is not defined for layers {bad} of {grams.owner}: constant or not finite there")
    matrix = (ab / (aa.sqrt()[:, None] * bb.sqrt())).cpu().numpy()
    return pd.DataFrame(matrix, pd.Index(grams_a.names, name="model_a"), pd.Index(grams_b.names, name="model_b"))


class _LayerGrams:
    """Called on a batch of images, returns the centered Grams of a model's layers, `(layers, n * n)` in float64."""

    def __init__(self, owner: str, model: Module, layers: Sequence[str] | None, kernel: Kernel, unbiased: bool) -> None:
        self.owner, self.model, self.kernel, self.unbiased = owner, model, kernel, unbiased
        modules = dict(check_type(owner, model, Module).named_modules())
        if layers is not None and not (isinstance(layers, list | tuple) and all(isinstance(n, str) for n in layers)):
            raise TypeError(f"layers must be a list of names, got {layers!r:.80}")
        if layers is not None and not layers:
            raise ValueError(f"layers must name at least one layer of {owner}, got none; None means all")
        self.required = [] if layers is None else list(layers)
        for name in [name for name in self.required if name not in modules]:
            close = get_close_matches(name, modules, n=5, cutoff=0.4) or list(modules)[1:6]
            raise ValueError(f"{owner} has no layer {name!r}; close: {', '.join(map(repr, close))}")
        leaves = [name for name, module in modules.items() if not any(module.children())]
        self.modules = {name: modules[name] for name in self.required or leaves}
        self.fitted: dict[str, Kernel] = {}
        self.names: list[str] = []

    def __call__(self, images: Tensor) -> Tensor:
        images = model_input(self.model, images)
        grams: dict[str, Tensor] = {}
        calls: Counter[str] = Counter()

        def hook(name: str, module: Module, inputs: tuple, output: object) -> None:
            calls[name] += 1
            label = name if calls[name] == 1 else f"{name}#{calls[name]}"
            grams[label] = self._centered_gram(label, output, len(images))

        with ExitStack() as hooks:
            for name, module in self.modules.items():
                hooks.callback(module.register_forward_hook(partial(hook, name)).remove)
            self.model(images)
        if missing := [name for name in self.required if name not in grams]:
            raise ValueError(f"layers {missing} of {self.owner} are not called in its forward pass")
        if not grams:
            raise ValueError(f"{self.owner} calls none of its modules in its forward pass")
        names = list(grams)  # in the order of the calls
        if self.required:
            names.sort(key=lambda label: self.required.index(label.split("#")[0]))
        if self.names and self.names != names:
            raise ValueError(f"{self.owner} called layers {self.names} on the first batch, then {names}")
        self.names = names
        return torch.stack([grams[name].to(grams[names[0]].device) for name in names])

    def _centered_gram(self, label: str, output: object, n: int) -> Tensor:
        if not isinstance(output, Tensor):
            raise TypeError(f"layer {label!r} of {self.owner} must return a tensor, got {type(output).__name__}")
        if output.ndim == 0 or len(output) != n:
            raise ValueError(f"layer {label!r} of {self.owner} must return {n} rows, got shape {tuple(output.shape)}")
        x = with_float64(output.reshape(n, -1))
        try:
            kernel = self.fitted.setdefault(label, self.kernel.fit(x))
            if is_constant(x):  # exactly 0, instead of rounding
                return torch.zeros(n * n, dtype=torch.float64, device=x.device)
            gram = kernel(at_origin(x, kernel))
        except (TypeError, ValueError) as error:
            raise type(error)(f"layer {label!r} of {self.owner}: {error}") from error
        return (u_center(gram) if self.unbiased else center(gram.double())).flatten()


def _batches(images: Tensor | Iterable[Any], batch_size: int) -> Iterator[Tensor]:
    """Checked batches without labels; one of fewer than 4 rows joins the one before it, the first one the next."""
    batch_size = check_integer("batch_size", batch_size, 1)
    latest = None
    if not isinstance(images, Iterable) or isinstance(images, type) or getattr(images, "ndim", 1) == 0:
        raise TypeError(f"images must be a tensor (n, c, h, w) or an iterable of batches, got {images!r:.80}")
    for batch in as_tensor(images, "images").split(batch_size) if isinstance(images, Tensor) else images:
        batch = batch[0] if isinstance(batch, tuple | list) else batch
        check_images(batch)
        if latest is not None and min(len(latest), len(batch)) < 4:
            batch = torch.cat([latest, batch])
        elif latest is not None:
            yield latest
        latest = batch
    if latest is None or len(latest) < 4:
        raise ValueError(f"needs at least 4 images, got {0 if latest is None else len(latest)}")
    yield latest

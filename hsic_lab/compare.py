"""Layer by layer, how alike are two networks? CKA between all their activations on the same images."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from difflib import get_close_matches

import pandas as pd
import torch
from torch import Tensor, nn

from hsic_lab._checks import check_choice
from hsic_lab.cka import alike, u_center, varies
from hsic_lab.evaluation._features import check_images, evaluating, model_input
from hsic_lab.hsic._estimators import center
from hsic_lab.kernels import Kernel, Linear


def compare_models(
    model_a: nn.Module,
    model_b: nn.Module,
    images: Tensor | Iterable[Tensor | Sequence[Tensor]],
    layers: Sequence[str] | None = None,
    layers_b: Sequence[str] | None = None,
    batch_size: int = 256,
    kernel: Kernel | None = None,
    estimator: str = "unbiased",
) -> pd.DataFrame:
    """CKA of every layer of `model_a` (rows) with every layer of `model_b` (columns), a labelled frame.

    `images` is a tensor, cut into batches of `batch_size`, or an iterable of batches, which may be shuffled and may
    hold labels after the images, as a DataLoader's do; uint8 is normalized to [-1, 1]. Each batch goes through both
    models, so rows always belong together. Activations `(n, ...)` are flattened to `(n, p)` and turned into Gram
    matrices the moment the layer returns them: a later in-place operation does not reach them, and memory holds one
    `(n, n)` Gram per layer. Batches are put together as in `MinibatchCKA`: HSIC averaged with rows as weights, then
    the ratio; a batch of fewer than 4 images joins the one before; a bandwidth rule is fitted on the first batch.
    `estimator="biased"` depends on the batch size and is there to show that.

    `layers` are module names as in `model.named_modules()` (`""` is the model itself); left out, all modules without
    submodules that the forward pass calls, in the order of the calls. `layers_b` left out means `layers`. A
    module's second call in one pass is a layer of its own, `name#2`.

    Both models run in eval mode without gradients, each on its device; their training flags come back and the hooks
    go, also after an exception. Raises ValueError for unknown layers (naming close ones), layers that are not
    called, do not return one row an image, or are constant (CKA is not defined), for fewer than 4 images; TypeError
    for layers that return something other than a floating tensor.
    """
    unbiased = check_choice(estimator, ("biased", "unbiased"), "estimator") == "unbiased"
    tap_a = _Tap("model_a", model_a, layers, kernel or Linear(), unbiased)
    tap_b = _Tap("model_b", model_b, layers if layers_b is None else layers_b, kernel or Linear(), unbiased)
    ab = aa = bb = 0.0
    with evaluating(model_a, model_b), torch.inference_mode():
        for batch in _joined(_batches(images, batch_size)):
            n = len(batch)
            a, b = tap_a(batch), tap_b(batch)
            b = b.to(a.device)
            # Inner products of centered Grams are HSIC times n(n - 3) or n^2; another n is the batch's weight.
            weight = 1 / (n - 3) if unbiased else 1 / n
            ab = ab + weight * (a @ b.T)
            aa = aa + weight * a.square().sum(dim=1)
            bb = bb + weight * b.square().sum(dim=1)
    for tap, self_hsic in ((tap_a, aa), (tap_b, bb)):
        flat = [name for name, value in zip(tap.found, self_hsic.tolist(), strict=True) if not 0 < value < float("inf")]
        if flat:
            raise ValueError(
                f"CKA is not defined for layers {flat} of {tap.owner}: HSIC with themselves is not positive and finite "
                "(constant on these images); leave them out of the layers"
            )
    matrix = (ab / (aa.sqrt()[:, None] * bb.sqrt())).cpu().numpy()
    return pd.DataFrame(
        matrix, index=pd.Index(tap_a.found, name="model_a"), columns=pd.Index(tap_b.found, name="model_b")
    )


class _Tap:
    """Called on a batch, gives the centered Grams of a model's layers, `(layers, n * n)` in float64."""

    def __init__(
        self, owner: str, model: nn.Module, layers: Sequence[str] | None, kernel: Kernel, unbiased: bool
    ) -> None:
        self.owner, self.model, self.kernel, self.unbiased = owner, model, kernel, unbiased
        modules = dict(model.named_modules())
        if isinstance(layers, str):
            raise TypeError(f"layers must be a list of names, got the string {layers!r}")
        if layers is not None and not layers:
            raise ValueError(f"layers must name at least one layer of {owner}, got none; None means all")
        self.required = [] if layers is None else list(layers)
        for name in self.required:
            if name not in modules:
                close = get_close_matches(name, modules, n=5, cutoff=0.4) or list(modules)[1:6]
                raise ValueError(f"{owner} has no layer {name!r}; close: {', '.join(map(repr, close))}")
        leaves = [name for name, module in modules.items() if not any(module.children())]
        self.modules = {name: modules[name] for name in self.required or leaves}
        self.fitted: dict[str, Kernel] = {}
        self.found: list[str] = []

    def __call__(self, images: Tensor) -> Tensor:
        images = model_input(self.model, images)
        with self._listening(len(images)) as grams:
            self.model(images)
        missing = [name for name in self.required if name not in grams]
        if missing:
            raise ValueError(f"layers {missing} of {self.owner} are not called in its forward pass")
        if not grams:
            raise ValueError(f"{self.owner} calls none of its modules in its forward pass")
        names = list(grams)  # in the order of the calls
        if self.required:
            names.sort(key=lambda label: self.required.index(label.split("#")[0]))
        if self.found and self.found != names:
            raise ValueError(f"{self.owner} called layers {self.found} on the first batch, then {names}")
        self.found = names
        first = grams[names[0]].device
        return torch.stack([grams[name].to(first) for name in names])

    @contextmanager
    def _listening(self, n: int) -> Iterator[dict[str, Tensor]]:
        """Forward hooks that fill a dict of centered Grams, gone at the end."""
        grams: dict[str, Tensor] = {}
        calls: Counter[str] = Counter()

        def hook(name: str):
            def listen(module: nn.Module, inputs: tuple, output: object) -> None:
                calls[name] += 1
                label = name if calls[name] == 1 else f"{name}#{calls[name]}"
                grams[label] = self._centered_gram(label, output, n)

            return listen

        with ExitStack() as hooks:
            for name, module in self.modules.items():
                hooks.callback(module.register_forward_hook(hook(name)).remove)
            yield grams

    def _centered_gram(self, label: str, output: object, n: int) -> Tensor:
        if not isinstance(output, Tensor):
            raise TypeError(f"layer {label!r} of {self.owner} must return a tensor, got {type(output).__name__}")
        if output.ndim == 0 or len(output) != n:
            raise ValueError(
                f"layer {label!r} of {self.owner} must return {n} rows, one an image, got shape {tuple(output.shape)}"
            )
        x = output.reshape(n, -1)
        try:
            kernel = self.fitted.setdefault(label, self.kernel.fit(x))
            if not varies(x):  # exactly 0, where rounding could pass for a signal
                return torch.zeros(n * n, dtype=torch.float64, device=x.device)
            # As in hsic: the origin of a linear kernel changes its rounding error alone.
            gram = kernel(x - x.mean(dim=0) if isinstance(kernel, Linear) else x)
        except (TypeError, ValueError) as error:
            raise type(error)(f"layer {label!r} of {self.owner}: {error}") from error
        if self.unbiased and alike(gram):
            return torch.zeros(n * n, dtype=torch.float64, device=x.device)
        return (u_center if self.unbiased else center)(gram.double()).flatten()


def _batches(images: Tensor | Iterable[Tensor | Sequence[Tensor]], batch_size: int) -> Iterator[Tensor]:
    """Batches of images, checked; what follows the images in a batch (labels) is left out."""
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    for batch in images.split(batch_size) if isinstance(images, Tensor) and images.ndim else images:
        batch = batch[0] if isinstance(batch, tuple | list) else batch
        if not isinstance(batch, Tensor):
            raise TypeError(f"a batch of images must be a tensor, got {type(batch).__name__}")
        check_images(batch)
        yield batch


def _joined(batches: Iterator[Tensor]) -> Iterator[Tensor]:
    """The batches, those of fewer than 4 rows joined to the one before (the first: to the one after)."""
    latest = None
    for batch in batches:
        if latest is None:
            latest = batch
        elif min(len(latest), len(batch)) < 4:
            latest = torch.cat([latest, batch])
        else:
            yield latest
            latest = batch
    if latest is None or len(latest) < 4:
        raise ValueError(f"needs at least 4 images, got {0 if latest is None else len(latest)}")
    yield latest

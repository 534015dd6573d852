"""Comparison of two networks, layer by layer: CKA, shared nearest neighbors and Procrustes similarity."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from difflib import get_close_matches
from functools import partial
from itertools import chain
from typing import Any, NamedTuple

import pandas as pd
import torch
from torch import Tensor
from torch.nn import Module

from hsic_lab.cka import gram_and_diagonal
from hsic_lab.evaluation import check_images, evaluating, model_input
from hsic_lab.hsic._estimators import paired_samples
from hsic_lab.kernels import Kernel, Linear, kernel_or, require_finite, squared_distances

from hsic_lab._checks import (  # isort: skip
    as_tensor, at_least_float32, check_choice, check_integer, check_type, is_constant, no_autocast, seeded,
    with_float64,
)  # fmt: skip

__all__ = ["LayerTests", "compare_models", "mutual_knn", "procrustes"]

MEASURES = {"cka": "CKA", "mutual_knn": "mutual kNN", "procrustes": "Procrustes similarity"}
_TIE = 1e-12  # values of a permutation that differ by less are equal up to rounding


class LayerTests(NamedTuple):
    """Similarity of every pair of layers and its permutation test: tables with rows for `model_a`, columns for b."""

    similarity: pd.DataFrame
    pvalue: pd.DataFrame  # of each pair alone
    adjusted: pd.DataFrame  # for the number of pairs
    calibrated: pd.DataFrame  # 0 for what chance reaches in 95 of 100 permutations, 1 for equal layers


def compare_models(
    model_a: Module, model_b: Module, images: Tensor | Mapping[str, Tensor] | Iterable[Any],
    layers: Sequence[str] | None = None, layers_b: Sequence[str] | None = None, batch_size: int = 256,
    kernel: Kernel | None = None, estimator: str = "unbiased", *, pooling: str = "flatten", measure: str = "cka",
    k: int = 10, sampled_features: bool = False, permutations: int | None = None, seed: int = 0,
) -> pd.DataFrame | LayerTests:  # fmt: skip
    """Similarity of every layer of one network to every layer of another, on the same images.

    Batches are combined as in `MinibatchCKA`. Both models run in eval mode without gradients; their training flags are
    restored and the hooks removed, also after an error. Activations of half precision are compared in float32.

    Of an output that is no tensor, `last_hidden_state` is taken, else the first entry of a tuple or the only tensor of
    a dict; the label of the layer says which, as in ``lstm[0]``.

    The layers of `model_a` are the index of the table, those of `model_b` its columns. With `permutations` the result
    is a named tuple ``similarity, pvalue, adjusted, calibrated`` of such tables. `pvalue` is ``(1 + #) / (1 +
    permutations)`` with the number # of permuted values that reach the observed one. `adjusted` compares with the
    largest standardized value of all pairs (Westfall and Young 1993). `calibrated` is ``max(0, (s - t) / (1 - t))`` for
    the similarity s and the 95 % quantile t of observed and permuted values (Gröger et al. 2026, arXiv:2602.14486).

    Parameters
    ----------
    model_a, model_b : Module
        The networks, each on its device.
    images : Tensor of shape (n, c, h, w), dict of tensors or iterable of batches
        At least 4 images, uint8 or normalized. Batches may hold labels after the images, as those of a DataLoader. The
        tensors of a dict, without "label" and "labels", are the keyword arguments of both models.
    layers, layers_b : sequence of str, optional
        Names from ``model.named_modules()``. None means all called modules without submodules, in the order of the
        calls, and for `layers_b` `layers`. The second call of a module in one pass is a layer of its own, ``name#2``.
    batch_size : int, default 256
        Rows of a batch if `images` is a tensor or a dict.
    kernel, estimator
        As in `cka`; a median rule is fitted for each layer to the first batch. "biased" depends on the batch size.
    pooling : {"flatten", "mean", "cls"}, default "flatten"
        How activations become rows. "flatten" keeps all values. "mean" averages tokens (n, tokens, features), of which
        an ``attention_mask`` of the batch leaves some out, and the positions of feature maps (n, channels, ...). "cls"
        takes the first token. The labels of pooled layers say so.
    measure : {"cka", "mutual_knn", "procrustes"}, default "cka"
        `cka`, or `mutual_knn` with `k` neighbors or `procrustes`, which both depend on the batch size.
    k : int, default 10
        Neighbors for "mutual_knn", fewer than the rows of a batch.
    sampled_features : bool, default False
        Correct unbiased linear CKA for features that are a random sample of many, as recorded neurons are (Chun et al.
        2025, arXiv:2502.15104): HSIC(x, x) loses the products of features with themselves. The two models' features
        must be sampled independently. The ratio can exceed 1 and is not clipped: for features that are random linear
        functions of four variables, with a true CKA of 1, it is 1.11 on average for 8 features, with a standard
        deviation of 0.27 (uncorrected 0.66), and 1.02 for 32 features, with one of 0.06 (uncorrected 0.88).
    permutations, seed : int or None, and int
        Also test every pair of layers: compute the similarity so many times, 19 or more, with the rows of `model_b`
        permuted within each batch. One permutation serves all pairs.

    Examples
    --------
    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(6, 4), torch.nn.ReLU())
    >>> table = compare_models(model, model, torch.randn(20, 6), layers=["0", "1"])
    >>> round(float(table.loc["0", "0"]), 6)
    1.0
    """
    unbiased = check_choice(estimator, ("biased", "unbiased"), "estimator") == "unbiased"
    check_choice(pooling, ("flatten", "mean", "cls"), "pooling")
    is_cka = check_choice(measure, tuple(MEASURES), "measure") == "cka"
    if not is_cka and (kernel is not None or not unbiased or sampled_features):
        given = f"kernel={kernel!r}, estimator={estimator!r}, sampled_features={sampled_features!r}"
        raise ValueError(f"{measure!r} has no kernel, estimator or sampled features, got {given}")
    kernel = kernel_or(Linear(), kernel, "kernel")
    if sampled_features and not (unbiased and isinstance(kernel, Linear)):
        raise ValueError(f"sampled_features needs unbiased linear CKA, got {kernel!r} and estimator={estimator!r}")
    options = measure, kernel, unbiased, sampled_features, check_integer("k", k, 1), pooling
    side_a = _Layers("model_a", model_a, layers, *options)
    side_b = _Layers("model_b", model_b, layers if layers_b is None else layers_b, *options)
    draws = 0 if permutations is None else check_integer("permutations", permutations, 19)
    generator, own_a, own_b, sums = seeded(seed), *torch.zeros(3, dtype=torch.float64)
    with evaluating(model_a, model_b), torch.inference_mode():
        for batch in _batches(images, batch_size):
            n = len(next(iter(batch.values())))
            # Inner products of centered Grams are HSIC times n (n - 3) or n^2; the weight of a batch is another n.
            weight = 1 / (n - 3) if unbiased and is_cka else 1 / n if is_cka else 1
            (a, norms_a), (b, norms_b) = side_a(batch), side_b(batch)
            b = [z.to(a[0].device) for z in b]
            orders = [torch.randperm(n, generator=generator) for _ in range(draws)]
            # A sum that starts as a number on the CPU takes the device of what is added.
            own_a, own_b = own_a + weight * norms_a, own_b + weight * norms_b.to(norms_a.device)
            sums = sums + weight * _products(a, b, orders, measure)
    for side, own in ((side_a, own_a), (side_b, own_b)):
        if bad := [name for name, value in zip(side.labels, own.tolist(), strict=True) if not 0 < value < float("inf")]:
            why = "constant or not finite there" + ", or too few features" * sampled_features
            raise ValueError(f"{MEASURES[measure]} is not defined for layers {bad} of {side.owner}: {why}")
    values = (sums / (own_a.sqrt()[:, None] * own_b.sqrt())).cpu()

    def table(matrix: Tensor) -> pd.DataFrame:
        names = pd.Index(side_a.labels, name="model_a"), pd.Index(side_b.labels, name="model_b")
        frame = pd.DataFrame(matrix.double().numpy(), *names)
        frame.attrs["measure"] = MEASURES[measure]
        return frame

    if permutations is None:
        return table(values[0])
    observed, spread = values[0], values.std(dim=0)
    scores = ((values - values.mean(dim=0)) / spread).where(spread > _TIE, 0)
    largest = scores.flatten(1).amax(dim=1)[:, None, None]
    limit = values.kthvalue(-(-19 * len(values) // 20), dim=0).values
    # Sampled features can have a limit above 1, and then nothing exceeds chance by a share of what is left.
    calibrated = ((observed - limit) / (1 - limit)).where((observed > limit + _TIE) & (limit < 1), 0)
    pvalue = (values >= observed - _TIE).double().mean(dim=0)
    return LayerTests(*map(table, (observed, pvalue, (largest >= scores[0] - 1e-9).double().mean(dim=0), calibrated)))


def mutual_knn(x: Tensor, y: Tensor, k: int = 10) -> Tensor:
    """Share of the k nearest neighbors of a row in `x` that are among its k nearest in `y`, averaged over the rows.

    With the matrices A and B of the neighbors (1 or 0) it is ``<A, B> / (||A|| ||B||)``, an alignment like `cka`, but
    of the nearest rows alone. For unrelated samples it is ``k / (n - 1)`` on average. Rows as far as the k-th neighbor
    share the places that are left. Huh et al. (2024, arXiv:2405.07987) normalize the rows first.

    Parameters
    ----------
    x, y : Tensor of shape (n, p), (n, q)
        Samples whose rows belong together. Distances are Euclidean.
    k : int, default 10
        Number of neighbors, from 1 to n - 1.

    Examples
    --------
    >>> import torch
    >>> x = torch.arange(30.0)
    >>> mutual_knn(x, 3 - 2 * x, k=4)
    tensor(1., dtype=torch.float64)
    """
    return _similarity(x, y, partial(_neighbors, k=k), "mutual_knn")


def procrustes(x: Tensor, y: Tensor) -> Tensor:
    """Procrustes similarity, ``sum_k s_k / (||X||_F ||Y||_F)`` with the singular values s_k of X'Y, columns centered.

    It is 1 if a rotation or reflection, a shift and a scale turn one sample into the other, and the largest share that
    they reach: ``1 - min ||X R - Y||_F^2 / 2`` over orthogonal R for samples of norm 1. Biased linear `cka` has the
    squares of the same s_k, ``HSIC = sum_k s_k^2 / n^2``, so it weighs the strongest directions more. Like biased CKA
    it grows with the number of columns. Samples are those of `mutual_knn`.

    Examples
    --------
    >>> import torch
    >>> x = torch.randn(50, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    >>> round(procrustes(x, 5 - 2 * x.flip(1)).item(), 6)
    1.0
    """
    return _similarity(x, y, _coordinates, "procrustes")


def _similarity(x: Tensor, y: Tensor, describe: Any, measure: str) -> Tensor:
    x, y = (z.detach() for z in paired_samples(x, y, Linear(), Linear(), at_least=2))
    for name, z in (("x", x), ("y", y)):
        if is_constant(z):
            raise ValueError(f"{name} is constant: all {len(z)} rows are equal, and its similarity is not defined")
    a, b = describe(x), describe(y)
    return _products([a], [b], [], measure).squeeze() / (a.norm() * b.norm())


def _neighbors(x: Tensor, k: int) -> Tensor:
    """1 for each of the k nearest other rows `(n, n)`; those as far as the k-th share the places that are left."""
    k = check_integer("k", k, 1, len(x) - 1)
    distances = require_finite(squared_distances(x), Linear()).fill_diagonal_(torch.inf)
    limit = distances.kthvalue(k, dim=1, keepdim=True).values
    nearer, tied = distances < limit, distances == limit
    places = k - nearer.sum(dim=1, keepdim=True, dtype=torch.float64)
    return nearer + tied * (places / tied.sum(dim=1, keepdim=True))


def _coordinates(x: Tensor) -> Tensor:
    """Centered rows in float64, turned into n columns if there are more."""
    x = x.double() - x.double().mean(dim=0)
    return x if x.shape[1] <= len(x) else torch.linalg.qr(x.T, mode="r").R.T


def _products(a: list[Tensor], b: list[Tensor], orders: Sequence[Tensor], measure: str) -> Tensor:
    """Products of all layers of a and b, as they are and for each order of the rows of b: `(1 + orders, a, b)`."""
    orders = [order.to(a[0].device) for order in orders]
    if measure == "procrustes":
        nuclear = partial(torch.linalg.matrix_norm, ord="nuc")
        products = [nuclear(x.T @ y) for z in ([b, *([y[order] for y in b] for order in orders)]) for x in a for y in z]
        return torch.stack(products).view(-1, len(a), len(b))
    flat, others = torch.stack(a).flatten(1), torch.stack(b)
    permuted = (others[:, order][:, :, order] for order in orders)
    return torch.stack([flat @ z.flatten(1).T for z in (others, *permuted)])


class _Layers:
    """Called on a batch, returns what the measure compares of every layer of a model, and its squared norms."""

    def __init__(
        self, owner: str, model: Module, layers: Sequence[str] | None, measure: str, kernel: Kernel, unbiased: bool,
        sampled_features: bool, k: int, pooling: str,
    ) -> None:  # fmt: skip
        self.owner, self.model, self.measure, self.kernel, self.unbiased = owner, model, measure, kernel, unbiased
        self.sampled_features, self.k, self.pooling = sampled_features, k, pooling
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
        self.labels: list[str] = []

    def __call__(self, batch: Mapping[str, Tensor]) -> tuple[list[Tensor], Tensor]:
        batch = {name: self._input(tensor) for name, tensor in batch.items()}
        found: dict[str, tuple[str, Tensor, Tensor]] = {}
        calls: Counter[str] = Counter()

        def hook(name: str, module: Module, inputs: tuple, output: object) -> None:
            calls[name] += 1
            key = name if calls[name] == 1 else f"{name}#{calls[name]}"
            label, x = self._rows(key, output, batch)
            try:
                with no_autocast(x):
                    found[key] = label, *self._described(key, x)
            except (TypeError, ValueError) as error:
                raise type(error)(f"layer {label!r} of {self.owner}: {error}") from error

        with ExitStack() as hooks:
            for name, module in self.modules.items():
                hooks.callback(module.register_forward_hook(partial(hook, name)).remove)
            self.model(*batch.values()) if "" in batch else self.model(**batch)
        if missing := [name for name in self.required if name not in found]:
            raise ValueError(f"layers {missing} of {self.owner} are not called in its forward pass")
        if not found:
            raise ValueError(f"{self.owner} calls none of its modules in its forward pass")
        keys = list(found)  # in the order of the calls
        if self.required:
            keys.sort(key=lambda key: self.required.index(key.split("#")[0]))
        labels, matrices, norms = (list(part) for part in zip(*(found[key] for key in keys), strict=True))
        if self.labels and self.labels != labels:
            raise ValueError(f"{self.owner} called layers {self.labels} on the first batch, then {labels}")
        self.labels, device = labels, matrices[0].device
        return [matrix.to(device) for matrix in matrices], torch.stack([norm.to(device) for norm in norms])

    def _input(self, tensor: Tensor) -> Tensor:
        if tensor.is_floating_point() or (tensor.dtype == torch.uint8 and tensor.ndim == 4):
            return model_input(self.model, tensor)
        weights = chain(self.model.parameters(), self.model.buffers())
        return tensor.to(next((w.device for w in weights), tensor.device))  # token ids and masks keep their dtype

    def _rows(self, label: str, output: object, batch: Mapping[str, Tensor]) -> tuple[str, Tensor]:
        """The label of a layer and its activations `(n, p)`, in float32 or better."""
        layer, n = f"layer {label!r} of {self.owner}", len(next(iter(batch.values())))
        x = output
        if not isinstance(x, Tensor):
            other = {0: x[0]} if isinstance(x, tuple | list) and x else getattr(x, "__dict__", {})
            tensors = {key: z for key, z in (x if isinstance(x, Mapping) else other).items() if isinstance(z, Tensor)}
            single = len(tensors) == 1 and isinstance(x, Mapping | tuple | list)
            key = next(iter(tensors)) if single else "last_hidden_state"
            if key not in tensors:
                accepted = "a tensor, a tuple that starts with one, a dict of one tensor or last_hidden_state"
                found = f" with {list(x)}" if isinstance(x, Mapping) else ""
                raise TypeError(f"{layer} must return {accepted}, got {type(x).__name__}{found}")
            label, x = label + (f".{key}" if key == "last_hidden_state" else f"[{key!r}]"), tensors[key]
        if x.ndim == 0 or len(x) != n:
            raise ValueError(f"{layer} must return {n} rows, got shape {tuple(x.shape)}")
        x, mask = at_least_float32(with_float64(x)), batch.get("attention_mask")
        if self.pooling == "cls" and x.ndim > 3:
            raise ValueError(f"pooling='cls' needs tokens (n, tokens, features), {layer} returns {tuple(x.shape)}")
        if self.pooling == "cls" and x.ndim == 3:
            return f"{label} (first token)", x[:, 0]
        if self.pooling == "mean" and x.ndim == 3:
            fits = mask is None or mask.shape == x.shape[:2]  # a layer may add tokens or merge them
            weights = torch.ones_like(x[..., :1]) if mask is None or not fits else mask[..., None]
            kind = "tokens" if fits else "all tokens, also masked ones"
            return f"{label} (mean over {kind})", (x * weights.to(x)).sum(dim=1) / weights.sum(dim=1)
        if self.pooling == "mean" and x.ndim > 3:
            return f"{label} (mean over positions)", x.flatten(2).mean(dim=2)
        return label, x.reshape(n, -1)

    def _described(self, key: str, x: Tensor) -> tuple[Tensor, Tensor]:
        """What the measure compares, and its squared norm: exactly 0 for equal rows, instead of rounding."""
        x = self.kernel.samples(x, "x")
        if key not in self.fitted:
            self.fitted[key] = self.kernel.fit(x)
        kernel, (n, p) = self.fitted[key], x.shape
        if is_constant(x):
            return x.new_zeros(n, n, dtype=torch.float64), x.new_zeros((), dtype=torch.float64)
        if self.measure != "cka":
            z = _neighbors(x, self.k) if self.measure == "mutual_knn" else _coordinates(x)
            return z, z.square().sum()
        gram, _ = gram_and_diagonal(kernel, x, "unbiased" if self.unbiased else "biased")
        own = gram.square().sum()
        if self.sampled_features:
            if p == 1:
                raise ValueError("sampled_features needs at least 2 features, got 1")
            squares = (x.double() - x.double().mean(dim=0)).square()
            s, fourth = squares.sum(dim=0), squares.square().sum(dim=0)
            # n (n - 3) HSIC of each feature with itself, the unbiased estimate in closed form.
            alone = s.square() * (1 + 1 / ((n - 1) * (n - 2))) - fourth * (n / (n - 2))
            own = (own - alone.sum()) * (p / (p - 1))
        return gram, own


def _batches(images: Any, batch_size: int) -> Iterator[dict[str, Tensor]]:
    """Checked batches without labels; one of fewer than 4 rows joins the one before it, the first one the next."""
    batch_size = check_integer("batch_size", batch_size, 1)
    latest: dict[str, Tensor] = {}
    n = 0
    if not isinstance(images, Iterable) or isinstance(images, type) or getattr(images, "ndim", 1) == 0:
        raise TypeError(f"images must be a tensor (n, c, h, w) or an iterable of batches, got {images!r:.80}")
    if isinstance(images, Tensor | Mapping):
        whole = _named(as_tensor(images, "images") if isinstance(images, Tensor) else images)
        rows = len(next(iter(whole.values())))
        parts = ({name: z[i : i + batch_size] for name, z in whole.items()} for i in range(0, rows, batch_size))
    else:
        parts = map(_named, images)  # type: ignore[assignment]
    for batch in parts:
        rows = len(next(iter(batch.values())))
        if latest and min(n, rows) < 4:
            for name, z in batch.items():
                if name not in latest or z.shape[1:] != latest[name].shape[1:]:
                    raise ValueError(f"a batch of {min(n, rows)} rows cannot join its neighbor: {name!r} differs")
            batch, rows = {name: torch.cat([latest[name], z]) for name, z in batch.items()}, n + rows
        elif latest:
            yield latest
        latest, n = batch, rows
    if n < 4:
        raise ValueError(f"needs at least 4 images, got {n}")
    yield latest


def _named(batch: Any) -> dict[str, Tensor]:
    """The tensors of a batch by the names of the models' arguments, "" for images alone."""
    if isinstance(batch, Mapping):
        named = {name: z for name, z in batch.items() if name not in ("label", "labels")}
        if not named or not all(isinstance(z, Tensor) and z.ndim for z in named.values()):
            kinds = {name: type(z).__name__ for name, z in named.items()}
            raise TypeError(f"a batch that is a dict must hold tensors with rows by argument name, got {kinds}")
        if len({len(z) for z in named.values()}) > 1:
            raise ValueError(f"a batch must have one number of rows, got { {k: len(z) for k, z in named.items()} }")
        return named
    batch = batch[0] if isinstance(batch, tuple | list) else batch
    check_images(batch)
    return {"": batch}
